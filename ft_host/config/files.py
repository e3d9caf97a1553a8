"""Config files: YAML, TOML and JSON, read to values with their line numbers."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.config.fields import Mismatch
from ft_host.config.words import show
from ft_host.errors import ConfigError
from ft_host.util.text import missing

if TYPE_CHECKING:
    import yaml

SUFFIXES = (".yaml", ".yml", ".toml", ".json")


@dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """The content of a config file: values by name, and the line of each, without `method` and `$schema`."""

    path: str
    values: dict[str, Any]
    lines: dict[str, int]
    method: str | None = None
    problems: list[str] = field(default_factory=list)

    def where(self, name: str) -> str:
        return f"{self.path}:{self.lines[name]}"


def is_config(argument: str) -> bool:
    """Return whether an argument names a config file and not a method."""
    return Path(argument).suffix.lower() in SUFFIXES


def read_file(path: str | Path) -> ConfigFile:
    """Read a config file. Raises ConfigError, which names file, line and column, where it can't be read."""
    file = Path(path)
    readers = {".yaml": read_yaml, ".yml": read_yaml, ".toml": read_toml, ".json": read_json}
    if file.suffix.lower() not in readers:
        raise ConfigError(f"{path}: a config file ends in {', '.join(SUFFIXES)}")
    if not file.is_file():
        raise ConfigError(f"{path}: {missing(file)}")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = file.read_bytes()[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not a text file in UTF-8 ({error.reason})") from error
    try:
        values, lines, problems = readers[file.suffix.lower()](text, str(path))
    except ValueError as error:  # a whole number of thousands of digits
        raise ConfigError(f"{path}: {error}") from error
    method = values.pop("method", None)
    if method is not None and not isinstance(method, str):
        problems.append(f"{path}:{lines['method']}: method: found {show(method)}, expected the name of a method")
        method = None
    values.pop("$schema", None)  # used by editors only
    return ConfigFile(path=str(path), values=values, lines=lines, method=method, problems=problems)


Read = tuple[dict[str, Any], dict[str, int], list[str]]  # values, lines, problems


# ---------------------------------------------------------------- YAML


def read_yaml(text: str, path: str) -> Read:
    import yaml

    try:
        node = yaml.compose(text, Loader=loader())
        if node is None:
            return {}, {}, []
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{path}:{node.start_mark.line + 1}: expected fields, such as model: some/model")
        problems = [
            f"{path}:{second}: {name} stands twice; first in line {first}" for name, first, second in doubles(node)
        ]
        values = yaml.load(text, Loader=loader())
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{path}:{yaml_problem(error)}") from error
    except yaml.YAMLError as error:  # a character that YAML doesn't allow
        raise ConfigError(f"{path}: {error}") from error
    lines = {str(name): node.start_mark.line + 1 for name in values}  # a merged field has no own line
    lines |= {key.value: key.start_mark.line + 1 for key, _ in reversed(node.value)}
    return {str(name): value for name, value in values.items()}, lines, problems


@functools.cache
def loader() -> type[yaml.SafeLoader]:
    """Return a YAML loader with the core schema of YAML 1.2: 1e-5 is a number, `no` and 2024-01-01 are texts."""
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {}

    for tag, pattern, starts in (
        ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
        ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
        ("int", r"[-+]?(0|[1-9][0-9_]*)", [*"-+0123456789"]),
        ("float", r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+", [*"-+.0123456789"]),
        ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", [*"-+."]),
        ("merge", r"<<", ["<"]),
    ):
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{pattern})\Z"), starts)
    return Loader


def doubles(node: yaml.Node, seen: set[int] | None = None) -> list[tuple[str, int, int]]:
    """Return duplicate keys within one mapping, at any depth: (key, first line, second line). YAML keeps the last."""
    import yaml

    seen = set() if seen is None else seen
    if id(node) in seen:  # an alias
        return []
    seen.add(id(node))
    found: list[tuple[str, int, int]] = []
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            found += doubles(item, seen)
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in first:
                    found.append((key.value, first[key.value], line))
                first.setdefault(key.value, line)
            found += doubles(value, seen)
    return found


def yaml_problem(error: yaml.MarkedYAMLError) -> str:
    """Return "3:7: mapping values are not allowed here", in one line."""
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context
    if "'\\t'" in problem:
        problem = "a tab; YAML is indented with spaces"
    return f"{mark.line + 1}:{mark.column + 1}: {problem}"


def parse_inline(text: str) -> Any:
    """Parse a list or mapping from the command line, as JSON or YAML. Raises Mismatch."""
    import yaml

    try:
        return yaml.load(text, Loader=loader())
    except yaml.YAMLError as error:
        raise Mismatch(f"found the text {text!r}, which is neither JSON nor YAML") from error


# ---------------------------------------------------------------- TOML


def read_toml(text: str, path: str) -> Read:
    import tomllib

    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(toml_problem(text, path, str(error))) from error
    return values, {name: toml_line(text, name) for name in values}, []


def toml_line(text: str, name: str) -> int:
    """Return the line where a top-level field begins: `name = …` before the first table, or the table `[name]`.

    tomllib keeps no line numbers, so this searches for the first matching line. Text inside a multi-line string could
    match too; then only the line number is wrong.
    """
    bare = re.escape(name)
    key = rf"""\s*(?:"{bare}"|'{bare}'|{bare})\s*"""
    in_table = False
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[", line)
        if header and re.match(rf"\s*\[\[?{key}[\].]", line):
            return number
        if not in_table and re.match(rf"{key}[=.]", line):
            return number
        in_table = in_table or bool(header)
    return 1


def toml_problem(text: str, path: str, message: str) -> str:
    """Return one line for tomllib's error, and for a duplicate field the line of the first."""
    match = re.search(r" ?\(at line (\d+), column (\d+)\)", message)
    if not match:
        return f"{path}: {message}"
    line, message = int(match[1]), message.replace(match[0], "")
    if message.startswith(("Cannot overwrite", "Cannot declare")):
        keys = [re.match(r"""[\s\[]*["']?([^"'=.\]\s]*)""", before)[1] for before in text.splitlines()[:line]]
        if keys[-1] in keys[:-1]:
            return f"{path}:{line}: {keys[-1]} stands twice; first in line {keys.index(keys[-1]) + 1}"
    return f"{path}:{line}:{match[2]}: {message}"


# ---------------------------------------------------------------- JSON


def read_json(text: str, path: str) -> Read:
    def refuse_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        inner.extend(name for name in dict.fromkeys(names) if names.count(name) > 1)
        return dict(pairs)

    inner: list[str] = []
    try:
        values = json.loads(text, object_pairs_hook=refuse_doubles)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}:{error.colno}: {error.msg}") from error
    if not isinstance(values, dict):
        raise ConfigError(f'{path}:1: expected fields, such as {{"model": "some/model"}}')
    lines: dict[str, int] = {}
    problems = []
    for name, line in json_keys(text):
        if name in lines:
            problems.append(f"{path}:{line}: {name} stands twice; first in line {lines[name]}")
        lines.setdefault(name, line)
    problems += [f"{path}: {name} stands twice in one mapping" for name in inner if name not in lines]
    return values, lines, problems


def json_keys(text: str) -> list[tuple[str, int]]:
    """Return the keys of a valid JSON object's first level, with their lines."""
    decoder = json.JSONDecoder()
    space = re.compile(r"[\s,:]*")
    keys = []
    position = text.index("{") + 1
    while text[position := space.match(text, position).end()] != "}":
        line = text.count("\n", 0, position) + 1
        name, position = decoder.raw_decode(text, position)
        _, position = decoder.raw_decode(text, space.match(text, position).end())
        keys.append((name, line))
    return keys
