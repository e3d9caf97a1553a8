"""What to say of a name that no field has: what it is called here, why there is none, or what was meant."""

from __future__ import annotations

from ft_host.config.fields import Fields, current_names
from ft_host.config.renamed import hint
from ft_host.util.text import alike, likeness


def answer(name: str, fields: Fields) -> str | None:
    """Return what to say of a name that no field has: what it is here, why there is none, or a field with nearly that
    name. None: nothing is known.
    """
    written = name.replace("-", "_")
    said = fields.elsewhere.get(written) if not fields.of_run else hint(written, fields, fields.elsewhere)
    if said is not None:
        return said
    near = near_name(written, current_names(fields))
    return f"did you mean {near}?" if near else None


def unknown(name: str, fields: Fields) -> str:
    """Return the message for an unknown field."""
    return f"unknown field {name}; {answer(name, fields) or 'ft-host train METHOD --help lists the fields'}"


def near_name(name: str, names: list[str]) -> str | None:
    """Return the one of `names` that `name` can be a slip of; None where none is really near.

    Near is what differs by a letter or two in a word: the same number of words, each like its counterpart; or the first
    words of one name alone. A name that shares a word with another (shuffle_dataset, eval_dataset) isn't near.
    """
    words = name.lower().split("_")
    for other in alike(name, names, count=5):
        theirs = other.lower().split("_")
        if likeness("".join(words), "".join(theirs)) >= 0.9:
            return other
        if len(words) == len(theirs) and all(map(like, words, theirs)):
            return other
    begun = [other for other in names if other.split("_")[: len(words)] == words]
    return begun[0] if len(begun) == 1 else None


def like(word: str, other: str) -> bool:
    return likeness(word, other) >= 0.7
