"""A run before its first step, for tests of hooks and of the parts of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ft_host.config import RolloutConfig, RunConfig
from ft_host.run import Run
from ft_host.rundir.folder import RunFolder
from ft_host.types import Row

if TYPE_CHECKING:
    from ft_host.training.preflight import Chosen


def ready_run(config: RunConfig, method: str | None = None) -> Run:
    """A run with its policy, what is trained beside it, and its other models, on one process. Its folder is made only
    where a rollout writes to it. `method` is that of the config's class where it isn't given."""
    return _ready(config, method)[0]


def _ready(config: RunConfig, method: str | None) -> tuple[Run, Chosen]:
    from accelerate import Accelerator

    from ft_host import data, registry
    from ft_host.training.build import load_models
    from ft_host.training.preflight import choose

    chosen = choose(config, registry.find("method", method) if method else registry.method_of(type(config)))
    accelerator = Accelerator(cpu=config.use_cpu)
    run, _ = load_models(chosen, data.load_tokenizer(config), accelerator, RunFolder(config.output_dir))
    return run, chosen


def first_step(config: RunConfig, method: str | None = None) -> tuple[Run, list[Row]]:
    """Such a run and the rows of its first step: prepared rows of the data, or of a first rollout, with its
    completions, rewards and what `ft_annotate` says of them."""
    from ft_host import data

    run, chosen = _ready(config, method)
    prepare = chosen.prepare_with(run.tokenizer)
    source = data.open_train(config)
    if isinstance(config, RolloutConfig):
        return run, _of_a_rollout(run, source, prepare)
    step = next(iter(data.TrainStream(source, prepare, config)))
    return run, [row for unit in step.units for row in unit]


def _of_a_rollout(run: Run, source: Any, prepare: Callable[[Row], Any]) -> list[Row]:
    from ft_host.rollouts.buffer import Buffer, place_of
    from ft_host.rollouts.session import RolloutSession
    from ft_host.scheduling.opening import rollouts_of

    run.folder.path.mkdir(parents=True, exist_ok=True)
    session = RolloutSession.open(run.config, source.columns, run.tokenizer)
    try:
        prompts = session.prompts(run, source, prepare, place_of(None, None))
        buffer = Buffer(run, run.rollouts, rollouts_of(session, run, prompts))
        rows = [row for unit in next(buffer).units for row in unit]
        buffer.close()
    finally:
        session.close()
    return rows
