"""The fields of SDFT. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter
from typing import Any, ClassVar

from ft_host.api import ConfigError, GroupedRolloutConfig, Usual, option

CONTEXT = "privileged_context"  # the column that the teacher alone is shown
MODES = ("topk_logits", "full_logits", "sampled_token")  # the keys of ft_sdft.losses.LOSSES
TEACHERS = ("base", "live", "ema")

# Fields that need another one to be set, with their defaults.
OF_TOPK: dict[str, Any] = {"distillation_topk": 100, "distillation_add_tail": False}
OF_EMA: dict[str, Any] = {"teacher_update_rate": 0.05, "teacher_sync_steps": 1}
OF_REWARDS: dict[str, Any] = {"reward_weights": [], "reward_kwargs": {}}
OF_TOOLS: dict[str, Any] = {"tools": [], "environment": None, "max_tool_calling_iterations": None}


@dataclass(kw_only=True)
class SDFTConfig(GroupedRolloutConfig):
    """Self-distillation fine-tuning: learn to answer as the model does that is shown a demonstration beside the
    prompt."""

    formats: ClassVar[tuple[str, ...]] = ("prompt-only",)
    metrics: ClassVar[tuple[str, ...]] = (
        "entropy",
        "reward",
        "reward_std",
        "self_distillation/distillation_loss",
        "self_distillation/teacher_logp_difference",
        "self_distillation/empty_context_fraction",
        "self_distillation/without_loss_fraction",
        "sampling/sampling_logp_difference/mean",
        "sampling/sampling_logp_difference/max",
    )
    whole_groups: ClassVar[bool | None] = False  # each completion's loss stands by itself
    trl_defaults: ClassVar[dict[str, tuple[Any, ...]]] = {
        "learning_rate": (5e-5, "the teacher is the model itself, so that little has to change"),
        "max_completion_length": (256, "answers with thoughts don't fit"),
        "max_length": (512, "longer prompts are left out"),
        "num_generations": (8, "each completion is learnt from by itself"),
    }
    needs_reward: ClassVar[bool] = False
    needs_columns: ClassVar[tuple[str, ...]] = (CONTEXT,)

    disable_dropout: bool = option(
        True,
        "Train without the model's own dropout, so that the student learns the demonstration and no noise.",
        group="model",
    )
    learning_rate: float = option(
        1e-5,
        "Peak learning rate. 1e-5 for all weights: the teacher is the model itself, so that little has to "
        "change. About 10 times that for LoRA.",
        gt=0,
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
    generate_from_teacher: bool = option(
        False,
        "Sample completions from the teacher's prompt, which has the demonstration. Off, since the student "
        "should learn on its own completions.",
        group="rollouts",
    )

    # -- the teacher
    teacher_prompt_template: str = option(
        "{prompt}\n\n{privileged_context}",
        "The teacher's prompt, with the slots {prompt} and {privileged_context}. In a conversation it replaces "
        "the last message, the user's.",
    )
    teacher_model_kind: str = option(
        "base",
        "The teacher: the model as it was before training (base), as it is now (live), or a moving average of it "
        "(ema). base, since a teacher that learns from its student may drift with it.",
        choices=TEACHERS,
    )
    teacher_update_rate: float = option(
        0.05,
        "ema: the policy's share when it is mixed into the teacher; 1 copies it.",
        gt=0,
        le=1,
        usual=Usual(
            high=0.5,
            above=("divergence", "forgetting", "no_signal"),
            why="the teacher is the student itself",
            source="SDPO, arXiv 2601.20802: 0.01 to 0.05",
            only={"teacher_model_kind": ("ema",)},
        ),
    )
    teacher_sync_steps: int = option(1, "ema: optimizer steps between two such updates.", gt=0)

    # -- the loss
    distillation_mode: str = option(
        "topk_logits",
        "The tokens whose probabilities are compared: the student's distillation_topk likeliest (topk_logits), "
        "all (full_logits), or the one that was sampled (sampled_token, an estimate of the reverse KL).",
        choices=MODES,
    )
    distillation_alpha: float = option(
        0.5,
        "The divergence: 0 is the forward KL (teacher from student: cover all that the teacher may say), 1 the reverse"
        " KL (student from teacher: say nothing that the teacher wouldn't), between them the generalised Jensen-Shannon"
        " divergence, which is bounded.",
        ge=0,
        le=1,
    )
    distillation_topk: int = option(
        100,
        "topk_logits: how many of the student's likeliest tokens are compared.",
        gt=0,
        usual=Usual(
            low=5,
            below=("no_learning", "forgetting"),
            why="the student is taught a handful of tokens at each place",
            source="SDPO, arXiv 2601.20802: 100",
        ),
    )
    distillation_add_tail: bool = option(
        False, "topk_logits: also compare the total probability of all other tokens, rather than leaving them out."
    )
    distillation_is_clip: float | None = option(
        2.0,
        "From the second update of a rollout on, weight each token by the ratio of the policy to the one that "
        "sampled, up to this. none: no weights.",
        gt=0,
        usual=Usual(
            low=0.5,
            high=20,
            below=("no_learning",),
            above=("divergence",),
            why=("weights of tokens are nearly all cut to the same", "weights of tokens have no bound"),
            source="SDPO, arXiv 2601.20802: 2",
        ),
    )
    num_loss_tokens_to_skip: int = option(
        0,
        "Tokens at the beginning of a completion that are in no loss: there the teacher may still refer to its "
        "demonstration.",
        ge=0,
    )

    @property
    def weighs_tokens(self) -> bool:
        """Whether tokens are weighed by a ratio of policies where a rollout is used more than once."""
        return self.distillation_is_clip is not None and not self.generate_from_teacher

    def check(self) -> None:
        super().check()
        check_template("teacher_prompt_template", self.teacher_prompt_template, ("prompt", CONTEXT))
        if self.distillation_mode == "sampled_token" and self.distillation_alpha != 1:
            raise ConfigError(
                f"distillation_alpha: {self.distillation_alpha:g} with distillation_mode sampled_token, which estimates"
                " the reverse KL; expected 1"
            )
        if self.distillation_mode != "topk_logits":
            self.refuse(OF_TOPK, f"on {self.distillation_mode}, only on topk_logits")
        if self.teacher_model_kind != "ema":
            self.refuse(OF_EMA, f"on a teacher_model_kind of {self.teacher_model_kind}, only on ema")
        if self.generate_from_teacher:
            self.refuse({"distillation_is_clip": 2.0}, "with generate_from_teacher: the student's policy didn't sample")
        elif self.rollout_plan(self.num_processes).updates == 1:
            self.refuse(
                {"distillation_is_clip": 2.0},
                "where each rollout is used for one optimizer step, in which the ratio is 1; raise num_iterations or "
                "steps_per_generation, or leave it out",
            )
        if self.num_loss_tokens_to_skip >= self.max_completion_length:
            raise ConfigError(
                f"num_loss_tokens_to_skip: {self.num_loss_tokens_to_skip} leaves nothing of completions of at most "
                f"max_completion_length {self.max_completion_length} tokens"
            )
        if not self.reward:
            self.refuse(OF_REWARDS, "without reward")
        for name, usual in OF_TOOLS.items():
            if getattr(self, name) != usual:
                raise ConfigError(f"{name}: the teacher is asked before it is known what tools say; leave it out")


def check_template(field: str, template: str, slots: tuple[str, ...]) -> None:
    """Raise ConfigError for a template that hasn't got these slots, has others, or can't be read."""
    expected = " and ".join(f"{{{slot}}}" for slot in slots)
    try:
        parts = [(name, spec, how) for _, name, spec, how in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ConfigError(f"{field}: {error}; a brace that is text is written twice, {{{{ or }}}}") from error
    for name, spec, how in parts:
        if name not in slots or spec or how:
            raise ConfigError(
                f"{field}: has the slot {{{name}}}, expected {expected}; a brace that is text is written twice"
            )
    for slot in slots:
        if slot not in [name for name, _, _ in parts]:
            raise ConfigError(f"{field}: has no slot {{{slot}}}; expected {expected}")
