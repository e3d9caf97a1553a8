"""The blocks of a run's page that show text: completions of held-out prompts, and completions that the run
trained on.
"""

from __future__ import annotations

import json
import math
from typing import Any

from ft_host.report.markup import Markup, el, join
from ft_host.rundir import format as fmt
from ft_host.rundir.record import RunRecord

SAMPLES_SHOWN = 6
GROUPS_SHOWN = 3  # prompts of each rollout


def _text_of(content: Any) -> Markup:
    """Return a text as it is, a conversation turn by turn, anything else as JSON."""
    if isinstance(content, str):
        return el("pre", content) if content else el("p.empty", "(empty)")
    if isinstance(content, list) and content and all(isinstance(turn, dict) and "role" in turn for turn in content):
        turns = []
        for turn in content:
            spoken = turn.get("content")
            rest = {key: value for key, value in turn.items() if key not in ("role", "content")}
            body = spoken if isinstance(spoken, str) else json.dumps(spoken, ensure_ascii=False)
            body += f"\n{json.dumps(rest, ensure_ascii=False)}" if rest else ""
            turns += [el("div.turn", str(turn["role"])), el("pre", body)]
        return join(*turns)
    return el("pre", json.dumps(content, ensure_ascii=False, indent=1))


def _rewards(sample: dict[str, Any], other: dict[str, Any] | None) -> Markup | None:
    """Return the rewards of a completion, green or red where they differ from those of the other evaluation."""
    rewards = sample.get("rewards")
    if not isinstance(rewards, dict) or not rewards:
        return None
    before = other.get("rewards") if other else None
    chips = []
    for name, value in rewards.items():
        numeric = isinstance(value, (int, float))
        old = before.get(name) if isinstance(before, dict) else None
        shown = fmt.number(value) if numeric or value is None else fmt.value(value)  # None: not scored
        mark = ""
        if numeric and isinstance(old, (int, float)) and value != old:
            mark = ".good" if value > old else ".bad"
        chips.append(el(f"span.chip{mark}", f"{name} {shown}"))
    return el("span", *[join(" ", chip) for chip in chips])


def _logged(sample: dict[str, Any]) -> str | None:
    """Return what reward functions logged for a completion, one name per line."""
    extra = sample.get("extra")
    if not isinstance(extra, dict) or not extra:
        return None
    return "\n".join(f"{name}: {fmt.value(value)}" for name, value in extra.items())


def _sample(first: dict[str, Any] | None, last: dict[str, Any], prompt: Any) -> Markup:
    def side(sample: dict[str, Any], name: str, other: dict[str, Any] | None) -> Markup:
        label = el("div.label", el("span", f"{name}step {sample.get('step', '?')}"), _rewards(sample, other))
        return el("div.side", label, _text_of(sample.get("completion", "")))

    sides = [side(first, "Before · ", None), side(last, "After · ", first)] if first else [side(last, "", None)]
    reference = last.get("reference")
    if reference is not None:
        sides.append(el("div.side.ref", el("div.label", el("span", "Reference")), _text_of(reference)))
    logged = _logged(last)
    if logged is not None:
        sides.append(el("div.side.ref", el("div.label", el("span", "Logged with it")), el("pre", logged)))
    return el(
        "div.sample", el("div.prompt", el("div.label", el("span", "Prompt")), _text_of(prompt)), el("div.sides", *sides)
    )


def samples(record: RunRecord) -> Markup | None:
    """Return completions of the same prompts at the first and the last evaluation, side by side."""
    steps = [sample.get("step", 0) for sample in record.samples]
    if not steps:
        return None

    def at(step: Any) -> dict[str, dict[str, Any]]:
        return {
            json.dumps(sample.get("prompt"), sort_keys=True): sample
            for sample in record.samples
            if sample.get("step", 0) == step
        }

    last = at(steps[-1])
    first = at(steps[0]) if steps[0] != steps[-1] else {}
    cards = [_sample(first.get(prompt), sample, sample.get("prompt", "")) for prompt, sample in last.items()]
    return _some(cards, SAMPLES_SHOWN)


def _some(cards: list[Markup], shown: int) -> Markup:
    """Return the first cards; a click opens the others."""
    more = cards[shown:]
    rest = el("details", el("summary", f"{len(more)} more"), *more) if more else None
    return join(*cards[:shown], rest)


# ---------------------------------------------------------------- rollouts


def _advantage(sample: dict[str, Any]) -> float | None:
    value = sample.get("advantage")
    return value if isinstance(value, (int, float)) else None


def _rolled(sample: dict[str, Any]) -> Markup:
    """Return a completion with its tokens, its rewards, and the advantage that it was trained with."""
    tokens, advantage = sample.get("tokens"), sample.get("advantage")
    size = f"{fmt.value(tokens)} token{'' if tokens == 1 else 's'}" if tokens is not None else ""
    chip = None
    if advantage is not None:
        value = _advantage(sample)
        shown = fmt.value(advantage) if value is None else f"{'+' if value > 0 else ''}{fmt.number(value)}"
        mark = (
            "" if value is None or abs(value) < 1e-6 else ".good" if value > 0 else ".bad"
        )  # round-off gets no colour
        chip = el(f"span.chip{mark}", f"advantage {shown}")
    logged = _logged(sample)
    return el(
        "div.side",
        el("div.label", el("span", size), chip, _rewards(sample, None)),
        _text_of(sample.get("completion", "")),
        el("pre.logged", logged) if logged is not None else None,
    )


def _rollout(record: RunRecord, number: Any, name: str) -> Markup:
    """Return completions of one rollout, grouped by prompt, best first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    rows = [sample for sample in record.rollouts if sample.get("rollout") == number]
    for sample in rows:
        groups.setdefault(json.dumps([sample.get("group"), sample.get("prompt")], sort_keys=True), []).append(sample)
    cards = []
    for group in groups.values():
        advantages = {id(sample): value for sample in group if (value := _advantage(sample)) is not None}
        group.sort(key=lambda sample: -advantages.get(id(sample), -math.inf))
        cards.append(
            el(
                "div.sample",
                el("div.prompt", el("div.label", el("span", "Prompt")), _text_of(group[0].get("prompt", ""))),
                el("div.sides.rolled", *map(_rolled, group)),
            )
        )
    return join(el("h3", f"{name} · step {rows[0].get('step', '?')}"), _some(cards, GROUPS_SHOWN))


def rollouts(record: RunRecord) -> Markup | None:
    """Return completions of the first and of the last rollout, by prompt."""
    if not record.rollouts:
        return None
    first, last = (record.rollouts[at].get("rollout") for at in (0, -1))
    if first == last:
        return _rollout(record, first, "Rollout")
    return join(_rollout(record, first, "First rollout"), _rollout(record, last, "Last rollout"))
