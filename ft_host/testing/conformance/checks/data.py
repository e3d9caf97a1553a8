"""Rows: each format that a method says it takes, and those that a user sends by mistake."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ft_host.errors import DataError, FtHostError
from ft_host.testing.conformance import odd_rows
from ft_host.testing.conformance.check import Check, DoesNotApply, Figures, NotMet
from ft_host.testing.conformance.rows import as_conversation
from ft_host.testing.conformance.step import collated, prepares
from ft_host.types import Drop, Row
from ft_host.util.imports import cause

if TYPE_CHECKING:
    from ft_host.data.prepare import PrepareRow
    from ft_host.run import Run
    from ft_host.testing.conformance.subject import Subject

ROWS = 6  # of a format that are prepared
SHORT = 24  # max_length, in tokens, of rows that are too long
Odd = Callable[[str, Row], Iterator[tuple[str, Row]]]


def formats(subject: Subject) -> Figures:
    """All rows of each declared format are taken, and can be learnt from."""
    run, prepare = prepares(subject)
    found = {}
    for format in subject.formats:
        raw = subject.rows(format, ROWS)
        found[format] = _taken(subject, run, prepare, format, raw)
    return found


def conversations(subject: Subject) -> Figures:
    run, prepare = prepares(subject)
    found = {}
    for format in subject.formats:
        raw = [as_conversation(format, row) for row in subject.rows(format, ROWS)]
        found[format] = _taken(subject, run, prepare, f"{format}, in messages,", raw)
    return found


def no_prompt(subject: Subject) -> Figures:
    return _answered(subject, odd_rows.without_prompt, "its rows have no prompts")


def empty(subject: Subject) -> Figures:
    return _answered(subject, odd_rows.empty, "its rows have no texts")


def identical(subject: Subject) -> Figures:
    return _answered(subject, odd_rows.identical, "its rows are no pairs")


def wrong_type(subject: Subject) -> Figures:
    return _answered(subject, odd_rows.of_other_types, "its rows have no texts")


def over_long(subject: Subject) -> Figures:
    """Rows of many times `max_length` are cut or left out."""
    run, prepare = prepares(subject, max_length=SHORT)
    answers: Counter[str] = Counter()
    for what, raw in _odd(subject, odd_rows.over_long):
        answer, rows = _answer(prepare, what, raw)
        answers[answer] += 1
        size = max([0, *(_size(subject, run, row) for row in rows)])
        if size > SHORT:
            raise NotMet(f"{what}: ft_prepare gives a row of {size} tokens, and max_length is {SHORT}")
    return dict(answers)


# ---------------------------------------------------------------- parts of them


def _taken(subject: Subject, run: Run, prepare: PrepareRow, format: str, raw: list[Row]) -> int:
    """How many rows these raw rows give. Raises NotMet where one isn't taken, or can't be learnt from."""
    made: list[Row] = []
    for row in raw:
        answer, rows = _answer(prepare, f"a row of the format {format}", row)
        if not rows:
            raise NotMet(f"the config says that it takes rows of the format {format} and one is {answer}: {row}")
        made += rows
    _learnt(subject, run, made, f"rows of the format {format}")
    return len(made)


def _odd(subject: Subject, odd: Odd) -> Iterator[tuple[str, Row]]:
    for format in subject.formats:
        [row] = subject.rows(format, 1)
        for what, raw in odd(format, row):
            yield (f"{what} ({format})" if len(subject.formats) > 1 else what), raw


def _answered(subject: Subject, odd: Odd, otherwise: str) -> Figures:
    """Each such row becomes rows that can be learnt from, is left out, or refused by its place."""
    run, prepare = prepares(subject)
    answers: Counter[str] = Counter()
    for what, raw in _odd(subject, odd):
        answer, rows = _answer(prepare, what, raw)
        answers[answer.partition(":")[0]] += 1
        _learnt(subject, run, rows, what)
    if not answers:
        raise DoesNotApply(otherwise)
    return dict(answers)


def _answer(prepare: PrepareRow, what: str, raw: Row) -> tuple[str, list[Row]]:
    """How a raw row is answered, and the rows that it gives. Raises NotMet for an answer that helps no user."""
    from ft_host.data.prepare import prepared

    where = "rows.jsonl:1"
    try:
        found = prepared(prepare, where, copy.deepcopy(raw))
    except DataError as error:
        if where not in str(error):
            raise NotMet(f"{what}: {error}, without {where}, where the row is") from error
        return f"refused: {error}", []
    except Exception as error:  # a raw one: it names no row
        said = str(error) if isinstance(error, FtHostError) else cause(error)
        raise NotMet(
            f"{what}: {said}; expected a row, Drop(reason), or RowError with what was found and what was expected"
        ) from error
    if isinstance(found, Drop):
        return f"left out: {found}", []
    return "taken", found


def _learnt(subject: Subject, run: Run, rows: list[Row], what: str) -> None:
    """Raise NotMet where rows that are taken make no batch, or a loss that isn't finite. Prompts have a token at
    least."""
    if subject.samples:
        if any(row["length"] < 1 for row in rows):
            raise NotMet(f"{what}: ft_prepare gives a prompt without a token, which nothing can complete")
        return
    if not rows:
        return
    try:
        [batch] = collated(run, [copy.deepcopy(rows)])
        run.totals = batch.counts
        loss = float(run.loss(batch).loss.detach())
    except Exception as error:  # of ft_collate, ft_annotate or ft_loss, over a row that ft_prepare has let through
        raise NotMet(f"{what}: ft_prepare takes it, and then {cause(error)}") from error
    if not math.isfinite(loss):
        raise NotMet(f"{what}: ft_prepare takes it, and the loss is {loss}")


def _size(subject: Subject, run: Run, row: Row) -> int:
    """Tokens of the longest text that a row gives; of a method that samples, of its prompt."""
    from ft_host.data.texts import texts_of

    if subject.samples:
        return len(row["prompt_ids"]) if "prompt_ids" in row else row["length"]
    return max((len(text.ids) for text in texts_of(run.collate([row]))), default=0)


NAMED = (
    "Return `Drop(reason)` for a row that nothing can be learnt from, and raise `RowError` with what was found and "
    "what was expected: the host adds file and line. Its readers (`tokenize_row`, `pair_row`, `prompt_row`) do so."
)
CHECKS: list[Check] = [
    Check(
        id="data-formats",
        title="Rows of each format that the config names are taken",
        about="method",
        why="`formats` is what error messages and pages send users to.",
        looks_at="Rows of texts of each format: prepared, collated, and their loss where they are learnt from.",
        mend="Read each format in `ft_prepare`, or take it out of `formats`.",
        test=formats,
    ),
    Check(
        id="data-conversations",
        title="So are the same rows in messages",
        about="method",
        why="Most data sets of chats have their prompts and answers as lists of messages.",
        looks_at="The same, with a user's message for the prompt and an assistant's for what is learnt.",
        mend="Read rows with the host's readers (`tokenize_row`, `pair_row`, `prompt_row`), which render them with the "
        "chat template. Declare it with the reason if the method is for texts alone.",
        test=conversations,
    ),
    Check(
        id="data-no-prompt",
        title="A row without a prompt is taken, left out, or refused by its place",
        about="method",
        why="Some row of a large data set has none, and a traceback in the middle of a run names no line.",
        looks_at="Rows with an empty prompt, and without the column; of what is taken, batch and loss.",
        mend=NAMED,
        test=no_prompt,
    ),
    Check(
        id="data-empty",
        title="An empty text is taken, left out, or refused by its place",
        about="method",
        why="Some row of a large data set is empty. Its mean over no tokens is NaN, which ends the run.",
        looks_at="Rows with an empty completion or text, of spaces alone, and without columns; of what is taken, batch "
        "and loss.",
        mend=NAMED,
        test=empty,
    ),
    Check(
        id="data-identical",
        title="A pair of identical completions is taken, left out, or refused by its place",
        about="method",
        why="Nothing can be learnt of them, and a loss that divides by their difference is NaN.",
        looks_at="A pair with the same text chosen and rejected; of what is taken, batch and loss.",
        mend=NAMED,
        test=identical,
    ),
    Check(
        id="data-over-long",
        title="A row over max_length is cut or left out",
        about="method",
        why="A row that is longer than the model's positions, or than the memory, ends the run when it comes up.",
        looks_at=f"Rows of several hundred tokens with `max_length` {SHORT}: the tokens of the texts that they give.",
        mend="Cut with `fit_length` of ft_host.api, or return `Drop` with max_length in its reason.",
        test=over_long,
    ),
    Check(
        id="data-wrong-type",
        title="What isn't text is refused by its place",
        about="method",
        why="A number or a null in one line of a million must be found by its line.",
        looks_at="Rows with numbers, null, lists and dicts in the place of each text, and with misspelt columns.",
        mend=NAMED,
        test=wrong_type,
    ),
]
