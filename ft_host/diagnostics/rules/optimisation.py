"""Loss, gradients and updates, of every method: what they say of the learning rate and the data. Imports no torch.

The loss of a method that learns from rollouts isn't judged: it is around 0 whatever is learnt, an identity where it is
made of advantages. Where there is a held-out loss it outweighs that of the steps, whose rows are others each time.
"""

from __future__ import annotations

import math
import statistics

from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.rules.numbers import lower_rate
from ft_host.diagnostics.view import View, percent, rounded, short

SOLVED = 0.02  # of the loss that the run began with: little is left to learn, and gradients are small
SETTLE = 20  # steps at the full learning rate before it is asked whether anything is learnt
NOTHING = 0.05  # of a loss: what is below, and changes by less, is that of a task that has been learnt
LARGE, LARGE_NEW, LARGE_LORA = 0.04, 0.1, 0.3  # updates as a share of weights; half of an adapter's are 0 at first
SMALL, SMALL_LORA = 2e-4, 5e-4
SMALL_ROLLOUTS = 5e-6  # methods that learn from rewards take small steps
USUAL, USUAL_NEW = 1e-3, 2e-2  # of pretrained weights, and of new ones


# ---------------------------------------------------------------- what the loss does


def by_rollout(view: View) -> bool:
    return view.count("perf/rollout_time") > 0 or view.count("reward") > 0


def begun(view: View) -> float:
    """The loss that the run began with. (A run that was resumed has its metrics from the first step.)"""
    return view.first("loss", 10)


def solved(view: View) -> bool:
    """Whether a loss that was something is next to nothing now."""
    return 0 <= view.mean("loss", 5) < SOLVED * view.first("loss", 5)


def fallen(view: View) -> float | None:
    """By which share of itself the loss has fallen; of held-out rows where that is known, since they stay the same. None
    where it can't be told yet, or says nothing."""
    if by_rollout(view) or view.step < view.warmup_steps + SETTLE or view.count("loss") < SETTLE + 10:
        return None
    start, now = begun(view), view.mean("loss", 20)
    if not start > NOTHING:
        return None  # little to learn, or a loss that can be negative
    evals = view.recent("eval_loss", 1000)
    held_out = 1 - min(evals[1:]) / evals[0] if len(evals) > 1 and evals[0] > 0 else -math.inf
    return max(1 - now / start, held_out)


def raise_rate(view: View, by: float) -> Remedy:
    now = view.config.learning_rate
    new = rounded(now * by)
    return Remedy(
        why=f"Raise learning_rate from {short(now)} to {short(new)}", patch={"learning_rate": new}, again=True,
        expected="a loss that falls within the first steps",
    )  # fmt: skip


def warm_up(view: View) -> list[Remedy]:
    if view.config.warmup_steps:
        return []
    return [Remedy(why="Set warmup_steps to 0.05, a twentieth of all steps", patch={"warmup_steps": 0.05}, again=True)]


def calm(view: View) -> list[Remedy]:
    """Against jumps: smaller updates, clipped gradients, warm-up."""
    out = [lower_rate(view, 5)]
    if not view.config.max_grad_norm or view.config.max_grad_norm > 1:
        before = short(view.config.max_grad_norm) if view.config.max_grad_norm else "off"
        out.insert(0, Remedy(why=f"Set max_grad_norm to 1, it is {before}", patch={"max_grad_norm": 1.0}))
    return [*out, *warm_up(view), Remedy(why="Look at the rows of these steps")]


# ---------------------------------------------------------------- OPT001, 002: gradients


def usual_norm(view: View) -> float | None:
    """The larger of the median of the last 50 norms that aren't 0 and the run's own beginning: where most steps have no
    signal, one that has is no spike."""
    baseline = view.baseline("grad_norm")
    recent = [value for value in view.recent("grad_norm", 51)[:-1] if value > 0]
    return max(baseline, statistics.median(recent)) if baseline is not None and len(recent) >= SETTLE else None


def norm_jumps(view: View) -> bool | None:
    usual = usual_norm(view)
    if usual is None:
        return None
    # below the limit of clipping a spike does nothing
    return view["grad_norm"] > max(10 * usual, view.config.max_grad_norm or 0.0)


def norm_vanishes(view: View) -> bool | None:
    if view["learning_rate"] == 0 or solved(view) or view.get("frac_reward_zero_std", 0) > 0.5:
        return None  # nothing to learn from in this step, or nothing left to learn
    baseline = view.baseline("grad_norm")
    return view["grad_norm"] < max(1e-5, 1e-4 * (baseline or 0))


