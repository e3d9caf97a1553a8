"""Rules about rewards that give one completion several values: judges that sample their verdict, functions that read
something else. Imports no torch.
"""

from __future__ import annotations

from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.view import View, percent

NOISY = 0.5  # of a reward's variance: more noise than signal
LOOKS_ELSEWHERE = Remedy(
    why="Score a few completions twice by hand: a judge samples its verdict (set its temperature to 0, or take the mean"
    " of several), or reads something else than the completion"
)

READS_SIGNS = Remedy(
    why="Score a few right and wrong completions by hand, with and without a space at their end: the value has to come"
    " from what they say"
)


def noise_share(view: View) -> float:
    """How much of a reward's variance, of late, is there between two values of one completion. A rollout has few that
    come twice, so that all are taken together."""
    spread = [value * value for value in view.recent("rewards/*/std", 20)]
    noise = view.recent("rewards/*/repeat_variance", 20)
    return (sum(noise) / len(noise)) / (sum(spread) / len(spread)) if noise and any(spread) else 0.0


def noise_message(view: View) -> str:
    share = percent(min(noise_share(view), 1))
    return (
        f"The reward {view.cause} gives equal completions of a prompt different values: {share} of its"
        " variance is there between two values of one completion. What it says of a completion is mostly chance, which"
        " can't be learnt."
    )


def tried_message(view: View) -> str:
    name, noise = view.name("*"), view["data/reward/*/noise"]
    if noise > NOISY:
        return (
            f"Reward {name} was asked twice about the same completions of the data's prompts, and gave other values:"
            f" {percent(min(noise, 1))} of their variance is there between two values of one completion."
        )
    return (
        f"Reward {name} gives wrong completions of the data's prompts other values with white space at their end,"
        f" higher ones and lower ones: {percent(min(view['data/reward/*/tossed'], 1))} of their variance is there"
        " between the two. What it says of a completion is mostly chance, which can't be learnt."
    )


RULES = [
    Rule(
        code="REW004",
        title="A reward gives equal completions different values",
        stage="train",
        symptom="no_signal",
        level="rewards",
        mutes=("standstill", "results"),
        follows_from=("DATA039",),
        needs=("rewards/*/repeat_variance", "rewards/*/std"),
        test=lambda view: view.count("rewards/*/repeat_variance") >= 5 and noise_share(view) > NOISY,
        window=10,
        least=5,
        message=noise_message,
        remedies=lambda view: [LOOKS_ELSEWHERE],
        when=(
            "Over half of a reward's variance, in the last 20 rollouts, is there between its values for one and the"
            " same completion of a prompt. It shows where completions come twice."
        ),
        why="The policy is moved by what the reward says of a completion; noise moves it to nowhere.",
        remedy="Let the function depend on the completion alone; average several verdicts of a judge.",
        source="own judgement of the threshold",
    ),
    Rule(
        code="DATA039",
        title="A reward gives a completion another value the second time",
        stage="before",
        symptom="no_signal",
        level="rewards",
        mutes=("standstill", "results"),
        needs=("data/reward/*/noise",),
        test=lambda view: max(view["data/reward/*/noise"], view.get("data/reward/*/tossed", 0)) > NOISY,
        message=tried_message,
        remedies=lambda view: [LOOKS_ELSEWHERE] if view["data/reward/*/noise"] > NOISY else [READS_SIGNS],
        when=(
            "Of 16 completions that are tried twice before training, right ones and rubbish, the two values differ by"
            " over half of the variance of all. Or so do those of wrong ones with white space at their end and without,"
            " some up and some down. Slow functions and reward models aren't tried."
        ),
        why="The policy is moved by what the reward says of a completion; noise moves it to nowhere.",
        remedy="Let the function depend on the completion alone; average several verdicts of a judge.",
        source="own judgement of the threshold",
    ),
]
