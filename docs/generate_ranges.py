"""Writes docs/ranges.md from the configs' fields and the relations between them: python docs/generate_ranges.py"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from generate_config import configs

from ft_host import registry
from ft_host.config import GroupedRolloutConfig, ReferenceConfig, RunConfig, Usual
from ft_host.config.fields import Field, fields_of
from ft_host.config.rollout import RolloutConfig
from ft_host.config.text import yaml_text
from ft_host.config.usual import SYMPTOMS
from ft_host.diagnostics.collect import own_diagnostics
from ft_host.diagnostics.rules.relations import SUSPECTS
from ft_host.diagnostics.suspects import Function

ROOT = Path(__file__).resolve().parent.parent
SHARED = (GroupedRolloutConfig, RolloutConfig, ReferenceConfig, RunConfig)
HEAD = """\
# Usual ranges

<!-- Written by docs/generate_ranges.py from the fields and the rules themselves; change them there. -->

What numbers others train with, by field, and where that is from. A value beyond its range is allowed: the run notes it
before training ([CFG010](rules/CFG010.md)), as a warning where it is so far off that it can't be meant. If the run then
suffers from what the value explains, that field is the first remedy, before another learning rate.

A field's default is always usual, and so is whatever turns something off (`max_grad_norm: 0`). Fields that aren't here
have no usual range: their size follows from the data, the model or the machine. Learning rates, warm-up, LoRA's scale
and what else depends on other fields are [below](#relations).

A method of your own declares its ranges in the same way: `option(..., usual=Usual(low=0.01, high=1, ...))`, and
relations as `SUSPECTS` beside its rules ([diagnostics.md](diagnostics.md#ranges-and-suspects)).

What a value may explain:

| symptom | means |
| --- | --- |
"""


def generate() -> str:
    """The text of docs/ranges.md: the ranges of the fields of every run, of runs with rollouts, and of each method and
    backend in plugins/; then the relations."""
    parts = [HEAD + "\n".join(f"| {name} | {words} |" for name, words in SYMPTOMS.items()) + "\n"]
    parts.append(section("## Every run", list(fields_of(RunConfig).values())))
    parts.append(section("## Every method with rollouts", beyond(RolloutConfig, [RunConfig])))
    of_groups = beyond(GroupedRolloutConfig, [RolloutConfig])
    parts.append(section("## Every method with several completions of a prompt", of_groups))
    parts.append(section("## Every method with a reference", beyond(ReferenceConfig, [RunConfig])))
    found = list(configs())
    for name, config_class in found:
        bases = [base for base in SHARED if issubclass(config_class, base)]
        parts.append(section(f"## {name}", beyond(config_class, bases)))
    parts.append("## Relations\n\nOf every run:\n\n" + listed(SUSPECTS))
    for name, config_class in found:
        if issubclass(config_class, RunConfig) and (own := suspects_in(name)):
            parts.append(f"Of {name}:\n\n{listed(own)}")
    return "\n".join(part for part in parts if part)


def beyond(config_class: type, bases: Sequence[type]) -> list[Field]:
    """The fields whose ranges aren't those that one of `bases` has."""
    shared = [(name, field.usual) for base in bases for name, field in fields_of(base).items()]
    return [field for field in fields_of(config_class).values() if (field.name, field.usual) not in shared]


def section(heading: str, fields: Sequence[Field]) -> str:
    lines = [row(field, usual) for field in fields for usual in field.usual]
    if not lines:
        return ""
    head = "| field | usual | below it | above it | why | source |\n| --- | --- | --- | --- | --- | --- |"
    return "\n".join([heading, "", head, *lines]) + "\n"


def row(field: Field, usual: Usual) -> str:
    only = "; ".join(f"`{name}` {said(values)}" for name, values in usual.only.items())
    off = f"; {', '.join(map(yaml_text, usual.off))} is off" if usual.off else ""
    explains = [", ".join(each) or ("" if bound is None else "-") for each, bound in sides(usual)]
    cells = (
        f"`{field.name}`" + (f", with {only}" if only else ""),
        usual.words + off,
        *explains,
        why(usual),
        usual.source,
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def sides(usual: Usual) -> list[tuple[tuple[str, ...], float | None]]:
    return [(usual.below, usual.low), (usual.above, usual.high)]


def said(values: tuple | range) -> str:
    if isinstance(values, range):
        return f"at least {values.start}"
    return " or ".join(map(yaml_text, values))


def why(usual: Usual) -> str:
    if isinstance(usual.why, str):
        return usual.why
    return f"below: {usual.why[0]}; above: {usual.why[1]}"


def suspects_in(method: str) -> Sequence[Function]:
    modules = [registry.load(info) for info in own_diagnostics(registry.find("method", method))]
    return [each for module in modules for each in vars(module).get("SUSPECTS", ())]


def listed(functions: Sequence[Function]) -> str:
    return "\n".join(f"- {' '.join(function.__doc__.split())}" for function in functions) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "ranges.md").write_text(generate(), encoding="utf-8")
    print(f"wrote {ROOT / 'docs' / 'ranges.md'}", file=sys.stderr)
