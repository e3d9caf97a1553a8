"""What is going to go, in one form for packages and the host: `deprecated` of a config class, and `HOST` here. Imports
nothing heavy.

    class MyConfig(RunConfig):
        deprecated: ClassVar[tuple[Deprecated, ...]] = (
            Deprecated(old="gamma", new="discount", since="1.2.0", removed_in="2.0.0"),
            Deprecated(old="warm", since="1.3.0", removed_in="2.0.0", why="warmup_steps does it"),
            Deprecated(old="val/share", new="share", since="1.3.0", removed_in="1.5.0", kind="metric"),
        )

A field that is called otherwise is declared under its new name; the old one works everywhere, with a warning. A field
that goes stays declared until then, and setting it warns. A metric, a column, a format or a rule that goes is logged,
read or raised until then; what is here announces it, in the contract of the package.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

KINDS = ("field", "metric", "column", "format", "rule")
OF_HOST = ("module", "name", "keyword", "attribute")  # of Python: what the host has moved and renamed
VERSION = re.compile(r"\d+(\.\d+)*")


@dataclass(frozen=True, kw_only=True)
class Deprecated:
    """A name that still works. `since`: the version whose contract announces it first; `removed_in`: the one that no
    longer has it. Raises ValueError for an entry that says too little."""

    old: str
    new: str | None = None  # what it is called now; None where it goes without a successor
    since: str
    removed_in: str
    why: str = ""  # where it has no successor: what to do instead
    kind: str = "field"  # one of KINDS

    def __post_init__(self) -> None:
        if self.kind not in (*KINDS, *OF_HOST):
            raise ValueError(f"{self.old}: there is no kind {self.kind!r}; there are {', '.join(KINDS)}")
        for name in ("since", "removed_in"):
            if not VERSION.fullmatch(getattr(self, name)):
                raise ValueError(f"{self.old}: {name} is {getattr(self, name)!r}, expected a version such as 1.2.0")
        if self.new is None and not self.why:
            raise ValueError(f"{self.old}: it has neither a new name (new) nor a reason (why)")

    def said(self, old: str | None = None, new: str | None = None) -> str:
        """The warning, without its place. `old` and `new`: as they are written there, for instance as flags."""
        if self.new is None:
            return f"{old or self.old} is deprecated and goes in {self.removed_in}: {self.why}"
        return f"{old or self.old} is called {new or self.new} now; the old name goes in {self.removed_in}"


def deprecations_of(config_class: type) -> tuple[Deprecated, ...]:
    """All that a class and its bases declare, those of the bases first."""
    return tuple(each for base in reversed(config_class.__mro__) for each in vars(base).get("deprecated", ()))


def renamed_fields(config_class: type) -> dict[str, Deprecated]:
    """The entries of fields that have a new name, by the old one."""
    return {each.old: each for each in deprecations_of(config_class) if each.kind == "field" and each.new}


def _renamed(old: str, new: str) -> Deprecated:
    return Deprecated(old=old, new=new, since="0.5.0", removed_in="2.0.0")


# Fields of every run. `ft_host.util.moved` has the modules, names, keywords and attributes.
HOST = (
    _renamed("select", "rules_select"),
    _renamed("ignore", "rules_ignore"),
    _renamed("locked", "locked_fields"),
    _renamed("parent", "parent_run"),
    _renamed("window", "data_window"),
    _renamed("timeout", "ddp_timeout"),
    # Sampling in evaluation. Until 0.4 only runs without rollouts had these names.
    _renamed("temperature", "eval_temperature"),
    _renamed("top_p", "eval_top_p"),
    _renamed("top_k", "eval_top_k"),
)