def vanished_remedies(view: View) -> list[Remedy]:
    look = Remedy(why="Look at which tokens are supervised, and whether the loss depends on the weights that are trained")
    once = view.first("grad_norm", 5) > 0.01  # the loss was pushed to where it is flat
    return [lower_rate(view, 10), *warm_up(view), look] if once else [look]


def is_clipped(view: View) -> bool | None:
    limit = view.config.max_grad_norm
    return view["grad_norm"] > limit if limit and view.warmed_up else None


# ---------------------------------------------------------------- OPT003 to 006: loss


def loss_jumps(view: View) -> bool | None:
    """The last four losses are all far above what came before, by the run's own measure. A quarter of the loss that the
    run began with, at least: next to 0 a jump is nothing."""
    values = view.recent("loss", 104)
    if by_rollout(view) or len(values) < 9:
        return None
    before, last = values[:-4], values[-4:]
    usual = statistics.median(before)
    spread = statistics.median(abs(value - usual) for value in before)
    rise = min(last) - usual
    return min(last) > max(1.5 * usual, usual + 5 * spread) and rise > max(0.25 * abs(view.first("loss", 5)), NOTHING)


def loss_stays_high(view: View) -> bool | None:
    if by_rollout(view) or view.count("loss") < 2 * SETTLE or not view.warmed_up:
        return None
    first = list(view.series["loss"].values[:SETTLE])
    return view["loss"] > min(10.0, max(first)) + NOTHING


def loss_stays(view: View) -> bool | None:
    share = fallen(view)
    if share is None or solved(view):
        return None
    return share < 0.01


def stays_remedies(view: View) -> list[Remedy]:
    look = Remedy(why="Look at whether completions fit their prompts: noise can't be learnt")
    updates = view.recent("update_ratio")
    return [look] if updates and max(updates) > USUAL else [raise_rate(view, 10), look]


def lowest_begun(view: View) -> float:
    """Of the first ten losses and the first three, since a loss may have been thrown up within ten."""
    return min(begun(view), view.first("loss", 3))


def loss_rises(view: View) -> bool | None:
    if by_rollout(view) or not view.warmed_up or view.count("loss") < SETTLE or not begun(view) > 0:
        return None
    lowest = lowest_begun(view)
    doubt = 3 * view.noise("loss", 20) / math.sqrt(10)  # of a mean of ten
    return view.mean("loss", 10) > lowest + max(0.1 * lowest, NOTHING, doubt)


# ---------------------------------------------------------------- OPT007: updates


def update_limits(view: View) -> tuple[float, float]:
    """Between which a ratio is usual."""
    if view.config.use_peft:
        return SMALL_LORA, LARGE_LORA
    tokens = "start/mean_token_accuracy" in view.facts
    new = has_new_weights(view) or (tokens and "model/vocab_size" not in view.facts)
    return SMALL, LARGE_NEW if new else LARGE


def has_new_weights(view: View) -> bool:
    """Whether the run began with the loss of guessing among all tokens."""
    if "start/mean_token_accuracy" not in view.facts or "model/vocab_size" not in view.facts:
        return False
    return view["start/loss"] > 0.9 * math.log(view["model/vocab_size"])


def reward_rises(view: View) -> bool:
    """Whether the last ten rewards are above the first ten by more than their noise."""
    if not view.count("reward"):
        return False
    return view.mean("reward", 10) - view.first("reward", 10) > view.noise("reward") / 2


def update_is_off(view: View) -> bool | None:
    small, large = update_limits(view)
    ratio = view["update_ratio"]
    if ratio > large:
        return True
    if view["learning_rate"] < 0.5 * view.config.learning_rate:
        return None  # a warm-up begins at 0, and a schedule may end there
    peak = max(view.recent("update_ratio"))
    if by_rollout(view):
        return None if view.step < view.warmup_steps + SETTLE else peak < SMALL_ROLLOUTS and not reward_rises(view)
    share = fallen(view)
    return None if share is None or solved(view) else peak < small and share < 0.03


def update_message(view: View) -> str:
    ratio = view["update_ratio"]
    if ratio > update_limits(view)[1]:
        return (
            f"An update changes the weights by {percent(ratio)} of their size (usual: 0.01 to 1 %): it throws away what they "
            f"hold."
        )
    fall = percent(max(fallen(view) or 0.0, 0.0))
    result = "the reward doesn't rise" if by_rollout(view) else f"the loss has fallen by {fall} since the start"
    return f"An update changes the weights by {short(ratio)} of their size, and {result}: the steps are too small to learn by."


