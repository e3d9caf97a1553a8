"""From a resolved config to a finished run: what is set up in which order, and what is left behind when it fails.

Everything that can be refused without a model is refused before one is loaded: plugins, optimizer name, trackers,
reward functions, tokenizer, data and its first rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ft_host import data, registry
from ft_host.config import RunConfig
from ft_host.config.rollout import RolloutConfig
from ft_host.contract.sinks import TRACKERS, guard_sinks
from ft_host.diagnostics.collect import diagnostics_of
from ft_host.diagnostics.memory_remedies import remedies_for
from ft_host.distributed.processes import agreed, end_processes, is_sharded, start_processes
from ft_host.errors import ConfigError, FtHostError, Interrupted, OutOfMemory, StoppedByFinding
from ft_host.metrics import add_counts
from ft_host.models import attach_value, check_vocabulary, load_policy, merge_adapter, save_model, shard
from ft_host.models.annotate import open_store, precompute
from ft_host.models.aux_models import AuxModel, keep_adapter
from ft_host.monitor.data_stats import data_facts
from ft_host.monitor.gradients import model_facts
from ft_host.monitor.memory_estimate import free_mb, memory_parts
from ft_host.monitor.memory_usage import disk_facts
from ft_host.monitor.reward_check import check_rewards
from ft_host.monitor.stall import StallDetector
from ft_host.monitor.watch import Monitor
from ft_host.registry.backend import backend_of
from ft_host.report import write_report
from ft_host.rewards import check_columns, load_rewards
from ft_host.rollouts.buffer import reshard_rows
from ft_host.rollouts.session import RolloutSession, check_online
from ft_host.run import Run
from ft_host.rundir.folder import RunFolder
from ft_host.rundir.manifest import (
    before_and_after,
    check_rows_per_step,
    check_same_data,
    fresh_folder,
    new_manifest,
    plan_facts,
    plan_of,
)
from ft_host.training import checkpoint as checkpoints
from ft_host.training.evaluate import Evaluation
from ft_host.training.loop import Progress, fit
from ft_host.training.optim import Schedule, make_optimizer, optimizer_factory
from ft_host.training.progress import Trackers, check_trackers, sinks
from ft_host.types import FinishedRun, ModelSpec
from ft_host.util.console import tell
from ft_host.util.memory import COMPANIONS, EVALUATION, LOADING, SAVING, in_words, memory_facts, oom_context
from ft_host.util.text import now


def train(
    config: RunConfig,
    *,
    method: str | None = None,
    origins: dict[str, str] | None = None,
    resume: str | Path | None = None,
) -> FinishedRun:
    """Run `config`, in this process (one of several under torchrun). `method` is found by the config's class where it
    is not given; `resume` is the folder of the run to go on with.

    Raises an error of `ft_host.errors`; the run's folder then says "failed" or "interrupted" and why.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # a run has a bar of its own; loading and saving a file needs none
    launch = _Launch(config, method, origins or {}, Path(resume) if resume else None)
    try:
        return launch.go()
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        launch.failed(error)
        if not full or launch.folder is None:
            raise
        raise FtHostError(
            f"the disk is full: {error.filename or launch.folder.path} could not be written; the checkpoints in "
            f"{launch.folder.checkpoints} are whole. Make room and go on with `ft-host train --resume "
            f"{launch.folder.path}`"
        ) from error
    except OutOfMemory as error:
        ways = "; ".join(
            f"({number}) {remedy.why}" for number, remedy in enumerate(remedies_for(error.phase, config), 1)
        )
        text = f"{error}. What costs least comes first: {ways}. {launch.kept()}"
        told = OutOfMemory(text, phase=error.phase, facts=error.facts)
        launch.failed(told)
        raise told from error
    except BaseException as error:
        launch.failed(error)
        raise
    finally:
        launch.close()


