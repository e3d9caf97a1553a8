"""Whether a release may change what it changes: from the last contract, the one of now, and the changelog. Pure
functions of JSON and text.

A stable package keeps its word for a major version: what breaks somebody waits for the next one, or was announced as
deprecated at least two minor versions before. What is new asks for a minor version. An experimental package may change
with any version, and its changelog names what it breaks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ft_host.surface.compare import MAJOR, Change, changes, version_key

KEPT_FOR = 2  # minor versions that a deprecated name still works for, that of its announcement included
PARTS_OF_KINDS = {
    "field": ("fields", "rollout_fields"),
    "metric": ("metrics", "rollout_metrics"),
    "column": ("columns",),
    "format": ("formats",),
    "rule": ("rules",),
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What has changed, and what of it is refused, with the reason: {change: why}. `problems`: what is amiss beside
    single changes."""

    found: tuple[Change, ...]
    refused: dict[Change, str]
    problems: tuple[str, ...] = ()

    @property
    def kept(self) -> bool:
        return not self.refused and not self.problems

    def as_text(self) -> str:
        """A line for each refusal."""
        return "\n".join(
            [*self.problems, *(f"{change.path}: {change.what}; {why}" for change, why in self.refused.items())]
        )


def verdict(old: dict[str, Any], new: dict[str, Any], changelog: str | None) -> Verdict:
    """Judge the step from the contract `old` to `new`. `changelog`: the text of the package's; None where there is none
    to read, as of an installed wheel: then it isn't asked for."""
    found = changes(old, new)
    before, now = version_key(old["version"]), version_key(new["version"])
    stable = old["stability"] == "stable"
    problems = list(backdated(old, new))
    if now < before:
        problems.append(f"its version is {new['version']}, and {old['version']} is out")
    if stable and new["stability"] != "stable" and now[0] == before[0]:
        problems.append(f"{old['version']} is stable, and this is {new['stability']}: that asks for a major version")
    entries = None if changelog is None else since(changelog, old["version"])
    refused = {}
    for change in found:
        why = of_stable(change, old, new) if stable else of_experimental(change, entries)
        if why is not None:
            refused[change] = why
    return Verdict(found=tuple(found), refused=refused, problems=tuple(problems))


def of_stable(change: Change, old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """Why a package that was stable may not change this in its version of now, or None."""
    before, now = version_key(old["version"]), version_key(new["version"])
    if now[0] > before[0]:
        return None
    if change.needs != MAJOR:
        return None if now[:2] > before[:2] else f"that asks for version {before[0]}.{before[1] + 1}.0 at least"
    announced = announcement(change, old)
    if announced is None:
        said = ", or for a deprecation two minor versions before" if change.gone else ""
        return f"that asks for version {before[0] + 1}.0.0{said}"
    if now < version_key(announced["removed_in"]):
        return f"it was to go in {announced['removed_in']}, and this is {new['version']}"
    start = version_key(announced["since"])
    first = (start[1] if start[0] == now[0] else 0) + KEPT_FOR  # the first minor version that may lack it
    if now[1] < first:
        return f"it is deprecated since {announced['since']}, and works until {now[0]}.{first}.0"
    return None


def of_experimental(change: Change, entries: str | None) -> str | None:
    """Why an experimental package may not change this without a word, or None. `entries`: of its changelog, since."""
    name = change.gone or change.path.rpartition("/")[2]
    if change.needs != MAJOR or entries is None or re.search(rf"(?<![\w/-]){re.escape(name)}(?![\w/-])", entries):
        return None
    return f"the top section of its changelog doesn't name {name}"


def announcement(change: Change, old: dict[str, Any]) -> dict[str, str] | None:
    """The deprecation of the last contract that has announced that a name goes, or None."""
    plugin, parts = old, change.path.split("/")
    if parts[0] in ("method", "backend", "diagnostics"):
        plugin, parts = old[parts[0]].get(parts[1], {}), parts[2:]
    for each in plugin.get("deprecations", ()):
        of_kind = PARTS_OF_KINDS.get(each["kind"], ("deprecations",))
        if change.gone and each["old"] == change.gone and parts[0] in of_kind:
            return each
    return None


def backdated(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Say which deprecations claim to be older than they are: announced by a release that didn't."""
    found = []
    for kind in ("method", "backend", "diagnostics"):
        for name, plugin in new.get(kind, {}).items():
            before = old.get(kind, {}).get(name, {})
            known = {(each["kind"], each["old"]) for each in before.get("deprecations", ())}
            for each in plugin.get("deprecations", ()):
                late = version_key(each["since"]) <= version_key(old["version"])
                if "deprecations" in before and late and (each["kind"], each["old"]) not in known:
                    found.append(
                        f"{kind}/{name}: {each['old']} says that it is deprecated since {each['since']}, and "
                        f"{old['version']} doesn't announce it"
                    )
    return found


def since(changelog: str, version: str) -> str:
    """The sections of a changelog above that of `version`: `## 0.4.0` and what follows it. Where the top one is of this
    version, it is being written: that one."""
    found: list[str] = []
    for section in re.split(r"^## +", changelog, flags=re.MULTILINE)[1:]:
        title, _, text = section.partition("\n")
        number = version_key(title)
        if number < version_key(version) or (found and number == version_key(version)):
            break
        found.append(text)
    return "\n".join(found)