def update_remedies(view: View) -> list[Remedy]:
    """The step to an update of a usual size: the rate is nearly proportional to it with optimizers of Adam's kind."""
    usual = USUAL_NEW if has_new_weights(view) else USUAL
    now = view["update_ratio"] * view.config.learning_rate / view["learning_rate"]  # at the full rate
    if view["update_ratio"] > update_limits(view)[1]:
        return [lower_rate(view, max(10.0, now / usual)), *warm_up(view)]
    return [raise_rate(view, min(max(10.0, usual / now), 1000.0))]


# ---------------------------------------------------------------- OPT009, 010, 012: held-out rows


def best_evaluation(view: View) -> tuple[float, float]:
    """(step, loss) of the lowest held-out loss."""
    return view.series["eval_loss"].best(-1) or (math.nan, math.nan)


def overfits(view: View) -> bool | None:
    """The held-out loss is a tenth above its best, or has risen three times running, while that of the steps falls. Not
    where held-out completions still get better: a model that is sure of itself loses more by the few that it gets wrong."""
    values = view.recent("eval_loss", 1000)
    if len(values) < 3 or by_rollout(view):
        return None
    step, best = best_evaluation(view)
    rewards = view.recent("eval_reward", 1000)
    if rewards and rewards[-1] >= max(rewards) > rewards[0]:
        return False
    losses = view.series["loss"]
    then = [value for at, value in zip(losses.steps, losses.values, strict=True) if step - 10 < at <= step]
    falls = bool(then) and view.mean("loss", 10) < sum(then) / len(then)
    risen = len(values) > 3 and values[-1] > values[-2] > values[-3] > values[-4] and values[-1] > 1.02 * best
    return falls and values[-1] - best > NOTHING / 2 and (values[-1] > 1.1 * best or risen)


def fewer_steps(view: View) -> Remedy:
    step, _ = best_evaluation(view)
    why = f"Stop at step {step:.0f}, where the held-out loss was lowest"
    if view.config.max_steps > 0:
        return Remedy(why=why, patch={"max_steps": max(int(step), 1)}, again=True)
    share = step / view.total_steps if view.total_steps else 0.5
    return Remedy(why=why, patch={"num_train_epochs": rounded(max(view.config.num_train_epochs * share, 0.01))}, again=True)


def overfit_remedies(view: View) -> list[Remedy]:
    out = [fewer_steps(view), lower_rate(view, 2)]
    if view.config.use_peft and not view.config.lora_dropout:
        out.append(Remedy(why="Set lora_dropout to 0.05", patch={"lora_dropout": 0.05}, again=True))
    elif not view.config.use_peft and not view.config.weight_decay:
        out.append(Remedy(why="Set weight_decay to 0.1", patch={"weight_decay": 0.1}, again=True))
    return [*out, Remedy(why="Train on more rows")]


def went_on_for_nothing(view: View) -> bool | None:
    values = view.recent("eval_loss", 1000)
    if len(values) < 6 or by_rollout(view):
        return None
    best = values.index(min(values))
    return best + 1 <= len(values) / 2 and len(values) - best > 4


def memorised(view: View) -> bool | None:
    if by_rollout(view) or view["epoch"] > 1 or view.count("loss") < 10 or view.first("loss", 5) < 0.5:
        return None
    held_out = view.get("eval_loss")
    return view.mean("loss", 10) < 0.05 and (held_out is None or held_out > 3 * view.mean("loss", 10) + 0.02)


