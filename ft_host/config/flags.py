"""Flags to values: `--learning-rate 1e-5`, `--learning_rate=1e-5`, `--use-peft`, `--no-use-peft`,
`--eval-reward a b`.

Not argparse, which accepts any prefix of a flag, reports one problem at a time, and can't say which field a misspelt
name was meant to be.
"""

from __future__ import annotations

import re
import typing
from typing import Any

from ft_host.config.answers import answer
from ft_host.config.fields import (
    REFUSED,
    UNSET,
    Field,
    Fields,
    Mismatch,
    Wrong,
    bounded,
    convert,
    current_names,
    fit,
    flag_of,
    names_of,
)
from ft_host.config.files import parse_inline
from ft_host.config.old_names import warn_of_field, warn_of_value
from ft_host.config.renamed import already
from ft_host.config.words import expected

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
NUMBER = re.compile(r"-[.\d]")


def read_flags(arguments: list[str], fields: Fields) -> tuple[dict[str, Any], list[str]]:
    """Return the values by field, and every problem found, each naming its flag."""
    names = names_of(fields)
    given: dict[str, list[str]] = {}
    spelled: dict[str, str] = {}  # the flag by which each field was first given
    values: dict[str, Any] = {}
    problems = []
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        if not argument.startswith("--") or argument == "--":
            problems.append(stray(argument, arguments, position))
            continue
        flag, equals, text = argument.partition("=")
        written = flag[2:].replace("-", "_")
        name, negated = names.get(written), False
        if name is None and written.startswith("no_") and names.get(written[3:]) is not None:
            name, negated = names[written[3:]], True
        texts = [text] if equals else []
        field = fields.get(name or "")
        while not equals and position < len(arguments) and takes(field, texts, arguments[position], negated):
            texts.append(arguments[position])
            position += 1
        if field is None and is_already(written, texts):
            continue
        if field is None:
            problems.append(unknown(flag, written, fields))
            continue
        base = written[3:] if negated else written
        if {base, spelled.setdefault(name, base)} & {*field.was} and spelled[name] != base:
            problems.append(f"{flag_of(base)} and {flag_of(spelled[name])} are one field, {name}; give {field.flag}")
            continue
        if name not in given:
            warn_of_field("the command line", flag_of(base), field)
        boolean = field.arms == (bool,)
        if negated and (not boolean or texts):
            reason = f"takes no value, found {texts[0]!r}" if boolean else f"{field.name} isn't a switch"
            problems.append(f"{flag}: {reason}; write {field.flag} value")
            continue
        if boolean and not texts:
            texts = ["false" if negated else "true"]
        if not texts:
            problems.append(f"{flag} needs a value: {expected(field)}")
            values[name] = REFUSED
        elif name in given and not field.many:
            problems.append(f"{flag} is given twice: {given[name][0]}, then {texts[0]}")
        else:
            given.setdefault(name, []).extend(texts)
    for name, texts in given.items():
        try:
            texts = as_meant(fields[name], texts)
            values[name] = parse(fields[name], texts)
        except Mismatch as error:
            problems.append(f"{fields[name].flag}: {error}")
            values[name] = REFUSED
    return values, problems


def is_already(written: str, texts: list[str]) -> bool:
    """Whether another tool's flag says what is done here anyway."""
    value: Any = parse_inline(texts[0]) if len(texts) == 1 else True
    return len(texts) < 2 and already(written, value)


def as_meant(field: Field, texts: list[str]) -> list[str]:
    """Return the texts after a flag, another tool's value as ours, with a warning."""
    for theirs, ours in field.also.items():
        spelt = str(theirs).lower() if isinstance(theirs, bool) else theirs
        if texts == [spelt]:
            warn_of_value(field.flag, field, theirs)
            return [str(ours)]
    return texts


def takes(field: Field | None, texts: list[str], following: str, negated: bool) -> bool:
    """Return whether the next argument is a value of this flag."""
    if following.startswith("-") and following != "-" and not NUMBER.match(following):
        return False
    if field is None:  # an unknown flag takes what follows, so that only the flag is refused
        return True
    if field.arms == (bool,):
        return not texts and (negated or following.lower() in TRUE + FALSE or (field.optional and following == "none"))
    return field.many or not texts


def stray(argument: str, arguments: list[str], position: int) -> str:
    """Return the message for an argument that is neither a flag nor a value of one."""
    if argument.startswith("-") and argument.strip("-"):
        return f"{argument}: flags take two hyphens, as in {flag_of(argument.lstrip('-').partition('=')[0])}"
    before = arguments[position - 2] if position > 1 else ""
    after = f" after {before}" if before else ""
    return f"unexpected {argument!r}{after}; METHOD and CONFIG come first, then flags, each before its value"


def unknown(flag: str, written: str, fields: Fields) -> str:
    """Return the message for an unknown flag."""
    said = answer(written, fields)
    if said is None:
        return f"{flag}: no such flag; --help lists them"
    for name in sorted(current_names(fields), key=len, reverse=True):  # fields are named as flags
        beginning = next((each for each in ("here it is ", "did you mean ") if said.startswith(each + name)), None)
        if beginning is not None:
            return f"{flag}: no such flag; {said.replace(name, flag_of(name), 1)}"
    return f"{flag}: no such flag; {said}"


# ---------------------------------------------------------------- values


def parse(field: Field, texts: list[str]) -> Any:
    """Convert what follows a flag to a value of this field. A list takes several texts, others take one. Raises
    Mismatch.
    """
    first = texts[0]
    if field.many:
        if len(texts) == 1 and first.lower() in UNSET:
            return None if field.optional else []
        if len(texts) == 1 and first.startswith("["):
            return fit(field, parse_inline(first))
        return fit(field, [parse_scalar(typing.get_args(field.arms[0])[0], text) for text in texts])
    if len(texts) > 1:
        raise Mismatch(f"found {len(texts)} values ({', '.join(texts)}), expected one: {expected(field)}")
    if field.optional and first.lower() in UNSET:
        return None
    for arm in field.arms:
        value = parse_scalar(arm, first)
        if not isinstance(convert(arm, value), Wrong):
            # A list or mapping that is written out is meant as one where the field may be one, though text fits too.
            if arm is str and len(field.arms) > 1 and first.lstrip().startswith(("[", "{")):
                continue
            return bounded(field, convert(arm, value))
    return fit(field, parse_scalar(field.arms[-1], first))


def parse_scalar(hint: Any, text: str) -> Any:
    """Convert `text` to `hint` where possible, otherwise return `text` itself."""
    if hint is bool and text.lower() in TRUE + FALSE:
        return text.lower() in TRUE
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            return text
    if hint in (str, bool):
        return text
    return parse_inline(text)
