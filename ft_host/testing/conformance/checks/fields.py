"""The fields of a config: declared, checked, and those that the README names."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any
from unittest import mock

from ft_host.config.fields import Mismatch, fields_of, fit
from ft_host.config.flags import read_flags
from ft_host.registry import config_class
from ft_host.testing.conformance.check import Check, Figures, NotMet
from ft_host.testing.conformance.project import project_of, runs_in

if TYPE_CHECKING:
    from ft_host.testing.conformance.subject import Subject


def fields(subject: Subject) -> Figures:
    """What reads them says what is wrong with a declaration; here, whether each default fits its own field."""
    found = fields_of(subject.config_class)
    for field in found.values():
        if field.required or field.default is None and field.optional:
            continue
        try:
            fit(field, field.default)
        except Mismatch as error:
            raise NotMet(f"{field.name}: its default doesn't fit it: {error}") from error
    return {"fields": len(found)}


def refusals(subject: Subject) -> None:
    """`check` of each class that the config extends is called."""
    config = subject.config()
    reached = []
    with contextlib.ExitStack() as stack:
        bases = [base for base in type(config).__mro__[1:] if "check" in vars(base)]
        for base in bases:
            stack.enter_context(mock.patch.object(base, "check", _noting(base, reached)))
        config.check()
    missed = [base.__qualname__ for base in bases if base not in reached]
    if missed:
        raise NotMet(
            f"{type(config).__qualname__}.check doesn't come to that of {', '.join(missed)}: what these refuse isn't "
            "refused"
        )


def _noting(base: type, reached: list[type]) -> Any:
    whole = vars(base)["check"]

    def check(self: Any) -> None:
        reached.append(base)
        whole(self)

    return check


def readme_fields(subject: Subject) -> Figures:
    """The runs of the README, as the command line reads them."""
    readme, count = project_of(subject).readme, 0
    methods = {info.name: info for info in subject.plugins if info.kind == "method" and info.state == "ok"}
    for words in runs_in(readme):
        if words and words[0] in methods:
            begin = 2 if len(words) > 1 and not words[1].startswith("--") else 1  # after METHOD and CONFIG
            rest = [word for word in words[begin:] if word not in ("--dry-run", "--help")]
            problems = read_flags(rest, fields_of(config_class(methods[words[0]])))[1]
            if problems:
                raise NotMet(f"ft-host train {' '.join(words)}: {'; '.join(problems)}")
            count += 1
    return {"runs": count}


CHECKS: list[Check] = [
    Check(
        id="fields-declared",
        title="Each field has a text, a type that a file can hold, and a default that fits",
        about="method",
        why="Help, the starting file, the schema and all refusals are made of them. A field of the host with another "
        "type is told to users as what it isn't.",
        looks_at="The fields of the config: that each is declared with `option`, that none gives a field of the host "
        "another type or takes a name that is taken, that each default is one of its choices and within its bounds.",
        mend="Declare it with option(default, text, …). A field of the host may have another default, "
        "of the type that it has.",
        test=fields,
    ),
    Check(
        id="fields-refused",
        title="What the host refuses is refused of this method too",
        about="method",
        why="A check that doesn't call the one above takes fields that contradict each other, and ignores one of them.",
        looks_at="Whether `check` of the config comes to that of each class that it extends.",
        mend="Call super().check() in check, first.",
        test=refusals,
    ),
    Check(
        id="fields-of-readme",
        title="The fields in the README's runs exist",
        about="package",
        why="Who copies the command must not be told that its flag doesn't exist.",
        looks_at="Each `ft-host train` of its methods in the README's blocks of sh, read as the command line does.",
        mend="Correct the command, or keep the old name of a field working: option(…, was=(…)).",
        test=readme_fields,
    ),
]
