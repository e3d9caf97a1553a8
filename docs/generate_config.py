"""Writes docs/config.md from the fields of the configs: python docs/generate_config.py"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from ft_host import registry
from ft_host.config import RunConfig
from ft_host.config.deprecated import Deprecated
from ft_host.config.fields import GROUPS, Field, fields_of
from ft_host.config.rollout import RolloutConfig
from ft_host.config.text import type_text, yaml_text
from ft_host.config.words import bounds

ROOT = Path(__file__).resolve().parent.parent
HEAD = """\
# Config fields

<!-- Written by docs/generate_config.py from the fields themselves; change them there. -->

A field is set in a YAML, TOML or JSON file, by a flag (`--learning-rate 1e-5`, with hyphens or underscores), or in
Python (`SFTConfig(learning_rate=1e-5)`). Flags override the file. `ft-host config METHOD` prints a file to start from,
`ft-host schema METHOD` a JSON schema for an editor, `ft-host train METHOD --help` the same as below, and
`ft-host train METHOD run.yaml --dry-run` every value with where it came from.

- A switch is turned on by its flag alone, and off by `--no-use-peft` or `--use-peft false`.
- A list takes several values after its flag, or the flag several times: `--eval-reward a.py:f b.py:g`. It replaces the
  file's list. `none` empties it.
- Mappings and lists of mappings are written as JSON or YAML: `--dataset-columns '{question: prompt}'`.
- `none` unsets a field that may be unset, as a flag and in a file; in YAML and JSON, `null` does too.
- A file is strict: the text `"8"` is no number, and a field that stands twice is refused.
- A file may say `method: sft`; then `ft-host train run.yaml` is enough.
- Paths start from the folder that ft-host is called in.
"""
ROLLOUTS = """\
## Every method with rollouts

What grpo, rloo and ppo have beyond the fields above, and any method that learns from what it samples.
[rewards.md](rewards.md) and [tools.md](tools.md) say more."""


def generate() -> str:
    """The text of docs/config.md: the fields of every run, those of every run with rollouts, and then those of each
    method and backend in plugins/."""
    parts = [HEAD]
    parts.append("## Every run\n")
    for group, title in GROUPS.items():
        parts.append(section(f"### {title}", [each for each in fields_of(RunConfig).values() if each.group == group]))
    parts.append(section(ROLLOUTS, beyond(RolloutConfig, RunConfig)))
    found = list(configs())
    for name, config_class in found:
        base = next((base for base in (RolloutConfig, RunConfig) if issubclass(config_class, base)), None)
        if base is not None:
            rollouts = " It has the fields of every method with rollouts." if base is RolloutConfig else ""
            about = f"{summary(config_class)}{rollouts} In Python: `{config_class.__module__}.{config_class.__name__}`."
            parts.append(section(f"## {name}\n\n{about}", beyond(config_class, base)))
    for name, config_class in found:
        if not issubclass(config_class, RunConfig):
            about = f"{summary(config_class)} Given as `backend_config`, with `backend: {name}`."
            parts.append(section(f"## The backend {name}\n\n{about}", list(fields_of(config_class).values())))
    return "\n".join(part for part in parts if part)


def configs() -> Iterator[tuple[str, type]]:
    """Name and config class of each method in plugins/, and of each backend with fields."""
    for file in sorted(ROOT.glob("plugins/*/pyproject.toml")):
        groups = tomllib.loads(file.read_text(encoding="utf-8"))["project"].get("entry-points", {})
        for name in groups.get("ft_host.methods", {}):
            yield name, registry.config_class(name)
        for name in groups.get("ft_host.backends", {}):
            found = registry.backend_config_class(registry.find("backend", name))
            if found is not None:
                yield name, found


def beyond(config_class: type, base: type) -> list[Field]:
    """The fields that `config_class` has beyond those of `base`, or with another default."""
    shared = fields_of(base)
    return [field for field in fields_of(config_class).values() if field != shared.get(field.name)]


def gone(each: Deprecated) -> str:
    """What is said of an old name, or of a field that will go."""
    if each.new:
        return f"Once `{each.old}`, until {each.removed_in}."
    return f"Goes in {each.removed_in}: {each.why}."


def summary(config_class: type) -> str:
    return " ".join((config_class.__doc__ or "").partition("\n\n")[0].split())


def section(heading: str, fields: list[Field]) -> str:
    """A heading and a table of these fields, or nothing where there are none."""
    if not fields:
        return ""
    lines = [heading, "", "| field | takes | default | meaning |", "| --- | --- | --- | --- |"]
    for field in fields:
        unless = f", unless `{field.unless}` is given" if field.unless else ""
        default = f"required{unless}" if field.required else f"`{yaml_text(field.default)}`"
        takes = f"{type_text(field)}{bounds(field)}".replace("|", "\\|")
        meaning = field.help + (f" Also: `{'`, `'.join(field.aliases)}`." if field.aliases else "")
        meaning += "".join(f" {gone(each)}" for each in field.deprecated)
        meaning = meaning.replace("|", "\\|")
        lines.append(f"| `{field.name}` | {takes} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "config.md").write_text(generate(), encoding="utf-8")
    print(f"wrote {ROOT / 'docs' / 'config.md'}", file=sys.stderr)
