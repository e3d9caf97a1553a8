"""What a run of another tool is given, from a command line, a YAML file, or a Python script. Imports nothing heavy."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ft_host.config.files import parse_inline, read_file
from ft_host.config.resolve import refuse
from ft_host.errors import UsageError


@dataclass
class Found:
    """What was read: `method` as it is called there, `values` by name with the place of each, and what is computed by a
    script, so that only a person can say it.

    `tool`: whose names they are. `command`: whether TRL's own script reads them, which fills in the split that it
    evaluates on, say. `written`: what to say of a name that was translated on the way, and `was`: the name there.
    `left` and `same` are as in `Translated`; `defaults`: the tool's own, as in `RunConfig.trl_defaults`.
    """

    method: str | None = None
    values: dict[str, tuple[Any, str]] = field(default_factory=dict)
    computed: list[str] = field(default_factory=list)
    tool: str = "TRL"
    command: bool = True
    written: dict[str, str] = field(default_factory=dict)
    was: dict[str, str] = field(default_factory=dict)
    left: list[tuple[str, Any, str]] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    defaults: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def take(self, name: str, value: Any, place: str) -> None:
        self.values[name.replace("-", "_")] = (value, place)

    def put(self, name: str, value: Any, place: str, written: str) -> None:
        """Take what was made of other fields, with what to say of it."""
        self.take(name, value, place)
        self.written[name] = written

    def became(self, old: str, new: str) -> None:
        """Take an older name of the tool's for the one that the field has now."""
        if old not in self.values:
            return
        value, place = self.values.pop(old)
        if new in self.values:
            self.left.append((old, value, f"{new} is given too"))
        else:
            self.put(new, value, place, f"{old} there")
            self.was[new] = old

    def value(self, name: str, default: Any = None) -> Any:
        """Return the value of a name, and the default where it isn't given or not set."""
        value = self.values.get(name, (None, ""))[0]
        return default if value is None else value

    def without(self, name: str, why: str) -> None:
        """Put a name that was given into `left`."""
        if name in self.values:
            self.left.append((name, self.values.pop(name)[0], why))


def read_trl(words: list[str]) -> Found:
    """Read a YAML file, a Python script, or a command line, by what the words are. Raises UsageError where they are
    none of these, ConfigError for a file that can't be read."""
    from ft_host.migrate.scripts import read_script  # which makes a Found

    if len(words) == 1 and Path(words[0]).suffix in (".yaml", ".yml"):
        return read_yaml(words[0])
    if len(words) == 1 and Path(words[0]).suffix == ".py":
        return read_script(Path(words[0]))
    return read_command(split(words[0]) if len(words) == 1 else words)


def split(line: str) -> list[str]:
    try:
        return shlex.split(line.replace("\\\n", " "))
    except ValueError as error:
        raise UsageError(f"{line[:80]}: {error}") from error


def read_yaml(path: str) -> Found:
    read = read_file(path)
    refuse(read.problems)
    found = Found(method=read.method)
    for name, value in read.values.items():
        found.take(name, value, read.where(name))
    return found


def read_command(words: list[str]) -> Found:
    """`trl dpo --beta 0.1 …`, also behind a launcher, or a script of TRL's in place of `trl dpo`."""
    at = next((place for place, word in enumerate(words) if word == "trl" or word.endswith(".py")), None)
    if at is None:
        raise UsageError(
            "expected a command line of TRL (trl dpo --model_name_or_path …), a YAML file or a Python script; found "
            + " ".join(words)[:80]
        )
    command = words[at] == "trl"
    method = words[at + 1 : at + 2] if command else [Path(words[at]).stem]
    found, given = Found(method=method[0] if method else None), words[at + 1 + command :]
    options: dict[str, list[str]] = {}
    name = ""
    for word in given:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            options[name] = [value] if value else []
        elif word[:1] == "-" and word[1:2].isalpha():
            raise UsageError(f"{word}: expected --name, as all arguments of TRL have it")
        elif name:
            options[name].append(word)
    if "config" in options:  # the command line overrides it
        files = options.pop("config")
        if len(files) != 1:
            raise UsageError(f"--config: found {' '.join(files) or 'nothing'}, expected one YAML file")
        found.values |= read_yaml(files[0]).values
    for name, values in options.items():
        off = name.startswith("no_") and not values
        value: Any = [parse_inline(each) for each in values]
        found.take(
            name.removeprefix("no_") if off else name,
            not off if not values else value if len(value) > 1 else value[0],
            f"--{name}",
        )
    return found
