"""The blocks of a run's page that show how it went. Each takes a record and returns Markup, or None without content."""

from __future__ import annotations

import math
from collections.abc import Callable

from ft_host.report import timeline
from ft_host.report.chart import Line, chart
from ft_host.report.findings import marks
from ft_host.report.markup import Markup, el, facts, join, table
from ft_host.rundir import format as fmt
from ft_host.rundir.record import KILLED, RunRecord

# The order of curves, families by their prefix; all others follow, sorted by name.
FIRST = (
    "reward",
    "objective/scores",
    "objective/rlhf_reward",
    "rewards/",
    "accuracy",
    "mean_token_accuracy",
    "kl",
    "objective/kl",
    "entropy",
    "policy/entropy_avg",
    "completions/mean_length",
    "completions/clipped_ratio",
    "frac_reward_zero_std",
    "loss",
    "grad_norm",
    "learning_rate",
)
SPEED = (
    "perf/tokens_per_second",
    "perf/supervised_tokens_per_second",
    "perf/generation_tokens_per_second",
    "perf/step_time",
    "perf/peak_memory_mb",
    "perf/rollout_time",
    "perf/generation_time",
    "perf/reward_time",
    "perf/weight_sync_time",
    "perf/annotation_time",
    "perf/train_time",
    "perf/rollout_wait_time",
    "perf/rollout_idle_share",
    "perf/weight_update_time",
)
MANY = 12  # with more curves than these, those that FIRST doesn't name are folded


def headline_metrics(record: RunRecord) -> list[str]:
    """Return evaluation metrics whose direction is known, the most important first.

    A reward function's own mean is left out where it is the whole reward.
    """
    names = [name for name in record.evals if record.better(name)]
    order = {"eval_reward": 0, "eval_loss": 2, "eval_mean_token_accuracy": 3}
    names.sort(key=lambda name: order.get(name, 1))
    whole = record.evals.get("eval_reward")
    same = [name for name in names if name.startswith("eval_rewards/") and whole and record.evals[name] == whole]
    return [name for name in names if name not in same]


def status_pill(record: RunRecord) -> Markup:
    return el(f"span.status.{record.status}", record.status)


def _tile(name: str, before: float | None, after: float, more: str, verdict: str) -> Markup:
    ends = [el("span.before", fmt.number(before)), el("span.arrow", "→")] if before is not None else []
    return el(
        "div.tile",
        el("div.name", name),
        el("div.ends", *ends, el(f"span{verdict}", fmt.number(after))),
        el("div.more", more),
    )


def tiles(record: RunRecord) -> Markup | None:
    """Return the main results in large type: evaluation before and after, and the loss, or the reward of rollouts."""
    blocks = []
    for name in headline_metrics(record)[:4]:
        series = record.evals[name]
        heading, _ = fmt.title(name)
        if len(series) < 2:
            blocks.append(_tile(heading, None, series.last, f"evaluated once, at step {series.steps[0]:,.0f}", ""))
            continue
        gain = (series.last - series.first) * record.better(name)
        verdict = ".up" if gain > 0 else "" if gain == 0 else ".down"  # NaN is no improvement
        more = fmt.change(series.first, series.last)
        best = series.best(record.better(name))
        if best and best[1] != series.last:
            more = f"{more} · best {fmt.number(best[1])} at step {best[0]:,.0f}".removeprefix(" · ")
        blocks.append(_tile(heading, series.first, series.last, more, verdict))
    main = record.main_metric
    if main in record.train and len(blocks) < 4:
        series = record.train[main]
        heading = f"Training {fmt.title(main)[0].lower()}"
        point = "rollout" if main == "reward" else "step"  # the reward is logged with a rollout's first step
        after, last = series.recent(), min(10, len(series))
        gain = (after - series.first) * record.better(main) if main != "loss" else 0
        verdict = ".up" if gain > 0 else ".down" if gain < 0 else ""
        if len(series) == 1:
            blocks.append(_tile(heading, None, series.last, f"one {point}", ""))
        else:
            blocks.append(_tile(heading, series.first, after, f"first {point} → mean of the last {last}", verdict))
    return el("div.tiles", *blocks) if blocks else None


