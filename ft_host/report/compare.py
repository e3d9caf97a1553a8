"""Two or more runs side by side: their differences, their final metrics, and their curves in one chart."""

from __future__ import annotations

import math
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from ft_host.errors import UsageError
from ft_host.report.chart import Line, chart, legend
from ft_host.report.markup import Markup, el, table
from ft_host.report.page import page, write_page
from ft_host.report.parts import FIRST, place, status_pill
from ft_host.rundir import format as fmt
from ft_host.rundir.record import RunRecord, read_run

COLOURS = 8
# These differ between any two runs, so a difference means nothing.
NAMES = ("output_dir", "run_name")
ABSENT = object()


def read_runs(folders: list[str | Path]) -> list[RunRecord]:
    """Read the runs to compare. Raises `UsageError` for fewer than two, too many, the same run twice, or runs without
    metrics.
    """
    if not 2 <= len(folders) <= COLOURS:
        raise UsageError(f"expected 2 to {COLOURS} runs to compare, found {len(folders)}")
    seen: dict[Path, str | Path] = {}
    for folder in folders:
        real = Path(folder).resolve()
        if real in seen:
            raise UsageError(f"{folder}: the same run as {seen[real]}; give different runs")
        seen[real] = folder
    records = [read_run(folder) for folder in folders]
    if not any(record.has_metrics for record in records):
        raise UsageError(f"none of {', '.join(map(str, folders))} has metrics yet, so there is nothing to compare")
    return records


def names(records: list[RunRecord]) -> list[str]:
    """Return a name for each run: its folder's name, with as much of the path as tells the runs apart."""
    paths = [record.folder.resolve().parts for record in records]
    depth = 1
    while len({path[-depth:] for path in paths}) < len(paths):
        depth += 1
    return [os.path.join(*path[-depth:]) for path in paths]


