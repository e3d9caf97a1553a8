"""Runs a resolved config: the order of its parts, and what is left behind when one fails.

Longer than 300 lines: the order of a run is read in one place.

Everything that can be refused without a model is refused before one is loaded: plugins, optimizer name, trackers,
reward functions, tokenizer, data and its first rows.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ft_host import registry
from ft_host.config import RunConfig
from ft_host.config.paths import was_refused
from ft_host.contract.sinks import TRACKERS, guard_sinks
from ft_host.distributed.launcher import end_with_launcher
from ft_host.distributed.processes import end_processes, start_processes
from ft_host.distributed.trackers import begin_trackers, end_trackers
from ft_host.errors import FtHostError, Interrupted
from ft_host.generation.place import generation_facts
from ft_host.monitor.gradients import model_facts
from ft_host.monitor.memory_estimate import record_estimate
from ft_host.monitor.memory_usage import disk_facts
from ft_host.monitor.stall import StallDetector
from ft_host.monitor.watch import Monitor, is_main
from ft_host.run import Run
from ft_host.rundir.checkpoints import start_of
from ft_host.rundir.depends import still_there
from ft_host.rundir.folder import RunFolder
from ft_host.rundir.manifest import lost_metrics, plan_facts, plan_of
from ft_host.rundir.opening import Resuming, checkpoint_to_begin_with, open_folder, write_manifest
from ft_host.training import checkpoint as checkpoints
from ft_host.training.build import Built, build, evaluation_of, held_out_rows
from ft_host.training.failure import (
    add_hint,
    cause_elsewhere,
    complete,
    first_line,
    forget_causes,
    readable,
    write_down,
)
from ft_host.training.finish import already_finished, closing, finish, say_what_was_lost
from ft_host.training.loop import fit
from ft_host.training.optim import averaged
from ft_host.training.preflight import Preflight, choose, preflight
from ft_host.training.progress import Trackers, sinks
from ft_host.training.refusal import refuse
from ft_host.types import FinishedRun
from ft_host.util import signals
from ft_host.util.console import tell
from ft_host.util.freed import hand_back
from ft_host.util.memory import EVALUATION, SAVING, oom_context
from ft_host.util.ranks import everywhere
from ft_host.util.seeds import seed_all


def train(
    config: RunConfig,
    *,
    method: str | None = None,
    origins: dict[str, str] | None = None,
    resume: str | Path | None = None,
    asked: Resuming | None = None,
) -> FinishedRun:
    """Run `config`, in this process (one of several under torchrun). `method` is found by the config's class if it is
    not given; `resume` is the folder of the run to go on with, `asked` what may differ then.

    Raises an error of `ft_host.errors`; the run's folder then says "refused" (before its first step), "failed" or
    "interrupted", and why.
    """
    with signals.caught() as stop:
        from transformers.utils import logging

        logging.disable_progress_bar()  # a run has a bar of its own; loading and saving a file needs none
        end_with_launcher()
        launch = _Launch(config, method, origins or {}, Path(resume) if resume else None, asked or Resuming(), stop)
        try:
            finished = already_finished(config, launch.resume, launch.asked) or launch.go()
        except BaseException as error:
            told = launch.failed(error)
            if told is error:
                raise
            raise told from error
        finally:
            launch.close()
        return finished


class _Launch:
    """The pieces of one run, so that a failure at any point can be recorded in the run's folder."""

    def __init__(
        self,
        config: RunConfig,
        method: str | None,
        origins: dict[str, str],
        resume: Path | None,
        asked: Resuming,
        stop: signals.Signals,
    ):
        self.config = config
        self.asked = asked
        self.stop = stop
        self.method = registry.find("method", method) if method else registry.method_of(type(config))
        self.origins = origins
        self.resume = resume
        self.folder: RunFolder | None = None
        self.begun = False  # whether run.json is about this process: a refused one leaves it as it was
        self.accelerator = None
        self.place = (0, 1)  # rank, and the number of processes
        self.saved: Path | None = None  # the checkpoint that this process has written last
        self.chosen: list[registry.PluginInfo] = [self.method]  # all plugins of the run, once they are known
        self.watch: Monitor | None = None
        self.ready: Preflight | None = None
        self.run: Run | None = None
        self.end_stream: Callable[[], None] = lambda: None
        self.stall: StallDetector | None = None
        self.start: Path | None = None  # a checkpoint of another run
        self.new = resume is None or was_refused(resume)  # whether nothing was learnt in it before

    # -- in order

    def go(self) -> FinishedRun:
        config = self.config
        if self.resume:
            still_there(self.resume, RunFolder.open(self.resume).manifest.get("depends_on", {}), config)
        self.start = None if self.resume else start_of(config)
        seed_all(config.seed)  # before plugins are imported: they may draw numbers as they are
        chosen = choose(config, self.method)
        self.chosen = chosen.infos
        self.watch = Monitor(chosen.plugins, chosen.infos, config)
        ready = self.ready = preflight(chosen, self.watch)
        accelerator = self.accelerator = start_processes(config)
        self.place = (accelerator.process_index, accelerator.num_processes)
        checkpoint, warnings = self._open_folder(ready)
        built = build(ready, accelerator, self.folder, checkpoint)
        run, self.end_stream = built.run, built.stream.close
        self.run = run
        run.signals = self.stop
        if accelerator.is_main_process:
            if self.resume:
                self.folder.rewind(run.step if checkpoint else -1)
                warnings += lost_metrics(self.folder.read("metrics.jsonl"), run.step)
            self._register_sinks(built, resumed=checkpoint is not None)
        stall = self.stall = run.stall = StallDetector(run)
        self._write_plan(built)
        if run.world_size > 1:
            run.record_facts({"plan/places": "; ".join(run.gather(f"{socket.gethostname()}, {run.device}"))})
        run.record_facts(model_facts(run) | disk_facts(run))
        for sentence in [*ready.notes, *warnings]:
            run.say(sentence, "warning")
        for sentence in run.policy.notes:
            run.say(sentence)
        if checkpoint:
            run.say(f"resumed from {checkpoint if self.folder.path not in checkpoint.parents else checkpoint.name}")

        held_out = held_out_rows(ready)
        if ready.watch.main:
            record_estimate(run, sum(len(rows) for rows, _ in held_out.values()))
        evaluation = evaluation_of(built, ready, held_out)

        def save() -> None:
            with stall.during("a checkpoint"), averaged(built.optimizer), oom_context(SAVING):
                rows = built.stream.state() if ready.online else None
                self.saved = checkpoints.save(run, built.optimizer.optimizer, built.progress, rows)
                run.record_facts(disk_facts(run))

        def evaluate() -> None:
            try:
                with stall.during("an evaluation"), averaged(built.optimizer), oom_context(EVALUATION):
                    evaluation()
            except Exception as error:
                run.tell_ranks(error)

        if config.eval_on_start and run.step == 0:
            evaluate()
        self._note_signals(run)
        stall.begin()
        if config.max_steps < 1 or run.step < config.max_steps:
            fit(
                run,
                built.stream,
                built.optimizer,
                built.schedule,
                built.progress,
                total_rows=built.total_rows,
                evaluate=evaluate,
                save=save,
                asked_to_stop=self._asked_to_stop,
            )
        evaluate()
        if any(run.gather(self.stop.asked)):
            raise everywhere(Interrupted(run.stopped_as_asked()))
        say_what_was_lost(run, built.prompts)
        built.stream.close()
        with stall.during("saving the model"), averaged(built.optimizer):
            return finish(run)

    def _open_folder(self, ready: Preflight) -> tuple[Path | None, list[str]]:
        """Make the run's folder, or open it to go on. Returns the checkpoint to begin with, and warnings."""
        config, resume = self.config, self.resume is not None
        folder = open_folder(config, self.method, self.resume, self.accelerator, self.asked)
        self.folder = folder
        if self.accelerator.is_main_process:
            forget_causes(folder.path)
        checkpoint, said = checkpoint_to_begin_with(
            folder, config, self.start, self.accelerator, resume=resume, asked=self.asked
        )
        warnings = write_manifest(
            folder,
            config,
            ready.chosen.infos,
            self.origins,
            ready.inputs,
            self.accelerator,
            asked=self.asked,
            resume=resume,
            start=self.start,
            checkpoint=checkpoint,
        )
        self.begun = True
        return checkpoint, [*said, *warnings]

    def _register_sinks(self, built: Built, resumed: bool) -> None:
        """Register the sinks of metrics and findings, on the main process."""
        run, plugins = built.run, built.run.plugins
        for sink in sinks(self.config.progress, built.total, run.step):
            plugins.register(sink)
        if self.config.report_to:
            plugins.register(Trackers(), name=TRACKERS)
        plugins.register(run.watch)
        guard_sinks(plugins, partial(run.say, level="warning"))
        plugins.hook.ft_start(run=run, resumed_from=run.step if resumed else None)

    def _asked_to_stop(self) -> str | None:
        """Return why this process would stop now, for the ranks to agree on in one exchange."""
        return "signal" if self.stop.asked else self.ready.watch.stops()

    def _write_plan(self, built: Built) -> None:
        run, total = built.run, built.total
        if not self.accelerator.is_main_process:
            return
        plan, notes = plan_of(run, total)
        self.folder.update(wrappers=registry.wrappers(run.plugins), **plan)
        run.record_facts(plan_facts(run, total) | built.schedule.facts() | generation_facts(run))
        begin_trackers(self.accelerator, self.config.run_name or self.folder.path.name, run.say)
        for note in notes:
            run.say(note)

    def _note_signals(self, run: Run) -> None:
        """From now on a signal is heeded when a step is done, and the state is saved."""
        if run.accelerator.is_main_process:
            text = "stopping after this step; the state will be saved"
            self.stop.say = partial(tell, text, "warning", self.config.progress)
        self.stop.waits = True

    # -- when it goes wrong

    def failed(self, error: BaseException) -> FtHostError:
        """Record how the run has ended; return the error that people read."""
        with self.stop.held():
            path = None if self.folder is None else self.folder.path
            rank, world_size = self.place
            if self.stop.hurried or (self.stop.asked and self.run is None and not isinstance(error, FtHostError)):
                error = KeyboardInterrupt()
            cause = None if path is None or world_size == 1 else cause_elsewhere(error, path, rank)
            told = cause or readable(error, self.config, path)
            refused = self.new and not isinstance(told, Interrupted) and (self.run is None or not self.run.began)
            if refused and not self.begun and is_main():
                place = self.folder or str(self.resume or self.config.output_dir)
                self.folder = refuse(told, error, self.config, self.origins, self.chosen, self.watch, place)
                if self.folder is not None:
                    return told
            if path is None or not self.begun or not path.is_dir():
                add_hint(told, gone=path is not None and self.begun)
                return told
            step, report = None if self.run is None else self.run.step, not self.stop.hurried
            if cause is None:
                complete(told, error, self.folder, rank, step, self.saved, refused=refused)
            write_down(told, self.folder, self.place, self.watch, self.run, report=report, refused=refused)
            return told

    def close(self) -> None:
        """End everything that the run has started, even if some of it fails. An error is raised, or only printed if the
        run has failed already."""
        steps: list[Callable[[], Any]] = [] if self.stall is None else [self.stall.close]
        steps.append(self.end_stream)
        if self.ready is not None:
            steps.append(self.ready.close)
        if self.run is not None:
            steps += closing(self.run)
        if self.accelerator is not None:
            steps.append(partial(end_trackers, self.accelerator, self.config.progress))
            steps.append(partial(end_processes, self.run and self.run.model))
            if self.accelerator.device.type == "cpu":
                steps.append(hand_back)
        if self.folder is not None:
            steps.append(self.folder.release)
        failed, problems = sys.exc_info()[1], []
        for step in steps:
            try:
                step()
            except Exception as error:
                problems.append(self.failed(error) if failed is None and not problems else error)
        if problems and failed is None:
            raise problems[0]
        for error in problems:
            what = str(error) if isinstance(error, FtHostError) else first_line(error)
            tell(f"while the run was ending: {what}", "warning", self.config.progress)