def strip(record: RunRecord) -> Markup:
    """Return the run in numbers: duration, steps, tokens, speed."""

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
        ("perf/tokens_per_second", "Speed", "tokens/s"),
        ("perf/generation_tokens_per_second", "Sampling", "tokens/s"),
        ("perf/peak_memory_mb", "Peak memory", ""),
    ):
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
    """Return what a reader must know before the numbers: how the run ended, and what could not be read."""
    out = []
    resume = join("Resume it with ", el("code", f"ft-host train --resume {record.folder}"))
    saved = (
        f"The last checkpoint is from step {record.checkpoints[-1]:,}. "
        if record.checkpoints
        else "No checkpoint was written. "
    )
    at = f"after step {record.steps:,}" if record.steps else "before its first step"
    if record.status in ("failed", "refused"):
        was = "was refused" if record.status == "refused" else "failed"
        why = el("pre", record.error or "run.json gives no reason.")
        saved = saved if record.status == "failed" else "Another run may begin in its folder, and takes its place."
        out.append(el("div.notice.bad", el("b", f"The run {was} {at}."), why, el("p.soft", saved)))
    elif record.status == "interrupted":
        out.append(el("div.notice", el("b", f"The run was stopped {at}."), record.error, el("p", saved, resume)))
    elif record.status == KILLED:
        why = "Its process is gone and left no word: a kill, or a machine that went down."
        out.append(el("div.notice", el("b", f"The run was killed {at}."), why, el("p", saved, resume)))
    elif record.status == "running":
        out.append(
            el(
                "div.notice.info",
                el("b", f"This run had not ended when the page was made ({now_text})."),
                f"It last wrote {fmt.moment(record.written)}. {saved}",
                el("p", "If its process no longer exists, it was killed. ", resume) if record.checkpoints else None,
            )
        )
    if record.problems:
        shown = [el("li", problem) for problem in record.problems[:8]]
        more = len(record.problems) - len(shown)
        out.append(
            el(
                "div.notice",
                el("b", "Part of the folder could not be read."),
                el("ul", *shown, el("li", f"and {more:,} more") if more else None),
            )
        )
    loud = [event for event in record.events if event.get("level") in ("warning", "error")]
    if loud:
        items = [el("li", str(event.get("text", ""))) for event in loud[:5]]
        more = len(loud) - len(items)
        out.append(
            el(
                "div.notice",
                el("b", "1 warning" if len(loud) == 1 else f"{len(loud)} warnings"),
                el("ul", *items, el("li", f"and {more:,} more, under Events") if more else None),
            )
        )
    return join(*out) if out else None


def place(order: tuple[str, ...]) -> Callable[[str], tuple[int, str]]:
    """Return a sort key: the names in `order` in that order, then all others by name.

    A name that ends with a slash stands for all names that begin with it, except spreads.
    """

    def key(name: str) -> tuple[int, str]:
        matches = (
            index
            for index, first in enumerate(order)
            if name == first or first.endswith("/") and name.startswith(first) and not name.endswith("/std")
        )
        return next(matches, len(order)), name

    return key


def lines_of(record: RunRecord, metric: str) -> list[Line]:
    """Return the curves of a training metric and its held-out twin: `loss` with `eval_loss`."""
    lines = []
    if metric in record.train:
        lines.append(Line("training", "train", record.train[metric]))
    if f"eval_{metric}" in record.evals:
        lines.append(Line("held out", "eval", record.evals[f"eval_{metric}"], points=True))
    return lines


def _says_nothing_new(record: RunRecord, name: str) -> bool:
    """Return whether a metric needs no chart: a reward function that is the whole reward, or the spread of a held-out
    reward.
    """
    if name.endswith("/std") and name not in record.train:
        return True
    return name.startswith("rewards/") and all(
        curves.get(start + name) == curves.get(f"{start}reward")
        for start, curves in (("", record.train), ("eval_", record.evals))
    )


def curves(record: RunRecord) -> tuple[Markup | None, list[Markup], list[Markup], list[Markup]]:
    """Return the main chart, large; the other charts, small; folded charts, if there are many; speed and
    memory, small.

    A metric with a single value has no curve.
    """
    main, in_order = record.main_metric, place(FIRST)
    names = dict.fromkeys([*record.train, *(name.removeprefix("eval_") for name in record.evals)])
    shown = [
        name
        for name in names
        if not name.startswith("perf/")
        and name not in timeline.SHOWN
        and name != main
        and not _says_nothing_new(record, name)
    ]

    def drawn(name: str, size: str = "small") -> Markup | None:
        lines = lines_of(record, name)
        if all(len(line.series) < 2 for line in lines):
            return None
        return chart(name if name in record.train else f"eval_{name}", lines, size=size, marks=marks(record, name))

    small = [
        (in_order(name)[0] < len(FIRST), picture) for name in sorted(shown, key=in_order) if (picture := drawn(name))
    ]
    folded = [picture for named, picture in small if not named] if len(small) > MANY else []
    speed = sorted((name for name in record.train if name.startswith("perf/")), key=place(SPEED))
    fast = [picture for name in speed if (picture := drawn(name, "narrow"))]
    return drawn(main, "big"), [picture for named, picture in small if named or not folded], folded, fast


def measured_once(record: RunRecord) -> Markup | None:
    """Return the training metrics of a run of one step."""
    pairs = [(name, fmt.number(series.last)) for name, series in record.train.items() if len(series) == 1]
    return facts(pairs) if pairs else None


def eval_table(record: RunRecord) -> Markup | None:
    """Return every evaluation metric before, at its best and after."""
    names = [name for name in record.evals if not name.startswith("perf/")]
    if not names:
        return None
    rows = []
    for name in names:
        series, way = record.evals[name], record.better(name)
        best = series.best(way) if way else None
        moved = fmt.change(series.first, series.last) if len(series) > 1 else ""
        gain = (series.last - series.first) * way
        rows.append(
            [
                el("code", name),
                fmt.number(series.first) if len(series) > 1 else "",
                fmt.number(series.last),
                el("span.up" if gain > 0 else "span.down" if gain < 0 else "span", moved),
                f"{fmt.number(best[1])} at step {best[0]:,.0f}" if best else "",
            ]
        )
    ends = {(record.evals[name].steps[0], record.evals[name].steps[-1]) for name in names}
    first, last = (f"Step {step:,.0f}" for step in ends.pop()) if len(ends) == 1 else ("First", "Last")
    header = ["Metric", first, last, "Change", "Best"]
    return table(header, rows, numbers={1, 2, 3, 4})
