"""Cases of the rules that methods with rollouts share, over a method's names: what raises each, and what looks alike
and doesn't. The numbers are those of small runs of examples/arithmetic. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ft_host.diagnostics.shared import Names
from ft_host.testing.rules import Told, evals, in_order, steps

Value = float | Callable[[int], float]

FACTS = {"plan/total_steps": 120}
# A run that goes well: 64 completions a rollout, learning rate 3e-4, two rewards of at most 1 each.
WELL = {
    "completions__reward_min": 0.0,
    "completions__reward_max": 2.0,
    "completions__mean_length": 26.5,
    "completions__clipped_ratio": 0.001,
    "completions__unique_share": 0.45,
    "completions__reward_length_correlation": -0.3,
    "rewards__exact_match__std": 0.48,
    "rewards__right_lines__std": 0.3,
    "perf__rollout_time": 0.7,
}


def noise(step: int, size: float = 0.05) -> float:
    """The same for the same step, of mean 0, between -size and size."""
    return size * ((step * 7919) % 13 - 6) / 6


def rises(step: int) -> float:
    """The mean reward of a run that learns: 0.95 to 1.68 in 120 steps."""
    return 0.95 + 0.73 * min(step / 120, 1) + noise(step)


def stays(step: int) -> float:
    return 1.0 + noise(step)


def rollout_cases(names: Names, config: dict[str, Any] | None = None) -> dict[str, tuple[Told, Told]]:
    """{code: (faulty, healthy)} of every rule of `rollout_rules(names)`."""
    given = config or {}

    def told(
        config: dict[str, Any] | None = None, *, count: int = 60, more: list | None = None, **values: Value
    ) -> Told:
        renamed = {
            {"reward": names.reward, "entropy": names.entropy, "kl": names.kl, "clip": names.clip}.get(
                name, name
            ): value
            for name, value in ({"reward": rises, "entropy": 0.07} | values).items()
        }
        grouped = {"frac_reward_zero_std": 0.3, "reward_std": 0.75} if names.grouped else {}
        lines = steps(count, **(WELL | grouped | renamed))
        return Told(config=given | (config or {}), facts=FACTS, lines=in_order(lines, more or []))

    def falls(step: int) -> float:
        """A collapse at step 15."""
        return 1.0 + noise(step) if step < 15 else 0.3 + noise(step)

    scale = 26.5 if names.kl_of_completions else 1.0
    small = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1}
    held_out = evals([20, 40, 60], reward=lambda step: {20: 0.6, 40: 0.45, 60: 0.3}[step])
    improving = evals([20, 40, 60], reward=lambda step: {20: 0.5, 40: 0.55, 60: 0.62}[step])
    found = {
        3: (told(count=90, reward=stays), told(count=90)),
        # entropy that goes down as the task is learnt
        4: (
            told(reward=stays, entropy=lambda step: 0.07 if step < 15 else 0.004),
            told(count=120, entropy=lambda step: 0.07 - 0.06 * min(step / 110, 1)),
        ),
        5: (
            told(reward=falls, entropy=lambda step: 0.07 if step < 15 else 0.33),
            told(entropy=lambda step: 0.07 + 0.003 * step),
        ),
        # KL that goes up slowly with the reward
        7: (told(reward=falls, kl=lambda step: scale * 0.1 * step), told(kl=lambda step: scale * 0.01 * step)),
        8: (
            told({"max_completion_length": 12}, completions__clipped_ratio=0.9),
            told(completions__clipped_ratio=lambda step: max(0.6 - 0.02 * step, 0.0)),  # learns to end
        ),
        9: (
            told(completions__mean_length=lambda step: 26 + step, completions__reward_length_correlation=0.8),
            told(completions__mean_length=lambda step: 26 + step),
        ),
        10: (
            told(reward=falls, completions__mean_length=lambda step: 26 if step < 15 else 4.5),
            told(  # it didn't end before, and now does
                completions__mean_length=lambda step: 60 if step < 15 else 12,
                completions__clipped_ratio=lambda step: 0.9 if step < 15 else 0.0,
            ),
        ),
        11: (told(more=held_out), told(more=improving)),
        13: (told(small, reward=lambda step: 1.0 + noise(step, 0.3)), told(small)),
        14: (told(rewards__exact_match__failed_share=0.25), told(rewards__exact_match__failed_share=0.01)),
        15: (told(reward=falls), told(reward=lambda step: rises(step) + noise(step, 0.1))),
    }
    if names.clip is not None:
        found[6] = (told(clip=lambda step: 0.0 if step % 4 == 1 else 0.4 + noise(step)), told(clip=lambda step: 0.01))
    if not names.grouped:
        found[1] = (told(reward=0.0, completions__reward_max=0.0), told())
        return {names.code(number): pair for number, pair in found.items()}

    def solved(step: int) -> float:
        return 0.95 + 0.95 * min(step / 40, 1) + noise(step, 0.01)

    def equal(step: int) -> float:
        return min(0.3 + 0.015 * step, 0.9)

    eight = {"num_generations": 8}
    flat = told(eight, reward=lambda step: 0.02 + noise(step, 0.02), frac_reward_zero_std=0.83, reward_std=0.1)
    found |= {
        1: (
            flat,
            told(eight, count=120, reward=solved, frac_reward_zero_std=equal),
        ),  # groups are equal as all are right
        2: (told(eight, reward=0.0, reward_std=0.0, frac_reward_zero_std=1.0), told(eight)),
        12: (
            told(eight, reward=stays, completions__unique_share=0.13),
            told(eight, count=120, reward=solved, completions__unique_share=lambda step: max(0.45 - 0.01 * step, 0.13)),
        ),
        16: (told(eight, count=120, reward=solved, frac_reward_zero_std=equal), flat),
    }
    return {names.code(number): pair for number, pair in found.items()}
