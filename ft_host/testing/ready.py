"""A run that stands before its first step, for tests of hooks and of what a step is made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ft_host.config import RolloutConfig, RunConfig
from ft_host.run import Run
from ft_host.rundir.folder import RunFolder
from ft_host.types import Row


def ready_run(config: RunConfig, method: str | None = None) -> Run:
    """A run with its policy, what is trained beside it, and its other models, on one process. Its folder is made only
    where a rollout writes to it. `method` is that of the config's class where it isn't given."""
    import torch
    from accelerate import Accelerator

    from ft_host import data, registry
    from ft_host.models import attach_value, load_policy
    from ft_host.models.aux_models import AuxModel, keep_adapter
    from ft_host.types import ModelSpec

    tokenizer = data.load_tokenizer(config)
    info = registry.find("method", method) if method else registry.method_of(type(config))
    backend, backend_config = registry.backend_of(config)
    plugins = registry.session(info, backend)
    accelerator = Accelerator(cpu=config.use_cpu)
    specs = plugins.hook.ft_models(config=config) or {}
    torch.manual_seed(config.seed)
    policy = load_policy(config, tokenizer, accelerator.device, head=specs.pop("policy", ModelSpec()).head)
    keep_adapter(policy, specs, config)
    for role in [role for role, spec in specs.items() if spec.trained]:
        attach_value(policy, specs.pop(role), config, tokenizer, accelerator.device)
    run = Run(
        config=config,
        folder=RunFolder(config.output_dir),
        tokenizer=tokenizer,
        plugins=plugins,
        accelerator=accelerator,
        policy=policy,
        model=policy,
        rollouts=config.rollout_plan(1) if isinstance(config, RolloutConfig) else None,
        backend_config=backend_config,
    )
    run.models = {role: AuxModel(spec, run) for role, spec in specs.items()}
    return run


def first_step(config: RunConfig, method: str | None = None) -> tuple[Run, list[Row]]:
    """Such a run and the rows of its first step: prepared rows of the data, or of a first rollout, with its
    completions, rewards and what `ft_annotate` says of them."""
    from ft_host import data

    run = ready_run(config, method)
    prepare = partial(_prepare, run.plugins.hook.ft_prepare, run.tokenizer, config)
    source = data.open_train(config)
    if isinstance(config, RolloutConfig):
        return run, _of_a_rollout(run, source, prepare)
    step = next(iter(data.TrainStream(source, prepare, config)))
    return run, [row for unit in step.units for row in unit]


def _of_a_rollout(run: Run, source: Any, prepare: Callable[[Row], Any]) -> list[Row]:
    from ft_host.rollouts.session import RolloutSession

    run.folder.path.mkdir(parents=True, exist_ok=True)
    session = RolloutSession.open(run.config, source.columns, run.tokenizer)
    try:
        buffer = session.buffer(run, source, prepare, None, None)
        rows = [row for unit in next(buffer).units for row in unit]
        buffer.close()
    finally:
        session.close()
    return rows


def _prepare(hook: Callable[..., Any], tokenizer: Any, config: RunConfig, row: Row) -> Any:
    return hook(row=row, tokenizer=tokenizer, config=config)
