"""`ft-host autopilot RUN_FILE --budget N`: trains, and changes the config by the run's findings. Imports no torch."""

from __future__ import annotations

import datetime
import sys
from dataclasses import asdict
from pathlib import Path

from ft_host import registry
from ft_host.autopilot.attempts import Autopilot
from ft_host.autopilot.events import changed
from ft_host.cli.arguments import take_number, take_value
from ft_host.cli.train import Ready, fresh, read, say_warnings
from ft_host.config.old_names import current
from ft_host.config.paths import was_refused
from ft_host.diagnostics.collect import diagnostics_of, rules_of
from ft_host.diagnostics.resolved import acceptance
from ft_host.errors import UsageError
from ft_host.rundir.folder import RunFolder
from ft_host.util.console import show
from ft_host.util.text import nearest

HELP = """\
usage: ft-host autopilot [METHOD] CONFIG --budget N [--lock FIELD,FIELD] [--output FOLDER] [--field value ...]

Trains like `ft-host train`, in attempts. Each applies a remedy for a finding of the best one before it, and resumes
from the last checkpoint before the problem, or starts again if the remedy requires it. Held-out figures decide which
attempt is better; from one that isn't, it goes back, and what was changed is cleared as a suspect. The first attempt
goes to its end, so that the result is never worse. Ends when nothing is left to try, or after N attempts.

Data, models, rewards and the fields of --lock are never changed, except that a reference (ref_model) may be left out.
FOLDER (default: output_dir of the config, else runs/autopilot-DATE-TIME) holds the attempts, autopilot.json (the
lineage) and report.html.
"""


def run(argv: list[str]) -> int:
    if not argv or "--help" in argv or "-h" in argv:
        print(HELP, end="")
        return 0 if argv else 2
    rest = list(argv)
    budget = take_number(rest, "--budget", "attempts", least=1)
    if budget is None:
        raise UsageError("--budget: expected the maximum number of attempts, for instance --budget 4")
    lock = take_value(rest, "--lock", "names of fields, separated by commas")
    output = take_value(rest, "--output", "a folder")
    asked = read(rest)
    if asked.resume is not None or asked.replay is not None or asked.dry_run:
        raise UsageError("autopilot starts its own runs: --resume, --replay and --dry-run belong to `ft-host train`")
    ready = fresh(asked)
    say_warnings(ready.renamed)
    config = asdict(ready.resolved.config)
    asked_for = [name for name in (lock or "").split(",") if name]
    locked = current(asked_for, type(ready.resolved.config), "--lock") + config["locked_fields"]
    for name in locked:
        if name not in config:
            raise UsageError(f"--lock: there is no field {name}{nearest(name, config) or ''}")
    folder = _folder(output or config["output_dir"])
    flight = Autopilot(
        folder=folder,
        method=registry.reference(ready.method),
        config=config,
        budget=budget,
        locked=locked,
        accepts=acceptance(ready.resolved.config),
        outcomes=outcomes(ready),
    )
    flight.run(_values(ready), lambda text: show(text, sys.stderr))
    show(_said(flight))
    return flight.exit_code


def outcomes(ready: Ready) -> frozenset[str]:
    """The codes of rules that say what a run came to, and not why."""
    owned, _ = rules_of(diagnostics_of(ready.method, ready.resolved.config))
    return frozenset(rule.code for rule, _ in owned if "results" in rule.levels)


def _folder(name: str) -> Path:
    folder = Path(name or f"runs/autopilot-{datetime.datetime.now():%Y%m%d-%H%M%S}")
    if (folder / "autopilot.json").exists() or ((folder / "run.json").exists() and not was_refused(folder)):
        raise UsageError(f"{folder} already contains runs; choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    if was_refused(folder):  # a run of this config, perhaps: the attempts take its place
        held = RunFolder(folder)
        held.own()
        held.clear_refused()
        held.release()
    return folder


def _values(ready: Ready) -> dict[str, object]:
    """Return the fields that aren't at their defaults."""
    config = asdict(ready.resolved.config)
    return {
        name: value
        for name, value in config.items()
        if ready.resolved.origins[name] != "default" and name not in ("output_dir", "progress", "locked_fields")
    }


def _said(flight: Autopilot) -> str:
    lines = [f"{len(flight.attempts)} attempts, report in {flight.folder / 'report.html'}"]
    if flight.best is None:
        last = flight.attempts[-1]
        log = flight.folder / f"attempt-{last.number}.log"
        return "\n".join([*lines, f"none finished; the last one was {last.status} (exit code {last.exit_code}): {log}"])
    best = flight.attempts[flight.best - 1]
    value = f", {flight.metric} {best.metrics[flight.metric]:.4g}" if flight.metric else ""
    lines.append(f"best: attempt {best.number} in {best.folder}{value}")
    lines += [f"cleared: {changed(each.change)} ({each.change.finding})" for each in flight.cleared if each.change]
    return "\n".join(lines)
