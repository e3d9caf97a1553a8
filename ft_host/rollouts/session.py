"""What a run with rollouts has beside its models: rewards, tools, and the buffer that its steps come from.

Opening it refuses everything that can be refused without a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ft_host.config.rollout import RolloutConfig
from ft_host.data.stream import TrainStream
from ft_host.errors import ConfigError, DataError, PluginBroken
from ft_host.models.positions import limit_of
from ft_host.registry import PluginInfo, label
from ft_host.rewards import RewardPool, check_columns
from ft_host.rewards.functions import trainer_state
from ft_host.rollouts.buffer import Buffer, place_of
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

    def buffer(
        self,
        run: Run,
        source: Any,
        prepare: Callable[[dict[str, Any]], Any],
        position: dict[str, Any] | None,
        saved: dict[str, Any] | None,
    ) -> Buffer:
        """Return the steps of `run`, from prompts in `source`; `position` and `saved` are those of a checkpoint."""
        self.positions = limit_of(run.policy.config)
        # One row per step, and all rows on every rank: the buffer decides which rows a rank completes.
        single = dataclasses.replace(self.config, per_device_train_batch_size=1, gradient_accumulation_steps=1)
        prompts = TrainStream(source, prepare, single, position=place_of(position, saved)["position"])
        drawing = Drawing(
            run=run,
            prompts=prompts,
            plan=run.rollouts,
            rollout_run=partial(self.rollout_run, run),
            before=partial(self.begin, run),
        )
        return Buffer(run, run.rollouts, drawing, position, saved)

    def begin(self, run: Run, rows: list[dict[str, Any]]) -> None:
        """Called before a rollout, with its first prompts."""
        if not run.config.samples_policy:
            return
        run.sync_weights()
        if self.probes:
            probe_sampler(rows, run, "before training" if not run.step else f"after {run.step} steps")
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
