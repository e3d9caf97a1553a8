"""The page of one run: results first, then charts, then texts, then what ran."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from ft_host.errors import UsageError
from ft_host.report import findings, parts, samples, timeline, what_ran
from ft_host.report.markup import Markup, el, join
from ft_host.report.page import page, write_page
from ft_host.rundir import format as fmt
from ft_host.rundir.record import RunRecord, read_run

OF_ROLLOUTS = {
    "perf/generation_time": "generation",
    "perf/reward_time": "rewards",
    "perf/weight_sync_time": "weight sync",
    "perf/annotation_time": "annotation",
    "perf/measuring_time": "measuring",
    "perf/rollout_wait_time": "waiting for rollouts",
}


def _section(title: str, body: str | None, note: str = "") -> Markup | None:
    if body is None:
        return None
    return el("section", el("h2", title, el("small", note) if note else None), body)


def _time_spent(record: RunRecord) -> str:
    """Return the time spent in each part of the run, where it is known. A step that begins with a rollout
    includes it.
    """
    steps, evals = record.train.get("perf/step_time"), record.evals.get("perf/eval_time")
    spent: dict[str, float] = {}
    for name, what in OF_ROLLOUTS.items():
        if name in record.train:
            spent[what] = sum(record.train[name].finite())
    if steps:
        spent["training" if spent else "training steps"] = max(0.0, sum(steps.finite()) - sum(spent.values()))
    if evals:
        spent["evaluation"] = sum(evals.finite())
    parts = [f"{fmt.duration(seconds)} in {what}" for what, seconds in spent.items()]
    if parts and record.seconds:
        parts.append(f"{fmt.duration(record.seconds)} in all")
    return ", ".join(parts)


def _header(record: RunRecord) -> Markup:
    model = record.config.get("model") or record.model.get("class") or ""
    dataset = record.config.get("dataset")
    trained_on = f" on {dataset}" if isinstance(dataset, str) and dataset else ""
    began = f"Started {fmt.moment(record.created)}"
    if record.finished:
        began += f", ended {fmt.moment(record.finished)}"
    return el(
        "header",
        el("p.eyebrow", f"ft-host · {record.method}"),
        el("h1", record.name, parts.status_pill(record)),
        el("p.lead", el("b", str(model)) if model else None, f"{trained_on}. " if model else "", f"{began}."),
        what_ran.parent(record),
    )


def run_page(record: RunRecord) -> str:
    """Return the whole HTML document."""
    now = fmt.moment(datetime.now().astimezone(record.created.tzinfo))
    large, small, folded, fast = parts.curves(record)
    pictures = join(
        large,
        el("div.grid", *small, attrs={"style": "margin-top:14px"}) if small else None,
        el("details", el("summary", f"{len(folded)} more"), el("div.grid", *folded)) if folded else None,
    )
    steps = {sample.get("step") for sample in record.samples}
    notes = record.plan.get("notes") or []
    return page(
        f"{record.name} · {record.status}",
        _header(record),
        parts.tiles(record),
        parts.strip(record),
        parts.notices(record, now),
        _section("Findings", findings.section(record), "problems that the run detected"),
        _section("Curves", pictures or None),
        _section(
            "Where the time goes", timeline.section(record), "trainer and rollouts, which don't wait for each other"
        ),
        _section("Measured once", parts.measured_once(record)),
        _section("Evaluation", parts.eval_table(record)),
        _section(
            "Samples",
            samples.samples(record),
            "the same prompts at the first and the last evaluation" if len(steps) > 1 else "",
        ),
        _section(
            "Rollouts",
            samples.rollouts(record),
            "some of the completions that the run trained on, the best of each prompt first",
        ),
        _section("Speed and memory", el("div.grid.four", *fast) if fast else None, _time_spent(record)),
        _section("Settings", what_ran.config_tables(record)),
        _section("Data", what_ran.data(record)),
        _section("Plugins", what_ran.plugins(record)),
        _section("Plan", el("ul", *(el("li", str(note)) for note in notes)) if notes else None),
        _section("Environment", what_ran.environment(record)),
        _section("Events", what_ran.events(record)),
        _section("Commands", what_ran.commands(record)),
        el("footer", f"Made by ft-host on {now} from {record.folder}"),
    )


def write_report(folder: str | Path, output: str | Path | None = None) -> Path:
    """Write the page of the run in `folder`, by default to its report.html, and return the path.

    Raises `UsageError` where `folder` is not a run's, or the run hasn't logged anything yet.
    """
    record = read_run(folder)
    if record.status == "running" and not record.has_metrics:
        raise UsageError(
            f"{record.folder}: the run has no metrics yet (started {fmt.moment(record.created)}, still running); "
            "try again after its first step"
        )
    return write_page(Path(output) if output else record.folder / "report.html", run_page(record))
