"""The fields of methods that learn from completions that they sample. Imports no torch.

A method's config extends `RolloutConfig` with its own fields; its `rollout_plan` says how many completions a rollout
has and how often they are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ft_host.config.builtin_rewards import check_arguments
from ft_host.config.run import RunConfig, option
from ft_host.config.sampling_fields import SamplingFields
from ft_host.config.scheduling_fields import SchedulingFields
from ft_host.config.usual import Usual
from ft_host.errors import ConfigError, PluginBroken
from ft_host.util.moved import names_of

__getattr__ = names_of(__name__)


@dataclass(frozen=True, kw_only=True)
class RolloutPlan:
    """How a rollout becomes optimizer steps.

    A rollout is `prompts` prompts × `generations` completions, over all ranks, and `ft_rollout` makes `rows` rows to
    train on of it: one a completion where that isn't given, fewer where a row is a pair, a list, or the best of
    several. The rows are cut into `steps` optimizer steps and gone through `passes` times; with `shuffled`, each pass
    cuts them anew.

    The rows of a prompt are a group. `whole_groups` True: they stand in one micro-batch, as the method's loss compares
    them. False: each row's loss stands by itself. None: nothing is said, and a run whose groups are cut says so once.

    Raises ConfigError for rows that aren't as many of each prompt.
    """

    prompts: int
    generations: int
    steps: int
    passes: int
    shuffled: bool = False
    rows: int = 0  # 0: prompts × generations
    whole_groups: bool | None = None

    def __post_init__(self) -> None:
        if not self.rows:
            object.__setattr__(self, "rows", self.completions)
        if self.rows % self.prompts:
            raise ConfigError(
                f"a rollout of {self.rows} rows from {self.prompts} prompts: expected as many rows from each; nearest: "
                f"{listed(nearest_multiples(self.rows, self.prompts))} rows"
            )

    @property
    def completions(self) -> int:
        return self.prompts * self.generations

    @property
    def rows_per_prompt(self) -> int:
        """The rows of a group."""
        return self.rows // self.prompts

    @property
    def cut_by_groups(self) -> bool:
        """Whether an optimizer step is whole groups."""
        return bool(self.whole_groups) or (self.rows // self.steps) % self.rows_per_prompt == 0

    @property
    def step_sizes(self) -> list[int]:
        """Rows of each optimizer step of a pass, over all ranks: equal ones, the last of them smaller where they don't
        come out even."""
        count, size = (self.prompts, self.rows_per_prompt) if self.cut_by_groups else (self.rows, 1)
        most = -(-count // self.steps)
        return [size * max(0, min(most, count - most * step)) for step in range(self.steps)]

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step; of the largest where they differ."""
        return self.step_sizes[0]

    @property
    def updates(self) -> int:
        """Optimizer steps that a rollout is used for. After the first of them the policy is no longer what sampled."""
        return self.steps * self.passes


def nearest_multiples(number: int, of: int) -> list[int]:
    """The multiples below and above a number that isn't one."""
    below = number // of * of
    return [each for each in (below, below + of) if each]


def listed(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers))


