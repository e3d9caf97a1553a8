"""The blocks of a run's page that tell how it went. Each takes a record and gives Markup, or None if it has nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from ft_host.report import format as fmt
from ft_host.report.chart import Line, chart
from ft_host.report.markup import Markup, el, facts, join, table
from ft_host.report.record import RunRecord

# Curves in the order people look for them; those that aren't here follow by name.
FIRST = ("reward", "mean_token_accuracy", "entropy", "grad_norm", "learning_rate")
SPEED = ("perf/tokens_per_second", "perf/supervised_tokens_per_second", "perf/step_time", "perf/peak_memory_mb")
SAMPLES_SHOWN = 6


def headline_metrics(record: RunRecord) -> list[str]:
    """Evaluation metrics of which the name says which way is better, the most telling first.

    A reward function's own mean is left out where it is the whole reward.
    """
    names = [name for name in record.evals if fmt.better(name)]
    order = {"eval_reward": 0, "eval_loss": 2, "eval_mean_token_accuracy": 3}
    names.sort(key=lambda name: order.get(name, 1))
    whole = record.evals.get("eval_reward")
    same = [name for name in names if name.startswith("eval_rewards/") and whole and record.evals[name] == whole]
    return [name for name in names if name not in same]


def status_pill(record: RunRecord) -> Markup:
    return el(f"span.status.{record.status}", record.status)


def _tile(name: str, before: float | None, after: float, more: str, verdict: str) -> Markup:
    ends = [el("span.before", fmt.number(before)), el("span.arrow", "→")] if before is not None else []
    return el("div.tile", el("div.name", name), el("div.ends", *ends, el(f"span{verdict}", fmt.number(after))),
              el("div.more", more))  # fmt: skip


def tiles(record: RunRecord) -> Markup | None:
    """What the run is about in large: evaluation before and after, or the loss where there was no evaluation."""
    made = []
    for name in headline_metrics(record)[:4]:
        series = record.evals[name]
        heading, _ = fmt.title(name)
        if len(series) < 2:
            made.append(_tile(heading, None, series.last, f"evaluated once, at step {series.steps[0]:,.0f}", ""))
            continue
        gain = (series.last - series.first) * fmt.better(name)
        verdict = ".up" if gain > 0 else "" if gain == 0 else ".down"  # NaN is not well
        more = fmt.change(series.first, series.last)
        best = series.best(fmt.better(name))
        if best and best[1] != series.last:
            more = f"{more} · best {fmt.number(best[1])} at step {best[0]:,.0f}".removeprefix(" · ")
        made.append(_tile(heading, series.first, series.last, more, verdict))
    if "loss" in record.train and len(made) < 4:
        series = record.train["loss"]
        after = series.recent()
        if len(series) == 1:
            made.append(_tile("Training loss", None, series.last, "one step", ""))
        else:
            last = min(10, len(series))
            made.append(_tile("Training loss", series.first, after, f"first step → mean of the last {last}", ""))
    return el("div.tiles", *made) if made else None


def strip(record: RunRecord) -> Markup:
    """The run in numbers: how long, how many, how fast."""
    def item(name: str, what: str, more: str = "") -> Markup:
        return el("div", el("dt", name), el("dd", what, el("small", more) if more else None))

    planned = record.planned_steps
    items = [item("Duration", fmt.duration(record.seconds), "so far" if record.status == "running" else "")]
    if record.train:
        epochs = "" if math.isnan(record.epoch) else f"{record.epoch:.3g} epochs"
        of = f"of {planned:,}" if planned and planned != record.steps else ""
        items.append(item("Steps", f"{record.steps:,}", ", ".join(part for part in (of, epochs) if part)))
    if not math.isnan(record.tokens):
        items.append(item("Tokens", fmt.count(record.tokens)))
    for name, label, unit in (
        ("perf/tokens_per_second", "Speed", "tokens/s"), ("perf/peak_memory_mb", "Peak memory", ""),
    ):  # fmt: skip
        series = record.train.get(name)
        if series and series.finite():
            if unit:
                items.append(item(label, fmt.count(series.median()), unit))
            else:
                items.append(item(label, fmt.memory(max(series.finite()))))
    if record.model.get("parameters"):
        trained = record.model.get("trainable")
        more = f"{fmt.count(trained)} trained" if trained != record.model["parameters"] else ""
        items.append(item("Parameters", fmt.count(record.model["parameters"]), more))
    bar = None
    if record.status != "finished" and planned:
        done = f"{min(100.0, 100 * record.steps / planned):.1f}%"
        bar = el("div.bar", el("i", attrs={"style": f"width:{done}"}))
    return join(el("dl.strip", *items), bar)


def notices(record: RunRecord, now_text: str) -> Markup | None:
    """What a reader must know before the numbers: how the run ended, and what could not be read."""
    out = []
    resume = join("Go on with ", el("code", f"ft-host train --resume {record.folder}"))
    saved = f"The last checkpoint is that of step {record.checkpoints[-1]:,}. " if record.checkpoints else \
        "No checkpoint was written. "  # fmt: skip
    at = f"after step {record.steps:,}" if record.steps else "before its first step"
    if record.status == "failed":
        why = el("pre", record.error or "run.json gives no reason.")
        out.append(el("div.notice.bad", el("b", f"The run failed {at}."), why, el("p.soft", saved)))
    elif record.status == "interrupted":
        out.append(el("div.notice", el("b", f"The run was stopped {at}."), record.error, el("p", saved, resume)))
    elif record.status == "running":
        out.append(el("div.notice.info", el("b", f"This run had not ended when the page was made ({now_text})."),
                      f"It last wrote {fmt.moment(record.written)}. {saved}",
                      el("p", "If its process is gone, it was killed. ", resume) if record.checkpoints else None))
    if record.problems:
        shown = [el("li", problem) for problem in record.problems[:8]]
        more = len(record.problems) - len(shown)
        out.append(el("div.notice", el("b", "Not all of the folder could be read."),
                      el("ul", *shown, el("li", f"and {more:,} more") if more else None)))  # fmt: skip
    loud = [event for event in record.events if event.get("level") in ("warning", "error")]
    if loud:
        said = [el("li", str(event.get("text", ""))) for event in loud[:5]]
        more = len(loud) - len(said)
        out.append(el("div.notice", el("b", "1 warning" if len(loud) == 1 else f"{len(loud)} warnings"),
                      el("ul", *said, el("li", f"and {more:,} more, under Events") if more else None)))  # fmt: skip
    return join(*out) if out else None


def _place(order: tuple[str, ...]) -> Callable[[str], tuple[int, str]]:
    """A sort key: names of `order` in that order, then the others by name."""
    return lambda name: (order.index(name) if name in order else len(order), name)


def lines_of(record: RunRecord, metric: str) -> list[Line]:
    """A training metric and its held-out twin: `loss` with `eval_loss`."""
    found = []
    if metric in record.train:
        found.append(Line("training", "train", record.train[metric]))
    if f"eval_{metric}" in record.evals:
        found.append(Line("held out", "eval", record.evals[f"eval_{metric}"], points=True))
    return found


def curves(record: RunRecord) -> tuple[Markup | None, list[Markup], list[Markup]]:
    """The loss in large; the other metrics, small; speed and memory, small. What was measured once is no curve."""
    speed = [name for name in record.train if name.startswith("perf/")]
    names = [name for name in record.train if not name.startswith("perf/")]
    names += [name.removeprefix("eval_") for name in record.evals
              if not name.startswith("perf/") and name.removeprefix("eval_") not in record.train]  # fmt: skip
    same = {name.removeprefix("eval_") for name in record.evals if name.startswith("eval_rewards/")
            and record.evals[name] == record.evals.get("eval_reward")}  # fmt: skip
    # The spread of a held-out reward stands in the table; as a picture it says little.
    names = [name for name in names if name != "loss" and name not in same
             and not (name.endswith("/std") and name not in record.train)]  # fmt: skip
    names.sort(key=_place(FIRST))

    def drawn(name: str, size: str = "small") -> Markup | None:
        lines = lines_of(record, name)
        if all(len(line.series) < 2 for line in lines):
            return None
        return chart(name if name in record.train else f"eval_{name}", lines, size=size)

    small = [picture for name in names if (picture := drawn(name))]
    fast = [picture for name in sorted(speed, key=_place(SPEED)) if (picture := drawn(name, "narrow"))]
    return drawn("loss", "big"), small, fast


def measured_once(record: RunRecord) -> Markup | None:
    """The training metrics of a run of one step."""
    pairs = [(name, fmt.number(series.last)) for name, series in record.train.items() if len(series) == 1]
    return facts(pairs) if pairs else None


def eval_table(record: RunRecord) -> Markup | None:
    """Every evaluation metric before, at its best and after."""
    names = [name for name in record.evals if not name.startswith("perf/")]
    if not names:
        return None
    rows = []
    for name in names:
        series, way = record.evals[name], fmt.better(name)
        best = series.best(way) if way else None
        moved = fmt.change(series.first, series.last) if len(series) > 1 else ""
        gain = (series.last - series.first) * way
        rows.append([
            el("code", name), fmt.number(series.first) if len(series) > 1 else "", fmt.number(series.last),
            el("span.up" if gain > 0 else "span.down" if gain < 0 else "span", moved),
            f"{fmt.number(best[1])} at step {best[0]:,.0f}" if best else "",
        ])  # fmt: skip
    ends = {(record.evals[name].steps[0], record.evals[name].steps[-1]) for name in names}
    first, last = (f"Step {step:,.0f}" for step in ends.pop()) if len(ends) == 1 else ("First", "Last")
    header = ["Metric", first, last, "Change", "Best"]
    return table(header, rows, numbers={1, 2, 3, 4})


# ---------------------------------------------------------------- samples


def _text_of(content: Any) -> Markup:
    """A text as it is, a conversation turn by turn, anything else as JSON."""
    if isinstance(content, str):
        return el("pre", content) if content else el("p.empty", "(empty)")
    if isinstance(content, list) and content and all(isinstance(turn, dict) and "role" in turn for turn in content):
        turns = []
        for turn in content:
            said = turn.get("content")
            rest = {key: value for key, value in turn.items() if key not in ("role", "content")}
            body = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
            body += f"\n{json.dumps(rest, ensure_ascii=False)}" if rest else ""
            turns += [el("div.turn", str(turn["role"])), el("pre", body)]
        return join(*turns)
    return el("pre", json.dumps(content, ensure_ascii=False, indent=1))


def _rewards(sample: dict[str, Any], other: dict[str, Any] | None) -> Markup | None:
    """The rewards of a completion; green or red where they differ from those of the other evaluation."""
    rewards = sample.get("rewards")
    if not isinstance(rewards, dict) or not rewards:
        return None
    before = other.get("rewards") if other else None
    chips = []
    for name, value in rewards.items():
        known = isinstance(value, (int, float))
        old = before.get(name) if isinstance(before, dict) else None
        shown = fmt.number(value) if known or value is None else fmt.value(value)  # None: not scored
        mark = ""
        if known and isinstance(old, (int, float)) and value != old:
            mark = ".good" if value > old else ".bad"
        chips.append(el(f"span.chip{mark}", f"{name} {shown}"))
    return el("span", *[join(" ", chip) for chip in chips])


def _sample(first: dict[str, Any] | None, last: dict[str, Any], prompt: Any) -> Markup:
    def side(sample: dict[str, Any], name: str, other: dict[str, Any] | None) -> Markup:
        label = el("div.label", el("span", f"{name}step {sample.get('step', '?')}"), _rewards(sample, other))
        return el("div.side", label, _text_of(sample.get("completion", "")))

    sides = [side(first, "Before · ", None), side(last, "After · ", first)] if first else [side(last, "", None)]
    reference = last.get("reference")
    if reference is not None:
        sides.append(el("div.side.ref", el("div.label", el("span", "Reference")), _text_of(reference)))
    extra = last.get("extra")
    if isinstance(extra, dict) and extra:
        logged = "\n".join(f"{name}: {fmt.value(value)}" for name, value in extra.items())
        sides.append(el("div.side.ref", el("div.label", el("span", "Logged with it")), el("pre", logged)))
    return el("div.sample", el("div.prompt", el("div.label", el("span", "Prompt")), _text_of(prompt)),
              el("div.sides", *sides))  # fmt: skip


def samples(record: RunRecord) -> Markup | None:
    """Completions of the same prompts at the first and the last evaluation, side by side."""
    steps = [sample.get("step", 0) for sample in record.samples]
    if not steps:
        return None

    def at(step: Any) -> dict[str, dict[str, Any]]:
        return {json.dumps(sample.get("prompt"), sort_keys=True): sample
                for sample in record.samples if sample.get("step", 0) == step}  # fmt: skip

    last = at(steps[-1])
    first = at(steps[0]) if steps[0] != steps[-1] else {}
    cards = [_sample(first.get(prompt), sample, sample.get("prompt", "")) for prompt, sample in last.items()]
    more = cards[SAMPLES_SHOWN:]
    rest = el("details", el("summary", f"{len(more)} more"), *more) if more else None
    return join(*cards[:SAMPLES_SHOWN], rest)
