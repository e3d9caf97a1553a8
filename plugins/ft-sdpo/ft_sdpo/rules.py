"""The rules of SDPO: its own, and from SDPO100 on those of all rollouts that apply to it. Imports no torch."""

from __future__ import annotations

from ft_host.api import hookimpl
from ft_host.diagnostics import (
    Names,
    Remedy,
    Rule,
    View,
    at_best,
    broken_by,
    lower_rate,
    more_generations,
    percent,
    restore,
    rollout_rules,
    set_field,
    short,
    went,
)

TAUGHT, WINNERS = "self_distillation/reprompt_sample_fraction", "self_distillation/success_group_fraction"
TOLD, LONG = "self_distillation/feedback_available_fraction", "self_distillation/reprompt_too_long_fraction"
APART = "self_distillation/teacher_logp_difference"
ALIKE = 0.01  # nats of a token, on average
NAMES = Names(
    letters="SDPO", first=100, by_length=("grpo", "bnpo"), by_no_length="dr_grpo", capped=("cispo",)
)  # for the policy loss, as in GRPO
EARLY = 20  # steps in which a student hasn't yet learnt from its teacher


def broke(view: View) -> bool:
    """Return whether the first rollouts had enough to show: then the policy has got worse since."""
    return view.first(TAUGHT, 3) > 0.2


def success_rate(view: View) -> float | None:
    """The share of completions that succeed, by that of groups that hold one, as if prompts were equally hard. None
    where none does."""
    groups = view.mean(WINNERS) if view.count(WINNERS) else 0.0
    return 1 - (1 - min(groups, 0.999)) ** (1 / view.config.num_generations) if groups > 0 else None


def more_signal(view: View) -> list[Remedy]:
    if broke(view):
        return [lower_rate(view, 5), restore(view)]
    out = []
    if view.config.use_successful_as_teacher:
        rewards = view.series.get("completions/reward_max")
        best = view.config.success_reward_threshold if rewards is None else rewards.most
        if best < view.config.success_reward_threshold:
            out += set_field(
                view, "success_reward_threshold", best, ": no completion has reached the threshold", again=True
            )
        out += more_generations(view, success_rate(view))
    if not view.config.include_environment_feedback and view.get(TOLD, 0.0) > 0:
        out += set_field(view, "include_environment_feedback", True, ", which the rows have", again=True)
    return [*out, Remedy(why="Use easier prompts, or fine-tune on solutions first (SFT)")]


def teaches_nothing(view: View) -> bool | None:
    if view.step > EARLY:
        return None
    return view[APART] < ALIKE and not at_best(view, NAMES)


def drifts(view: View) -> bool | None:
    base = view.baseline(APART)
    return None if base is None or view.step < 25 else view[APART] > max(3 * base, 0.1)


def slower_teacher(view: View) -> list[Remedy]:
    if view.config.teacher_model_kind == "live":
        return set_field(view, "teacher_model_kind", "ema", ", which is steadier", again=True)
    if view.config.teacher_model_kind == "ema":
        slower = view.config.teacher_update_rate / 5
        return set_field(view, "teacher_update_rate", slower, ", so that the teacher follows more slowly", again=True)
    return []


def longer(view: View) -> int:
    """Times as long: prompts that are too long in most cases are so by more."""
    return 4 if view.mean(LONG, view.window) > 0.5 else 2


