"""The usual ranges of the fields of grpo, each with its source. Imports no torch."""

from __future__ import annotations

from ft_host.api import Usual

# How often a rollout is used, where that is more than once: in the first update the ratio is 1, and nothing is clipped.
AGAIN = range(2, 1_000_000)
CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")  # those with PPO's clipped ratio


def clipping(level: str, source: str, low: float, high: float, losses: tuple[str, ...] = CLIPPED) -> tuple[Usual, ...]:
    """The range of a bound on ratios, in runs that use a rollout more than once."""
    return tuple(
        Usual(
            low=low,
            high=high,
            below=("no_learning", "no_variety", "divergence"),
            above=("divergence",),
            why=("nearly every update is clipped away", "nothing holds the policy to what sampled"),
            source=source,
            only={"importance_sampling_level": (level,), "loss_type": losses, again: AGAIN},
        )
        for again in ("num_iterations", "steps_per_generation")
    )


EPSILON = (
    *clipping("token", "PPO, arXiv 1707.06347: 0.1 to 0.3", 0.02, 0.5),
    *clipping("sequence", "GSPO, arXiv 2507.18071: 3e-4", 1e-5, 0.5),
)
EPSILON_HIGH = (
    *clipping("token", "DAPO, arXiv 2503.14476: 0.28", 0.02, 1),
    *clipping("sequence", "GSPO, arXiv 2507.18071: 4e-4", 1e-5, 1),
    Usual(
        low=1,
        high=20,
        below=("no_learning",),
        above=("divergence",),
        why=("tokens count for less than they should", "weights of tokens have no bound"),
        source="arXiv 2510.13786: 5",
        only={"loss_type": ("cispo",)},
    ),
)
DELTA = Usual(high=20, above=("divergence",), why="bad completions push without a bound", source="arXiv 2505.07291: 4")
SAPO_TEMPERATURE_NEG = Usual(
    low=0.1,
    high=20,
    below=("divergence",),
    above=("no_learning",),
    why=(
        "tokens keep their weight however far they leave the old policy",
        "tokens lose their weight as soon as they leave the old policy",
    ),
    source="SAPO, arXiv 2511.20347: 1 to 1.05",
)
VESPO_K_POS = Usual(
    low=0.1,
    high=20,
    below=("divergence",),
    above=("no_learning",),
    why=(
        "weights of completions hardly depend on their ratio",
        "weights of completions vanish or grow at the least change of their ratio",
    ),
    source="TRL's documentation: 2 to 3",
)
OFF_POLICY_MASK_THRESHOLD = Usual(
    low=0.001,
    below=("no_learning", "no_signal"),
    why="bad completions are left out at the least difference",
    source="DeepSeek-V3.2, arXiv 2512.02556",
)
TOP_ENTROPY_QUANTILE = Usual(
    low=0.05, below=("no_learning", "no_signal"), why="hardly a token is learnt from", source="arXiv 2506.01939: 0.2"
)
ENTROPY_COEF = Usual(
    far=10,
    high=0.1,
    above=("divergence", "no_learning"),
    why="entropy is worth more than the reward",
    source="1e-4 to 0.01 in published recipes",
)
ENTROPY_COEF_MAX = Usual(
    high=1,
    above=("divergence",),
    why="entropy may come to be worth more than the reward",
    source="Skywork-OR1, arXiv 2505.22312",
)
ENTROPY_COEF_DELTA = Usual(
    high=0.1,
    above=("divergence",),
    why="the bonus for entropy jumps from step to step",
    source="Skywork-OR1, arXiv 2505.22312: 0.005",
)
ENTROPY_TARGET = Usual(
    high=3, above=("divergence",), why="the bonus for entropy is always on", source="Skywork-OR1, arXiv 2505.22312: 0.2"
)
BETA = Usual(
    high=0.5,
    above=("no_learning",),
    why="staying near the reference outweighs the reward",
    source="DeepSeekMath, arXiv 2402.03300: 0.04; 0 to 0.1 since",
)
IMPORTANCE_SAMPLING_CLIP_MAX = Usual(
    low=1,
    high=100,
    below=("no_learning", "no_signal"),
    above=("divergence",),
    why=("nearly all that the sampler says is cut away", "weights of completions have no bound"),
    source="TIS, IcePop: 2 to 5",
)
IMPORTANCE_SAMPLING_CLIP_MIN = Usual(
    high=0.9,
    above=("no_learning", "no_signal"),
    why="completions that count as much as they should are left out",
    source="IcePop: 0.5",
)
