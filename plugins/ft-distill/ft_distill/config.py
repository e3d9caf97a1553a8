"""The fields of distill and gkd. Imports no torch.

Longer than 300 lines: the two share a teacher and what is refused of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ft_distill import ranges
from ft_host.api import (
    ConfigError,
    GroupedRolloutConfig,
    RolloutConfig,
    RolloutPlan,
    grouped_plan,
    option,
    place_problems,
)

# Fields that need another one to be set, with their defaults.
OF_REWARDS: dict[str, Any] = {"reward_weights": [], "reward_kwargs": {}}
OF_SAMPLES: dict[str, Any] = {"reward": [], "max_sampling_logp_difference": 0.1}
OF_HELD: dict[str, Any] = {"teacher_model_name_or_path": None, "teacher_model_revision": None}
OF_SERVED: dict[str, Any] = {"loss_add_tail": True}
OF_TOOLS: dict[str, Any] = {"tools": [], "environment": None}


@dataclass(kw_only=True)
class DistillConfig(GroupedRolloutConfig):
    """On-policy distillation: learn from a teacher what it would have said at each place of the model's own
    completions."""

    formats: ClassVar[tuple[str, ...]] = ("prompt-only",)
    metrics: ClassVar[tuple[str, ...]] = (
        "entropy",
        "reward",
        "reward_std",
        "distillation/divergence",
        "distillation/teacher_agreement",
        "distillation/teacher_entropy",
        "distillation/teacher_top_k_mass",
        "sampling/sampling_logp_difference/mean",
        "sampling/sampling_logp_difference/max",
    )
    whole_groups: ClassVar[bool | None] = False  # each completion's loss stands by itself
    trl_names: ClassVar[tuple[str, ...]] = ("distillation",)
    trl_defaults: ClassVar[dict[str, tuple[Any, ...]]] = {
        "disable_dropout": (False, "the one that sampled learns"),
        "max_length": (None, "longer prompts are left out; it is of prompts alone"),
    }
    needs_reward: ClassVar[bool] = False
    metric_directions: ClassVar[dict[str, str]] = {
        "distillation/divergence": "lower",
        "distillation/teacher_agreement": "higher",
    }
    elsewhere: ClassVar[dict[str, str]] = {
        "loss_type": "not needed; beta chooses the divergence",
        "lmbda": "not needed; the model itself completes all prompts, as with lmbda: 1",
        "seq_kd": "not needed; the model itself completes all prompts",
        "completion_only_loss": "not needed; completions alone are learnt from",
        "assistant_only_loss": "not needed; completions alone are learnt from",
    }

    disable_dropout: bool = option(
        True,
        "Train without the model's own dropout, so that the divergence is that of the policy that sampled.",
        group="model",
    )
    learning_rate: float = option(
        1e-6,
        "Peak learning rate. 1e-6 for all weights is careful: every token has a full distribution to learn from, "
        "and 1e-5 often works. About 10 times that for LoRA.",
        gt=0,
    )

    # -- the teacher
    teacher_model_name_or_path: str | None = option(
        None,
        "Folder or hub id of the teacher. It must have the student's tokenizer; ft-gold is for teachers with "
        "another one.",
        aliases=("teacher_model",),
        required=True,
        unless="loss_top_k",
        example="path/of/a/larger/model",
        path=True,
    )
    teacher_model_revision: str | None = option(
        None, "Branch, tag or commit of a teacher from the hub. Not set: its newest."
    )
    loss_top_k: int | None = option(
        None,
        "Ask a teacher that the backend serves, rather than one that the run holds, for this many of its "
        "likeliest tokens at each position.",
        gt=0,
        example="20",
        usual=ranges.LOSS_TOP_K,
    )
    loss_add_tail: bool = option(
        True, "loss_top_k: also compare the total probability of all other tokens, rather than leaving them out."
    )

    # -- rollouts
    reward: list[str] = option(
        [],
        "Rewards of completions: functions (file.py:function or package.module:function), built-in ones by name, "
        "or folders of reward models. Only logged: nothing is learnt from them.",
        group="rollouts",
        aliases=("reward_funcs",),
        example="my_rewards.py:correct",
    )
    num_generations: int = option(
        1,
        "Completions of a prompt. 1: each is taught token by token and compared with no other, so that more "
        "prompts help more than more completions.",
        group="rollouts",
        gt=0,
    )

    # -- the loss
    beta: float = option(
        1.0,
        "The divergence: 0 is the forward KL (teacher from student: cover all that the teacher may say), 1 the reverse"
        " KL (student from teacher: say nothing that the teacher wouldn't), between them the generalised Jensen-Shannon"
        " divergence, which is bounded. 1: a student that is smaller can't cover everything.",
        ge=0,
        le=1,
    )

    @property
    def needs_scores(self) -> bool:
        return self.loss_top_k is not None

    def check(self) -> None:
        super().check()
        check_teacher(self)
        if not self.reward:
            self.refuse(OF_REWARDS, "without reward")


@dataclass(kw_only=True)
class GKDConfig(RolloutConfig):
    """Generalised knowledge distillation: learn from a teacher at each place of completions by the model itself, by the
    teacher, or of the data."""

    formats: ClassVar[tuple[str, ...]] = ("prompt-completion",)  # with lmbda: 1, prompts alone
    metrics: ClassVar[tuple[str, ...]] = (
        "entropy",
        "reward",
        "reward_std",
        "distillation/divergence",
        "distillation/teacher_agreement",
        "distillation/teacher_entropy",
        "distillation/teacher_top_k_mass",
        "distillation/on_policy_share",
        "distillation/on_policy_loss",
        "distillation/off_policy_loss",
        "sampling/sampling_logp_difference/mean",
        "sampling/sampling_logp_difference/max",
    )
    trl_defaults: ClassVar[dict[str, tuple[Any, ...]]] = {
        "temperature": (0.9, "what is sampled is what is compared, where TRL's loss is at 1"),
        "max_completion_length": (128, "answers with thoughts don't fit"),
    }
    needs_reward: ClassVar[bool] = False
    metric_directions: ClassVar[dict[str, str]] = {
        "distillation/divergence": "lower",
        "distillation/teacher_agreement": "higher",
    }
    elsewhere: ClassVar[dict[str, str]] = {
        "num_generations": "not needed; a prompt is completed once",
        "generation_batch_size": "not needed; a rollout is the prompts of one optimizer step",
        "loss_type": "not needed; beta chooses the divergence",
        "completion_only_loss": "not needed; completions alone are learnt from",
        "assistant_only_loss": "not needed; completions alone are learnt from",
        "dataset_text_field": "not needed; rows are prompts, with or without completions",
    }

    disable_dropout: bool = option(
        True,
        "Train without the model's own dropout, so that the student learns the teacher and no noise.",
        group="model",
    )
    learning_rate: float = option(
        2e-5,
        "Peak learning rate. 2e-5 is usual for all weights of a pretrained model; about 10 times that for LoRA.",
        gt=0,
    )

    # -- the teacher
    teacher_model_name_or_path: str | None = option(
        None,
        "Folder or hub id of the teacher. It must have the student's tokenizer; ft-gold is for teachers with "
        "another one.",
        aliases=("teacher_model",),
        required=True,
        unless="loss_top_k",
        example="path/of/a/larger/model",
        path=True,
    )
    teacher_model_revision: str | None = option(
        None, "Branch, tag or commit of a teacher from the hub. Not set: its newest."
    )
    loss_top_k: int | None = option(
        None,
        "Ask a teacher that the backend serves, rather than one that the run holds, for this many of its "
        "likeliest tokens at each position.",
        gt=0,
        example="20",
        usual=ranges.LOSS_TOP_K,
    )
    loss_add_tail: bool = option(
        True, "loss_top_k: also compare the total probability of all other tokens, rather than leaving them out."
    )

    # -- where completions come from
    lmbda: float = option(
        0.5,
        "The share of prompts that the policy completes itself (on-policy), drawn for each prompt. The others have the "
        "completion of their row. 0: nothing is sampled; 1: the data needs no completions.",
        ge=0,
        le=1,
    )
    seq_kd: bool = option(
        False,
        "Let the teacher complete the other prompts, rather than take the completions of the data (sequence-level "
        "distillation, arXiv 1606.07947).",
    )
    max_completion_length: int = option(
        512,
        "Longest completion in tokens; those of the data are cut there.",
        group="generation",
        aliases=("max_new_tokens",),
        gt=0,
    )
    temperature: float = option(
        1.0,
        "Temperature of sampling, and of both distributions in the loss. 1.0: both as they are.",
        group="rollouts",
        gt=0,
        usual=ranges.TEMPERATURE,
    )
    reward: list[str] = option(
        [],
        "Rewards of the policy's completions: functions (file.py:function or package.module:function), built-in "
        "ones by name, or folders of reward models. Only logged: nothing is learnt from them.",
        group="rollouts",
        aliases=("reward_funcs",),
        example="my_rewards.py:correct",
    )

    # -- the loss
    beta: float = option(
        0.5,
        "The divergence: 0 is the forward KL (teacher from student: cover all that the teacher may say), 1 the "
        "reverse KL (student from teacher: say nothing that the teacher wouldn't), between them the generalised "
        "Jensen-Shannon divergence, which is bounded. Which is best depends on the task; 0.5 is the usual start.",
        ge=0,
        le=1,
    )

    @property
    def samples_policy(self) -> bool:
        return self.lmbda > 0

    @property
    def asks_teacher(self) -> bool:
        """Whether the teacher completes prompts."""
        return self.seq_kd and self.lmbda < 1

    @property
    def uses_data(self) -> bool:
        """Whether some completions are those of the data, so that each row must have one."""
        return self.lmbda < 1 and not self.seq_kd

    @property
    def held_out_loss(self) -> bool:
        return self.uses_data

    @property
    def needs_scores(self) -> bool:
        return self.loss_top_k is not None

    def rollout_plan(self, processes: int) -> RolloutPlan:
        """A rollout is an optimizer step, of a completion of each prompt."""
        return grouped_plan(
            self, processes, num_generations=1, steps_per_generation=None, generation_batch_size=None, num_iterations=1
        )

    def check(self) -> None:
        super().check()
        check_teacher(self)
        if self.seq_kd and self.lmbda == 1:
            raise ConfigError("seq_kd: has no effect with lmbda: 1, where the policy completes all prompts")
        if self.seq_kd and self.loss_top_k is not None:
            raise ConfigError(
                "seq_kd: needs a teacher that the run holds; one that the backend serves only scores tokens"
            )
        if not self.samples_policy:
            self.refuse(OF_SAMPLES, "with lmbda: 0, where nothing is sampled from the policy")
        if not self.reward:
            self.refuse(OF_REWARDS, "without reward")
        for name, usual in OF_TOOLS.items():
            if getattr(self, name) != usual:
                raise ConfigError(f"{name}: gkd completes prompts in one turn; distill is for conversations with tools")


def check_teacher(config: DistillConfig | GKDConfig) -> None:
    """Refuse a teacher that can't be one, as far as that shows in the fields."""
    place = config.teacher_model_name_or_path
    if config.loss_top_k is not None:
        config.refuse(OF_HELD, "with loss_top_k, where the teacher is the one that the backend serves")
        if config.temperature != 1:
            raise ConfigError(
                f"temperature: {config.temperature:g} with loss_top_k; the backend's teacher gives log-probs at a"
                " temperature of 1, so that the loss would be of two"
            )
    else:
        config.refuse(OF_SERVED, "without loss_top_k")
    if not place:
        return  # what is required is asked for elsewhere, with an example
    for problem in place_problems(place, ""):
        raise ConfigError(f"teacher_model_name_or_path: {problem}")
    if Path(place).is_dir() and config.teacher_model_revision is not None:
        raise ConfigError("teacher_model_revision: has no effect on a folder, only on a teacher from the hub")
    if place == config.model and config.teacher_model_revision == config.model_revision:
        raise ConfigError(
            "teacher_model_name_or_path: is the model that is trained, which has nothing to teach itself; ft-sdft and"
            " ft-sdpo are for learning from oneself"
        )