RULES = [
    Rule(
        code="OPT001",
        title="The gradient has spikes",
        stage="train",
        needs=("grad_norm",),
        share=0.06,
        test=norm_jumps,
        message=lambda view: (
            f"The gradient norm was more than ten times its usual {short(usual_norm(view))} {view.often}; "
            f"it is {short(view['grad_norm'])} now."
        ),
        remedies=calm,
        when="The gradient norm is over ten times the median of the last 50 steps (and of steps 5 to 25) in 6 % of 50 steps.",
        why="Single rows, or weights that have gone where the loss is steep, pull far more than all others. Clipping bounds "
        "what one step does; often repeated it is a learning rate at the edge of what is stable.",
        remedy="Set max_grad_norm to 1, lower learning_rate, look at the rows of these steps.",
        source="ZClip (arXiv 2504.02507); axolotl docs/training_stability; made relative to the run",
    ),
    Rule(
        code="OPT002",
        title="The gradient has vanished",
        stage="train",
        needs=("grad_norm", "loss", "learning_rate"),
        share=0.5,
        least=15,
        test=norm_vanishes,
        message=lambda view: f"The gradient norm was next to 0 {view.often} ({short(view['grad_norm'])} now): nothing is learnt.",
        remedies=vanished_remedies,
        mutes=("OPT005",),
        when="The gradient norm is below 1e-5, or a ten-thousandth of that of steps 5 to 25, in half of the last 50 steps; "
        "not where the loss is next to 0 since the task is learnt, nor where rewards of all groups are equal.",
        why="Nothing supervised, a loss that is constant, or weights that are cut off from it.",
        remedy="Look at the data and the loss; a higher learning rate doesn't help where there is no gradient.",
        source="SageMaker Debugger VanishingGradient; axolotl docs/training_stability",
    ),
    Rule(
        code="OPT003",
        title="The loss has jumped up",
        stage="train",
        needs=("loss",),
        window=10,
        least=1,
        share=0.1,
        test=loss_jumps,
        message=lambda view: (
            f"The loss has been above {short(min(view.recent('loss', 4)))} for four steps, after "
            f"{short(statistics.median(view.recent('loss', 104)[:-4]))} before."
        ),
        remedies=calm,
        mutes=("OPT006",),
        when="Four losses running are over 1.5 times the median of the 100 before, five of its spreads above it, and a quarter "
        "of the run's first loss above it.",
        why="The weights were thrown out of where they were: a learning rate that is too high, mostly at the end of the "
        "warm-up, or rows that are unlike the others.",
        remedy="Lower learning_rate, warm up longer, go back to a checkpoint from before.",
        source="llm-foundry KillLossSpike; with the run's own spread",
    ),
    Rule(
        code="OPT004",
        title="The loss stays above where it began",
        stage="train",
        needs=("loss",),
        share=0.5,
        test=loss_stays_high,
        message=lambda view: (
            f"The loss was above the highest of the first {SETTLE} steps "
            f"({short(max(view.series['loss'].values[:SETTLE]))}) {view.often}: the run has diverged."
        ),
        remedies=lambda view: [lower_rate(view, 10), *warm_up(view)],
        severity="error",
        mutes=("OPT005", "OPT006"),
        when="After warm-up, half of the last 50 losses are above 10, or above the highest of the first 20.",
        why="The run has diverged, and doesn't come back.",
        remedy="Start again with a lower learning_rate.",
        source="llm-foundry KillLossSpike",
    ),
    Rule(
        code="OPT005",
        title="The loss doesn't fall",
        stage="train",
        needs=("loss",),
        window=20,
        least=10,
        share=0.6,
        test=loss_stays,
        message=lambda view: (
            f"After {view.step} steps the loss is {short(view.mean('loss', 20))}; it began at {short(begun(view))} and has "
            f"fallen by {percent(max(fallen(view) or 0.0, 0.0))}."
        ),
        remedies=stays_remedies,
        when="20 steps after warm-up and later, the mean of 20 losses is less than 1 % below that of the first ten, and the "
        "held-out loss has not fallen by 1 % either; not for methods that learn from rollouts.",
        why="The learning rate is too low, the weights that are trained don't matter, or there is nothing to be learnt in the "
        "data.",
        remedy="Raise learning_rate (full training of a pretrained model: 1e-5 to 5e-5, LoRA: 1e-4 to 3e-4), look at the data.",
        source="SageMaker Debugger LossNotDecreasing; axolotl docs/training_stability",
    ),
    Rule(
        code="OPT006",
        title="The learning rate is too high",
        stage="train",
        needs=("loss", "grad_norm"),
        window=20,
        least=10,
        share=0.5,
        test=loss_rises,
        message=lambda view: (
            f"At the full learning rate the loss is {short(view.mean('loss', 10))}, above the "
            f"{short(lowest_begun(view))} that it began with; the gradient norm is {short(view.mean('grad_norm', 10))}."
        ),
        remedies=lambda view: [lower_rate(view, 5), *warm_up(view)],
        mutes=("OPT005",),
        when="After warm-up, the mean of ten losses is a tenth (and three of its standard errors) above that of the first ten.",
        why="Updates are larger than the region in which the gradient says anything.",
        remedy="Lower learning_rate by 2 to 5 times, warm up over 5 to 10 % of the steps.",
        source="axolotl docs/training_stability",
    ),
    Rule(
        code="OPT007",
        title="Updates are too large or too small",
        stage="train",
        needs=("update_ratio", "learning_rate"),
        window=3,
        least=1,
        share=0.3,
        test=update_is_off,
        message=update_message,
        remedies=update_remedies,
        mutes=("OPT005", "OPT006"),
        when=f"The norm of an update is over {LARGE} of that of the weights ({LARGE_NEW} of new ones, {LARGE_LORA} of "
        f"an adapter's); or it has never been "
        f"over {SMALL} ({SMALL_LORA}) and the loss has fallen by less than 3 % in 20 steps at the full learning rate. With rollouts: "
        f"never over {SMALL_ROLLOUTS} while the reward doesn't rise.",
        why="What an optimizer of Adam's kind changes depends on the learning rate, not on the size of the gradient. Far more "
        "than a hundredth of the weights a step destroys what they hold, far less than a ten-thousandth takes forever.",
        remedy="Change learning_rate by a factor of ten.",
        source="SageMaker Debugger WeightUpdateRatio; limits by own judgement, on small and large models",
    ),
    Rule(
        code="OPT008",
        title="Gradients are clipped all the time",
        stage="train",
        needs=("grad_norm",),
        severity="info",
        least=40,
        share=0.9,
        test=is_clipped,
        message=lambda view: (
            f"The gradient norm (median {short(view.median('grad_norm'))}) was above max_grad_norm "
            f"{short(view.config.max_grad_norm)} {view.often}: each step is scaled to the same size."
        ),
        remedies=lambda view: [
            Remedy(
                why=f"Raise max_grad_norm from {short(view.config.max_grad_norm)} to {short(rounded(3 * view.median('grad_norm')))}",
                patch={"max_grad_norm": rounded(3 * view.median("grad_norm"))},
            )
        ],
        when="After warm-up, the gradient norm is above max_grad_norm in 90 % of the last 50 steps.",
        why="Clipping is for the odd step. Where it is always on, rows with large gradients count for less; with Adam it hardly "
        "changes the step. Many runs learn well so.",
        remedy="Raise max_grad_norm, where a run doesn't learn as it should.",
        source="own judgement",
    ),
    Rule(
        code="OPT009",
        title="The model overfits",
        stage="train",
        needs=("eval_loss", "loss"),
        window=1,
        least=1,
        share=1.0,
        test=overfits,
        message=lambda view: (
            f"The held-out loss has risen from {short(best_evaluation(view)[1])} at step {best_evaluation(view)[0]:.0f} to "
            f"{short(view['eval_loss'])}, while that of the steps went on falling to {short(view.mean('loss', 10))}."
        ),
        remedies=overfit_remedies,
        when="The held-out loss is a tenth above its lowest, or has risen at three evaluations running, while the training loss "
        "falls; not while the reward of held-out completions is at its best.",
        why="The rows are being learnt by heart: too many passes over too few of them, or labels that don't follow from the "
        "prompts, so that there is nothing else to learn.",
        remedy="Stop earlier, lower learning_rate, regularise, use more data.",
        source="SageMaker Debugger Overfit; axolotl docs/training_stability",
    ),
    Rule(
        code="OPT010",
        title="The last half of the training brought nothing",
        stage="after",
        needs=("eval_loss",),
        severity="info",
        test=went_on_for_nothing,
        message=lambda view: (
            f"The held-out loss was lowest, {short(best_evaluation(view)[1])}, at step {best_evaluation(view)[0]:.0f} of "
            f"{view.step}; it ended at {short(view.series['eval_loss'].last)}."
        ),
        remedies=lambda view: [fewer_steps(view)],
        when="The lowest held-out loss lies in the first half of at least six evaluations, with four after it.",
        why="What came after it cost time, and may have cost what the model could do before.",
        remedy="Train for fewer steps, or take a checkpoint from about then.",
        source="SageMaker Debugger Overtraining",
    ),
    Rule(
        code="OPT012",
        title="The loss is next to 0 in the first epoch",
        stage="train",
        needs=("loss", "epoch", "mean_token_accuracy"),
        severity="info",
        window=20,
        least=5,
        share=0.8,
        test=memorised,
        message=lambda view: (
            f"The loss is {short(view.mean('loss', 10))} at epoch {view['epoch']:.2f}, before any row was seen twice: rows "
            f"repeat each other, the answers stand in the prompts, or the task is easy."
        ),
        remedies=lambda view: [Remedy(why="Look at the rows for duplicates and for answers in prompts, and set an eval_dataset")],
        when="The mean of ten losses is below 0.05 within the first epoch, and there is no held-out loss or one of over three "
        "times that.",
        why="Real text can't be predicted so well by one look. A task with a rule can, and then held-out rows show it.",
        remedy="Look at the data.",
        source="own judgement",
    ),
]
