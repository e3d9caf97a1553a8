"""Builds a run that is ready for its first step, from its preflight: models, optimizer, stream and schedule."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch.nn.parallel import DistributedDataParallel

from ft_host import data
from ft_host.config.adapters import changed_fields, take_adapter
from ft_host.config.rollout import RolloutConfig
from ft_host.contract.blame import HOST
from ft_host.contract.loss import Divider
from ft_host.contract.names import Named
from ft_host.distributed.processes import agreed, is_sharded
from ft_host.models import attach_value, load_policy, shard
from ft_host.models.adapter_folder import check_same
from ft_host.models.annotate import open_store, precompute
from ft_host.models.aux_models import AuxModel, keep_adapter
from ft_host.rollouts.buffer import Buffer, place_of, reshard_rows
from ft_host.run import Run
from ft_host.scheduling.record import rollouts_for
from ft_host.training import checkpoint as checkpoints
from ft_host.training.evaluate import Evaluation
from ft_host.training.loop import Progress
from ft_host.training.optim import Schedule, make_optimizer, try_optimizer
from ft_host.types import Row
from ft_host.util.adapters import adapter_of, base_of
from ft_host.util.memory import COMPANIONS, LOADING, oom_context
from ft_host.util.seeds import aside, reseed, seed_all

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from transformers import PreTrainedTokenizerBase

    from ft_host.monitor.watch import Monitor
    from ft_host.rundir.folder import RunFolder
    from ft_host.training.preflight import Chosen, Preflight


@dataclass(kw_only=True)
class Built:
    """A run that is ready to train, without its evaluation."""

    run: Run
    optimizer: AcceleratedOptimizer
    schedule: Schedule
    progress: Progress
    stream: data.TrainStream | Buffer
    total: int | None  # optimizer steps, where that is known
    total_rows: int | None  # rows of all epochs, where the schedule runs over rows

    @property
    def prompts(self) -> data.TrainStream:
        """The stream of raw rows: of a run with rollouts, its prompts."""
        return self.stream.prompts if isinstance(self.stream, Buffer) else self.stream


def load_models(
    chosen: Chosen,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    folder: RunFolder,
    *,
    checkpoint: Path | None = None,
    watch: Monitor | None = None,
) -> tuple[Run, AcceleratedOptimizer]:
    """Return the run with its policy and other models, and the optimizer. All ranks must call it. The weights come from
    the checkpoint, if it has them as a model."""
    config, specs = chosen.config, dict(chosen.specs)
    try_optimizer(config, accelerator.device)
    seed_all(config.seed)  # new weights (an adapter's) are the same on every rank
    held = checkpoint / "model" if checkpoint and (checkpoint / "model").is_dir() else None
    if adapter_of(config.model):
        take_adapter(config, changed_fields(config))
    start = config
    if held:
        # Of an adapter, the base is where the run's own model is now, which may have moved since.
        base = base_of(config.model, config.lora_base_model) if adapter_of(str(held)) else None
        start = dataclasses.replace(config, model=str(held), lora_base_model=base)
    elif config.use_peft and adapter_of(config.model):
        check_same(config, Path(config.model), chosen.head)
    with oom_context(LOADING):
        sharded = is_sharded(config, accelerator.num_processes)
        policy = load_policy(start, tokenizer, accelerator.device, head=chosen.head, sharded=sharded)
        keep_adapter(policy, specs, config)
        for spec in [specs.pop(role) for role in list(specs) if specs[role].trained]:
            attach_value(policy, spec, config, tokenizer, accelerator.device, sharded)
        if sharded:
            model = shard(policy, config)
        else:
            model = accelerator.prepare(policy)
            if isinstance(model, DistributedDataParallel):
                model.broadcast_buffers = False  # they are the same on all ranks, and stay so
        optimizer = accelerator.prepare(make_optimizer(policy, config))
        optimizer.train()  # a mode that schedule-free ones have
    chosen.plugins.register(Divider(), name=f"{HOST} Divider")
    run = Run(
        config=config,
        folder=folder,
        tokenizer=tokenizer,
        plugins=chosen.plugins,
        accelerator=accelerator,
        policy=policy,
        model=model,
        rollouts=config.rollout_plan(accelerator.num_processes) if isinstance(config, RolloutConfig) else None,
        backend_config=chosen.backend_config,
        diagnostics_config=chosen.diagnostics_config,
        watch=watch,
    )
    with oom_context(COMPANIONS):
        run.models = Named("run.models", {role: AuxModel(spec, run) for role, spec in specs.items()})
    seed_all(config.seed + run.rank)  # dropout differs between ranks
    return run, optimizer


def build(ready: Preflight, accelerator: Accelerator, folder: RunFolder, checkpoint: Path | None) -> Built:
    """Return the run with its rows and its schedule, from the beginning or as a checkpoint left them. All ranks must
    call it."""
    run, optimizer = load_models(
        ready.chosen, ready.tokenizer, accelerator, folder, checkpoint=checkpoint, watch=ready.watch
    )
    config, progress, saved_rows, buffers = run.config, Progress(), None, []
    if checkpoint:
        saved = checkpoints.load(run, optimizer.optimizer, checkpoint)
        optimizer.train()  # it was saved in the other mode
        progress = Progress(**saved["progress"])
        buffers = saved["buffers"]
        saved_rows = reshard_rows(buffers, run.rank, run.world_size)
    if ready.online:
        place = place_of(progress.position, saved_rows)
        prompts = ready.online.prompts(run, ready.train_source, ready.prepare, place)
        rollouts = rollouts_for(ready.online, run, prompts, buffers)
        stream = Buffer(run, run.rollouts, rollouts, progress.position, saved_rows)
    else:
        stream = data.TrainStream(
            ready.train_source,
            ready.prepare,
            config,
            rank=run.rank,
            world_size=run.world_size,
            position=progress.position,
        )
    total = config.max_steps if config.max_steps > 0 else stream.planned_steps()
    by_rows = config.packing and config.max_steps < 1
    return Built(
        run=run,
        optimizer=optimizer,
        schedule=Schedule(optimizer.optimizer, config, total),
        progress=progress,
        stream=stream,
        total=total,
        total_rows=round(ready.train_source.num_rows * config.num_train_epochs) if by_rows else None,
    )


def held_out_rows(ready: Preflight) -> dict[str, tuple[list[Row], list[Row]]]:
    """Return the rows of each evaluation set by its name: prepared, and as they were read."""
    sets, config = data.sets_of(ready.eval_source), ready.chosen.config
    with aside():
        reseed(config.seed)  # in a resumed run too, whose random states are by now those of its checkpoint
        return {name: data.eval_rows(source, ready.prepare, config) for name, source in sets.items()}


def evaluation_of(built: Built, ready: Preflight, held_out: dict[str, tuple[list[Row], list[Row]]]) -> Evaluation:
    """Return the evaluation of the held-out rows, (prepared, raw) by the name of their set, with auxiliary models'
    values. Precomputed values of the training rows are made too. All ranks must call it."""
    run, source = built.run, ready.train_source
    evaluation = Evaluation(run, held_out, ready.rewards, ready.online)
    # of a run that goes on: it may have been stopped after an evaluation of the step that it goes on from
    evaluation.last = agreed(run.accelerator, run.folder.last_evaluation())
    if any(spec.precompute for spec in ready.chosen.specs.values()):
        open_store(run)
        if not run.step:  # a run that goes on has made it; what has been deleted since is made when it is met
            steps = data.TrainStream(source, ready.prepare, run.config, rank=run.rank, world_size=run.world_size)
            size = source.num_rows if isinstance(source, data.Source) else None
            precompute(run, steps, built.total, size, [row for part in evaluation.sets for row in part.mine])
            steps.close()
    evaluation.annotate()
    return evaluation
