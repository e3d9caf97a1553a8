"""What a check is, and how one ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ft_host.testing.conformance.subject import Subject

TIERS = ("experimental", "stable")  # a tier has the checks of those before it
ABOUT = ("package", "method", "rollouts", "backend", "diagnostics")  # what a check looks at: `rollouts` is a method's
Figures = dict[str, Any]  # what was measured: JSON
PASSED, FAILED, DECLARED, LEFT_OUT = "passed", "failed", "declared", "left out"
ERROR = "error"  # the suite itself went wrong: says nothing about the package


class NotMet(AssertionError):
    """A check has found something wrong: what was found and what was expected."""


class DoesNotApply(Exception):
    """There is nothing for a check to look at; the text is the reason."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that a package is held to.

    `test` gives what it measured, or None. It raises NotMet, or any other error, where the package fails, and
    DoesNotApply where there is nothing to look at.
    """

    id: str  # loss-additive: what it looks at, then what of it
    title: str  # as a sentence that is true of a package that passes
    about: str  # one of ABOUT: it is asked once for each such plugin of the package
    tier: str = "experimental"
    why: str  # what goes wrong for somebody where it fails
    looks_at: str  # what is done and compared
    mend: str
    test: Callable[[Subject], Figures | None]

    @property
    def page(self) -> str:
        """Where it is described, in the host's repository."""
        return f"docs/checks/{self.id}.md"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one check ended, of one plugin."""

    check: Check
    plugin: str  # its name; of a check of the package, the distribution
    result: str  # PASSED, FAILED, DECLARED (it failed, as the package says), LEFT_OUT, ERROR
    said: str = ""  # what was found, or the reason
    place: tuple[str, int] | None = None  # file and line of the package that raised what the check ended with
    seconds: float = 0.0
    figures: Figures | None = None
    raised: bool = False  # the package failed by raising, before there was anything to compare: `mend` is of no help
    error: BaseException | None = None  # of ERROR

    @property
    def name(self) -> str:
        """loss-additive[dpo]"""
        return f"{self.check.id}[{self.plugin}]"

    @property
    def advice(self) -> str:
        """What to do about a failure."""
        if self.raised:
            return "Mend this error: it came before there was anything to compare."
        return self.check.mend


def group_of(check: Check) -> str:
    """The name of its module: checks are listed by it."""
    return check.test.__module__.rpartition(".")[2]
