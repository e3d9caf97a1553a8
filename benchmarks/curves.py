"""Curves of a run as one SVG: panels side by side, each a metric over the optimizer steps."""

from __future__ import annotations

from dataclasses import dataclass

from ft_host.report.chart import tick_labels, ticks
from ft_host.report.markup import Markup, el, join
from ft_host.report.series import Series, smooth

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 460, 280, 46, 40, 34  # of one panel, and its margins
TRAIN, EVAL, INK, SOFT, GRID = "#2a66c4", "#cc5a1c", "#1c2126", "#57616b", "#e3e6e9"


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
    return el("path", attrs={"d": path, "stroke": colour, "stroke-width": str(width), "opacity": str(opacity),
                             "fill": "none", "stroke-linejoin": "round"})  # fmt: skip


def _drawn(panel: Panel, left: float, last_step: float) -> Markup:
    soft = smooth(panel.trained) if panel.trained else None
    faint = panel.trained if panel.steps_shown else None
    lines = [series for series in (faint, soft, panel.held_out) if series is not None]
    values = [value for series in lines for value in series.values]
    if panel.level is not None:
        values.append(panel.level)
    pad = (max(values) - min(values)) * 0.04
    low, high = min(values) - pad, max(values) + pad
    if min(values) >= 0:
        low = max(0.0, low)
    x0, x1, y0, y1 = left + LEFT, left + WIDTH - 16, HEIGHT - BOTTOM, TOP

    def across(step: float) -> float:
        return x0 + (x1 - x0) * step / last_step

    def up(value: float) -> float:
        return y0 + (y1 - y0) * (value - low) / (high - low)

    def place(series: Series) -> list[tuple[float, float]]:
        return [(across(step), up(value)) for step, value in zip(series.steps, series.values, strict=True)]

    drawn = [_text(x0, 22, panel.heading, size=14, colour=INK)]
    heights = ticks(low, high, wanted=5)
    for tick, label in zip(heights, tick_labels(heights), strict=True):
        drawn += [_line([(x0, up(tick)), (x1, up(tick))], GRID, width=1), _text(x0 - 7, up(tick) + 4, label, anchor="end")]
    marked = ticks(0.0, last_step, wanted=4, whole=True)
    for tick in marked:
        name = f"step {tick:.0f}" if tick == marked[-1] else f"{tick:.0f}"
        drawn.append(_text(across(tick), HEIGHT - 12, name, anchor="end" if tick == last_step else "middle"))
    if panel.level is not None:
        drawn += [_line([(x0, up(panel.level)), (x1, up(panel.level))], SOFT, width=1),
                  _text(x1, up(panel.level) - 5, panel.level_name, anchor="end", size=11)]  # fmt: skip
    if faint is not None:
        drawn.append(_line(place(faint), TRAIN, width=1, opacity=0.35))
    if soft is not None:
        drawn.append(_line(place(soft), TRAIN))
    dots = place(panel.held_out) if panel.held_out else []
    drawn += [_line(dots, EVAL)] if dots else []
    drawn += [el("circle", attrs={"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "3", "fill": EVAL}) for x, y in dots]
    return join(*drawn)


def picture(panels: list[Panel], spoken: str) -> str:
    """An SVG document. `spoken`: what it shows, for who can't see it."""
    last = max(step for panel in panels for series in (panel.trained, panel.held_out) if series for step in series.steps)
    width = len(panels) * WIDTH
    drawn = [_drawn(panel, number * WIDTH, last) for number, panel in enumerate(panels)]
    legend = [
        _text(width - 16, 22, "held-out rows", anchor="end", colour=EVAL),
        _text(width - 104, 22, "training rows", anchor="end", colour=TRAIN),
    ]
    frame = el("rect", attrs={"width": str(width), "height": str(HEIGHT), "rx": "10", "fill": "#ffffff"})
    return el(
        "svg", frame, *drawn, *legend,
        attrs={"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {width} {HEIGHT}", "role": "img",
               "width": str(width), "height": str(HEIGHT),
               "font-family": "system-ui, -apple-system, Segoe UI, sans-serif", "aria-label": spoken},
    )  # fmt: skip
