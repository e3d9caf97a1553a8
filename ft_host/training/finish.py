"""The end of a run: the saved model, its last messages, and its report."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.contract.blame import blamed
from ft_host.data.omissions import KINDS
from ft_host.diagnostics.rule import SEVERITIES
from ft_host.distributed.processes import agreed, is_sharded
from ft_host.errors import FtHostError
from ft_host.metrics import add_counts
from ft_host.models import merge_adapter, save_whole
from ft_host.monitor.watch import is_main
from ft_host.report import write_report
from ft_host.rundir.checkpoints import newest, step_of
from ft_host.rundir.folder import RunFolder
from ft_host.rundir.manifest import before_and_after, lost_metrics
from ft_host.training.checkpoint import full_state
from ft_host.types import FinishedRun
from ft_host.util.console import tell
from ft_host.util.jsonl import from_words, json_text
from ft_host.util.text import now

if TYPE_CHECKING:
    from ft_host.config import RunConfig
    from ft_host.data import TrainStream
    from ft_host.run import Run
    from ft_host.rundir.opening import Resuming

LEFT_OUT = "left out by the template: "  # before a kind, among the counts of what was dropped


def finish(run: Run) -> FinishedRun:
    """Write the model and report how the run ended. All ranks must call it."""
    state = full_state(run) if is_sharded(run.config, run.world_size) else None
    metrics: dict[str, float] = {}
    findings: list[dict[str, Any]] = []
    if run.accelerator.is_main_process:
        folder = run.folder
        write_model(run, state)
        lines = folder.metrics()
        for entry in lines:
            metrics |= {key: from_words(value) for key, value in entry.items() if key not in ("kind", "step")}
        for sentence in before_and_after(lines):
            run.say(sentence)
        for sentence in lost_metrics(lines, run.step):
            run.say(sentence, "warning")
        findings = run.watch.finish()
        folder.update(status="finished", finished=now(), result=metrics)
        run.say(f"model in {folder.model}, report in {report_of(folder)}")
    metrics, findings, failed = agreed(run.accelerator, (metrics, findings, run.watch.fails()))
    return FinishedRun(folder=run.folder.path, steps=run.step, metrics=metrics, findings=findings, failed=failed)


def already_finished(config: RunConfig, path: Path | None, asked: Resuming) -> FinishedRun | None:
    """Return how the run in `path` ended if it has finished and nothing is left to do with this config; its report is
    written if it was killed before. None for a new run, and where there is something to do. Raises UsageError where
    the run can't go on from its logs."""
    if path is None or asked.restart:
        return None
    folder = RunFolder.open(path)
    folder.check_logs()
    record, here = folder.manifest, {"output_dir": str(path)}  # which may have been moved
    same = record.get("config", {}) | here == json.loads(json_text(dataclasses.asdict(config) | here))
    if record.get("status") != "finished" or not same or not folder.model.is_dir():
        return None
    step = max((line["step"] for line in folder.metrics() if line["kind"] == "train"), default=0)
    found, _ = newest(folder.checkpoints)
    if found is None or step_of(found) != step:
        return None
    if is_main():
        if not (folder.path / "report.html").is_file():
            report_of(folder)
        tell(
            f"{folder.path} has finished, after {step} steps: nothing is left to do. To train on, give it more steps:"
            f" `ft-host train --resume {folder.path} --max-steps N`, or --num-train-epochs",
            "info",
            config.progress,
        )
    findings = list({line["fingerprint"]: line for line in folder.read("findings.jsonl")}.values())
    grave = SEVERITIES[SEVERITIES.index(config.fail_on) :] if config.fail_on else ()
    failed = any(each["state"] == "open" and each["severity"] in grave for each in findings)
    metrics = from_words(record.get("result") or {})
    return FinishedRun(folder=folder.path, steps=step, metrics=metrics, findings=findings, failed=failed)


def write_model(run: Run, state: dict[str, Any] | None) -> None:
    """Write the policy and its tokenizer to the run's folder, whole or not at all. `state`: its weights, if they are
    sharded."""
    folder, aside = run.folder, run.folder.path / ".model.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        save_whole(run.policy, run.tokenizer, run.config, aside, state)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)  # a half one holds space that may be what is lacking
        raise
    shutil.rmtree(folder.model, ignore_errors=True)
    aside.rename(folder.model)
    if run.config.merge_adapter:
        merge_adapter(run.config, folder.model, folder.path / "merged", run.tokenizer)


def say_what_was_lost(run: Run, stream: TrainStream) -> None:
    """Report rows that were left out or cut, of all ranks: with windows or rollouts every rank has seen all, else its
    own."""
    tally = stream.tally
    kinds = {f"{LEFT_OUT}{kind}": count for kind, count in tally.left_out.items()}
    ranks = run.gather({**tally.dropped, **kinds, "": tally.truncated})
    lost = ranks[0] if stream.layout.windowed or run.rollouts else add_counts(ranks)
    cut = lost.pop("")
    for name in [name for name in lost if name.startswith(LEFT_OUT)]:
        what = KINDS[name.removeprefix(LEFT_OUT)]
        run.say(f"the chat template left out {what} in {lost.pop(name)} rows (DATA013)", "warning")
    for reason, count in lost.items():
        run.say(f"{count} rows were left out: {reason}", "warning")
    if cut:
        run.say(f"{cut} rows were cut at max_length {run.config.max_length}", "warning")


def report_of(folder: RunFolder) -> str:
    """Write report.html; returns its path. A page that can't be written is reported and doesn't change the run."""
    try:
        return str(write_report(folder.path))
    except (FtHostError, OSError) as error:
        return f"(none: {error})"
    except Exception as error:  # a fault of the page: the run is done all the same, and `ft-host report` raises it
        return f"(none, by a fault of ft-host: {type(error).__name__}: {error})"


def closing(run: Run) -> list[Callable[[], None]]:
    """Return `ft_close` of each plugin, outermost first: one that fails doesn't keep the others from it."""
    names = {impl.plugin_name: impl.plugin for impl in reversed(run.plugins.hook.ft_close.get_hookimpls())}

    def close(name: str) -> None:
        others = [plugin for other, plugin in names.items() if other != name]
        with blamed(run.plugins, "ft_close", name):
            run.plugins.subset_hook_caller("ft_close", remove_plugins=others)(run=run)

    return [partial(close, name) for name in names]
