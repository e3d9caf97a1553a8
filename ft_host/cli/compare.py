"""`ft-host compare`: the differences between runs, on the terminal and as a page."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from ft_host.report.compare import (
    NAMES,
    comparison,
    comparison_page,
    differences,
    final_metrics,
    metric_order,
    read_runs,
    written,
)
from ft_host.report.compare import names as names_of
from ft_host.report.page import write_page
from ft_host.rundir import format as fmt
from ft_host.util.console import show
from ft_host.util.jsonl import json_text

HELP = "Compare runs: settings that differ, final metrics, curves in one chart."
WIDEST = 48  # characters of a value in the table


def run(argv: list[str]) -> int:
    """Return the exit code. Raises FtHostError where a folder isn't a run or there is nothing to compare."""
    parser = argparse.ArgumentParser(
        prog="ft-host compare",
        description=HELP + f" {' and '.join(NAMES)} are not compared.",
        epilog=(
            "Final metrics: the last value of evaluation metrics, the mean of the last ten steps of training "
            "metrics, the median of speed and memory."
        ),
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folders of two or more runs")
    parser.add_argument(
        "--output", metavar="FILE", help="where to write the page (default: compare.html; with --json: no page)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    arguments = parser.parse_args(argv)
    records = read_runs(arguments.runs)
    if arguments.json:
        print(json_text(comparison(records), indent=2))
    else:
        show(_tables(records))
    if arguments.output or not arguments.json:
        page = write_page(Path(arguments.output or "compare.html"), comparison_page(records))
        if not arguments.json:
            show(f"\nCurves: {page}")
    return 0


def _cut(text: str) -> str:
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"


def _tables(records: list) -> str:
    called = names_of(records)
    parts = []
    for group, found in differences(records).items():
        if found:
            rows = [[_cut(field), *(_cut(written(value)) for value in values)] for field, values in found.items()]
            parts.append(fmt.table([group.upper(), *called], rows))
    if not parts:
        parts.append("No difference in config, plugins, data, environment or findings.")
    final = [final_metrics(record) for record in records]
    rows = []
    for metric in metric_order(records):
        values = [side.get(metric) for side in final]
        cells = [fmt.number(value) for value in values]
        if len(values) == 2:
            known = all(value is not None and math.isfinite(value) for value in values)
            cells.append(fmt.change(values[0], values[1]) if known else "")
        rows.append([metric, *cells])
    header = ["METRIC", *called, *(["CHANGE"] if len(records) == 2 else [])]
    parts.append(fmt.table(header, rows, right=set(range(1, len(header)))))
    return "\n\n".join(parts)
