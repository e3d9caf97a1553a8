"""What has changed from one surface to another, and which part of the version must rise for it. Pure functions of JSON.

Semantic versioning (semver.org): who relies on what was there must not notice a minor version.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ft_host.config.deprecated import OF_HOST

PYTHON = {"string": str, "boolean": bool, "integer": int, "number": (int, float), "array": list, "object": dict}
PYTHON["null"] = type(None)
MAJOR, MINOR = "major", "minor"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One difference. `needs`: the part of the version that must rise, "major" or "minor"."""

    path: str  # method/dpo/fields/beta
    what: str  # in words, without the path
    needs: str
    gone: str = ""  # the name that no longer works, where a deprecation can have announced that

    def __str__(self) -> str:
        return f"{self.path}: {self.what} ({self.needs})"


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """Return the differences of two surfaces of a package, or of the host, those that break somebody first.

    What neither says (version, stability) is no difference.
    """
    found: list[Change] = []
    for kind in ("method", "backend", "diagnostics"):
        before, after = old.get(kind, {}), new.get(kind, {})
        found += named(kind, before, after, plugin)
    for part, compared in PARTS.items():
        if part in old or part in new:
            found += compared(part, old.get(part, {}), new.get(part, {}))
    if old.get("requires_host", "") != new.get("requires_host", ""):
        said = f"needs ft-host{new['requires_host']}, and did need ft-host{old.get('requires_host', '')}"
        found.append(Change(path="requires_host", what=said, needs=MINOR))
    return sorted(found, key=lambda change: (change.needs != MAJOR, change.path))


