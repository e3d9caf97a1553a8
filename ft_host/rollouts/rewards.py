"""The rewards of a rollout's completions, and their metrics."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ft_host.errors import FtHostError
from ft_host.generation import Completion
from ft_host.generation.thoughts import opened_by
from ft_host.metrics import Metric, correlation, maximum, mean, minimum, std
from ft_host.rewards import Scoring
from ft_host.rewards.unrewarded import none_at_all
from ft_host.types import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FAILED = re.compile(r"rewards/.*/failed(_share)?")


@dataclass(kw_only=True)
class Rewards:
    """The rewards of a rollout's completions: `values[completion][function]`, None if a function doesn't apply or has
    failed. The method passes `metrics` and `extra` on."""

    names: list[str]
    weights: list[float]
    values: list[list[float | None]]
    texts: list[str]  # the completions, decoded
    metrics: dict[str, Metric]
    extra: dict[str, list[Any]]

    def totals(self) -> list[float | None]:
        """Return the weighted sum of each completion's rewards; None for one without any."""
        return [
            (
                None
                if all(value is None for value in row)
                else sum(weight * value for weight, value in zip(self.weights, row, strict=True) if value is not None)
            )
            for row in self.values
        ]

    def samples(self, rows: list[Row]) -> list[dict[str, Any]]:
        """Return one sample for each completion, for samples.jsonl: its prompt, text and rewards, and what reward
        functions logged. `rows`: the prompts, as passed to `RolloutRun.reward`."""
        generations = len(self.values) // max(len(rows), 1)
        return [
            {
                "prompt": rows[place // generations]["prompt"],
                "completion": text,
                "rewards": dict(zip(self.names, values, strict=True)),
                "extra": {name: logged[place] for name, logged in self.extra.items()},
            }
            for place, (text, values) in enumerate(zip(self.texts, self.values, strict=True))
        ]

    def group_metrics(
        self, generations: int = 1, compared: Sequence[Sequence[float | None]] | None = None
    ) -> dict[str, Metric]:
        """Return the metrics `reward` and `reward_std` of the weighted sums. For groups of `generations` completions,
        which follow each other, also `frac_reward_zero_std`: the share of groups that have two rewards or more, all of
        them equal. (As in TRL: the standard deviation of fewer than two isn't 0.) `compared`: the values of all
        completions that the method compares, one list or several; not given: the weighted sums."""
        totals = self.totals()
        rewards = [value for value in totals if value is not None]
        metrics = {
            "reward": mean(sum(rewards), len(rewards)),
            "reward_std": std(sum(rewards), sum(value * value for value in rewards), len(rewards)),
        }
        if generations > 1:
            groups = groups_differ([totals] if compared is None else compared, generations)
            metrics["frac_reward_zero_std"] = mean(groups.count(False), len(groups))
        return metrics


def groups_differ(compared: Sequence[Sequence[float | None]], generations: int) -> list[bool | None]:
    """Return for each group of `generations` completions, which follow each other: True if the values of two of them
    differ by more than round-off (1e-8), in any of the lists `compared`; False if all are equal; None if no list has
    two values to compare. A value of None is none."""
    groups = range(0, len(compared[0]) if compared else 0, generations)
    return [differ([values[first : first + generations] for values in compared]) for first in groups]


def differ(group: list[Sequence[float | None]]) -> bool | None:
    lists = [[value for value in values if value is not None] for values in group]
    spreads = [max(values) - min(values) for values in lists if len(values) > 1]
    return any(spread > 1e-8 for spread in spreads) if spreads else None


def no_signal(metrics: dict[str, float], number: int, prompts: int, draws: int) -> FtHostError:
    """Return the error of a rollout in which no group holds a signal. `metrics` are those of all its completions."""
    if metrics.get("completions/unrewarded_share") == 1:
        names = [name.split("/")[1] for name in metrics if name.startswith("rewards/") and name.endswith("/none_share")]
        return none_at_all(names, f"any completion of {prompts} prompts, in {draws} draws")
    reward = f" of {metrics['reward']:.3g} on average" if "reward" in metrics else ""
    told = (
        f"rollout {number}: none of {prompts} prompts had a signal to learn from in {draws} draws (max_rollout_draws)"
    )
    if metrics.get("frac_reward_zero_std") == 1:
        return FtHostError(
            f"{told}: all completions of a prompt had equal rewards{reward}. The prompts are too hard or too easy for"
            " this model, or the reward doesn't distinguish completions"
        )
    at = f", at a mean reward of {metrics['reward']:.3g}" if "reward" in metrics else ""
    return FtHostError(f"{told}: the method left out every group{at}")


def reward_metrics(name: str, values: list[float | None]) -> dict[str, Metric]:
    """Return mean and unbiased standard deviation over the completions that have a reward of this function."""
    rewards = [value for value in values if value is not None]
    if not rewards:
        return {}
    squares = sum(value * value for value in rewards)
    return {
        f"rewards/{name}/mean": mean(sum(rewards), len(rewards)),
        f"rewards/{name}/std": std(sum(rewards), squares, len(rewards)),
    }


def variety_metrics(completions: list[Completion], texts: list[str], generations: int) -> dict[str, Metric]:
    """Return the share of different completions of a prompt, which follow each other, and the share of empty ones."""
    if not completions:
        return {}
    metrics = {"completions/empty_share": mean(sum(not text.strip() for text in texts), len(texts))}
    if generations > 1:
        groups = [completions[at : at + generations] for at in range(0, len(completions), generations)]
        distinct = sum(len({tuple(completion.token_ids) for completion in group}) for group in groups)
        metrics["completions/unique_share"] = mean(distinct, len(completions))
    return metrics


def repeat_metrics(
    names: list[str], values: list[list[float | None]], completions: list[Completion], generations: int
) -> dict[str, Metric]:
    """Return for each reward function what it makes of one completion twice: half the mean squared difference of two
    equal completions of a prompt, which is the variance of its noise. Nothing where no completion came twice.

    `values[completion][function]`; the completions of a prompt follow each other. Turns of a conversation aren't
    compared: its tools may have answered otherwise.
    """
    squares, counts = [0.0] * len(names), [0] * len(names)
    for at in range(0, len(completions), generations):
        first: dict[tuple[int, ...], list[float | None]] = {}
        for completion, mine in zip(completions[at : at + generations], values[at : at + generations], strict=True):
            if completion.sampled:
                continue
            theirs = first.setdefault(tuple(completion.token_ids), mine)
            for place, (one, other) in enumerate(zip(mine, theirs, strict=True)):
                if theirs is not mine and one is not None and other is not None:
                    squares[place] += (one - other) ** 2 / 2
                    counts[place] += 1
    return {
        f"rewards/{name}/repeat_variance": mean(square, count)
        for name, square, count in zip(names, squares, counts, strict=True)
        if count
    }


def worth_metrics(totals: list[float | None], completions: list[Completion]) -> dict[str, Metric]:
    """Return the lowest and the highest reward of a completion, and the correlation of reward and length."""
    pairs = [(size(item), value) for item, value in zip(completions, totals, strict=True) if value is not None]
    if not pairs:
        return {}
    lengths, values = zip(*pairs, strict=True)
    return {
        "completions/reward_min": minimum(min(values)),
        "completions/reward_max": maximum(max(values)),
        "completions/reward_length_correlation": correlation(
            sum(lengths),
            sum(values),
            sum(length * length for length in lengths),
            sum(value * value for value in values),
            sum(length * value for length, value in pairs),
            len(pairs),
        ),
    }


def size(completion: Completion) -> int:
    """Return the number of its sampled tokens."""
    return sum(completion.sampled) if completion.sampled else len(completion.token_ids)


def without_zeros(metrics: dict[str, float]) -> dict[str, float]:
    """Return a rollout's metrics over all ranks and prompts without failures of rewards that have none."""
    return {name: value for name, value in metrics.items() if value or not FAILED.fullmatch(name)}


def scoring_of(
    rows: list[Row],
    completions: list[Completion],
    texts: list[str],
    trainer_state: Any,
    tokenizer: PreTrainedTokenizerBase,
) -> Scoring:
    """Return the arguments of reward functions for completions, each with the row of its prompt: texts for text
    prompts, messages for messages."""
    columns = [row["columns"] for row in rows]
    prompts = [row["prompt"] for row in rows]
    return Scoring(
        prompts=prompts,
        completions=[
            completion.messages or as_completion(prompt, text)
            for completion, prompt, text in zip(completions, prompts, texts, strict=True)
        ],
        completion_ids=[completion.token_ids for completion in completions],
        columns={name: [row.get(name) for row in columns] for name in dict.fromkeys(n for row in columns for n in row)},
        trainer_state=trainer_state,
        opened_by_prompt=[opened_by(row["prompt_ids"], tokenizer) for row in rows],
    )


def as_completion(prompt: str | list[Row], text: str) -> str | list[Row]:
    """Return a completion in the format of its prompt: text, or one assistant message."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