class _Launch:
    """The pieces of one run, so that a failure at any point can say what it knows in the run's folder."""

    def __init__(self, config: RunConfig, method: str | None, origins: dict[str, str], resume: Path | None):
        self.config = config
        self.method = registry.find("method", method) if method else registry.method_of(type(config))
        self.origins = origins
        self.resume = resume
        self.folder: RunFolder | None = None
        self.accelerator = None
        self.stopping = threading.Event()
        self.handlers: dict[int, Any] = {}
        self.warnings: list[str] = []
        self.online: RolloutSession | None = None
        self.run: Run | None = None
        self.stall: StallDetector | None = None
        self.start = None if resume else start_of(config)  # a checkpoint of another run

    # -- in order

    def go(self) -> FinishedRun:
        config = self.config
        backend, backend_config = backend_of(config)
        diagnostics = diagnostics_of(self.method, config)
        diagnostics_config = registry.diagnostics_configs(config)
        self.chosen = [self.method, *([backend] if backend else []), *diagnostics]
        plugins = registry.session(self.method, backend, diagnostics)
        check_online(self.method, plugins, config)
        self.watch = Monitor(plugins, self.chosen, config)
        specs = plugins.hook.ft_models(config=config) or {}
        head = specs.pop("policy", ModelSpec()).head
        optimizer_factory(config)
        check_trackers(config.report_to)
        rewards = load_rewards(config)
        tokenizer = data.load_tokenizer(config)
        for role, spec in specs.items():
            if spec.source is not None:
                check_vocabulary(config, spec.source, tokenizer, spec.field or role, spec)
        prepare = partial(_prepare, registry.reference(self.method), tokenizer, config)
        train_source = data.open_train(config)
        eval_source = data.open_eval(config)
        for reward in rewards:
            check_columns(reward, eval_source.columns)
        if self.watch.main:
            whole = dataclasses.replace(config, max_length=None, packing=False)
            uncut = partial(_prepare, registry.reference(self.method), tokenizer, whole)
            self.watch.record_facts(
                data_facts(train_source, eval_source, prepare, uncut, plugins.hook.ft_collate, tokenizer, config)
            )
        data.check_first_rows(train_source, prepare, config)
        self.watch.check()
        if isinstance(config, RolloutConfig):
            self.online = RolloutSession.open(config, train_source.columns, tokenizer)
            if self.watch.main:
                self.watch.record_facts(check_rewards(config, train_source, prepare))
            self.watch.check()

        self.accelerator = start_processes(config)
        self._sharded = is_sharded(config, self.accelerator.num_processes)
        rollouts = config.rollout_plan(self.accelerator.num_processes) if self.online else None
        self._open_folder(train_source, eval_source)
        checkpoint, damaged = self._checkpoint()
        torch.manual_seed(config.seed)  # new weights (an adapter's) are the same on every rank
        held = checkpoint / "model" if checkpoint and (checkpoint / "model").is_dir() else None
        start = dataclasses.replace(config, model=str(held)) if held else config
        with oom_context(LOADING):
            policy = load_policy(start, tokenizer, self.accelerator.device, head=head)
            keep_adapter(policy, specs, config)
            trained = [specs.pop(role) for role in list(specs) if specs[role].trained]
            for spec in trained:
                attach_value(policy, spec, config, tokenizer, self.accelerator.device)
            if self._sharded:
                model = shard(policy, config)
            else:
                model = self.accelerator.prepare(policy)
            optimizer = self.accelerator.prepare(make_optimizer(policy, config))
        run = Run(
            config=config,
            folder=self.folder,
            tokenizer=tokenizer,
            plugins=plugins,
            accelerator=self.accelerator,
            policy=policy,
            model=model,
            rollouts=rollouts,
            backend_config=backend_config,
            diagnostics_config=diagnostics_config,
            watch=self.watch,
        )
        self.run = run
        with oom_context(COMPANIONS):
            run.models = {role: AuxModel(spec, run) for role, spec in specs.items()}
        torch.manual_seed(config.seed + run.rank)  # dropout differs between ranks
        progress, saved_rows = Progress(), None
        if checkpoint:
            saved = checkpoints.load(run, optimizer.optimizer, checkpoint)
            progress = Progress(**saved["progress"])
            saved_rows = reshard_rows(saved["buffers"], run.rank, run.world_size)
        if self.accelerator.is_main_process and self.resume:
            self.folder.rewind(run.step if checkpoint else -1)

        if self.online:
            stream = self.online.buffer(run, train_source, prepare, progress.position, saved_rows)
        else:
            stream = data.TrainStream(
                train_source, prepare, config, rank=run.rank, world_size=run.world_size, position=progress.position
            )
        total = config.max_steps if config.max_steps > 0 else stream.planned_steps()
        schedule = Schedule(optimizer.optimizer, config, total)
        by_rows = config.packing and config.max_steps < 1
        total_rows = round(train_source.num_rows * config.num_train_epochs) if by_rows else None
        if self.accelerator.is_main_process:
            for sink in sinks(config.progress, total, run.step):
                plugins.register(sink)
            if config.report_to:
                plugins.register(Trackers(), name=TRACKERS)
            plugins.register(self.watch)
            self.stall = StallDetector(run)
            plugins.register(self.stall)
            guard_sinks(plugins, partial(run.say, level="warning"))
            plugins.hook.ft_start(run=run, resumed_from=run.step if checkpoint else None)
        self._write_plan(run, total)
        run.record_facts(model_facts(run) | disk_facts(run))
        for sentence in [*self.warnings, *damaged]:
            run.say(sentence, "warning")
        for sentence in policy.notes:
            run.say(sentence)
        if checkpoint:
            run.say(f"resumed from {checkpoint if checkpoint == self.start else checkpoint.name}")

        held_out = data.eval_rows(eval_source, prepare, config) if eval_source else ([], [])
        if self.watch.main:
            self._estimate_memory(run, len(held_out[0]))
        evaluation = Evaluation(run, *held_out, rewards, self.online)
        if any(spec.precompute for spec in specs.values()):
            self._make_ahead(run, train_source, prepare, total, evaluation.mine)
        evaluation.annotate()

        def save() -> None:
            with self._aside(), oom_context(SAVING):
                checkpoints.save(run, optimizer.optimizer, progress, stream.state() if self.online else None)
                run.record_facts(disk_facts(run))

        def evaluate() -> None:
            with self._aside(), oom_context(EVALUATION):
                evaluation()

        if config.eval_on_start and run.step == 0:
            evaluate()
        self._catch_signals()
        if config.max_steps < 1 or run.step < config.max_steps:
            fit(
                run,
                stream,
                optimizer,
                schedule,
                progress,
                total_rows=total_rows,
                evaluate=evaluate,
                save=save,
                asked_to_stop=self._asked_to_stop,
            )
        evaluate()
        self._say_what_was_lost(run, stream.prompts if self.online else stream)
        stream.close()
        return self._finish(run)

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """Something that may take longer than a step."""
        if self.stall is not None:
            self.stall.relax(True)
        yield
        if self.stall is not None:
            self.stall.relax(False)

    def _estimate_memory(self, run: Run, held_out: int) -> None:
        """Told before the first step, so that a plan which doesn't fit is known to be one."""
        parts = memory_parts(run, self.watch.engine.view.facts, held_out)
        held = sum(parts[name] for name in ("weights", "companions")) + parts.get("base", 0.0)
        run.record_facts(memory_facts(parts) | {"system/memory_mb": round(free_mb(run.device) + held, 1)})
        run.say(in_words(parts))

    def _asked_to_stop(self) -> str | None:
        """Why this process would stop now: for the ranks to agree on, in one exchange."""
        return "signal" if self.stopping.is_set() else self.watch.stops()

    def _make_ahead(self, run: Run, source: Any, prepare: Any, total: int | None, held_out: list[Any]) -> None:
        """What companions say of rows, from an earlier run or made now. A run that goes on has made it already; what
        has been deleted since is made when it is met."""
        open_store(run)
        if run.step:
            return
        steps = data.TrainStream(source, prepare, self.config, rank=run.rank, world_size=run.world_size)
        precompute(run, steps, total, source.num_rows if isinstance(source, data.Source) else None, held_out)
        steps.close()

    def _say_what_was_lost(self, run: Run, stream: data.TrainStream) -> None:
        """Rows that were left out or cut, of all ranks: with windows or rollouts every rank has seen all, else its
        own."""
        tally = stream.tally
        ranks = run.gather({**tally.dropped, "": tally.truncated})
        lost = ranks[0] if stream.layout.windowed or self.online else add_counts(ranks)
        cut = lost.pop("")
        for reason, count in lost.items():
            run.say(f"{count} rows were left out: {reason}", "warning")
        if cut:
            run.say(f"{cut} rows were cut at max_length {self.config.max_length}", "warning")

    def _open_folder(self, train_source: Any, eval_source: Any) -> None:
        if self.resume:
            self.folder = RunFolder.open(self.resume)
        elif self.config.output_dir:
            self.folder = RunFolder(self.config.output_dir)
        else:
            self.folder = RunFolder(agreed(self.accelerator, fresh_folder(self.method.name)))
        if self.resume:
            check_rows_per_step(self.folder, self.config, self.accelerator.num_processes)
        elif self.start is not None:
            other = RunFolder.open(self.start.parent.parent)
            check_rows_per_step(other, self.config, self.accelerator.num_processes)
        if not self.accelerator.is_main_process:
            return
        manifest = new_manifest(self.config, self.method, self.origins, self.chosen, self.accelerator)
        manifest["data"] = {"train": train_source.describe(), "eval": eval_source.describe() if eval_source else None}
        manifest["parent"] = parent_of(self.config)
        if self.resume:
            manifest["created"] = self.folder.manifest["created"]
            self.warnings += check_same_data(self.folder, manifest)
            self.folder.update(**manifest)
        else:
            self.folder = RunFolder.create(self.folder.path, manifest)
            if self.start is not None:
                self.folder.take_over(self.start.parent.parent, checkpoints.step_of(self.start))

    def _checkpoint(self) -> tuple[Path | None, list[str]]:
        found: tuple[Path | None, list[str]] = (None, [])
        if self.resume:
            found = checkpoints.newest(self.folder.checkpoints)
        if found[0] is None:  # of a run that goes on, too: it may have been stopped before its first checkpoint
            self.start = start_of(self.config) if self.resume else self.start
            found = (self.start, found[1])
        return agreed(self.accelerator, found)

    def _write_plan(self, run: Run, total: int | None) -> None:
        if not self.accelerator.is_main_process:
            return
        plan, notes = plan_of(run, total)
        self.folder.update(wrappers=registry.wrappers(run.plugins), **plan)
        run.record_facts(plan_facts(run, total))
        if self.config.report_to:
            name = self.config.run_name or self.folder.path.name
            self.accelerator.init_trackers(name)
        for note in notes:
            run.say(note)

    def _catch_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # Python delivers signals to the main thread only: whoever started this thread handles them

        def ask(number: int, frame: Any) -> None:
            if self.stopping.is_set() and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.stopping.set()
            if self.accelerator.is_main_process:
                tell("stopping after this step; the state will be saved", "warning", self.config.progress)

        for number in (signal.SIGINT, signal.SIGTERM):
            self.handlers[number] = signal.signal(number, ask)

    def _finish(self, run: Run) -> FinishedRun:
        config = self.config
        state = None
        if self._sharded:
            state = checkpoints.full_state(run)
        metrics: dict[str, float] = {}
        findings: list[dict[str, Any]] = []
        if self.accelerator.is_main_process:
            aside = self.folder.path / ".model.tmp"
            shutil.rmtree(aside, ignore_errors=True)
            save_model(run.policy, aside, state)
            run.tokenizer.save_pretrained(aside)
            shutil.rmtree(self.folder.model, ignore_errors=True)
            aside.rename(self.folder.model)
            if config.merge_adapter:
                merge_adapter(config, self.folder.model, self.folder.path / "merged")
                run.tokenizer.save_pretrained(self.folder.path / "merged")
            lines = self.folder.read("metrics.jsonl")
            for entry in lines:
                metrics |= {key: value for key, value in entry.items() if key not in ("kind", "step")}
            for sentence in before_and_after(lines):
                run.say(sentence)
            findings = self.watch.finish()
            self.folder.update(status="finished", finished=now(), result=metrics)
            run.say(f"model in {self.folder.model}, report in {self._report()}")
        metrics, findings, failed = agreed(self.accelerator, (metrics, findings, self.watch.fails()))
        return FinishedRun(folder=self.folder.path, steps=run.step, metrics=metrics, findings=findings, failed=failed)

    # -- when it goes wrong

    def failed(self, error: BaseException) -> None:
        main = self.accelerator is None or self.accelerator.is_main_process
        if isinstance(error, FtHostError) and error.facts:
            self.watch.record_facts(error.facts)
        if not main or self.folder is None or not self.folder.manifest or isinstance(error, SystemExit):
            return
        stopped = isinstance(error, (Interrupted, StoppedByFinding, KeyboardInterrupt))
        text = str(error) or type(error).__name__
        if not isinstance(error, (FtHostError, KeyboardInterrupt)):
            text = f"{type(error).__name__}: {text}\n{traceback.format_exc()}"
        try:
            if self.watch.run is not None:
                self.watch.finish(whole=not stopped)
            else:
                self.watch.flush(self.folder)
            self.folder.update(status="interrupted" if stopped else "failed", finished=now(), error=text)
            self._report()
        except OSError as full:  # the disk may be what failed; the first error is what the user must see
            print(f"run.json could not be updated: {full}", file=sys.stderr)

    def kept(self) -> str:
        """What a run that failed can go on from, in a sentence."""
        found = None if self.folder is None else checkpoints.newest(self.folder.checkpoints)[0]
        if found is None:
            return "No checkpoint had been written"
        return f"{found.name} is whole: `ft-host train --resume {self.folder.path}` goes on from it"

    def _report(self) -> str:
        """Write report.html. A page that can't be written says so and changes nothing of the run."""
        try:
            return str(write_report(self.folder.path))
        except (FtHostError, OSError) as error:
            return f"(none: {error})"

    def close(self) -> None:
        """End what the run has started, all of it, whatever fails in between. What fails is raised, or only told of
        where the run has failed itself."""
        steps: list[Callable[[], Any]] = [] if self.stall is None else [self.stall.close]
        if self.online is not None:
            steps.append(self.online.close)
        if self.run is not None:
            steps.append(partial(self.run.plugins.hook.ft_close, run=self.run))
        steps += [partial(signal.signal, number, handler) for number, handler in self.handlers.items()]
        if self.accelerator is not None:
            steps += [self.accelerator.end_training] if self.config.report_to else []
            steps.append(partial(end_processes, self.run and self.run.model))
        failed, problems = sys.exc_info()[1], []
        for step in steps:
            try:
                step()
            except Exception as error:
                problems.append(error)
        if problems and failed is None:
            raise problems[0]
        for error in problems:
            tell(f"when the run was ended: {type(error).__name__}: {error}", "warning", self.config.progress)


def start_of(config: RunConfig) -> Path | None:
    """The checkpoint of another run that this one begins with. Raises ConfigError where it isn't whole."""
    if config.resume_from_checkpoint is None:
        return None
    path = Path(config.resume_from_checkpoint)
    problem = checkpoints.damage(path)
    if problem is not None or not (path.parent.parent / "run.json").is_file():
        raise ConfigError(
            f"resume_from_checkpoint: {path} is not a checkpoint of a run"
            f" ({problem or 'no run.json two folders above'}); expected RUN/checkpoints/step-N"
        )
    return path


def parent_of(config: RunConfig) -> str | None:
    """The run that this one comes from: as the config says, else the one whose checkpoint it begins with."""
    if config.parent_run or config.resume_from_checkpoint is None:
        return config.parent_run
    return str(Path(config.resume_from_checkpoint).parent.parent)


def _prepare(method: str, tokenizer: Any, config: RunConfig, row: dict[str, Any]) -> Any:
    """`ft_prepare` of the method, in whatever process this runs in (workers import the method themselves)."""
    return registry.prepare_hook(method, tuple(config.diagnostics))(row=row, tokenizer=tokenizer, config=config)
