"""Curves of a run as one SVG: panels side by side, each a metric over the optimizer steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ft_host.report.chart import tick_labels, ticks
from ft_host.report.markup import Markup, el, join
from ft_host.rundir.series import Series, smooth

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 460, 280, 46, 40, 34  # of one panel, and its margins
NAMES = 250  # beside a panel, for the names of what is compared
TRAIN, EVAL, INK, SOFT, GRID = "#2a66c4", "#cc5a1c", "#1c2126", "#57616b", "#e3e6e9"
COLOURS = (EVAL, TRAIN, "#2b8a57", "#8a4bb0", SOFT, "#a67c00")  # of what is compared, in turn


@dataclass(frozen=True)
class Panel:
    """One metric: every step of training faint, smoothed over it, and the evaluations as dots.

    `steps_shown`: without it only the smoothed line is drawn, where single steps of few rows would fill the panel.
    `level`: a line across at this value, named `level_name`.
    """

    heading: str
    held_out: Series | None
    trained: Series | None = None
    steps_shown: bool = True
    level: float | None = None
    level_name: str = ""


def _text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 12, colour: str = SOFT) -> Markup:
    at = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "font-size": str(size), "fill": colour}
    return el("text", words, attrs=at)


def _line(points: list[tuple[float, float]], colour: str, *, width: float = 1.8, opacity: float = 1.0) -> Markup:
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return el(
        "path",
        attrs={
            "d": path,
            "stroke": colour,
            "stroke-width": str(width),
            "opacity": str(opacity),
            "fill": "none",
            "stroke-linejoin": "round",
        },
    )


@dataclass(frozen=True)
class Axes:
    """Where the panel whose left edge is at `left` has its steps and values."""

    left: float
    last_step: float
    low: float
    high: float

    @property
    def sides(self) -> tuple[float, float]:
        return self.left + LEFT, self.left + WIDTH - 16

    def across(self, step: float) -> float:
        start, end = self.sides
        return start + (end - start) * step / self.last_step

    def up(self, value: float) -> float:
        return HEIGHT - BOTTOM + (TOP - HEIGHT + BOTTOM) * (value - self.low) / (self.high - self.low)

    def place(self, steps: Iterable[float], values: Iterable[float]) -> list[tuple[float, float]]:
        return [(self.across(step), self.up(value)) for step, value in zip(steps, values, strict=True)]

    def drawn(self, heading: str, unit: str = "step") -> list[Markup]:
        """Heading, lines across with their values, and steps below."""
        x0, x1 = self.sides
        drawn = [_text(x0, 22, heading, size=14, colour=INK)]
        heights = ticks(self.low, self.high, wanted=5)
        for tick, label in zip(heights, tick_labels(heights), strict=True):
            drawn += [
                _line([(x0, self.up(tick)), (x1, self.up(tick))], GRID, width=1),
                _text(x0 - 7, self.up(tick) + 4, label, anchor="end"),
            ]
        marked = ticks(0.0, self.last_step, wanted=4, whole=True)
        for tick in marked:
            name = f"{unit} {tick:.0f}" if tick == marked[-1] else f"{tick:.0f}"
            anchor = "end" if tick == self.last_step else "middle"
            drawn.append(_text(self.across(tick), HEIGHT - 12, name, anchor=anchor))
        return drawn


def _axes(left: float, last_step: float, values: list[float]) -> Axes:
    pad = (max(values) - min(values)) * 0.04
    low = min(values) - pad
    return Axes(left, last_step, max(0.0, low) if min(values) >= 0 else low, max(values) + pad)


def _dots(points: list[tuple[float, float]], colour: str) -> list[Markup]:
    return [el("circle", attrs={"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "3", "fill": colour}) for x, y in points]


def _drawn(panel: Panel, left: float, last_step: float) -> Markup:
    soft = smooth(panel.trained) if panel.trained else None
    faint = panel.trained if panel.steps_shown else None
    lines = [series for series in (faint, soft, panel.held_out) if series is not None]
    values = [value for series in lines for value in series.values]
    axes = _axes(left, last_step, values if panel.level is None else [*values, panel.level])
    drawn = axes.drawn(panel.heading)
    if panel.level is not None:
        (x0, x1), level = axes.sides, axes.up(panel.level)
        drawn += [
            _line([(x0, level), (x1, level)], SOFT, width=1),
            _text(x1, level - 5, panel.level_name, anchor="end", size=11),
        ]
    if faint is not None:
        drawn.append(_line(axes.place(faint.steps, faint.values), TRAIN, width=1, opacity=0.35))
    if soft is not None:
        drawn.append(_line(axes.place(soft.steps, soft.values), TRAIN))
    if panel.held_out:
        dots = axes.place(panel.held_out.steps, panel.held_out.values)
        drawn += [_line(dots, EVAL), *_dots(dots, EVAL)]
    return join(*drawn)


def points(series: Series) -> list[list[float]]:
    return [[step, value] for step, value in zip(series.steps, series.values, strict=True)]


def picture(panels: list[Panel], spoken: str) -> str:
    """An SVG document. `spoken`: what it shows, for who can't see it."""
    last = max(
        step for panel in panels for series in (panel.trained, panel.held_out) if series for step in series.steps
    )
    width = len(panels) * WIDTH
    drawn = [_drawn(panel, number * WIDTH, last) for number, panel in enumerate(panels)]
    legend = [
        _text(width - 16, 22, "held-out rows", anchor="end", colour=EVAL),
        _text(width - 104, 22, "training rows", anchor="end", colour=TRAIN),
    ]
    return _framed(width, [*drawn, *legend], spoken)


