"""What a run depends on beside its config: files, folders, hub models, functions. It is recorded when the run begins,
and compared when it goes on.

They are found by the fields. Every field declared with `path=True` names some, unless it says `compared=False`. In a
field of a plugin that says nothing, a text counts that is the path of a file or folder, or names a function. Models
come from `ModelSpec.source` too, and methods and diagnostics in local files by their place. Data is compared by its
rows, in `continuing`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.config.fields import Field, fields_of
from ft_host.errors import ConfigError
from ft_host.rundir.fingerprint import Fingerprint, differences, of_function, of_model, of_path
from ft_host.util.text import nearest

if TYPE_CHECKING:
    from ft_host.config import RunConfig
    from ft_host.registry import PluginInfo
    from ft_host.types import ModelSpec

DATA = ("dataset", "eval_dataset")  # compared by their rows
FUNCTION = re.compile(r"[^:]+\.py:\w+|[\w.]+:\w+")
# In the name of a plugin's field that says nothing: it is written to.
OUTPUT = re.compile(r"(^|_)(out|output|outputs|log|logs|logging|cache|save|saved|dump|tmp|temp|trace|results?)(_|$)")


def dependencies(
    config: RunConfig,
    backend_config: Any,
    diagnostics_config: dict[str, Any],
    infos: list[PluginInfo],
    specs: dict[str, ModelSpec],
) -> dict[str, Fingerprint]:
    """Return the fingerprint of everything that a run names, by field ("reward[0]", "backend_config.settings").

    `infos` are its plugins and `specs` the models that its method asks for.
    """
    revisions = {spec.field: spec.revision for spec in specs.values() if spec.source is not None}
    own = revisions | {"model": config.model_revision}
    found: dict[str, Fingerprint] = {}
    parts = [("", config), ("backend_config.", backend_config)]
    parts += [(f"diagnostics_config.{name}.", part) for name, part in diagnostics_config.items()]
    for prefix, part in parts:
        for field in fields_of(type(part)).values() if part is not None else ():
            for at, text in _texts(getattr(part, field.name)):
                base = config.lora_base_model if field.name == "model" else None
                entry = _entry(field, text, own.get(field.name), base, host=_is_hosts(type(part), field.name))
                if entry is not None:
                    found[f"{prefix}{field.name}{at}"] = {"value": text} | entry
    for role, spec in specs.items():
        name = spec.field or f"models[{role}]"
        named = {entry["value"] for entry in found.values()}
        if spec.source is not None and name not in found and spec.source not in named:
            found[name] = {"value": spec.source} | of_model(spec.source, spec.revision)
    for info in infos:
        if not info.distribution:
            name = "method" if info.kind == "method" else f"{info.kind}[{info.name}]"
            found[name] = {"value": info.location} | of_path(Path(info.location))
    return found


def _texts(value: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Yield (place, text) of each text in a value."""
    if isinstance(value, str):
        if value:
            yield at, value
    elif isinstance(value, (list, dict)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _texts(item, f"{at}[{key}]")


def _entry(field: Field, text: str, revision: str | None, base: str | None, *, host: bool) -> Fingerprint | None:
    """Return the fingerprint of what a text in a field names; None where it names nothing."""
    if field.name in DATA or field.choices or not field.compared:
        return None
    if not field.path and not host and OUTPUT.search(field.name):
        return None
    if FUNCTION.fullmatch(text):
        return of_function(text)
    if (field.path or not host) and Path(text).exists():
        return of_path(Path(text), base)
    is_model = field.name == "model" or "model" in field.name or "tokenizer" in field.name
    return of_model(text, revision) if field.path and is_model else None


def _is_hosts(config_class: type, name: str) -> bool:
    """Return whether a field is declared by the host, also where a plugin declares it anew."""
    return any(
        dataclasses.is_dataclass(base) and base.__module__.startswith("ft_host.") and name in base.__dataclass_fields__
        for base in config_class.__mro__
    )


# ---------------------------------------------------------------- comparing


@dataclasses.dataclass(frozen=True)
class Change:
    """A field that names something else than when the run began. `what` says it in words."""

    field: str
    what: str
    was: Any
    now: Any


def changes(was: dict[str, Fingerprint], now: dict[str, Fingerprint]) -> tuple[list[Change], list[str]]:
    """Return what differs, and sentences about what is the same in another place or can't be compared."""
    found, said = [], []
    for name, old in was.items():
        new = now.get(name)
        if new is None:
            found.append(Change(name, f"{old['value']} is gone", old, None))
            continue
        moved = old["value"] != new["value"]
        if old["kind"] == new["kind"] == "installed":
            if old["version"] != new["version"]:
                said.append(f"{name}: {old['name']} was {old['version']} when the run began, is {new['version']} now")
        elif old["kind"] == new["kind"] == "hub" and None in (old["commit"], new["commit"]):
            if moved:
                found.append(Change(name, f"{old['value']} then, {new['value']} now, of unknown commits", old, new))
        elif different := differences(old, new):
            where = f"{old['value']} then, {new['value']} now: " if moved else f"{new['value']}: "
            more = f" and {len(different) - 3} more" if len(different) > 3 else ""
            found.append(Change(name, where + "; ".join(different[:3]) + more, old, new))
        elif moved:
            said.append(f"{name}: {old['value']} has moved to {new['value']}; the content is the same")
    return found, said


def refuse_changes(run: Path, found: list[Change], allowed: tuple[str, ...], known: list[str]) -> list[Change]:
    """Return the changes that `allowed` names. Raises ConfigError for all others, and for names that are none of the
    `known`."""
    short = {name: re.split(r"[\[.]", name)[0] for name in [*known, *(change.field for change in found)]}
    for name in allowed:
        if name not in short and name not in short.values():
            choice = list(dict.fromkeys([*short.values(), *short]))
            raise ConfigError(
                f"--allow-changed {name}: {run} doesn't depend on it{nearest(name, choice)}; it depends on "
                f"{', '.join(dict.fromkeys(short.values()))}"
            )
    refused = [change for change in found if change.field not in allowed and short[change.field] not in allowed]
    if not refused:
        return found
    names = ",".join(dict.fromkeys(short[change.field] for change in refused))
    lines = [f"{change.field}: {change.what}" for change in refused]
    ways = f"put it back, start a new run, or go on all the same with --allow-changed {names}, which run.json records"
    if len(lines) == 1:
        raise ConfigError(f"{lines[0]}. {run} began with something else: {ways}")
    raise ConfigError("\n  ".join([f"{run} began with something else; {ways}:", *lines]))


def still_there(run: Path, was: dict[str, Fingerprint], config: RunConfig) -> None:
    """Raise ConfigError where a file or folder that the run began with is gone, before anything looks for a hub model
    of that name."""
    for name, old in was.items():
        place = old["value"]
        if old["kind"] not in ("file", "folder") or Path(place).exists() or name not in fields_of(type(config)):
            continue
        if getattr(config, name) == place:
            raise ConfigError(
                f"{name}: {place} is gone; {run} began with it. Put it back, or say where it is now with "
                f"--{name.replace('_', '-')}"
            )
