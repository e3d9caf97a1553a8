"""Facts about columns beside each other: copies, answers that stand in their prompts, rows in the order of what they
hold."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from ft_host.monitor.rows import signs
from ft_host.monitor.rows.columns import LEAST, quoted
from ft_host.monitor.rows.read import ANSWERS, Seen

# What an answer stands behind, where a prompt gives it.
GIVEN = re.compile(
    r"(?:answer|solution|result|output|label|target|ground truth|gold)\s*(?:is\b|:|=|->)+\s*(?=\S)|####\s*(?=\S)",
    re.IGNORECASE,
)


def across_facts(rows: list[Seen]) -> dict[str, Any]:
    if len(rows) < LEAST:
        return {}
    return copies(rows) | nearly_identical(rows) | given_away(rows) | order_facts(rows)


def _share(kind: str, bad: list[tuple[Any, Seen]], of: int) -> dict[str, Any]:
    return {f"data/{kind}": len(bad) / of, f"data/said/{kind}": quoted(*bad[0])} if bad else {}


# ---------------------------------------------------------------- copies


def copies(rows: list[Seen]) -> dict[str, Any]:
    """Completions and further columns that repeat the prompt."""
    facts: dict[str, Any] = {}
    asked: dict[str, list[tuple[str, str, Seen]]] = {}
    for row in rows:
        for part in row.parts:
            asked.setdefault(part.column, []).append((part.asked, part.said, row))
        if row.prompt is not None:
            for name, value in row.columns.items():
                if isinstance(value, str):
                    asked.setdefault(name, []).append((row.prompt, value, row))
    for column, found in asked.items():
        bad = [(said, row) for prompt, said, row in found if repeats(prompt.strip(), said.strip())]
        facts |= _share(f"copied/{column}", bad, len(found))
        surely = sum(is_asked(prompt.strip()) for prompt, said, row in found if repeats(prompt.strip(), said.strip()))
        if surely:
            facts[f"data/copied_surely/{column}"] = surely / len(found)
    return facts


def nearly_identical(rows: list[Seen]) -> dict[str, Any]:
    """Pairs whose completions differ in white space alone."""
    pairs = [(row.of("chosen")[0].said, row.of("rejected")[0].said, row) for row in rows if row.of("chosen")]
    bad = [
        (chosen, row) for chosen, rejected, row in pairs if chosen != rejected and chosen.split() == rejected.split()
    ]
    bad = [(chosen, row) for chosen, row in bad if chosen.strip()]
    return _share("near_identical_pairs", bad, len(pairs))


def repeats(prompt: str, said: str) -> bool:
    """Whether a text begins with the whole prompt, or holds a long one."""
    return len(prompt) >= 4 and (said.startswith(prompt) or (len(prompt) >= 20 and prompt in said))


def is_asked(prompt: str) -> bool:
    """Whether a prompt is more than material: it is long, or ends as a question does. (To say short material once more
    may be the task.)"""
    return len(prompt) >= 20 or not prompt[-1].isalnum()


# ---------------------------------------------------------------- answers in prompts


def given_away(rows: list[Seen]) -> dict[str, Any]:
    """Prompts that give their answer: behind a word that says so, or at their end; beyond what chance would."""
    facts: dict[str, Any] = {}
    columns: dict[str, list[tuple[str, str, Seen]]] = {}
    for row in rows:
        if row.prompt is None:
            continue
        learnt = {part.column: part.said for part in row.parts if part.column in ("completion", "chosen")}
        for name, value in (learnt | {name: row.columns[name] for name in ANSWERS if name in row.columns}).items():
            answer = signs.final(value)
            if answer is None and isinstance(value, str) and len(value.split()) >= 4:
                answer = " ".join(value.lower().split())
            if answer:
                columns.setdefault(name, []).append((row.prompt, answer, row))
    for column, found in columns.items():
        for test, least in ((is_marked, 0.05), (is_at_end, 0.5)):
            bad = [(prompt[-60:], row) for prompt, answer, row in found if test(prompt, answer)]
            away = len(found) // 2 + 1  # each prompt with another row's answer: what is found by chance
            chance = sum(test(found[at][0], found[(at + away) % len(found)][1]) for at in range(len(found)))
            if test is is_at_end and not asks(found):
                continue
            if len(found) >= LEAST and len(bad) - chance > max(2, least * len(found)):
                facts |= _share(f"given_away/{column}", bad, len(found))
                break
    return facts


def asks(found: list[tuple[str, str, Seen]]) -> bool:
    """Whether there is a question before the answers that end prompts: what is before them differs from row to row. In
    a task that says its material in another way, it is the same instruction, or a sign."""
    before = [prompt[: -len(answer)] for prompt, answer, _ in found if is_at_end(prompt, answer)]
    return len(set(before)) > len(before) / 2


def is_marked(prompt: str, answer: str) -> bool:
    """Whether the last word for an answer in a prompt has this one behind it."""
    ends = [found.end() for found in GIVEN.finditer(prompt)]
    if not ends:
        return False
    after = " ".join(prompt[ends[-1] :].lower().replace(",", "").replace("$", "").split())
    rest = after[len(answer) :]
    return after.startswith(answer) and not (rest and (rest[0].isalnum() or rest[:2].strip(".").isdigit()))


def is_at_end(prompt: str, answer: str) -> bool:
    return signs.ends_with(prompt, answer) if len(answer) <= signs.LONGEST else _squeezed(prompt).endswith(answer)


def _squeezed(text: str) -> str:
    return " ".join(text.lower().split())


# ---------------------------------------------------------------- the order of rows


def order_facts(rows: list[Seen]) -> dict[str, Any]:
    """Whether rows of a kind stand together: how often it changes from a row to the next, beside what chance would."""
    if len(rows) < 4 * LEAST:
        return {}
    facts: dict[str, Any] = {}
    labels = [row.label for row in rows if row.label is not None]
    said = [row.parts[0].said.strip() for row in rows if row.parts and row.label is None]
    for name, kinds in (("label", labels), ("completion", said if len(set(said)) <= 10 else [])):
        together = standing_together(kinds)
        if together is not None and together > 0.7:
            facts[f"data/sorted/{name}"] = together
    return facts


def standing_together(kinds: list[Any]) -> float | None:
    """1 where like stands by like, 0 for an order by chance; None where there is one kind or too few."""
    counts = Counter(kinds)
    size = len(kinds)
    expected = 1 - sum((count / size) ** 2 for count in counts.values()) if size else 0
    if size < 4 * LEAST or expected < 0.1:
        return None
    changes = sum(one != other for one, other in zip(kinds, kinds[1:], strict=False)) / (size - 1)
    return 1 - changes / expected