def _framed(width: float, drawn: list[Markup], spoken: str) -> str:
    frame = el("rect", attrs={"width": str(width), "height": str(HEIGHT), "rx": "10", "fill": "#ffffff"})
    return el(
        "svg",
        frame,
        *drawn,
        attrs={
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {width} {HEIGHT}",
            "role": "img",
            "width": str(width),
            "height": str(HEIGHT),
            "font-family": "system-ui, -apple-system, Segoe UI, sans-serif",
            "aria-label": spoken,
        },
    )


def side_by_side(heading: str, runs: dict[str, list[Series]], spoken: str) -> str:
    """An SVG document of one metric: for each name, the mean of its runs, which have the same steps, and faint, each
    run."""
    return _framed(WIDTH + NAMES, _compared(heading, runs, 0, "step"), spoken)


def two_sides(heading: str, by: dict[str, dict[str, list[Series]]], spoken: str) -> str:
    """The same over two things, side by side: `by` has the runs by what they go over, such as "step" and "second"."""
    drawn: list[Markup] = []
    for number, (unit, runs) in enumerate(by.items()):
        drawn += _compared(heading, runs, number * WIDTH, unit, named=number == len(by) - 1)
    return _framed(len(by) * WIDTH + NAMES, drawn, spoken)


def _compared(
    heading: str, runs: dict[str, list[Series]], left: float, unit: str, *, named: bool = True
) -> list[Markup]:
    every = [series for those in runs.values() for series in those]
    values = [value for series in every for value in series.values]
    axes = _axes(left, max(series.steps[-1] for series in every), values)
    drawn = axes.drawn(heading, unit)
    for number, (name, those) in enumerate(runs.items()):
        colour = COLOURS[number]
        if len(those) > 1:
            drawn += [_line(axes.place(each.steps, each.values), colour, width=1, opacity=0.35) for each in those]
        means = [sum(values) / len(values) for values in zip(*(each.values for each in those), strict=True)]
        middle = axes.place([sum(at) / len(at) for at in zip(*(each.steps for each in those), strict=True)], means)
        drawn += [_line(middle, colour), *_dots(middle, colour)]
        if named:
            drawn.append(_text(left + WIDTH, TOP + 14 + 20 * number, name, colour=colour))
    return drawn
