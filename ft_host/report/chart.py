"""Line charts as HTML and SVG: the page loads nothing from elsewhere and works without JavaScript.

The curves are an SVG that stretches with its box. Ticks and labels are HTML, so that letters keep their size.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ft_host.report.findings import Mark
from ft_host.report.markup import Markup, el, join
from ft_host.report.ticks import POWERS, log_ticks, tick_labels, ticks
from ft_host.rundir import format as fmt
from ft_host.rundir.series import Series, smooth, thin

LETTER = {"big": 0.0085, "small": 0.028, "narrow": 0.037}  # width of a letter as a share of the plot, by its size
THIN = 4  # the least width of a mark
SIZE = 1000  # width and height of the drawing, which is stretched to its box


@dataclass
class Line:
    """A curve: its name in the legend, its colour (a class of the style sheet), its values.

    `points` draws a dot at each value, for evaluations, which are few. Otherwise a long curve is drawn faint with its
    smoothed curve on top, or, with `only_smooth`, the smoothed curve alone.
    """

    label: str
    colour: str
    series: Series
    points: bool = False
    only_smooth: bool = False


def wants_log(metric: str, values: list[float]) -> bool:
    """Return whether to use a logarithmic scale: for losses and norms that change by more than a factor of 50."""
    words, least = set(re.split(r"[/_]", metric)), min(values)
    return bool(words & {"loss", "norm", "perplexity"}) and least >= sys.float_info.min and max(values) / least > 50


def _at(step: float, value: float, x: tuple[float, float], y: tuple[float, float]) -> str:
    return f"{_share(step, x) * SIZE:.1f} {(1 - _share(value, y)) * SIZE:.1f}"


def _path(series: Series, x: tuple[float, float], y: tuple[float, float]) -> str:
    """Return SVG path data; a value that isn't finite is a gap."""
    out, pen = [], "M"
    for step, value in zip(series.steps, series.values, strict=True):
        if not math.isfinite(value):
            pen = "M"
            continue
        out.append(pen + _at(step, value, x, y))
        pen = "L"
    return "".join(out)


def _dots(series: Series, x: tuple[float, float], y: tuple[float, float], *, lone: bool) -> str:
    """Draw a dot (a line of no length with round ends) at each value, or only at isolated values, which no
    line joins.
    """
    good = [False, *(math.isfinite(value) for value in series.values), False]
    return "".join(
        f"M{_at(step, value, x, y)}h0"
        for index, (step, value) in enumerate(zip(series.steps, series.values, strict=True), 1)
        if good[index] and not (lone and (good[index - 1] or good[index + 1]))
    )


def _share(value: float, bounds: tuple[float, float]) -> float:
    low, high = bounds
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%".replace(".00%", "%")


