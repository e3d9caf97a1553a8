"""Facts about columns beside each other: copies, answers that stand in their prompts, rows in the order of what they
hold."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from ft_host.monitor.rows import signs
from ft_host.monitor.rows.columns import LEAST, quoted
from ft_host.monitor.rows.read import ANSWERS, Seen

TURNS = 8  # other rows' answers that each prompt is tried with, to see what chance does
# What an answer stands behind, where a prompt gives it.
GIVEN = re.compile(
    r"(?:answer|hint|solution|result|output|label|target|ground truth)\s*(?:is\b|:|=|->)+\s*(?=\S)|####\s*(?=\S)",
    re.IGNORECASE,
)
SENTENCE = re.compile(r"[a-z]{2}[.,;:?!](?:\s|$)")
WORDS = re.compile(r"\w{3,}")


def across_facts(rows: list[Seen]) -> dict[str, Any]:
    if len(rows) < LEAST:
        return {}
    return copies(rows) | nearly_identical(rows) | given_away(rows) | misjoined(rows) | order_facts(rows)


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
        surely = sum(is_asked(*each) for *each, _ in found if repeats(*(text.strip() for text in each)))
        if surely and not is_echo(column, found):
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


def is_asked(prompt: str, said: str) -> bool:
    """Whether a prompt that is repeated is more than material: it is long, or it is repeated with the sign that it ends
    in. (To say short material once more may be the task.)"""
    return len(prompt) >= 20 or (not prompt[-1].isalnum() and said.startswith(prompt))


def is_echo(column: str, found: list[tuple[str, str, Seen]]) -> bool:
    """Whether to say the prompt once more may be the task: all completions are the prompt, and it is no question."""
    same = sum(prompt.strip() == said.strip() for prompt, said, _ in found)
    asked = sum(prompt.rstrip()[-1:] in ("?", "=", ":") or len(prompt) > 100 for prompt, _, _ in found)
    return column == "completion" and same > 0.9 * len(found) and asked < 0.5 * len(found)


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
        for test, least in ((is_marked, 0.05), (is_appended, 0.05), (is_at_end, 0.5)):
            bad = [(told_in(prompt), row) for prompt, answer, row in found if test(prompt, answer)]
            chance = by_chance(found, test) if bad else 0.0
            doubt = 3 * math.sqrt(chance * (1 - chance / len(found)))
            given = len(bad) - chance > max(2, least * len(found), doubt)
            if test is not is_marked and not asks(found):
                continue
            if len(found) >= LEAST and given:
                facts |= _share(f"given_away/{column}", bad, len(found))
                break
    return facts


def asks(found: list[tuple[str, str, Seen]]) -> bool:
    """Whether there is a question before the answers that end prompts: what is before them differs from row to row. In
    a task that says its material in another way, it is the same instruction, or a sign."""
    before = [prompt[: -len(answer)] for prompt, answer, _ in found if is_at_end(prompt, answer)]
    return len(set(before)) > len(before) / 2


def told_in(prompt: str) -> str:
    """The part of a prompt to quote: from the last word for an answer on, or its end."""
    places = [found.start() for found in GIVEN.finditer(prompt)]
    return prompt[places[-1] :] if places else prompt[-60:]


def by_chance(found: list[tuple[str, str, Seen]], test: Callable[[str, str], bool]) -> float:
    """In how many prompts another row's answer is found: the mean over a few others."""
    size = len(found)
    turns = [1 + turn * size // TURNS for turn in range(TURNS)] if size > TURNS else []
    times = sum(test(found[at][0], found[(at + turn) % size][1]) for turn in turns for at in range(size))
    return times / len(turns) if turns else 0.0


def is_marked(prompt: str, answer: str) -> bool:
    """Whether the last word for an answer in a prompt has this one behind it."""
    ends = [found.end() for found in GIVEN.finditer(f"{prompt.rstrip()}\0")]
    if not ends or ends[-1] >= len(prompt.rstrip()):
        return False  # none, or it is what asks for the answer
    after = " ".join(prompt[ends[-1] :].lower().replace(",", "").replace("$", "").split())
    rest = after[len(answer) :]
    return after.startswith(answer) and not (rest and (rest[0].isalnum() or rest[:2].strip(".").isdigit()))


def is_appended(prompt: str, answer: str) -> bool:
    """Whether an answer stands alone behind the last sentence of a prompt."""
    if not is_at_end(prompt, answer):
        return False
    before = _squeezed(prompt)[: -len(answer)].rstrip(" $(.")
    return before.endswith(("?", "!", ".", ":"))


def is_at_end(prompt: str, answer: str) -> bool:
    return signs.ends_with(prompt, answer) if len(answer) <= signs.LONGEST else _squeezed(prompt).endswith(answer)


def _squeezed(text: str) -> str:
    return " ".join(text.lower().split())


# ---------------------------------------------------------------- completions of other prompts


def misjoined(rows: list[Seen]) -> dict[str, Any]:
    """Completions that share hardly more rare words with their own prompts than with others, where they are made of
    words of prompts at all: they belong to other prompts.

    Of sentences whose prompts differ. Translations share no words, and labels are short: nothing is said of them."""
    texts = [(row.prompt, row.parts[0].said) for row in rows if row.prompt and row.parts]
    if sum(bool(SENTENCE.search(asked)) for asked, _ in texts) < 0.5 * len(texts):
        return {}
    pairs = [(words_of(asked), words_of(said)) for asked, said in texts]
    pairs = [(asked, said) for asked, said in pairs if len(asked) >= 5 and len(said) >= 5]
    if len(pairs) < 8 * LEAST or len({frozenset(asked) for asked, _ in pairs}) < 0.8 * len(pairs):
        return {}
    often = Counter(word for asked, _ in pairs for word in asked)
    rare = {word for word, count in often.items() if 2 <= count <= max(2, 0.1 * len(pairs))}
    said_at_all = {word for _, said in pairs for word in said}
    if len(rare) < 10 or len(rare & said_at_all) < 0.3 * len(rare):
        return {}
    own = sum(len(asked & said & rare) for asked, said in pairs)
    size, others = len(pairs), 0
    for turn in range(TURNS):
        away = 1 + turn * size // TURNS
        others += sum(len(asked & pairs[(at + away) % size][1] & rare) for at, (asked, _) in enumerate(pairs))
    # With fewer chance alone may make them alike.
    if others < 8 * TURNS or own * TURNS > 1.3 * others:
        return {}
    by = (
        f"they share {own * TURNS / others:.2f} times as many rare words with their own prompt as with that of another "
        "row"
    )
    return {"data/misjoined/completion": own * TURNS / others, "data/misjoined_by/completion": by}


def words_of(text: str) -> set[str]:
    return set(WORDS.findall(text.lower()))


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