@dataclass(kw_only=True)
class RolloutConfig(SamplingFields, SchedulingFields, RunConfig):
    """The fields of every run with rollouts."""

    needs_reward: ClassVar[bool] = (
        True  # False in a method that learns from something else; its `reward` isn't required
    )
    needs_columns: ClassVar[tuple[str, ...]] = ()  # columns of the training data that it needs besides the prompt
    reads_columns: ClassVar[tuple[str, ...]] = ()  # columns that it reads where rows have them
    reward_metric: ClassVar[str] = "reward"  # the metric of completions' rewards
    # The metric of the share of groups without a signal, where the method logs one.
    no_signal_metric: ClassVar[str | None] = "frac_reward_zero_std"

    # -- rewards
    reward: list[str] = option(
        [],
        "Rewards of completions: functions (file.py:function or package.module:function), built-in ones by name, "
        "or folders of reward models. Several are weighted and added.",
        group="rollouts",
        aliases=("reward_funcs",),
        required=True,
        unless="environment",
        example="my_rewards.py:correct",
        path=True,
    )
    reward_weights: list[float] = option([], "The weight of each reward. Not set: 1 each.", group="rollouts")
    reward_kwargs: dict[str, Any] = option(
        {}, "Arguments of built-in rewards: {name: {argument: value}}.", group="rollouts"
    )
    reward_timeout: float = option(
        60.0,
        "Seconds that a call of a reward function may take. A call that takes longer, fails, or doesn't return "
        "one number for each completion is repeated for each completion by itself, in a fresh process.",
        group="rollouts",
        gt=0,
        usual=Usual(low=1.0, why="a reward that is slow once counts as failed", source="own judgement"),
    )
    reward_workers: int = option(
        2, "Processes that reward functions run in, for each process of the run.", group="rollouts", gt=0
    )
    max_reward_failures: int = option(
        64,
        "Completions in a row for which a reward function may fail; more end the run. Each such completion has "
        "no reward of that function, and is counted.",
        group="rollouts",
        ge=0,
    )

    # -- sampling in evaluation
    eval_temperature: float | None = option(  # type: ignore[assignment]
        0.0, "Temperature of evaluation: 0 takes the likeliest token. none: as in training.", group="evaluation", ge=0
    )
    eval_top_p: float | None = option(  # type: ignore[assignment]
        None, "top_p of evaluation. Not set: as in training.", group="evaluation", gt=0, le=1
    )
    eval_top_k: int | None = option(None, "top_k of evaluation. Not set: as in training.", group="evaluation", ge=0)  # type: ignore[assignment]

    # -- tools
    tools: list[str] = option(
        [],
        "Python functions that the model may call between turns, as file.py:function or package.module:function. "
        "The chat template shows their signature and docstring.",
        group="rollouts",
        path=True,
    )
    environment: str | None = option(
        None,
        "A class (file.py:Class or package.module:Class), one object for each completion: `reset(**row)` may add to the"
        " prompt, its public methods are tools, and its `get_reward()`, if it has one, is a reward.",
        group="rollouts",
        path=True,
    )
    max_tool_calling_iterations: int | None = option(
        None, "Turns with tool calls that a completion may have. Not set: as many as fit.", group="rollouts", ge=0
    )
    tool_timeout: float = option(
        60.0,
        "Seconds that a call of a tool may take.",
        group="rollouts",
        gt=0,
        usual=Usual(low=1.0, why="a tool that is slow once counts as failed", source="own judgement"),
    )

    # -- refilling, looking on
    max_rollout_draws: int = option(
        10,
        "How often prompts are drawn for one rollout if the method leaves out groups without a signal. After "
        "that it trains on what it has.",
        group="rollouts",
        gt=0,
        usual=Usual(high=100, above=("slow",), why="a rollout may take as many times as long", source="own judgement"),
    )
    logged_completions: int = option(
        16,
        "Completions of each rollout that samples.jsonl and the report show, with their rewards.",
        group="rollouts",
        ge=0,
    )
    max_sampling_logp_difference: float = option(
        0.1,
        "The run ends if the backend's log-probs differ from the trainer's by more than this on average (nats). "
        "Checked before the first rollout and after the first update.",
        group="rollouts",
        gt=0,
        usual=Usual(
            low=0.0001,
            high=1.0,
            above=("divergence", "no_learning", "no_signal"),
            why=(
                "the run ends for differences that rounding makes",
                "a backend that samples from another model isn't noticed",
            ),
            source="own judgement",
        ),
    )

    @property
    def samples_policy(self) -> bool:
        """Whether anything is sampled from the policy in training. Where nothing is, the backend isn't tried out."""
        return True

    @property
    def held_out_loss(self) -> bool:
        """Whether held-out rows are more than prompts, and have a loss too."""
        return False

    @property
    def needs_scores(self) -> bool:
        """Whether another model, which the backend serves, must say what it gives to tokens (`ft_score`)."""
        return False

    def rollout_plan(self, processes: int) -> RolloutPlan:
        """The completions of a rollout over all processes, and how they are used. Raises ConfigError, with the nearest
        possible numbers, where they don't come out even."""
        raise NotImplementedError(f"{type(self).__name__} must say how many completions a rollout has")

    def check(self) -> None:
        super().check()
        for name, usual in (("packing", False), ("truncation_mode", "keep_start")):
            if getattr(self, name) != usual:
                raise ConfigError(f"{name}: has no effect on rollouts, which consist of whole prompts; remove it")
        if self.neftune_noise_alpha is not None:
            raise ConfigError(
                "neftune_noise_alpha: the policy that learns would be another than the one that samples; it is for "
                "rows that are given"
            )
        if self.train_sampling_strategy == "group_by_length":
            raise ConfigError(
                "train_sampling_strategy: the length of completions isn't known in advance; expected "
                "random or sequential"
            )
        if self.reward_weights and len(self.reward_weights) != len(self.reward):
            raise ConfigError(f"reward_weights: {len(self.reward_weights)} weights for {len(self.reward)} rewards")
        check_arguments(self.reward_kwargs, [*self.reward, *self.eval_reward])
        if self.max_tool_calling_iterations is not None and not self.tools and self.environment is None:
            raise ConfigError("max_tool_calling_iterations: has no effect without tools or environment")
        plan, micro = self._checked_plan(), self.per_device_train_batch_size
        self.check_scheduling(plan)
        if plan.whole_groups and micro < plan.rows_per_prompt and self.max_tokens_per_micro_batch is None:
            size = plan.rows_per_prompt
            raise ConfigError(
                f"per_device_train_batch_size: a micro-batch of {micro} rows can't hold the {size} rows of a prompt,"
                f" which this method compares; expected at least {size} (multiples of it leave no room unused: {size},"
                f" {2 * size}, {3 * size})"
            )

    def _checked_plan(self) -> RolloutPlan:
        kind = type(self)
        where = f"{kind.__module__}:{kind.__qualname__}"
        if kind.rollout_plan is RolloutConfig.rollout_plan:
            raise PluginBroken(
                f"{where} has no rollout_plan; expected a method rollout_plan(self, processes) that gives a "
                "RolloutPlan, or GroupedRolloutConfig of ft_host.api as a base"
            )
        plan = self.rollout_plan(self.num_processes)
        if not isinstance(plan, RolloutPlan):
            raise PluginBroken(f"{where}: rollout_plan gave {plan!r}; expected a RolloutPlan(prompts=..., ...)")
        return plan