OWN = [
    Rule(
        code="SDPO001",
        title="Hardly any completion has a teacher",
        stage="train",
        symptom="no_signal",
        level="signal",
        follows_from=("DATA010", "REW001", *broken_by(NAMES, 1)),
        later=("results", broke),
        needs=(TAUGHT,),
        share=0.5,
        least=15,
        test=lambda view: view[TAUGHT] < 0.05,
        severe=lambda view: view.mean(TAUGHT, view.window) < 0.005,
        mutes=("SDPO002", "SDPO103", "OPT002", "standstill"),
        message=lambda view: (
            f"For {percent(view[TAUGHT])} of completions there was anything to show the teacher"
            f" ({percent(view.mean(TAUGHT, view.window))} on average over the last {view.window} rollouts), a"
            " successful completion of the same prompt or feedback. Nothing is learnt from the others."
            + (f" At first it was {percent(view.first(TAUGHT, 3))}: the policy has got worse." if broke(view) else "")
        ),
        remedies=more_signal,
        when=(
            "Less than 5 % of a rollout's completions have a teacher's prompt in half of the last 50 rollouts; below"
            " 0.5 % on average: an error."
        ),
        why=(
            "No completion earns success_reward_threshold, and there is no feedback, or it isn't included. Where there"
            " was enough at first, updates that are too large have broken the policy, and without a success it can't"
            " recover."
        ),
        remedy=(
            "Lower success_reward_threshold, more num_generations, easier prompts, include_environment_feedback; where "
            "there was enough at first, a lower learning_rate."
        ),
        source="TRL warns of it too; own judgement of the threshold",
    ),
    Rule(
        code="SDPO002",
        title="Few groups have a success to learn from",
        stage="train",
        symptom="no_signal",
        level="signal",
        follows_from=("DATA010", "REW001", *broken_by(NAMES, 1)),
        later=("results", broke),
        needs=(WINNERS,),
        share=0.5,
        least=15,
        test=lambda view: view[WINNERS] < 0.05,
        message=lambda view: (
            f"In {percent(view[WINNERS])} of groups a completion earned success_reward_threshold"
            f" {short(view.config.success_reward_threshold)} ({percent(view.mean(WINNERS, view.window))} on average"
            f" over the last {view.window} rollouts): in the others, what teaches is feedback alone, where there is"
            " any."
        ),
        remedies=more_signal,
        when="Less than 5 % of groups have a successful completion in half of the last 50 rollouts.",
        why="The threshold is above what the reward gives, or the prompts are too hard for this model.",
        remedy="Lower success_reward_threshold, more num_generations, easier prompts.",
        source="TRL warns of it too; own judgement of the threshold",
    ),
    Rule(
        code="SDPO003",
        title="Feedback exists but isn't shown",
        stage="train",
        level="notes",
        needs=(TOLD,),
        severity="info",
        share=0.5,
        least=3,
        fields=("include_environment_feedback",),
        test=lambda view: view[TOLD] > 0.2 and not view.config.include_environment_feedback,
        message=lambda view: (
            f"There is feedback on {percent(view.mean(TOLD, view.window))} of completions, and"
            " include_environment_feedback is off: no teacher sees it."
        ),
        remedies=lambda view: set_field(view, "include_environment_feedback", True, again=True),
        when=(
            "More than 20 % of completions have feedback in half of the last rollouts, and include_environment_feedback"
            " is off."
        ),
        why="Feedback says what was wrong, which a reward doesn't.",
        remedy="Set include_environment_feedback.",
        source="TRL warns of it too",
    ),
    Rule(
        code="SDPO004",
        title="Feedback should be shown but is missing",
        stage="train",
        level="signal",
        mutes=("SDPO001", "SDPO002"),
        needs=(TOLD,),
        share=0.8,
        least=5,
        fields=("include_environment_feedback",),
        test=lambda view: view[TOLD] < 0.02 and view.config.include_environment_feedback,
        message=lambda view: (
            f"include_environment_feedback is on, and {percent(view.mean(TOLD, view.window))} of completions have"
            " feedback, from the column privileged_context or a reward function."
        ),
        remedies=lambda view: [
            Remedy(
                why=(
                    "Let a reward function log what was wrong: log_extra('feedback', [text or None for each"
                    " completion])"
                )
            ),
            Remedy(why="Put feedback into the column privileged_context"),
        ],
        when=(
            "Less than 2 % of completions have feedback in 80 % of the last 50 rollouts, with"
            " include_environment_feedback."
        ),
        why="The column has another name, or the function logs under another name.",
        remedy="Log it as feedback, or rename the column with dataset_columns.",
        source="own judgement",
    ),
    Rule(
        code="SDPO005",
        title="The teacher agrees with the student",
        stage="train",
        symptom="no_signal",
        level="signal",
        mutes=("standstill",),
        needs=(APART,),
        window=10,
        least=3,
        share=0.8,
        test=teaches_nothing,
        message=lambda view: (
            f"From the start the teacher's log-prob of a sampled token is {short(view.mean(APART, view.window))} nats"
            " from the student's, on average: the context changes that little of what it says."
        ),
        remedies=lambda view: [
            Remedy(why="Check a reprompt in samples.jsonl: does it show what the attempt lacks?"),
            Remedy(why="Explain in reprompt_template more clearly how to use the solution or the feedback"),
        ],
        when=(
            "self_distillation/teacher_logp_difference is below 0.01 in most of the first 20 steps, and completions"
            " earn less than right answers do."
        ),
        why="A model that can't use a solution or feedback is no better with it than without.",
        remedy="Other templates, more informative feedback, a larger model.",
        source="own judgement of the threshold",
    ),
    Rule(
        code="SDPO006",
        title="Teachers' prompts are too long",
        stage="train",
        level="signal",
        later=("notes", lambda view: view.mean(LONG, view.window) <= 0.5),
        mutes=("SDPO001",),
        needs=(LONG,),
        least=5,
        test=lambda view: view[LONG] > 0.1,
        message=lambda view: (
            f"For {percent(view.mean(LONG, view.window))} of completions the teacher's prompt has more than"
            f" max_reprompt_len {view.config.max_reprompt_len} tokens: they aren't taught."
        ),
        remedies=lambda view: [
            *set_field(view, "max_reprompt_len", longer(view) * view.config.max_reprompt_len),
            *set_field(view, "remove_thinking_from_demonstration", True, ", which makes solutions shorter"),
        ],
        when="More than 10 % of completions in 30 % of the last 50 rollouts.",
        why="Solutions and feedback don't fit.",
        remedy="Raise max_reprompt_len, remove_thinking_from_demonstration, shorter feedback.",
        source="own judgement",
    ),
    Rule(
        code="SDPO007",
        title="Student and teacher move apart",
        stage="train",
        symptom="divergence",
        level="policy",
        follows_from=broken_by(NAMES, 10),
        mutes=("SDPO115", "OPT014"),
        needs=(APART,),
        least=10,
        test=drifts,
        message=lambda view: (
            "The distance of the teacher's log-prob of a sampled token from the student's"
            f" {went(view.baseline(APART) or 0.0, view[APART])} nats."
        ),
        remedies=lambda view: [lower_rate(view, 3), *slower_teacher(view), restore(view)],
        when=(
            "self_distillation/teacher_logp_difference is above 0.1 and three times its beginning in 30 % of the last"
            " 50 steps."
        ),
        why="Updates are too large, or the teacher follows its student in the wrong direction.",
        remedy="Lower learning_rate, a teacher that follows more slowly, go back to a checkpoint.",
        source="own judgement of the threshold",
    ),
]

# Groups with equal rewards can still be learnt from here: rules about comparing completions are left out.
APART_FROM = ("SDPO101", "SDPO102", "SDPO107", "SDPO116")
RULES: list[Rule] = [*OWN, *(rule for rule in rollout_rules(NAMES) if rule.code not in APART_FROM)]


@hookimpl
def ft_rules():
    return RULES
