"""How large updates are, of every method. Imports no torch."""

from __future__ import annotations

from dataclasses import replace

from ft_host.diagnostics.remedies import LOSS_FALLS, lower_rate, raise_rate, warm_up
from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.rules.loss_trends import SETTLE, first_loss, full_ratio, loss_fall, solved
from ft_host.diagnostics.rules.relations_loaded import adapters_on_attention
from ft_host.diagnostics.sizes import has_new_weights, learns_from_rewards
from ft_host.diagnostics.view import View, percent, went

LARGE, LARGE_NEW, LARGE_LORA = 0.04, 0.13, 0.3  # updates as a share of weights; half of an adapter's are 0 at first
LARGE_POLICY = 0.02  # of methods that learn from rewards or preferences, from weights that can do something
SMALL, SMALL_NEW, SMALL_LORA = 2e-4, 1e-3, 5e-4
FALL, FALL_NEW = 0.03, 0.1  # of a loss: what new weights gain in a few steps is far more
REACH, REACH_NEW = 1e-3, 0.02  # of the weights, over a whole run: what is below changes nothing
SMALL_ROLLOUTS = 5e-6  # methods that learn from rewards take small steps


def is_new(view: View) -> bool:
    tokens = "start/mean_token_accuracy" in view.facts
    return has_new_weights(view) or (tokens and "model/vocab_size" not in view.facts)


def update_limits(view: View) -> tuple[float, float]:
    """Between which a ratio is usual."""
    if view.config.use_peft:
        return SMALL_LORA, LARGE_LORA
    if learns_from_rewards(view):
        return SMALL, LARGE_POLICY
    return SMALL_NEW if has_new_weights(view) else SMALL, LARGE_NEW if is_new(view) else LARGE


def reward_rises(view: View) -> bool:
    """Whether the last ten rewards are above the first ten by more than their noise."""
    if not view.count(view.reward):
        return False
    return view.mean(view.reward, 10) - view.first(view.reward, 10) > view.noise(view.reward) / 2


def too_small(view: View) -> bool | None:
    """Updates below what is usual, and a loss that hasn't fallen: surely, or that couldn't in the steps there are. Of a
    loss whose noise hides a fall, neither is said."""
    found, peak = loss_fall(view), full_ratio(view)
    if found is None or peak is None or solved(view):
        return None
    share, doubt = found
    new = has_new_weights(view)
    least, far = (FALL_NEW, REACH_NEW) if new else (FALL, REACH)
    if peak >= update_limits(view)[0] or not -doubt - FALL < share < max(doubt, least):
        return False
    reach = peak * (view.total_steps or view.config.max_steps)
    return share + doubt < least or 0 <= reach < far


def update_is_off(view: View) -> bool | None:
    if view["update_ratio"] > update_limits(view)[1]:
        return True
    if view.by_rollout:
        if view.step < view.warmup_steps + SETTLE:
            return None
        peak = full_ratio(view) or 0.0
        taught = not view.count(view.reward)  # by a teacher, of whom there is more to learn than of a reward
        reach = peak * (view.total_steps or view.config.max_steps)
        return (peak < SMALL_ROLLOUTS or (taught and 0 <= reach < REACH)) and not reward_rises(view)
    return too_small(view)


def is_small(view: View) -> bool:
    return not view["update_ratio"] > update_limits(view)[1]


def update_message(view: View) -> str:
    ratio = view["update_ratio"]
    if ratio > update_limits(view)[1]:
        return (
            f"An update changes the weights by {percent(ratio)} of their size (usual: below"
            f" {percent(update_limits(view)[1])})."
        )
    result = f"the loss {went(first_loss(view), view.mean('loss', 20))}"
    if view.by_rollout:
        rewards = view.count(view.reward)
        result = f"the reward {went(view.first(view.reward), view.mean(view.reward, 10))}" if rewards else "that is all"
    return f"An update changes the weights by {percent(ratio)} of their size, and {result}: the steps may be too small."


def update_remedies(view: View) -> list[Remedy]:
    """The step to an update of a usual size."""
    if view["update_ratio"] > update_limits(view)[1]:
        return [lower_rate(view, 10), *warm_up(view)]
    if not full_ratio(view):
        if view.count("grad_norm") and not any(view.recent("grad_norm")):
            return [Remedy(why="Look at what the loss depends on: its gradient is 0, so that no step changes anything")]
        return [Remedy(why="Look at whether the optimizer holds the weights that are trained: its steps change none")]
    higher = raise_rate(view, 10, LOSS_FALLS)
    return [*wider(view, higher), higher]


def wider(view: View, higher: Remedy) -> list[Remedy]:
    """The same, with adapters on all layers where they are on few of them: a rate alone moves those little."""
    if not adapters_on_attention(view.config):
        return []
    now = ", ".join(view.config.lora_target_modules)
    why = f"{higher.why}, and set lora_target_modules to all-linear, from {now}"
    return [replace(higher, why=why, patch=higher.patch | {"lora_target_modules": ["all-linear"]})]


RULES = [
    Rule(
        code="OPT007",
        title="Updates are too large or too small",
        stage="train",
        symptom=lambda view: "divergence" if view["update_ratio"] > update_limits(view)[1] else "no_learning",
        level="updates",
        later=("standstill", is_small),
        needs=("update_ratio", "learning_rate"),
        window=3,
        least=1,
        share=0.3,
        test=update_is_off,
        message=update_message,
        remedies=update_remedies,
        mutes=("gradients", "loss", "OPT005", "MOE001", "MOE002", "MOE003"),
        when=(
            f"The norm of an update is over {LARGE} of that of the weights ({LARGE_NEW} of new ones, {LARGE_LORA} of"
            f" an adapter's, {LARGE_POLICY} of a method that learns from rewards or preferences); or it has never been"
            f" over {SMALL} ({SMALL_NEW} of new ones, {SMALL_LORA} of an adapter's), 20 steps after the warm-up, and"
            f" the loss hasn't fallen by {percent(FALL)} ({percent(FALL_NEW)} with new weights): surely, two standard"
            f" errors added, or all updates of the run come to less than {REACH} of the weights ({REACH_NEW}). With"
            f" rollouts: never over {SMALL_ROLLOUTS} while the reward doesn't rise; from a teacher alone: all updates"
            f" of the run come to less than {REACH}."
        ),
        why=(
            "What an optimizer of Adam's kind changes depends on the learning rate, not on the size of the gradient."
            " Far more than a hundredth of the weights a step destroys what they hold, far less than a ten-thousandth"
            " takes forever."
        ),
        remedy=(
            "Change learning_rate, to updates of a usual size; in a run of fewer than 600 steps on rows,"
            " up to five times as far. An adapter that is on attention alone: put it on all linear layers as well."
        ),
        source="SageMaker Debugger WeightUpdateRatio; limits by own judgement, on small and large models",
    )
]
