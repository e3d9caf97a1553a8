"""`ft-host runs`: lists runs and their results."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path
from typing import Any

from ft_host.errors import UsageError
from ft_host.report import RunRecord, RunUnreadable, find_runs, read_run
from ft_host.report.findings import counted, open_findings
from ft_host.rundir import format as fmt
from ft_host.util.console import show
from ft_host.util.jsonl import json_text

SILENT = 3600  # seconds without output after which a run may have been killed
HELP = "List runs with status, steps, loss, evaluation and open findings."


def run(argv: list[str]) -> int:
    """Return the exit code. Raises UsageError where there is no such folder; a damaged run is listed with
    the reason.
    """
    parser = argparse.ArgumentParser(
        prog="ft-host runs",
        description=HELP + " Looks in FOLDER and one level below. Loss is the mean of the last ten steps.",
    )
    parser.add_argument("folder", metavar="FOLDER", nargs="?", default="runs", help="default: ./runs")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    arguments = parser.parse_args(argv)
    folder = Path(arguments.folder)
    if not folder.is_dir():
        hint = "; give the folder of your runs" if arguments.folder == "runs" else ""
        raise UsageError(f"{folder}: no such folder{hint}")
    listed = sorted((_entry(path) for path in find_runs(folder)), key=lambda entry: entry["created"] or "")
    if arguments.json:
        print(json_text(fmt.plain(listed), indent=2))
    elif listed:
        show(_listing(listed))
    else:
        show(f"No runs in {folder}.")
    return 0


def _entry(path: Path) -> dict[str, Any]:
    """Return the line of one run; of a damaged one, its name and the reason."""
    try:
        return _told(read_run(path))
    except RunUnreadable as error:
        reason = f"run.json {error.reason}" if error.reason[:5] in ("lacks", "has f") else f"run.json: {error.reason}"
    except UsageError:
        reason = "run.json is missing"
    return {"name": path.resolve().name, "folder": str(path), "status": "damaged", "problem": reason, "created": None}


def _told(record: RunRecord) -> dict[str, Any]:
    evals = {}
    for name, series in record.evals.items():
        if record.better(name):
            best = series.best(record.better(name))
            evals[name] = {
                "first": series.first,
                "last": series.last,
                "best": best[1] if best else None,
                "best_step": best[0] if best else None,
            }
    loss = record.train["loss"].recent() if "loss" in record.train else None
    return {
        "name": record.name,
        "folder": str(record.folder),
        "status": record.status,
        "problem": record.error,
        "method": record.method,
        "steps": record.steps,
        "planned_steps": record.planned_steps,
        "loss": loss,
        "evals": evals,
        "created": record.created.isoformat(),
        "finished": record.finished.isoformat() if record.finished else None,
        "duration_s": record.seconds,
        "written": record.written.isoformat(),
        "findings": counted(open_findings(record)),
    }


def _status(entry: dict[str, Any]) -> str:
    """Mark a run that has written nothing for long, whose process can't be looked at from here."""
    silent = (datetime.now().astimezone() - datetime.fromisoformat(entry["written"]).astimezone()).total_seconds()
    if entry["status"] == "running" and silent > SILENT:
        return f"running, silent for {fmt.duration(silent)}"
    return entry["status"]


def _listing(listed: list[dict[str, Any]]) -> str:
    """Return a table of the readable runs, then a line for each damaged one."""
    good = [entry for entry in listed if entry["status"] != "damaged"]
    evals = dict.fromkeys(name for entry in good for name in entry["evals"])
    # The whole reward stands for its parts, the loss for its accuracy, and the mean over sets for each; --json has all.
    columns = [
        name
        for name in evals
        if not (name.startswith("eval_rewards/") and "eval_reward" in evals)
        and not (name == "eval_mean_token_accuracy" and "eval_loss" in evals)
        and fmt.plain_name(name, evals) is None
    ]
    found = ["FINDINGS"] if any(entry["findings"] for entry in good) else []
    header = [
        "RUN",
        "METHOD",
        "STATUS",
        "STEPS",
        "LOSS",
        *(name.upper() for name in columns),
        *found,
        "STARTED",
        "TOOK",
    ]
    rows = []
    for entry in good:
        of = f"/{entry['planned_steps']}" if entry["planned_steps"] not in (None, entry["steps"]) else ""
        rows.append(
            [
                entry["name"],
                entry["method"],
                _status(entry),
                f"{entry['steps']}{of}",
                fmt.number(entry["loss"]),
                *(_eval_cell(entry["evals"].get(name)) for name in columns),
                *[_findings_cell(entry["findings"]) for _ in found],
                entry["created"][:16].replace("T", " "),
                fmt.duration(entry["duration_s"]),
            ]
        )
    parts = [fmt.table(header, rows, right={3, 4, *range(5, 5 + len(columns))})] if rows else []
    for entry in good:
        if entry["status"] in ("failed", "refused") and entry["problem"]:
            parts.append(f"{entry['name']}: {entry['problem'].splitlines()[0]}")
    parts += [f"{entry['name']} is damaged: {entry['problem']}" for entry in listed if entry["status"] == "damaged"]
    if columns:
        parts.append("Evaluation: the last value, with the best in brackets if it differs.")
    return "\n".join(parts)


def _findings_cell(found: dict[str, int]) -> str:
    """Return the number of open findings, and the highest severity."""
    return f"{sum(found.values())} ({next(iter(found))})" if found else "–"


def _eval_cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "–"
    best = f" ({fmt.number(found['best'])})" if found["best"] not in (None, found["last"]) else ""
    return fmt.number(found["last"]) + best
