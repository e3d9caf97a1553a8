"""Facts about columns that look exchanged: prompt and completion, chosen and rejected, labels turned, and preferences
that the row itself contradicts."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ft_host.monitor.rows import signs
from ft_host.monitor.rows.columns import LEAST, median_words
from ft_host.monitor.rows.read import ANSWERS, Seen

# Names of columns that ask and answer, as people rename them.
ASKING = {"question", "instruction", "input", "query", "problem", "user", "prompt", "ask", "source"}
ANSWERING = {"answer", "output", "response", "solution", "completion", "target", "reply", "assistant", "label"}
BETTER = {"chosen", "better", "good", "winner", "win", "preferred", "accepted", "positive"}
WORSE = {"rejected", "worse", "bad", "loser", "lose", "dispreferred", "negative"}
# Ends of a text that something is to follow: an answer has none of them.
CUE = re.compile(
    r"(?:=|->|=>|→|(?:^|\W)(?:answer|a|response|output|assistant|solution|translation|summary|reply)\s*:)\s*$",
    re.IGNORECASE,
)
CONCLUDES = re.compile(r"####\s*\S|\\boxed\{|(?:^|\W)(?:the )?(?:final )?answer is\b", re.IGNORECASE)
OPENS = re.compile(
    r"^\W*(?:sure|certainly|of course|yes|no|here (?:is|are)|the answer|i'm sorry|i am)\b", re.IGNORECASE
)
SCORES = ("score", "rating", "reward")
EXACT = 0.3  # by which two shares of answers that agree differ beyond chance


def exchange_facts(rows: list[Seen], renames: dict[str, str]) -> dict[str, Any]:
    """`renames`: dataset_columns."""
    return {} if len(rows) < LEAST else exchanged(rows, renames) | contradicted(rows, renames)


# ---------------------------------------------------------------- prompt and completion


def exchanged(rows: list[Seen], renames: dict[str, str]) -> dict[str, Any]:
    """The share of rows by which prompt and completion look exchanged, and what says so."""
    named = by_names(renames)
    pairs = [(part.asked, part.said, row) for row in rows for part in row.parts if part.column == "completion"]
    if len(pairs) < LEAST:
        return {}
    where = f"{signs.excerpt(pairs[0][0])} is answered by {signs.excerpt(pairs[0][1])} ({pairs[0][2].where})"

    def told(share: float, by: str, surely: bool) -> dict[str, Any]:
        return {
            "data/exchanged": share,
            "data/exchanged_by": by,
            "data/exchanged_surely": surely,
            "data/said/exchanged": where,
        }

    if named:
        return told(1.0, named, True)
    turned = sum(row.unanswered and not (row.prompt or "").strip() for row in rows)
    if turned > 0.5 * len(rows):
        return told(turned / len(rows), "conversations begin with the assistant and end with the user", True)
    pairs = [(asked, said, row) for asked, said, row in pairs if asked.strip() and said.strip()]
    if len(pairs) < LEAST:
        return {}
    for test, by in ((CUE.search, "end in what asks for an answer"), (CONCLUDES.search, "")):
        asked, said = (_rate(pairs, side, test) for side in (0, 1))
        if by and said > 0.5 and asked < 0.1:
            return told(said, f"completions {by}, prompts don't", True)
        if not by and asked > 0.5 and said < 0.1:
            return told(asked, "prompts hold final answers, completions don't", True)
    named_so = [next((row.columns[name] for name in ANSWERS if name in row.columns), None) for _, _, row in pairs]
    same = [answer == pair[0] != pair[1] for pair, answer in zip(pairs, named_so, strict=True)]
    if sum(same) > 0.6 * len(pairs):
        return told(sum(same) / len(pairs), "prompts are the row's answer, completions aren't", True)
    answers = [answer_of(row) for _, _, row in pairs]
    if sum(answer is not None for answer in answers) > 0.5 * len(pairs):
        asked, said = (
            sum(
                answer is not None and signs.ends_with(pair[side], answer)
                for pair, answer in zip(pairs, answers, strict=True)
            )
            / len(pairs)
            for side in (0, 1)
        )
        if asked > 0.6 and said < 0.2:
            return told(asked, "prompts end with the row's answer, completions don't", True)
    asked, said = (_rate(pairs, side, lambda text: text.rstrip().endswith("?")) for side in (0, 1))
    if said > 0.6 and asked < 0.1:
        opens = _rate(pairs, 0, OPENS.match)
        return told(said, "completions are questions, prompts aren't", opens > 0.3)
    few = len({" ".join(asked.split()) for asked, _, _ in pairs})
    many = len({" ".join(said.split()) for _, said, _ in pairs})
    short = median_words([(asked, row) for asked, _, row in pairs]) <= 3
    if 2 <= few <= 0.1 * len(pairs) and many > 0.8 * len(pairs) and short:
        if median_words([(said, row) for _, said, row in pairs]) >= 5:
            return told(1.0, f"there are {few} short prompts, as labels are, and each completion is another", False)
    return {}


def _rate(pairs: list[tuple[str, str, Seen]], side: int, test: Callable[[str], Any]) -> float:
    return sum(bool(test(pair[side])) for pair in pairs) / len(pairs)


def by_names(renames: dict[str, str]) -> str:
    """What renamed columns say themselves: `question` as completion, `answer` as prompt."""
    for theirs, ours in renames.items():
        name = theirs.lower()
        if (ours == "completion" and name in ASKING) or (ours == "prompt" and name in ANSWERING):
            return f"dataset_columns makes {theirs} the {ours}"
    return ""


def answer_of(row: Seen) -> str | None:
    """The final answer that a column of the row holds."""
    return next((found for name in ANSWERS if (found := signs.final(row.columns.get(name))) is not None), None)


# ---------------------------------------------------------------- preferences


def contradicted(rows: list[Seen], renames: dict[str, str]) -> dict[str, Any]:
    """The share of pairs, or of labels, that the row itself contradicts: by its answer, scores, margin, or the names of
    its columns."""
    pairs = [row for row in rows if row.of("chosen")]
    judged = [row for row in rows if row.label is not None]
    facts: dict[str, Any] = {}
    for theirs, ours in renames.items():
        if (ours == "chosen" and theirs.lower() in WORSE) or (ours == "rejected" and theirs.lower() in BETTER):
            return _told("rejected", 1.0, f"dataset_columns makes {theirs} the {ours} one", pairs[:1])
    for by, preferred in (
        ("the row's answer", by_answer),
        ("a comparison of its scores", by_scores),
        ("a margin below 0", by_margin),
    ):
        known = [(found, row) for row in pairs if (found := preferred(row)) is not None]
        wrong = [row for found, row in known if not found]
        if len(known) >= max(LEAST, 0.2 * len(pairs)) and wrong:
            facts |= _told("rejected", len(wrong) / len(known), by, wrong)
            break
    known = [
        (signs.ends_with(row.parts[0].said, answer) == row.label, row)
        for row in judged
        if row.parts[0].said.strip() and (answer := answer_of(row))  # what is empty is told as that
    ]
    wrong = [row for right, row in known if not right]
    # A judge may ask for more than the answer; then nearly all that are good have it all the same.
    if len(known) >= max(LEAST, 0.2 * len(judged)) and wrong and _turned(known):
        facts |= _told("label", len(wrong) / len(known), "the row's answer", wrong)
    return facts


def _turned(known: list[tuple[bool, Seen]]) -> bool:
    """Whether good completions lack the row's answer, and bad ones have it about as often as they do, or more often.
    (Where all have it, the label is about something else.)"""
    with_answer = {True: [0, 0], False: [0, 0]}
    for right, row in known:
        with_answer[bool(row.label)][0] += right == row.label
        with_answer[bool(row.label)][1] += 1
    (good, goods), (bad, bads) = with_answer[True], with_answer[False]
    return bool(goods and bads and bad and good / goods < min(0.9, bad / bads + EXACT))


def _told(kind: str, share: float, by: str, rows: list[Seen]) -> dict[str, Any]:
    where = f"{rows[0].where}" if rows else ""
    return {
        f"data/contradicted/{kind}": share,
        f"data/contradicted_by/{kind}": by,
        f"data/said/contradicted/{kind}": where,
    }


def by_answer(row: Seen) -> bool | None:
    """Whether the chosen one alone ends with the row's answer; None where both or neither do."""
    answer = answer_of(row)
    if answer is None:
        return None
    chosen, rejected = (signs.ends_with(row.of(name)[0].said, answer) for name in ("chosen", "rejected"))
    return None if chosen == rejected else chosen


def by_scores(row: Seen) -> bool | None:
    for name in SCORES:
        for form in ("{}_{}", "{1}_{0}"):
            chosen, rejected = (number(row.row.get(form.format(name, side))) for side in ("chosen", "rejected"))
            if chosen is not None and rejected is not None:
                return None if chosen == rejected else chosen > rejected
    return None


def by_margin(row: Seen) -> bool | None:
    margin = number(row.row.get("margin"))
    return margin > 0 if margin else None


def number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