def _calm(series: Series) -> bool:
    """Return whether the curve is smooth already, as a learning rate is: smoothing would only round its corners."""
    good = series.finite()
    if len(good) < 25:
        return True
    jumps = sorted(abs(a - 2 * b + c) for a, b, c in zip(good, good[1:], good[2:], strict=False))
    return jumps[len(jumps) * 9 // 10] <= 0.002 * (max(good) - min(good))


def _odd_values(lines: list[Line]) -> str | None:
    """Say where a curve isn't finite, since a gap in a chart is easily missed."""
    parts = []
    for line in lines:
        bad = [
            step for step, value in zip(line.series.steps, line.series.values, strict=True) if not math.isfinite(value)
        ]
        if bad:
            where = f"at step {bad[0]:,.0f}" if len(bad) == 1 else f"at {len(bad):,} steps, first at {bad[0]:,.0f}"
            parts.append(f"{line.label}: NaN or infinite {where}")
    return "; ".join(parts) or None


def legend(curves: list[tuple[str, str]]) -> Markup:
    """Return the legend for (label, colour) pairs."""
    return el("span.legend", *(el("span.key", el(f"i.{colour}"), label) for label, colour in curves))


def _marked(marks: Sequence[Mark], x: tuple[float, float]) -> tuple[list[Markup], list[Markup]]:
    """Return bands from top to bottom and the codes above them. A code that would overlap is in its band's title."""
    bands, labels, edge = [], [], -1.0
    for mark in sorted(marks, key=lambda mark: (mark.first, mark.code)):
        start, end = _share(mark.first, x) * SIZE, _share(mark.last, x) * SIZE
        if end - start < THIN:
            start = min(max(0.0, (start + end - THIN) / 2), SIZE - THIN)
            end = start + THIN
        shape = f"M{start:.1f} 0H{end:.1f}V{SIZE}H{start:.1f}Z"
        bands.append(el(f"path.mark.{mark.severity}", attrs={"d": shape}))
        left = min(start / SIZE, 0.85)
        if left > edge:
            place = {"style": f"left:{_percent(left)}", "title": f"{mark.code}, steps {mark.first:,} to {mark.last:,}"}
            labels.append(el(f"span.mark.{mark.severity}", mark.code, attrs=place))
            edge = left + 0.2
    return bands, labels


def chart(
    metric: str, lines: list[Line], *, size: str = "small", keys: bool = True, marks: Sequence[Mark] = ()
) -> Markup:
    """Return a chart of one metric, with the curves of `lines` over optimizer steps.

    `size` is one of LETTER; `keys` False leaves out the legend; `marks` are the ranges of steps with a finding.
    """
    big = size == "big"
    heading, unit = fmt.title(metric)
    lines = [line for line in lines if len(line.series)]
    shown = [value for line in lines for value in line.series.finite()]
    logarithmic = bool(shown) and wants_log(metric, shown)
    unit = ", ".join(part for part in (unit, "log scale" if logarithmic else "") if part)
    under = [el("code", metric)] if heading != metric else []
    under += [Markup(" · ") if under else None, unit] if unit else []
    head = el(
        "figcaption",
        el(
            "div",
            el("b", heading),
            legend([(line.label, line.colour) for line in lines]) if keys and len(lines) > 1 else None,
        ),
        el("div.under", *under, attrs={"title": f"{metric}{unit and ', ' + unit}"}),
    )
    warning = _odd_values(lines)
    note = el("p.odd", warning) if warning else None
    if not shown:
        return el(f"figure.chart.{size}", head, note, el("p.none", "No finite value."))

    steps = [step for line in lines for step in line.series.steps]
    x = (min(steps), max(steps)) if min(steps) < max(steps) else (steps[0] - 1, steps[0] + 1)
    low, high = min(shown), max(shown)
    if metric.startswith("perf/"):
        low = min(0.0, low)  # half the speed should look half as high
    if logarithmic:
        low, high = math.log10(low), math.log10(high)
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    y = (low if low == 0 else low - pad, high + pad)
    if not logarithmic and low > 0 > y[0]:
        y = (0.0, y[1])
    if logarithmic:
        y = (max(y[0], POWERS[0]), min(y[1], POWERS[1]))

    def upright(series: Series) -> Series:
        """On the scale of the picture."""
        if not logarithmic:
            return series
        out = Series()
        for step, value in zip(series.steps, series.values, strict=True):
            out.put(step, math.log10(value) if math.isfinite(value) else value)
        return out

    x_ticks = ticks(*x, wanted=8 if big else 4, whole=True) if min(steps) < max(steps) else [steps[0]]
    y_ticks = log_ticks(10 ** y[0], 10 ** y[1]) if logarithmic else ticks(*y, wanted=6 if big else 4)
    y_labels = tick_labels(y_ticks)
    if logarithmic:
        y_labels = [fmt.number(tick) for tick in y_ticks]
        y_ticks = [math.log10(tick) for tick in y_ticks]
    gutter = max(len(label) for label in y_labels)

    bands, codes = _marked(marks, x)
    drawn: list[Markup] = bands + [
        el("path.grid", attrs={"d": f"M0 {(1 - _share(tick, y)) * SIZE:.1f}H{SIZE}"}) for tick in y_ticks
    ]
    tips = []
    for line in lines:
        curve = thin(line.series)
        soft = None if line.points or _calm(line.series) else smooth(line.series)
        if soft is not None:
            soft = thin(soft)
            if not line.only_smooth:
                drawn.append(el(f"path.raw.{line.colour}", attrs={"d": _path(upright(curve), x, y)}))
            drawn.append(el(f"path.line.{line.colour}", attrs={"d": _path(upright(soft), x, y)}))
        else:
            drawn.append(el(f"path.line.{line.colour}", attrs={"d": _path(upright(curve), x, y)}))
        dots = _dots(upright(curve), x, y, lone=not line.points or len(curve) > 60)
        if dots:
            drawn.append(el(f"path.dots.{line.colour}", attrs={"d": dots}))
        shown_series = soft if soft is not None and line.only_smooth else curve
        tips.append(
            {
                "n": line.label,
                "c": line.colour,
                "x": [int(step) for step in shown_series.steps],
                "y": [None if not math.isfinite(value) else float(f"{value:.5g}") for value in shown_series.values],
            }
        )
    spoken = (
        f"{heading}: "
        + "; ".join(
            f"{line.label} from {fmt.number(line.series.first)} at step {line.series.steps[0]:,.0f} "
            f"to {fmt.number(line.series.last)} at step {line.series.steps[-1]:,.0f}"
            for line in lines
        )
        + "".join(f"; {mark.code} from step {mark.first:,} to {mark.last:,}" for mark in marks)
    )
    svg = el(
        "svg",
        *drawn,
        attrs={"viewBox": f"0 0 {SIZE} {SIZE}", "preserveAspectRatio": "none", "role": "img", "aria-label": spoken},
    )
    y_axis = [
        el("span.y", label, attrs={"style": f"top:{_percent(1 - _share(tick, y))}"})
        for tick, label in zip(y_ticks, y_labels, strict=True)
    ]
    if _share(x_ticks[0], x) > (0.06 if big else 0.15):
        x_ticks = [x[0], *x_ticks]  # shows that a run starts at step 1
    # The axis is named at its right end: at its last tick, or in the space after it.
    x_labels = tick_labels(x_ticks)
    at_end = _share(x_ticks[-1], x) > 0.985
    name = f"step {x_labels[-1]}" if at_end else "step"
    room = 1 - LETTER[size] * (len(name) + 2)
    x_axis = [
        el("span.x.more" if index % 2 else "span.x", label, attrs={"style": f"left:{_percent(_share(tick, x))}"})
        for index, (tick, label) in enumerate(zip(x_ticks, x_labels, strict=True))
        if _share(tick, x) < room
    ]
    data = {"x": x, "y": y, "log": logarithmic, "lines": tips}
    plot = el(
        "div.plot",
        svg,
        join(*y_axis),
        join(*x_axis),
        join(*codes),
        el("span.xname", name),
        attrs={
            "style": f"margin-left:{gutter * 0.78 + 1.2:.1f}ch",
            "data-chart": json.dumps(data, separators=(",", ":")),
        },
    )
    return el(f"figure.chart.{size}", head, note, plot)
