"""The fields of gold. Imports no torch.

Longer than 300 lines: it is one list of fields, in the order of the help.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ft_gold import ranges
from ft_host.api import ConfigError, RolloutConfig, RolloutPlan, grouped_plan, option, place_problems

# Fields that need another one to be set, with their defaults.
OF_REWARDS: dict[str, Any] = {"reward_weights": [], "reward_kwargs": {}}
OF_SAMPLES: dict[str, Any] = {"reward": [], "max_sampling_logp_difference": 0.1}
OF_TOOLS: dict[str, Any] = {"tools": [], "environment": None}
OF_HYBRID: dict[str, Any] = {"uld_hybrid_matched_weight": None, "uld_hybrid_unmatched_weight": None}
OF_ALIGNED: dict[str, Any] = {"uld_token_merge_strategy": "text"}
OF_ULD = (
    OF_ALIGNED
    | OF_HYBRID
    | {
        "use_extended_uld": True,
        "uld_use_hybrid_loss": True,
        "uld_crossentropy_weight": 0.0,
        "uld_distillation_weight": 1.0,
        "uld_student_temperature": None,
        "uld_teacher_temperature": None,
        "uld_skip_student_eos": False,
        "uld_skip_teacher_eos": False,
    }
)


@dataclass(kw_only=True)
class GOLDConfig(RolloutConfig):
    """General on-policy logit distillation: learn from a teacher with another tokenizer, on completions by the model
    itself, by the teacher, or of the data."""

    formats: ClassVar[tuple[str, ...]] = ("prompt-completion",)  # with lmbda: 1, prompts alone
    metrics: ClassVar[tuple[str, ...]] = (
        "entropy",
        "reward",
        "reward_std",
        "distillation/divergence",
        "distillation/teacher_agreement",
        "distillation/teacher_entropy_share",
        "distillation/on_policy_share",
        "distillation/on_policy_loss",
        "distillation/off_policy_loss",
        "distillation/aligned_share",
        "distillation/matched_loss",
        "distillation/unmatched_loss",
        "distillation/matched_mass",
        "distillation/crossentropy",
        "sampling/sampling_logp_difference/mean",
        "sampling/sampling_logp_difference/max",
    )
    needs_reward: ClassVar[bool] = False
    trl_defaults: ClassVar[dict[str, tuple[Any, ...]]] = ranges.TRL
    metric_directions: ClassVar[dict[str, str]] = {
        "distillation/divergence": "lower",
        "distillation/teacher_agreement": "higher",
    }
    elsewhere: ClassVar[dict[str, str]] = {
        "num_generations": "not needed; a prompt is completed once",
        "generation_batch_size": "not needed; a rollout is the prompts of one optimizer step",
        "loss_type": "not needed; beta and the fields uld_* choose the comparison",
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
        "Folder or hub id of the teacher. Its tokenizer may differ from the student's.",
        aliases=("teacher_model",),
        required=True,
        example="path/of/a/larger/model",
        path=True,
    )
    teacher_model_revision: str | None = option(
        None, "Branch, tag or commit of a teacher from the hub. Not set: its newest."
    )
    teacher_tokenizer_name_or_path: str | None = option(
        None, "Folder or hub id of the teacher's tokenizer. Not set: the one in the teacher's folder.", path=True
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
        "Temperature of sampling, and of both distributions in the loss unless uld_student_temperature or "
        "uld_teacher_temperature is set.",
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
        "The divergence of tokens that both have: 0 is the forward KL (teacher from student: cover all that the teacher"
        " may say), 1 the reverse KL (student from teacher: say nothing that the teacher wouldn't), between them the"
        " generalised Jensen-Shannon divergence, which is bounded.",
        ge=0,
        le=1,
    )
    use_uld_loss: bool | None = option(
        None,
        "Compare the two by text rather than token by token (universal logit distillation). Not set: if their "
        "tokens differ; otherwise the plain divergence, which is exact, is taken.",
    )
    use_extended_uld: bool = option(
        True,
        "Align the tokens of both by the bytes that they stand for, and merge the probabilities of those that are one"
        " token for the other. false: compare the first with the first, the second with the second, an end like any"
        " other token, as the paper of ULD did.",
    )
    uld_token_merge_strategy: str = option(
        "text",
        "Which distribution is compared where the two split a text differently. text: whether the text comes, "
        "whatever token it is part of, and all other tokens; observed: of several tokens that are one for the "
        "other model, the distribution of the first, times the probabilities of those that followed; bayesian: "
        "that of the last, times those before it. The last two are TRL's, and teach the student to begin with "
        "the teacher's token if its own is longer.",
        choices=("text", "observed", "bayesian"),
    )
    uld_use_hybrid_loss: bool = option(
        True,
        "Compare tokens that both vocabularies have by the divergence, and only the others by their sorted "
        "probabilities. false: all by sorted probabilities, which say how sure a teacher is but not of what.",
    )
    uld_hybrid_matched_weight: float | None = option(
        None,
        "Weight of the divergence of tokens that both have. Not set: the share of the teacher's tokens that the student"
        " has.",
        ge=0,
        usual=ranges.ULD_HYBRID_MATCHED_WEIGHT,
    )
    uld_hybrid_unmatched_weight: float | None = option(
        None,
        "Weight of the sorted comparison of the others. Not set: 1 minus the weight of the divergence.",
        ge=0,
        usual=ranges.ULD_HYBRID_MATCHED_WEIGHT,
    )
    uld_crossentropy_weight: float = option(
        0.0,
        "Weight of the cross-entropy of completions of the data, or of the teacher. The policy's own completions "
        "have none: its gradient would be noise.",
        ge=0,
        usual=ranges.ULD_CROSSENTROPY_WEIGHT,
    )
    uld_distillation_weight: float = option(
        1.0, "Weight of the comparison with the teacher.", ge=0, usual=ranges.ULD_DISTILLATION_WEIGHT
    )
    uld_student_temperature: float | None = option(
        None,
        "Temperature of the student's distribution in the comparison. Not set: temperature.",
        gt=0,
        usual=ranges.ULD_STUDENT_TEMPERATURE,
    )
    uld_teacher_temperature: float | None = option(
        None,
        "Temperature of the teacher's distribution in the comparison. Not set: temperature.",
        gt=0,
        usual=ranges.ULD_STUDENT_TEMPERATURE,
    )
    uld_skip_student_eos: bool = option(
        False,
        "Leave the student's end of a completion out of the comparison: it then doesn't learn when to end. The end is"
        " the token that ends the turn; what a template puts behind it (ChatML: a line feed) is never compared.",
    )
    uld_skip_teacher_eos: bool = option(False, "Leave the teacher's end out. The two belong together: both, or none.")

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
    def merge_strategy(self) -> str:
        """By position every unit is a token, and two that spell different text aren't one event."""
        return self.uld_token_merge_strategy if self.use_extended_uld else "observed"

    @property
    def student_temperature(self) -> float:
        return self.temperature if self.uld_student_temperature is None else self.uld_student_temperature

    @property
    def teacher_temperature(self) -> float:
        return self.temperature if self.uld_teacher_temperature is None else self.uld_teacher_temperature

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
        if not self.samples_policy:
            self.refuse(OF_SAMPLES, "with lmbda: 0, where nothing is sampled from the policy")
        if not self.reward:
            self.refuse(OF_REWARDS, "without reward")
        for name, usual in OF_TOOLS.items():
            if getattr(self, name) != usual:
                raise ConfigError(
                    f"{name}: gold completes prompts in one turn; distill is for conversations with tools"
                )
        check_loss(self)