def plugin(path: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    """Of a method, a backend or diagnostics."""
    for part, compared in PARTS.items():
        if part in old or part in new:
            yield from compared(f"{path}/{part}", old.get(part, {}), new.get(part, {}))
    if old.get("base") != new.get("base"):
        yield Change(
            path=f"{path}/base", what=f"extends {new.get('base')}, and extended {old.get('base')}", needs=MAJOR
        )


# ---------------------------------------------------------------- kinds of parts


def named(
    path: str, old: dict[str, Any], new: dict[str, Any], compared: Callable[[str, Any, Any], Iterator[Change]]
) -> Iterator[Change]:
    """Of a mapping by name: what went, what came, and `compared` for what is in both."""
    for name in old:
        if name not in new:
            yield Change(path=f"{path}/{name}", what="is gone", needs=MAJOR, gone=name)
    for name, value in new.items():
        if name not in old:
            yield Change(path=f"{path}/{name}", what="is new", needs=MINOR)
        else:
            yield from compared(f"{path}/{name}", old[name], value)


def names(path: str, old: list[str], new: list[str]) -> Iterator[Change]:
    """Of a list of names."""
    yield from named(path, dict.fromkeys(old), dict.fromkeys(new), lambda *_: iter(()))


def field_table(path: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    """Of config fields. A field that is called otherwise now, and still works by its old name, is renamed."""
    now_called = {was: name for name, field in new.items() for was in field.get("was", ())}
    for name, field in old.items():
        if name in new:
            yield from one_field(f"{path}/{name}", field, new[name])
        elif name in now_called:
            yield Change(path=f"{path}/{name}", what=f"is called {now_called[name]}; its old name works", needs=MINOR)
            yield from one_field(f"{path}/{now_called[name]}", field, new[now_called[name]])
        else:
            yield Change(path=f"{path}/{name}", what="is gone", needs=MAJOR, gone=name)
    for name, field in new.items():
        if name not in old and not set(field.get("was", ())) & old.keys():
            required = field.get("required", False)
            what = "is new, and must be set" if required else "is new"
            yield Change(path=f"{path}/{name}", what=what, needs=MAJOR if required else MINOR)


def one_field(path: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    if old.get("default") != new.get("default"):
        what = f"its default is {new.get('default')!r}, and was {old.get('default')!r}"
        yield Change(path=path, what=what, needs=MAJOR)
    if old.get("required", False) != new.get("required", False):
        required = new.get("required", False)
        yield Change(
            path=path, what="must be set now" if required else "may be left out now", needs=MAJOR if required else MINOR
        )
    for other in ("aliases", "was"):
        for gone in sorted(set(old.get(other, ())) - {*new.get("aliases", ()), *new.get("was", ())}):
            yield Change(path=path, what=f"no longer answers to {gone}", needs=MAJOR, gone=gone)
    more = sorted(set(new.get("aliases", ())) - {*old.get("aliases", ()), *old.get("was", ())})
    if more:
        yield Change(path=path, what=f"also answers to {', '.join(more)}", needs=MINOR)
    if not takes(new, old):
        yield Change(path=path, what="takes less than it did, or another type", needs=MAJOR)
    elif not takes(old, new):
        yield Change(path=path, what="takes more than it did", needs=MINOR)


def takes(shape: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether `shape`, of JSON schema, takes all that `other` does, as far as shapes of fields differ: types,
    choices, bounds, items."""
    theirs = other.get("anyOf", [other])
    return all(any(takes_one(mine, each) for mine in shape.get("anyOf", [shape])) for each in theirs)


def takes_one(shape: dict[str, Any], other: dict[str, Any]) -> bool:
    if "enum" in shape:
        return "enum" in other and all(value in shape["enum"] for value in other["enum"])
    if "type" not in shape:
        return True
    if "enum" in other and "type" not in other:
        return all(isinstance(value, PYTHON[shape["type"]]) for value in other["enum"])
    if shape["type"] != other.get("type") and (shape["type"], other.get("type")) != ("number", "integer"):
        return False
    low, high = bounds(shape), bounds(other)
    if low[0] > high[0] or low[1] < high[1]:
        return False
    for part in ("items", "additionalProperties"):
        inner = shape.get(part)
        if (
            isinstance(inner, dict)
            and inner
            and not takes(inner, found if isinstance(found := other.get(part), dict) else {})
        ):
            return False
    return True


def bounds(shape: dict[str, Any]) -> tuple[tuple[float, bool], tuple[float, bool]]:
    """Return the lower and the upper bound, comparable: an exclusive one above the inclusive one of the same number."""
    least = (shape["exclusiveMinimum"], True) if "exclusiveMinimum" in shape else (shape.get("minimum", -1e308), False)
    return least, (shape.get("maximum", 1e308), False)


def signature(path: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    """Of what can be called."""
    order = [[name for name, each in found.items() if "positional" in each["kind"]] for found in (old, new)]
    for name, each in old.items():
        now = new.get(name)
        if now is None:
            yield Change(path=path, what=f"no longer takes {name}", needs=MAJOR)
        elif now["kind"] != each["kind"]:
            yield Change(path=path, what=f"{name} is {now['kind']}, and was {each['kind']}", needs=MAJOR)
        elif "default" in each and "default" not in now:
            yield Change(path=path, what=f"{name} must be given now", needs=MAJOR)
        elif each.get("default") != now.get("default"):
            yield Change(
                path=path,
                what=f"{name} is {now.get('default')!r} by default, and was {each.get('default')!r}",
                needs=MAJOR,
            )
    for name, each in new.items():
        if name not in old:
            needed = "default" not in each and "variadic" not in each["kind"]
            yield Change(
                path=path,
                what=f"takes {name}" + (", which must be given" if needed else ""),
                needs=MAJOR if needed else MINOR,
            )
    kept = [name for name in order[1] if name in order[0]]
    if kept != [name for name in order[0] if name in order[1]]:
        yield Change(path=path, what="takes its positional arguments in another order", needs=MAJOR)


def thing(path: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    """Of a name that a door offers."""
    kinds = [next(iter(found)) for found in (old, new)]
    if kinds[0] != kinds[1]:
        yield Change(path=path, what=f"is a {kinds[1]}, and was a {kinds[0]}", needs=MAJOR)
    elif kinds[0] == "value":
        if old != new:
            yield Change(path=path, what=f"is {new['value']!r}, and was {old['value']!r}", needs=MAJOR)
    else:
        yield from signature(path, old[kinds[0]], new[kinds[0]])
        yield from named(path, old.get("members", {}), new.get("members", {}), member)


def member(path: str, old: Any, new: Any) -> Iterator[Change]:
    if isinstance(old, dict) and isinstance(new, dict):
        yield from signature(path, old["method"], new["method"])
    elif isinstance(old, dict) != isinstance(new, dict):
        yield Change(path=path, what="is an attribute now" if isinstance(old, dict) else "is a method now", needs=MAJOR)


def equal(path: str, old: Any, new: Any) -> Iterator[Change]:
    if old != new:
        yield Change(path=path, what=f"is {new!r}, and was {old!r}", needs=MAJOR)


def titled(path: str, old: dict[str, str], new: dict[str, str]) -> Iterator[Change]:
    """Of rules by code: what a title says may change."""
    yield from names(path, list(old), list(new))


def doors(path: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    yield from named(path, old, new, lambda door, one, other: named(door, one, other, thing))


def lists(path: str, old: dict[str, list[str]], new: dict[str, list[str]]) -> Iterator[Change]:
    yield from named(path, old, new, names)


def columns(path: str, old: dict[str, list[str]], new: dict[str, list[str]]) -> Iterator[Change]:
    """Of the columns that a method reads, and those that it can't do without."""
    before, after = ([*found.get("needs", ()), *found.get("reads", ())] for found in (old, new))
    yield from names(path, before, after)
    for name in new.get("needs", ()):
        if name not in old.get("needs", ()):
            yield Change(path=f"{path}/needs/{name}", what="rows must have it now", needs=MAJOR)


def of_folder(path: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    yield from equal(f"{path}/format", old.get("format"), new.get("format"))
    yield from names(f"{path}/files", old.get("files", []), new.get("files", []))


def announced(path: str, old: list[dict[str, str]], new: list[dict[str, str]]) -> Iterator[Change]:
    """Of what is going to go. A name that a package announced no longer is missed where it stood, as a field, say; what
    the host has moved stands here alone."""
    before, after = ({(each["kind"], each["old"]): each for each in found} for found in (old, new))
    for kind, name in before:
        if (kind, name) not in after and kind in OF_HOST:
            yield Change(path=f"{path}/{name}", what=f"is gone ({kind})", needs=MAJOR, gone=name)
    for (kind, name), each in after.items():
        if (kind, name) not in before:
            instead = f"{each['new']} is its name now" if each["new"] else each["why"]
            said = f"the {kind} is deprecated and goes in {each['removed_in']}: {instead}"
            yield Change(path=f"{path}/{name}", what=said, needs=MINOR)
        elif version_key(each["removed_in"]) < version_key(before[kind, name]["removed_in"]):
            said = f"goes in {each['removed_in']}, and was to go in {before[kind, name]['removed_in']}"
            yield Change(path=f"{path}/{name}", what=said, needs=MAJOR)


def version_key(text: str) -> tuple[int, ...]:
    """1.2 and 1.2.0 are one version."""
    parts = [int(part) for part in re.findall(r"\d+", text)]
    return tuple([*parts, 0, 0, 0][:3])


PARTS: dict[str, Callable[[str, Any, Any], Iterator[Change]]] = {
    "fields": field_table,
    "rollout_fields": field_table,
    "formats": names,
    "columns": columns,
    "metrics": names,
    "rollout_metrics": names,
    "checkpoint": lists,
    "export": lists,
    "deprecations": announced,
    "hooks": lists,
    "rules": titled,
    "doors": doors,
    "commands": lists,
    "exit_codes": lambda path, old, new: named(path, old, new, equal),
    "run_folder": of_folder,
}