def _different(sides: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return the keys whose values differ, with the value of each side (ABSENT where it has none)."""
    keys = dict.fromkeys(key for side in sides for key in side)
    rows = {key: [side.get(key, ABSENT) for side in sides] for key in keys}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values)}


def differences(records: list[RunRecord]) -> dict[str, dict[str, list[Any]]]:
    """Return what differs, by group (config, plugins, data, environment, findings): {field: [value of each run]}."""

    def plugins(record: RunRecord) -> dict[str, str]:
        return {
            f"{plugin.get('kind')} {plugin.get('name')}": f"{plugin.get('distribution')} {plugin.get('version')}"
            for plugin in record.plugins
        }

    config = [
        {"method": record.method, **{name: value for name, value in record.config.items() if name not in NAMES}}
        for record in records
    ]
    return {
        "config": _different(config),
        "plugins": _different([plugins(record) for record in records]),
        "data": _different([fmt.flat(record.data) for record in records]),
        "environment": _different([fmt.flat(record.environment) for record in records]),
        "findings": _different(
            [{name: finding["state"] for name, finding in record.findings.items()} for record in records]
        ),
    }


def final_metrics(record: RunRecord) -> dict[str, float]:
    """Return for evaluation the last value, for training the mean of the last ten steps, for speed and memory the
    median.
    """
    out = {name: series.last for name, series in record.evals.items() if not name.startswith("perf/")}
    for name, series in record.train.items():
        value = series.median() if name.startswith("perf/") else series.recent()
        if value is not None:
            out[name] = value
    return out


def metric_order(records: list[RunRecord]) -> list[str]:
    """Return the names of all metrics: loss and evaluation first, speed and memory last."""
    every = dict.fromkeys(name for record in records for name in final_metrics(record))

    def rank(name: str) -> tuple[int, int, str]:
        base = name.removeprefix("eval_")
        room = 3 if name.startswith("perf/") else 0 if base == "loss" else 1 if name.startswith("eval_") else 2
        return room, place(FIRST)(base)[0], base + name

    return sorted(every, key=rank)


def written(value: Any) -> str:
    return "–" if value is ABSENT else fmt.value(value)


def comparison(records: list[RunRecord]) -> dict[str, Any]:
    """Return the comparison as strict JSON for programs. A value that a run lacks is left out of its mapping."""
    called = names(records)
    groups = {
        group: {
            field: {name: value for name, value in zip(called, values, strict=True) if value is not ABSENT}
            for field, values in rows.items()
        }
        for group, rows in differences(records).items()
    }
    runs = [
        {
            "name": name,
            "folder": str(record.folder),
            "method": record.method,
            "status": record.status,
            "steps": record.steps,
            "duration_s": record.seconds,
            "metrics": final_metrics(record),
        }
        for name, record in zip(called, records, strict=True)
    ]
    return fmt.plain({"runs": runs, "differences": groups})


# ---------------------------------------------------------------- the page


def _swatch(index: int, name: str) -> Markup:
    return el("span", el(f"span.swatch.c{index}"), name)


def _dull(metric: str, records: list[RunRecord]) -> bool:
    """Return whether a held-out metric needs no chart: a spread, or a reward function that is the whole reward."""
    if not metric.startswith("eval_rewards/"):
        return False
    whole = [record.evals.get("eval_reward") for record in records if metric in record.evals]
    return metric.endswith("/std") or whole == [record.evals[metric] for record in records if metric in record.evals]


def pictures(records: list[RunRecord], called: list[str]) -> Markup | None:
    """Return a chart of all runs for each metric that at least one run has several values of."""

    def overlaid(metric: str) -> list[Line]:
        held_out = metric.startswith("eval_")
        lines = []
        for index, record in enumerate(records):
            series = (record.evals if held_out else record.train).get(metric)
            if series:
                lines.append(Line(called[index], f"c{index}", series, points=held_out, only_smooth=metric != "loss"))
        return lines

    shown = {metric: overlaid(metric) for metric in metric_order(records) if not _dull(metric, records)}
    shown = {metric: lines for metric, lines in shown.items() if any(len(line.series) > 1 for line in lines)}
    if not shown:
        return None
    big = chart("loss", shown.pop("loss"), size="big", keys=False) if "loss" in shown else None
    fast = [
        chart(metric, lines, size="narrow", keys=False) for metric, lines in shown.items() if metric.startswith("perf/")
    ]
    small = [chart(metric, lines, keys=False) for metric, lines in shown.items() if not metric.startswith("perf/")]
    below = {"style": "margin-top:14px"}
    keys = legend([(name, f"c{index}") for index, name in enumerate(called)])
    return el(
        "section",
        el("h2", "Curves", keys),
        big,
        el("div.grid", *small, attrs=below),
        el("div.grid.four", *fast, attrs=below) if fast else None,
    )


def comparison_page(records: list[RunRecord]) -> str:
    """Return the whole HTML document."""
    called = names(records)
    head = ["", *(_swatch(index, name) for index, name in enumerate(called))]
    numbers = set(range(1, len(head)))
    runs = table(
        ["Run", "Method", "Status", "Steps", "Tokens", "Duration", "Started"],
        [
            [
                _swatch(index, name),
                record.method,
                status_pill(record),
                f"{record.steps:,}",
                fmt.count(record.tokens),
                fmt.duration(record.seconds),
                fmt.moment(record.created),
            ]
            for index, (name, record) in enumerate(zip(called, records, strict=True))
        ],
        numbers={3, 4, 5},
    )
    final = [final_metrics(record) for record in records]
    rows = []
    for metric in metric_order(records):
        values = [side.get(metric) for side in final]
        ways = {record.better(metric) for record, side in zip(records, final, strict=True) if metric in side}
        way = ways.pop() if len(ways) == 1 else 0  # methods may mean different things by a name
        finite = [value for value in values if value is not None and math.isfinite(value)]
        top = max(finite, key=lambda value, way=way: way * value) if way and len(set(finite)) > 1 else None
        rows.append(
            [
                el("code", metric),
                *(el("b.up" if top is not None and value == top else "span", fmt.number(value)) for value in values),
            ]
        )
    headings = {
        "config": "Settings",
        "findings": "Findings",
        "plugins": "Plugins",
        "data": "Data",
        "environment": "Environment",
    }
    groups = {group: different for group, different in differences(records).items() if different}

    def section(group: str) -> Markup | None:
        if group not in groups:
            return None
        body = table(
            head,
            [
                [el("code", field), *(el("code", written(value)) for value in values)]
                for field, values in groups[group].items()
            ],
        )
        return el("section", el("h2", headings[group], el("small", "what differs")), body)

    same = [heading.lower() for group, heading in headings.items() if group not in groups]
    now = fmt.moment(datetime.now().astimezone())
    return page(
        " vs ".join(called),
        el("header", el("p.eyebrow", "ft-host · comparison"), el("h1", " vs ".join(called))),
        runs,
        section("config"),
        section("findings"),
        pictures(records, called),
        el(
            "section",
            el(
                "h2",
                "How they ended",
                el("small", "evaluation: last value; training: mean of the last ten steps; speed and memory: median"),
            ),
            table(head, rows, numbers=numbers),
        ),
        *(section(group) for group in ("data", "plugins", "environment")),
        el("p.soft", f"No difference in {', '.join(same)}.", attrs={"style": "margin-top:26px"}) if same else None,
        el(
            "footer",
            f"Made by ft-host on {now} from {', '.join(str(record.folder) for record in records)}. "
            f"{' and '.join(NAMES)} are not compared.",
        ),
    )


def write_comparison(folders: list[str | Path], output: str | Path) -> Path:
    """Write the page that compares these runs to `output`, and return its path. Raises `UsageError`."""
    return write_page(Path(output), comparison_page(read_runs(folders)))
