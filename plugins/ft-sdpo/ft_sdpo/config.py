"""The fields of SDPO. Imports no torch.

Longer than 300 lines: it is one list of fields, in the order of the help.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter
from typing import Any, ClassVar

from ft_host.api import ConfigError, GroupedRolloutConfig, option
from ft_sdpo import ranges

CONTEXT = "privileged_context"  # the column with feedback on a prompt
FEEDBACK = "feedback"  # what a reward function logs for each completion (log_extra) is feedback on that one
MODES = ("sampled_token", "topk_logits", "full_logits")  # the keys of ft_sdpo.losses.DISTANCES
LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo")  # the keys of ft_sdpo.losses.SCALES
TEACHERS = ("base", "live", "ema")

# Fields that need another one to be set, with their defaults.
OF_EMA: dict[str, Any] = {"teacher_update_rate": 0.05, "teacher_sync_steps": 1}
OF_SUCCESS: dict[str, Any] = {
    "success_reward_threshold": 1.0,
    "dont_reprompt_on_self_success": True,
    "remove_thinking_from_demonstration": False,
    "environment_feedback_only_without_solution": False,
    "solution_template": "\nCorrect solution:\n\n{successful_previous_attempt}\n\n",
}
OF_FEEDBACK: dict[str, Any] = {
    "environment_feedback_only_without_solution": False,
    "feedback_template": "\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback_raw}\n\n",
}
REPROMPT = "{prompt}{solution}{feedback}\n\nCorrectly solve the original question.\n"
OF_DISTILLATION = (
    {
        "distillation_mode": "sampled_token",
        "distillation_alpha": 1.0,
        "distillation_topk": None,
        "distillation_add_tail": False,
        "distillation_is_clip": 2.0,
        "teacher_model_kind": "ema",
        "reprompt_template": REPROMPT,
        "max_reprompt_len": 10240,
        "use_successful_as_teacher": True,
        "include_environment_feedback": False,
    }
    | OF_EMA
    | OF_SUCCESS
    | OF_FEEDBACK
)
CLIPPED = {"epsilon": 0.2, "epsilon_high": None}
OF_POLICY = CLIPPED | {"loss_type": "dapo", "importance_sampling_level": "token", "scale_rewards": "group"}
OF_TOOLS: dict[str, Any] = {"tools": [], "environment": None, "max_tool_calling_iterations": None}


@dataclass(kw_only=True)
class SDPOConfig(GroupedRolloutConfig):
    """Self-distillation policy optimization: learn from attempts what the same model says of them that is shown a
    successful one, or feedback."""

    metrics: ClassVar[tuple[str, ...]] = (
        "entropy",
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "clip_ratio/low_mean",
        "clip_ratio/high_mean",
        "clip_ratio/region_mean",
        "self_distillation/distillation_loss",
        "self_distillation/teacher_logp_difference",
        "self_distillation/policy_loss",
        "self_distillation/group_reward_std_mean",
        "self_distillation/reprompt_sample_fraction",
        "self_distillation/reprompt_too_long_fraction",
        "self_distillation/success_group_fraction",
        "self_distillation/success_sample_fraction",
        "self_distillation/feedback_available_fraction",
        "self_distillation/feedback_used_fraction",
        "sampling/sampling_logp_difference/mean",
        "sampling/sampling_logp_difference/max",
    )
    whole_groups: ClassVar[bool | None] = False  # a completion's loss needs no other: advantages are made before
    formats: ClassVar[tuple[str, ...]] = ("prompt-only",)
    trl_defaults: ClassVar[dict[str, tuple[Any, ...]]] = {
        "learning_rate": (5e-5, "the teacher is the model itself, so that little has to change"),
        "max_completion_length": (256, "answers with thoughts don't fit"),
        "max_length": (512, "longer prompts are left out"),
    }
    reads_columns: ClassVar[tuple[str, ...]] = (CONTEXT,)
    elsewhere: ClassVar[dict[str, str]] = {
        "beta": "not offered; the teacher holds the policy (distillation_weight, teacher_update_rate)"
    }

    disable_dropout: bool = option(
        True,
        "Train without the model's own dropout, so that the student learns the feedback and no noise.",
        group="model",
    )
    learning_rate: float = option(
        1e-5,
        "Peak learning rate. 1e-5 for all weights: the teacher is the model itself, so that little has to "
        "change. About 10 times that for LoRA.",
        gt=0,
    )

    # -- rollouts
    num_generations: int = option(
        8,
        "Completions of a prompt: the more there are, the likelier one of them succeeds and can teach the others.",
        group="rollouts",
        gt=0,
    )
    mask_truncated_completions: bool = option(
        False,
        "Leave completions that were cut short by max_completion_length out of the loss and its denominator. "
        "Their rewards are still compared with those of others, and they may be shown as a solution if they earn "
        "enough.",
        group="rollouts",
    )

    # -- reprompting
    use_successful_as_teacher: bool = option(
        True, "Show the teacher a successful completion of the same prompt: the first other than the one to be taught."
    )
    success_reward_threshold: float = option(1.0, "Smallest reward of a successful completion.")
    dont_reprompt_on_self_success: bool = option(True, "Never show a completion to its own teacher.")
    remove_thinking_from_demonstration: bool = option(
        False,
        "Show the teacher completions without their thoughts (<think> to </think>), those included that the prompt"
        " opens.",
    )
    include_environment_feedback: bool = option(
        False,
        f"Show the teacher feedback: that of a reward function on a completion (log_extra({FEEDBACK!r}, [...]), "
        f"one text or None a completion), or, without any, the row's column {CONTEXT}.",
    )
    environment_feedback_only_without_solution: bool = option(
        False, "Show feedback only if there is no successful completion to show."
    )
    reprompt_template: str = option(
        REPROMPT,
        "The teacher's prompt, with the slots {prompt}, {solution} and {feedback}; the last two may be empty. In "
        "a conversation it replaces the last message, the user's.",
    )
    solution_template: str = option(
        OF_SUCCESS["solution_template"], "Text of {solution}, with the slot {successful_previous_attempt}."
    )
    feedback_template: str = option(
        OF_FEEDBACK["feedback_template"], "Text of {feedback}, with the slot {feedback_raw}."
    )
    max_reprompt_len: int = option(
        10240,
        "Longest prompt of the teacher in tokens. A completion whose teacher would have a longer one isn't taught: cut,"
        " it would be another question.",
        gt=0,
        usual=ranges.MAX_REPROMPT_LEN,
    )

    # -- the teacher
    teacher_model_kind: str = option(
        "ema",
        "The teacher: a moving average of the model (ema, which improves with it and is steadier), the model as "
        "it is now (live), or as it was before training (base).",
        choices=TEACHERS,
    )
    teacher_update_rate: float = option(
        0.05,
        "ema: the policy's share when it is mixed into the teacher; 1 copies it.",
        gt=0,
        le=1,
        usual=ranges.TEACHER_UPDATE_RATE,
    )
    teacher_sync_steps: int = option(1, "ema: optimizer steps between two such updates.", gt=0)

    # -- the loss
    distillation_weight: float = option(
        1.0,
        "Share of the distillation in the loss; the rest is a clipped policy loss of the rewards (GRPO's). 1: "
        "the distillation alone, as in the paper. 0: there is no teacher.",
        ge=0,
        le=1,
        usual=ranges.DISTILLATION_WEIGHT,
    )
    distillation_mode: str = option(
        "sampled_token",
        "The tokens whose probabilities are compared: the one that was sampled (sampled_token, an estimate of "
        "the reverse KL), the student's distillation_topk likeliest (topk_logits), or all (full_logits).",
        choices=MODES,
    )
    distillation_alpha: float = option(
        1.0,
        "The divergence: 0 is the forward KL (teacher from student), 1 the reverse KL (student from teacher), between"
        " them the generalised Jensen-Shannon divergence. sampled_token has 1.",
        ge=0,
        le=1,
    )
    distillation_topk: int | None = option(
        None,
        "How many tokens topk_logits compares, which needs it. The paper has 100, with the tail.",
        gt=0,
        usual=ranges.DISTILLATION_TOPK,
    )
    distillation_add_tail: bool = option(
        False, "topk_logits: also compare the total probability of all other tokens, rather than leaving them out."
    )
    distillation_is_clip: float | None = option(
        2.0,
        "From the second update of a rollout on, weight the distillation of each token by the ratio of the "
        "policy to the one that sampled, up to this. none: no weights.",
        gt=0,
        usual=ranges.DISTILLATION_IS_CLIP,
    )

    # -- the policy loss
    loss_type: str = option(
        "dapo", f"Policy loss: its denominator, as in GRPO: {', '.join(LOSS_TYPES)}.", choices=LOSS_TYPES
    )
    scale_rewards: str = option(
        "group",
        "Policy loss: divisor of a completion's difference from the mean of its group: the standard deviation of "
        "the group, that of the batch (the whole rollout), or none.",
        choices=("group", "batch", "none"),
        also={True: "group", False: "none"},
    )
    importance_sampling_level: str = option(
        "token",
        "Policy loss: ratios of new and old policy of each token, or of whole completions (their geometric mean).",
        choices=("token", "sequence"),
    )
    epsilon: float = option(
        0.2,
        "Policy loss: nothing is gained below a ratio of 1 - this. Counts from the second update of a rollout on.",
        gt=0,
        le=1,
        usual=ranges.EPSILON,
    )
    epsilon_high: float | None = option(
        None, "Policy loss: nothing is gained above a ratio of 1 + this. Not set: epsilon.", gt=0, usual=ranges.EPSILON
    )

    @property
    def clip_range(self) -> tuple[float, float]:
        """The smallest and the largest ratio of new and old policy that pays."""
        return 1 - self.epsilon, 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)

    @property
    def needs_old(self) -> bool:
        """Whether a ratio of policies is needed where a rollout is used more than once."""
        weighs = self.distillation_weight > 0 and self.distillation_is_clip is not None
        return weighs or self.distillation_weight < 1

    # -- refusals

    def check(self) -> None:
        super().check()
        once = self.rollout_plan(self.num_processes).updates == 1
        why = "where each rollout is used for one optimizer step, in which the ratio is 1; leave it out"
        if self.distillation_weight:
            self._check_distillation()
            self._check_reprompting()
            if once:
                self.refuse({"distillation_is_clip": 2.0}, why)
        else:
            self.refuse(OF_DISTILLATION, "with distillation_weight: 0, which asks no teacher")
        if self.distillation_weight == 1:
            self.refuse(OF_POLICY, "with distillation_weight: 1, which has no policy loss")
        elif self.num_generations == 1:
            raise ConfigError("num_generations: the policy loss compares completions of a prompt; expected 2 or more")
        elif once:
            self.refuse(CLIPPED, why)
        for name, usual in OF_TOOLS.items():
            if getattr(self, name) != usual:
                raise ConfigError(f"{name}: the teacher's prompt can't have what tools say; leave it out")

    def _check_distillation(self) -> None:
        mode = self.distillation_mode
        if mode == "sampled_token" and self.distillation_alpha != 1:
            raise ConfigError(
                f"distillation_alpha: {self.distillation_alpha:g} with distillation_mode sampled_token, which estimates"
                " the reverse KL; expected 1"
            )
        if mode == "topk_logits" and self.distillation_topk is None:
            raise ConfigError(
                "distillation_topk: isn't set, and distillation_mode topk_logits needs it; 100 is the paper's"
            )
        if mode != "topk_logits":
            self.refuse({"distillation_topk": None, "distillation_add_tail": False}, f"on {mode}, only on topk_logits")
        if self.teacher_model_kind != "ema":
            self.refuse(OF_EMA, f"on a teacher_model_kind of {self.teacher_model_kind}, only on ema")

    def _check_reprompting(self) -> None:
        if not self.use_successful_as_teacher:
            if not self.include_environment_feedback:
                raise ConfigError(
                    "use_successful_as_teacher: without it and without include_environment_feedback the teacher is"
                    " shown nothing; set one of them"
                )
            self.refuse(OF_SUCCESS, "without use_successful_as_teacher")
        elif self.num_generations == 1 and self.dont_reprompt_on_self_success and not self.include_environment_feedback:
            raise ConfigError("num_generations: with 1 there is no other completion to learn from; expected 2 or more")
        if not self.include_environment_feedback:
            self.refuse(OF_FEEDBACK, "without include_environment_feedback")
        shown = ["solution"] * self.use_successful_as_teacher + ["feedback"] * self.include_environment_feedback
        check_template("reprompt_template", self.reprompt_template, ["prompt", *shown], ["solution", "feedback"])
        check_template("solution_template", self.solution_template, ["successful_previous_attempt"])
        check_template("feedback_template", self.feedback_template, ["feedback_raw"])


def check_template(field: str, template: str, needs: list[str], may: list[str] | None = None) -> None:
    """Raise ConfigError for a template that lacks these slots, has others than these and `may`, or can't be read."""
    expected = " and ".join(f"{{{slot}}}" for slot in needs)
    try:
        parts = [(name, spec, how) for _, name, spec, how in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ConfigError(f"{field}: {error}; a brace that is text is written twice, {{{{ or }}}}") from error
    for name, spec, how in parts:
        if name not in [*needs, *(may or [])] or spec or how:
            raise ConfigError(
                f"{field}: has the slot {{{name}}}, expected {expected}; a brace that is text is written twice"
            )
    for slot in needs:
        if slot not in [name for name, _, _ in parts]:
            raise ConfigError(f"{field}: has no slot {{{slot}}}; expected {expected}")
