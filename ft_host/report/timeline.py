"""Where the time goes, of a run whose rollouts don't wait for training: what trainer and rollouts did when.

Two pictures: the whole run, each bin of it filled by the share of each activity, and the last steps span by span. Time
in which the run had stopped is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ft_host.report.chart import SIZE, Line, chart, legend
from ft_host.report.markup import Markup, el, join
from ft_host.report.ticks import tick_labels, ticks
from ft_host.rundir import format as fmt
from ft_host.rundir.lines import number_of
from ft_host.rundir.record import RunRecord

# What each side does, in the order in which a bin is filled, with its colour. The last of each is waiting.
ACTIVITIES = {
    "trainer": {
        "training": "c0",
        "annotating": "c6",
        "publishing": "c4",
        "evaluating": "c3",
        "saving": "c5",
        "starting": "c1",
        "waiting": "c7",
    },
    "rollouts": {"generating": "c2", "scoring": "c1", "updating": "c4", "idle": "c7"},
}
WAITING = ("waiting", "idle")
TRACKS = {"trainer": (0, 410), "rollouts": (470, 880), "queue": (930, SIZE)}  # from top to bottom
BINS = 160  # of the whole run
DETAILED = 240  # spans of a side that are shown one by one, at most
PAUSE = 60.0  # seconds in which nothing is logged: the run had stopped
# Curves over steps, each with its lines: (label, colour, metric).
CURVES = (
    (("ready", "c2", "rollouts/ready"), ("running", "c0", "rollouts/running"), ("waiting", "c7", "rollouts/waiting")),
    (("mean", "c0", "rollouts/staleness_mean"), ("most", "c1", "rollouts/staleness_max")),
    (("tokens", "c0", "rollouts/ess"), ("completions", "c1", "rollouts/ess_rows")),
    (("late", "c1", "rollouts/late_length"), ("on time", "c0", "rollouts/on_time_length")),
    (("late", "c1", "rollouts/late_share"),),
    (("all tokens", "c0", "rollouts/logp_difference"), ("same weights", "c2", "rollouts/mismatch_mean")),
)
SHOWN = {metric for lines in CURVES for _, _, metric in lines}


@dataclass(frozen=True)
class Span:
    side: str
    what: str
    start: float
    end: float


def spans_of(lines: list[dict[str, Any]]) -> tuple[list[Span], list[tuple[float, float]]]:
    """Return the spans and the depths of the queue (time, ready groups) of timeline.jsonl, in order of time and without
    the time in which the run had stopped. Lines of another form are left out."""
    found, depths = [], []
    for line in lines:
        side, what = line.get("side"), line.get("what")
        start, end, ready = (number_of(line.get(name)) for name in ("start", "end", "ready"))
        if start is None or end is None or not (math.isfinite(start) and math.isfinite(end)):
            continue
        if isinstance(side, str) and isinstance(what, str) and what in ACTIVITIES.get(side, ()) and end > start:
            found.append(Span(side, what, start, end))
        elif side == "queue" and ready is not None and math.isfinite(ready):
            depths.append((start, ready))
    found.sort(key=lambda span: (span.start, span.end))
    taken_out, cuts, reached = 0.0, [], None  # cuts: (from this time on, seconds to take off)
    for span in found:
        if reached is None:
            taken_out, reached = span.start, span.start
            cuts.append((-math.inf, taken_out))
        elif span.start - reached > PAUSE:
            taken_out += span.start - reached
            cuts.append((span.start, taken_out))
        reached = max(reached, span.end)

    def moved(at: float) -> float:
        return at - next(off for begin, off in reversed(cuts) if at >= begin)

    spans = [Span(span.side, span.what, moved(span.start), moved(span.start) + span.end - span.start) for span in found]
    last = max((span.end for span in spans), default=0.0)
    return spans, sorted((moved(at), ready) for at, ready in depths if found and 0 <= moved(at) <= last)


def seconds_by_activity(spans: list[Span]) -> dict[str, dict[str, float]]:
    """Return the seconds of each activity of each side, in the order of ACTIVITIES."""
    return {
        side: {
            what: seconds
            for what in known
            if (seconds := sum(span.end - span.start for span in spans if (span.side, span.what) == (side, what)))
        }
        for side, known in ACTIVITIES.items()
    }


def binned(spans: list[Span], begin: float, end: float, bins: int) -> list[dict[str, float]]:
    """Return for each bin of [begin, end] the share of it that each activity of one side took."""
    size = (end - begin) / bins
    shares: list[dict[str, float]] = [{} for _ in range(bins)]
    for span in spans:
        first = max(0, int((span.start - begin) / size))
        for index in range(first, min(bins, int((span.end - begin) / size) + 1)):
            inside = min(span.end, begin + (index + 1) * size) - max(span.start, begin + index * size)
            if inside > 0:
                shares[index][span.what] = shares[index].get(span.what, 0.0) + inside / size
    return shares


# ---------------------------------------------------------------- pictures


def _box(left: float, right: float, top: float, bottom: float) -> str:
    return f"M{left:.1f} {top:.1f}H{right:.1f}V{bottom:.1f}H{left:.1f}Z"


def _paths(shapes: dict[str, list[str]], side: str) -> list[Markup]:
    return [
        el(f"path.span.{colour}{'.calm' if what in WAITING else ''}", attrs={"d": "".join(shapes[what])})
        for what, colour in ACTIVITIES[side].items()
        if shapes.get(what)
    ]


def _bins(spans: list[Span], side: str, begin: float, end: float) -> list[Markup]:
    """A side of the whole run: columns filled by share."""
    shapes: dict[str, list[str]] = {}
    top, bottom = TRACKS[side]
    for index, shares in enumerate(binned(spans, begin, end, BINS)):
        level = float(bottom)
        for what in ACTIVITIES[side]:
            height = min(shares.get(what, 0.0) * (bottom - top), level - top)
            if height > 0.5:
                left, right = index * SIZE / BINS, (index + 1) * SIZE / BINS
                shapes.setdefault(what, []).append(_box(left, right, level - height, level))
                level -= height
    return _paths(shapes, side)


def _boxes(spans: list[Span], side: str, begin: float, end: float) -> list[Markup]:
    """A side of some steps: each span a box."""
    shapes: dict[str, list[str]] = {}
    for span in spans:
        left, right = ((max(begin, at) - begin) / (end - begin) * SIZE for at in (span.start, span.end))
        if right > 0:
            shapes.setdefault(span.what, []).append(_box(left, max(right, left + 0.5), *TRACKS[side]))
    return _paths(shapes, side)


def _queue(depths: list[tuple[float, float]], begin: float, end: float) -> Markup | None:
    """How many groups were ready: one step after the other, up to the most."""
    inside = [(at, ready) for at, ready in depths if begin <= at <= end]
    most = max((ready for _, ready in inside), default=0)
    if not most:
        return None
    while len(inside) > 2 * BINS:
        inside = inside[::2]
    top, bottom = TRACKS["queue"]
    drawn = f"M0 {bottom}"
    for at, ready in inside:
        drawn += f"H{(at - begin) / (end - begin) * SIZE:.1f}V{bottom - ready / most * (bottom - top):.1f}"
    return el("path.span.c2", attrs={"d": f"{drawn}H{SIZE}V{bottom}Z"})


def _figure(
    heading: str, spans: list[Span], depths: list[tuple[float, float]], begin: float, end: float, *, detailed: bool
) -> Markup:
    inside = [span for span in spans if span.end > begin and span.start < end]
    drawn: list[Markup | None] = []
    for side in ACTIVITIES:
        mine = [span for span in inside if span.side == side]
        drawn += (_boxes if detailed else _bins)(mine, side, begin, end)
    queue = _queue(depths, begin, end)
    scale, unit = next((s, u) for s, u in ((3600, "h"), (60, "min"), (1, "s")) if end - begin >= 3 * s or s == 1)
    marks = ticks(begin / scale, end / scale, 8)
    shares = seconds_by_activity(inside)
    spoken = "; ".join(
        f"{side}: " + ", ".join(f"{what} {fmt.duration(seconds)}" for what, seconds in each.items())
        for side, each in shares.items()
    )
    svg = el(
        "svg",
        *drawn,
        queue,
        attrs={"viewBox": f"0 0 {SIZE} {SIZE}", "preserveAspectRatio": "none", "role": "img", "aria-label": spoken},
    )
    names = {"trainer": "trainer", "rollouts": "rollouts"} | ({"queue": "ready"} if queue is not None else {})
    rows = [el("span.y", name, attrs={"style": f"top:{sum(TRACKS[side]) / 20:.1f}%"}) for side, name in names.items()]
    columns = [
        el("span.x", label, attrs={"style": f"left:{100 * (mark * scale - begin) / (end - begin):.2f}%"})
        for mark, label in zip(marks, tick_labels(marks), strict=True)
        if (mark * scale - begin) / (end - begin) < 0.94
    ]
    plot = el("div.plot", svg, *rows, *columns, el("span.xname", unit), attrs={"style": "margin-left:8ch"})
    return el("figure.chart.times", el("figcaption", el("div", el("b", heading))), plot)


def _said(shares: dict[str, dict[str, float]]) -> Markup:
    """What both sides did, with the share of each activity in the time of its side."""
    rows = []
    for side, seconds in shares.items():
        whole = sum(seconds.values())
        if whole:
            keys = [
                (f"{what} {100 * took / whole:.0f} %", ACTIVITIES[side][what])
                for what, took in seconds.items()
                if took >= 0.005 * whole
            ]
            rows.append(el("div.side-of", el("b", side), legend(keys)))
    return el("div.sides-of", *rows)


def last_steps(spans: list[Span]) -> float:
    """Return where the last spans begin, of which no side has more than DETAILED."""
    begins = []
    for side in ACTIVITIES:
        mine = [span for span in spans if span.side == side]
        begins.append(mine[-DETAILED].start if len(mine) > DETAILED else 0.0)
    return max(begins)


def section(record: RunRecord) -> Markup | None:
    """Return the panel; None for a run whose rollouts and training take turns."""
    spans, depths = spans_of(record.timeline)
    pictures = []
    if spans:
        end = max(span.end for span in spans)
        begin = min(last_steps(spans), end * 0.98)
        if begin > 0:
            pictures.append(_figure("The whole run", spans, depths, 0.0, end, detailed=False))
        name = f"The last {fmt.duration(end - begin)}" if begin > 0 else "The run"
        pictures.append(_figure(name, spans, depths, begin, end, detailed=True))
    curves = []
    for lines in CURVES:
        known = [Line(label, colour, record.train[m]) for label, colour, m in lines if m in record.train]
        if any(len(line.series) > 1 for line in known):
            curves.append(chart(next(m for _, _, m in lines if m in record.train), known))
    if not pictures and not curves:
        return None
    grid = el("div.grid", *curves, attrs={"style": "margin-top:14px"}) if curves else None
    return join(_said(seconds_by_activity(spans)) if spans else None, *pictures, grid)
