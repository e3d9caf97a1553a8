"""What a run with rollouts has beside its models: rewards, tools, and the buffer that its steps come from.

Opening it refuses everything that can be refused without a model.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ft_host.config.rollout import RolloutConfig
from ft_host.data.stream import TrainStream
from ft_host.distributed.processes import check_overlap
from ft_host.errors import ConfigError, DataError, PluginBroken
from ft_host.models.positions import limit_of
from ft_host.registry import PluginInfo, label
from ft_host.rewards import RewardPool, check_columns
from ft_host.rewards.functions import trainer_state
from ft_host.rewards.model import tell_of_models
from ft_host.rollouts.drawing import Drawing
from ft_host.rollouts.probe import probe_sampler
from ft_host.rollouts.rollout import ENVIRONMENT, RolloutRun, reward_names, reward_weights
from ft_host.rollouts.tools import Toolbox, load_tools
from ft_host.rollouts.turn_boundary import check_template
from ft_host.types import NO_SCORES
from ft_host.util.text import QUOTED, nearest

if TYPE_CHECKING:
    from pluggy import PluginManager
    from transformers import PreTrainedTokenizerBase

    from ft_host.config import RunConfig
    from ft_host.run import Run
    from ft_host.types import Completion, Request, Rollout, Row, Sampling

    Generate = Callable[[list[Request], Sampling], list[Completion]]


def check_online(method: PluginInfo, plugins: PluginManager, config: RunConfig) -> None:
    """Refuse a method whose hooks and fields don't agree on whether it has rollouts. Raises PluginBroken; ConfigError
    for a backend that lacks what the run needs."""
    answers = bool(plugins.hook.ft_rollout.get_hookimpls())
    if answers != isinstance(config, RolloutConfig):
        has, lacks = "ft_rollout", "RolloutConfig"
        if not answers:
            has, lacks = lacks, has
        raise PluginBroken(
            f"{label(method)}: the method {method.name!r} has {has} and lacks {lacks}: a method implements"
            " ft_rollout exactly if its config extends ft_host.config.rollout.RolloutConfig"
        )
    ahead = config.rollouts if answers and config.replay is None else "sync"  # a replay samples nothing
    if ahead != "sync" and not plugins.hook.ft_engine.get_hookimpls():
        raise ConfigError(
            f"rollouts: {config.rollouts} needs a backend that takes requests while others are under way, and "
            f"{config.backend} has no ft_engine; set rollouts: sync"
        )
    if ahead == "overlap" and config.backend == "transformers":
        check_overlap(config, int(os.environ.get("WORLD_SIZE", config.num_processes)))
    if answers and config.needs_scores and not plugins.hook.ft_score.get_hookimpls():
        raise ConfigError(NO_SCORES.format(config.backend))


@dataclass(kw_only=True)
class RolloutSession:
    """The rewards and tools of one process of a run."""

    config: RolloutConfig
    pool: RewardPool
    toolbox: Toolbox | None
    positions: int | None = None  # the most tokens of a prompt with its completion, once the model is known
    probes: int = 2  # remaining: before the first rollout, and after the first update

    @classmethod
    def open(cls, config: RolloutConfig, columns: list[str], tokenizer: PreTrainedTokenizerBase) -> RolloutSession:
        """Load rewards and tools. Raises ConfigError or DataError for a reward or tool that can't be found, or can't be
        used with this data, and for a missing column."""
        for name in config.needs_columns:
            if name not in columns:
                raise DataError(
                    f"dataset: has no column {name}, only {', '.join(columns) or 'none'}"
                    f"{nearest(name, columns, QUOTED, 'columns')}; dataset_columns renames one"
                )
        toolbox = load_tools(config)
        if toolbox is not None:
            check_template(tokenizer, toolbox.schemas, config.chat_template_kwargs)
        pays = toolbox is not None and toolbox.rewards
        if not config.reward and not pays and config.needs_reward:
            raise ConfigError(f"reward: there is no reward: environment {config.environment} has no get_reward")
        pool = RewardPool(config.reward, config)
        try:
            for function in pool.functions:
                check_columns(function, columns)
            if pays and ENVIRONMENT in pool.names:
                raise ConfigError(
                    f"reward: {ENVIRONMENT!r} is the name of an environment's reward in metrics; rename yours"
                )
        except BaseException:
            pool.close()
            raise
        return cls(config=config, pool=pool, toolbox=toolbox)

    @property
    def names(self) -> list[str]:
        """The names of the rewards."""
        return reward_names(self.pool, self.toolbox)

    @property
    def weights(self) -> list[float]:
        return reward_weights(self.config, len(self.names))

    def prompts(
        self, run: Run, source: Any, prepare: Callable[[dict[str, Any]], Any], place: dict[str, Any]
    ) -> TrainStream:
        """Return the prompts in `source`, from a place on that `place_of` has returned."""
        self.positions = limit_of(run.policy.config)
        # One row per step, and all rows on every rank: what makes the rollouts decides which rank completes a row.
        single = dataclasses.replace(self.config, per_device_train_batch_size=1, gradient_accumulation_steps=1)
        return TrainStream(source, prepare, single, position=place["position"])

    def drawing(self, run: Run, prompts: TrainStream) -> Drawing:
        """Return what makes rollouts one after the other, in this process."""
        return Drawing(
            run=run,
            prompts=prompts,
            plan=run.rollouts,
            rollout_run=partial(self.rollout_run, run),
            before=partial(self.begin, run),
            complete=partial(self.complete, run),
        )

    def complete(self, run: Run, rows: list[Row], rollout: RolloutRun) -> Rollout:
        """Make a rollout in this process."""
        made = run.rollout(rows, rollout)
        tell_of_models(run, self.pool.functions)  # whose weights are loaded at their first call
        return made

    def begin(self, run: Run, rows: list[dict[str, Any]]) -> None:
        """Called before a rollout, with its first prompts."""
        if run.config.samples_policy:
            run.sync_weights()
            self.try_sampler(run, run.generate, rows)

    def try_sampler(self, run: Run, generate: Generate, rows: list[dict[str, Any]]) -> None:
        """Compare the sampler with the policy, as often as that is still to be done. All ranks must call it."""
        if self.probes and run.config.samples_policy:
            probe_sampler(rows, run, "before training" if not run.step else f"after {run.step} steps", generate)
            self.probes -= 1

    def rollout_run(self, run: Run, number: int) -> RolloutRun:
        return RolloutRun(
            config=self.config,
            tokenizer=run.tokenizer,
            rank=run.rank,
            world_size=run.world_size,
            version=run.step,
            number=number,
            gather=run.gather,
            say=run.say,
            engine=run.generate,
            pool=self.pool,
            toolbox=self.toolbox,
            positions=self.positions,
            trainer_state=trainer_state(run),
        )

    def close(self) -> None:
        self.pool.close()