def check_loss(config: GOLDConfig) -> None:
    """Refuse fields of the comparison that contradict each other or have no effect."""
    if config.use_uld_loss is False:
        config.refuse(OF_ULD, "with use_uld_loss: false")
    if not config.use_extended_uld:
        config.refuse(OF_ALIGNED, "with use_extended_uld: false, where no tokens are merged")
    if not config.uld_use_hybrid_loss:
        config.refuse(OF_HYBRID, "with uld_use_hybrid_loss: false")
        if config.use_uld_loss:
            config.refuse({"beta": 0.5}, "with use_uld_loss: true and uld_use_hybrid_loss: false, where all is sorted")
    weights = config.uld_hybrid_matched_weight, config.uld_hybrid_unmatched_weight
    if (weights[0] is None) != (weights[1] is None):
        raise ConfigError("uld_hybrid_matched_weight, uld_hybrid_unmatched_weight: set both or none")
    if weights == (0, 0):
        raise ConfigError("uld_hybrid_matched_weight, uld_hybrid_unmatched_weight: both are 0, so nothing is compared")
    if config.uld_skip_student_eos != config.uld_skip_teacher_eos:
        raise ConfigError(
            "uld_skip_student_eos, uld_skip_teacher_eos: an end without a partner can't be compared; set both or none"
        )
    if config.uld_crossentropy_weight and config.lmbda == 1:
        raise ConfigError(
            "uld_crossentropy_weight: has no effect with lmbda: 1; it applies to completions of the data or the teacher"
        )
    if not config.uld_distillation_weight:
        raise ConfigError(
            "uld_distillation_weight: with 0 nothing is learnt from the teacher; ft-sft (ft-host train sft) needs none"
        )


def check_teacher(config: GOLDConfig) -> None:
    """Refuse an invalid teacher, as far as the fields show it."""
    place = config.teacher_model_name_or_path
    if not place:
        return  # required fields are checked elsewhere
    for name in ("teacher_model_name_or_path", "teacher_tokenizer_name_or_path"):
        for problem in place_problems(getattr(config, name) or place, ""):
            raise ConfigError(f"{name}: {problem}")
    if Path(place).is_dir() and config.teacher_model_revision is not None:
        raise ConfigError("teacher_model_revision: has no effect on a folder, only on a teacher from the hub")
    if place == config.model and config.teacher_model_revision == config.model_revision:
        raise ConfigError(
            "teacher_model_name_or_path: is the trained model itself, which can't be its own teacher; ft-sdft and"
            " ft-sdpo are for self-distillation"
        )
