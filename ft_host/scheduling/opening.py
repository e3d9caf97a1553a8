"""What makes the rollouts of a run: `Drawing`, or something that begins them ahead of the training."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ft_host.errors import ConfigError
from ft_host.rewards.model import tell_of_models
from ft_host.rollouts.drawing import Rollouts
from ft_host.rollouts.rollout import RolloutRun
from ft_host.rollouts.session import RolloutSession
from ft_host.run import EnginePlace
from ft_host.scheduling.ahead import Ahead
from ft_host.scheduling.apart import remote_weights
from ft_host.scheduling.exact import Exact
from ft_host.scheduling.failures import Failures
from ft_host.scheduling.inbox import Inbox
from ft_host.scheduling.ledger import Ledger
from ft_host.scheduling.local import Local
from ft_host.scheduling.producer import Producer
from ft_host.scheduling.timeline import Timeline
from ft_host.scheduling.unit import Event, Said, Unit
from ft_host.scheduling.waiting import Post
from ft_host.scheduling.weights import Weights
from ft_host.types import Completion, Request, Row, Sampling

if TYPE_CHECKING:
    from ft_host.config.rollout import RolloutConfig
    from ft_host.data.stream import TrainStream
    from ft_host.run import Run

TURN = threading.Lock()


def rollouts_of(
    session: RolloutSession, run: Run, prompts: TrainStream, buffers: list[dict[str, Any]] | None = None
) -> Rollouts:
    """Return what makes the rollouts of a run; `buffers` are those of all ranks of a checkpoint. Raises ConfigError for
    prompts under way that a run with these fields doesn't go on with."""
    config, plan = session.config, run.rollouts
    ahead = config.rollouts_ahead(plan)
    saved = [each["ahead"] for each in buffers or [] if each.get("ahead")]
    if not ahead and any(each["ledger"]["units"] for each in saved):
        raise ConfigError(
            "rollouts: the checkpoint has prompts under way, which would be lost without max_staleness; go on with "
            "rollouts: overlap or async"
        )
    if config.rollouts == "sync" or (config.rollouts == "overlap" and not ahead):
        return session.drawing(run, prompts)
    shared = config.rollouts == "async"
    quota = len(range(run.rank, plan.prompts, run.world_size))
    if shared:
        quota = plan.prompts if run.rank == 0 else 0
    in_order = config.rollout_order == "in_order"
    ledger = Ledger(quota=quota, ahead=ahead, updates=plan.updates, in_order=in_order, adapts=shared)
    post = Post(run=run, ledger=ledger, failures=Failures(config), limit=config.rollout_timeout)
    weights = weights_of(session, run, post)
    run.around_sync = weights.updating
    run.timeline = Timeline(run.folder if run.accelerator.is_main_process else None, run.step)
    if not ahead:
        drawing = session.drawing(run, prompts)
        return replace(
            drawing, before=partial(before_exact, session, weights), complete=Exact(run=run, post=post), ends=post.close
        )
    return Ahead(
        run=run,
        prompts=prompts,
        plan=plan,
        config=config,
        post=post,
        weights=weights,
        before=partial(before_rollout, session, run, post.generate),
        saved=saved,
    )


def weights_of(session: RolloutSession, run: Run, post: Post) -> Weights:
    """Return how the source gets the policy's weights; nothing is opened yet."""
    if session.config.rollouts == "overlap":
        return Weights(
            run=run, post=post, open_source=partial(local_source, session, run), publish=lambda version: None
        )
    return remote_weights(session, run, post)


def before_exact(session: RolloutSession, weights: Weights, rows: list[Row]) -> None:
    """Before a rollout of `max_staleness: 0`, with this rank's first prompts."""
    weights.open()
    weights.refresh()
    before_rollout(session, weights.run, weights.post.generate, rows if weights.post.source is not None else [])


def before_rollout(session: RolloutSession, run: Run, generate: Any, rows: list[Row]) -> None:
    """Before a rollout, with its first prompts, in the trainer's own thread."""
    tell_of_models(run, session.pool.functions)  # those that rollouts so far have loaded here
    session.try_sampler(run, generate, rows)


def local_source(session: RolloutSession, run: Run) -> Local:
    """Return the source of `rollouts: overlap`: an engine in this process."""
    owned = not run.plugins.hook.ft_sync_weights.get_hookimpls()
    place = EnginePlace(
        config=run.config, tokenizer=run.tokenizer, backend_config=run.backend_config, say=run.say, run=run
    )
    engine = run.plugins.hook.ft_engine(place=place)

    def producer(emit: Callable[[Event], None]) -> Producer:
        inbox = Inbox(engine, emit, run.step, recompute=run.config.recompute_cache)
        return Producer(
            plugins=run.plugins, inbox=inbox, rollout_run=partial(unit_run, session, run.tokenizer, emit), emit=emit
        )

    return Local(producer, holds=owned, limit=run.config.rollout_timeout)


def in_turn(ask: Any, requests: list[Request], sampling: Sampling) -> list[Completion]:
    """Ask while no other unit does."""
    with TURN:
        return ask(requests, sampling)


def unit_run(
    session: RolloutSession, tokenizer: Any, emit: Callable[[Event], None], unit: Unit, ask: Any, submit: Any
) -> RolloutRun:
    """Return what `ft_rollout` gets for a unit, in whatever process."""
    config: RolloutConfig = session.config
    return RolloutRun(
        config=config,
        tokenizer=tokenizer,
        rank=unit.rank or 0,
        world_size=1,
        version=unit.step,
        number=unit.rollout,
        gather=lambda value: [value],
        say=lambda text, level="info": emit(Said(text=text, level=level)),
        # The calls of a synchronous run are in rounds, and those of a rank are decoded by themselves.
        engine=partial(in_turn, ask) if config.max_staleness == 0 else ask,
        submit=None if config.max_staleness == 0 else submit,
        pool=session.pool,
        toolbox=session.toolbox,
        positions=session.positions,
        trainer_state=SimpleNamespace(
            global_step=unit.step,
            max_steps=config.max_steps,
            num_train_epochs=config.num_train_epochs,
            is_world_process_zero=not unit.rank,
        ),
        calls=unit.calls,
    )
