"""Asks the checks of a tier about a package."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ft_host.config.rollout import RolloutConfig
from ft_host.errors import FtHostError, PluginNotFound, UsageError
from ft_host.registry import PluginInfo, catalog, config_class, find
from ft_host.registry.catalog import HOST
from ft_host.registry.conformance import package_folder
from ft_host.registry.local import is_file, kind_of_file
from ft_host.registry.metadata import normalise
from ft_host.testing.conformance.blame import blamed
from ft_host.testing.conformance.check import (
    DECLARED,
    ERROR,
    FAILED,
    LEFT_OUT,
    PASSED,
    TIERS,
    Check,
    DoesNotApply,
    Outcome,
)
from ft_host.testing.conformance.checks import CHECKS
from ft_host.testing.conformance.declared import Declared, declared
from ft_host.testing.conformance.subject import Materials, Subject
from ft_host.testing.conformance.surroundings import surroundings
from ft_host.util.text import nearest


def plugins_of(package: str) -> list[PluginInfo]:
    """The plugins of a distribution, of the one that has a plugin of this name, or the one in a file. Imports nothing
    of a distribution. Raises PluginNotFound where there is none, UsageError for a name of several distributions."""
    if is_file(package):
        return [find(kind_of_file(package), package)]
    every = [info for info in catalog() if info.state != "blocked"]
    if blocked := [info for info in catalog() if info not in every and package in (info.name, info.distribution)]:
        raise PluginNotFound(f"{blocked[0].distribution} is {blocked[0].problem}")
    owners = {normalise(info.distribution) for info in every if info.name == package.rpartition(":")[2]}
    named = normalise(package.partition(":")[0])
    if any(normalise(info.distribution) == named for info in every):
        owners = {named}
    if not owners:
        raise PluginNotFound(
            f"no package {package!r} with plugins is installed{nearest(package, {info.distribution for info in every})}"
        )
    if len(owners) > 1:
        raise UsageError(f"{package!r} is offered by {', '.join(sorted(owners))}; name one of them")
    return [info for info in every if normalise(info.distribution) in owners]


def checks_of(tier: str, only: Iterable[str] = ()) -> list[Check]:
    """The checks of a tier, or of it those of these ids (or beginnings of ids). Raises UsageError for an id that there
    isn't, or that is of another tier alone."""
    found = [check for check in CHECKS.values() if TIERS.index(check.tier) <= TIERS.index(tier)]
    only = list(only)
    for word in only:
        if not any(id.startswith(word) for id in CHECKS):
            raise no_check(word)
        if not any(check.id.startswith(word) for check in found):
            raise UsageError(f"{word} is of another tier than {tier}; choose it: --tier {check_named(word).tier}")
    return [check for check in found if not only or any(check.id.startswith(word) for word in only)]


def check_named(word: str) -> Check:
    """The check of this id, or the first one whose id begins so. Raises UsageError where there is none."""
    found = CHECKS.get(word) or next((check for id, check in CHECKS.items() if id.startswith(word)), None)
    if found is None:
        raise no_check(word)
    return found


def no_check(word: str) -> UsageError:
    return UsageError(f"there is no check {word!r}{nearest(word, CHECKS)}; `ft-host check --list` lists them")


def samples(method: PluginInfo) -> bool:
    """Whether a method learns from rollouts; not, where its config can't be imported, which other checks tell."""
    try:
        return issubclass(config_class(method), RolloutConfig)
    except FtHostError:
        return False


class Suite:
    """The checks about one package. Its runs and models are in `folder`. `recording`: whether the outcomes are to be
    the package's record."""

    def __init__(self, package: str, folder: Path, recording: bool = False, against: Path | None = None) -> None:
        self.plugins = plugins_of(package)
        first = self.plugins[0]
        self.distribution, self.version = first.distribution, first.version
        self.name = first.distribution or first.location
        self.package = package_folder(first)
        self.declared: Declared = declared(self.package, set(CHECKS), {info.name for info in self.plugins})
        self.recording, self.against = recording, against
        self.folder, self.materials = folder, Materials(folder / "materials")
        self.materials.folder.mkdir(parents=True, exist_ok=True)

    def items(self, checks: Iterable[Check]) -> list[tuple[Check, PluginInfo]]:
        """Each check with each plugin that it is about."""
        return [(check, info) for check in checks for info in self._asked(check)]

    def _asked(self, check: Check) -> list[PluginInfo]:
        if check.about == "package":  # one that extends the host: the host has no such names, range or doors
            return self.plugins[:1] if normalise(self.distribution) != HOST else []
        if check.about == "rollouts":
            return [info for info in self.usable("method") if samples(info)]
        return self.usable(check.about)

    def usable(self, kind: str) -> list[PluginInfo]:
        """The plugins of a kind that can be imported, as far as the metadata says."""
        return [info for info in self.plugins if info.kind == kind and info.state in ("ok", "conflict")]

    def subject(self, purpose: str, plugin: PluginInfo) -> Subject:
        """A plugin of the package as a check gets it. `purpose` names its folder: that of the check."""
        folder = self.folder / f"{purpose}-{plugin.kind}-{plugin.name}"
        folder.mkdir(parents=True, exist_ok=True)
        return Subject(
            distribution=self.distribution,
            plugin=plugin,
            plugins=tuple(self.plugins),
            package=self.package,
            declared=self.declared,
            materials=self.materials,
            folder=folder,
            recording=self.recording,
            against=self.against,
        )

    def outcome(self, check: Check, plugin: PluginInfo) -> Outcome:
        """Ask one check about one plugin."""
        name = self.distribution or plugin.name if check.about == "package" else plugin.name
        subject = self.subject(check.id, plugin)
        began = time.perf_counter()
        found = Outcome(check=check, plugin=name, result=PASSED)
        try:
            with surroundings(self.folder / "cache"):
                found = replace(found, figures=check.test(subject))
        except DoesNotApply as reason:
            found = replace(found, result=LEFT_OUT, said=str(reason))
        except (Exception, SystemExit) as error:
            found = replace(found, **blamed(error, self.package or Path(plugin.location)))
        found = replace(found, seconds=time.perf_counter() - began)
        return self._as_declared(found)

    def _as_declared(self, found: Outcome) -> Outcome:
        reason = self.declared.reason(found.check.id, found.plugin)
        if reason is None or found.result in (LEFT_OUT, ERROR):
            return found
        if found.result == FAILED:
            return replace(found, result=DECLARED, said=f"{reason} ({found.said})")
        return replace(found, result=FAILED, said=f"passes, and the package says that it can't: {reason!r}")

    def run(self, checks: Iterable[Check]) -> list[Outcome]:
        """Ask all of them, one after the other."""
        return [self.outcome(check, plugin) for check, plugin in self.items(checks)]
