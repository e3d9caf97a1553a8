"""Rollouts: what `ft_rollout` gets and returns.

    prompts -> ft_rollout -> (further prompts, where groups were left out) -> ft_annotate -> buffer -> steps × passes

`RolloutRun` holds no model: only `generate` and `reward`. `ft_annotate` computes what needs the policy (old log-probs,
values), once for each rollout, over all ranks. The row buffer is in `buffer`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ft_host.config.rollout import RolloutConfig
from ft_host.errors import FtHostError
from ft_host.generation import Completion, Request, Sampling
from ft_host.metrics import Metric, mean, total
from ft_host.rewards import RewardPool, Scored
from ft_host.rollouts.rewards import (
    Rewards,
    repeat_metrics,
    reward_metrics,
    scoring_of,
    size,
    variety_metrics,
    worth_metrics,
)
from ft_host.rollouts.tools import Toolbox
from ft_host.rollouts.turns import Conversation, run_episodes
from ft_host.types import Rollout as Rollout
from ft_host.types import Row
from ft_host.util.freed import let_go
from ft_host.util.ranks import everywhere
from ft_host.util.seeds import seed_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


ENVIRONMENT = "environment"  # the name of an environment's reward


class _Elsewhere(Exception):
    """Another rank has raised an error of this class and reported it."""

    def __init__(self, kind: type[FtHostError], text: str):
        self.kind, self.text = kind, text


def rollout_sampling(
    config: RolloutConfig, seed: int, role: str = "policy", stop_token_ids: list[int] | None = None
) -> Sampling:
    return Sampling(
        max_new_tokens=config.max_completion_length,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        min_p=config.min_p,
        repetition_penalty=config.repetition_penalty,
        seed=seed,
        role=role,
        stop_token_ids=stop_token_ids,
    )


@dataclass(kw_only=True)
class RolloutRun:
    """The run as `ft_rollout` sees it. It has no model, since rollouts may run elsewhere than the training."""

    config: RolloutConfig
    tokenizer: PreTrainedTokenizerBase
    rank: int
    world_size: int
    version: int  # of the sampling weights: their optimizer step
    number: int  # of the rollout, from 0
    gather: Callable[[Any], list[Any]]  # gathers one picklable value per rank on every rank
    say: Callable[..., None]  # say(text, level): tell the user
    engine: Callable[[list[Request], Sampling], list[Completion]]
    # Given, each conversation with tools goes on by itself. None: they go in rounds, with a call of `engine` each.
    submit: Callable[[Request, Sampling], Future[Completion]] | None = None
    pool: RewardPool
    toolbox: Toolbox | None
    positions: int | None  # the most tokens of a prompt with its completion
    trainer_state: Any
    seconds: dict[str, float] = field(default_factory=dict)
    tokens: int = 0  # sampled by this rank
    calls: int = 0  # of `generate`: each has its own noise
    doing: str = ""  # "generation" or "reward", each of whose waits has a deadline; else what the method does itself
    since: float = field(default_factory=time.monotonic)  # when that began

    def generate(
        self, rows: list[Row], generations: int = 1, role: str = "policy", stop_token_ids: list[int] | None = None
    ) -> list[Completion]:
        """Return `generations` completions of each prompt, those of rows[0] first.

        The policy generates, or the auxiliary model of `role`. `stop_token_ids` replace the tokenizer's EOS. With tools
        or an environment the completions are whole conversations. All ranks must call it at once; a rank may have no
        rows. Raises, on all ranks, what one rank raises.
        """
        started = self._begins("generation")
        let_go()  # training needs other blocks than generation, and more of them would be held than of either
        seed = seed_of(self.config.seed, "rollout", self.number, self.calls)
        sampling = rollout_sampling(self.config, seed, role, stop_token_ids)
        completions = self._together(
            lambda: completed(
                rows,
                generations,
                self.engine,
                sampling,
                self.tokenizer,
                self.config,
                self.toolbox,
                self.positions,
                self._more,
                self.submit,
            )
        )
        self.calls += 1
        let_go()
        self._took("generation", started)
        self.tokens += sum(map(size, completions))
        return completions

    def reward(self, rows: list[Row], completions: list[Completion]) -> Rewards:
        """Return the config's rewards of completions, as `generate` returned them for `rows`.

        All ranks must call it at once. Raises, on all ranks, FtHostError where too many failed in a row.
        """
        started = self._begins("reward")
        texts = [self.tokenizer.decode(item.token_ids, skip_special_tokens=True) for item in completions]
        of = [row for row in rows for _ in range(len(completions) // len(rows))]
        names = reward_names(self.pool, self.toolbox)

        def work() -> Scored:
            found = scored(self.pool, self.toolbox, of, completions, texts, self.trainer_state, self.tokenizer)
            self.pool.unrewarded.add(found.values, names)
            return found

        results = self._together(work)
        for note in dict.fromkeys(note for rank in self.gather(results.notes) for note in rank):
            self.say(note, "warning")
        metrics: dict[str, Metric] = {}
        if self.toolbox is not None:
            metrics |= self.toolbox.metrics(completions)
        for index, name in enumerate(names):
            metrics |= reward_metrics(name, [values[index] for values in results.values])
        failures = {name: results.failures.get(name, []) for name in names}
        failed = self.gather({name: (len(each), each[0][1]) for name, each in failures.items() if each})
        for index, name in enumerate(names):
            told, mine = [rank[name] for rank in failed if name in rank], len(failures[name])
            none = sum(values[index] is None for values in results.values) - mine
            metrics[f"rewards/{name}/none_share"] = mean(none, len(completions))
            if completions:  # also where none has failed: the share is over all prompts, which may have own runs
                metrics[f"rewards/{name}/failed"] = total(mine)
                metrics[f"rewards/{name}/failed_share"] = mean(mine, len(completions))
            if not told:
                continue
            of = sum(self.gather(len(completions)))
            if self.pool.is_new(name, told[0][1]):
                self.say(
                    f"reward {name}: no value for {sum(count for count, _ in told)} of {of} completions: {told[0][1]}; "
                    f"this is said once, rewards/{name}/failed counts them",
                    "warning",
                )
        unrewarded = sum(all(value is None for value in values) for values in results.values)
        metrics["completions/unrewarded_share"] = mean(unrewarded, len(completions))
        for name, logged in results.metrics.items():
            metrics[name] = mean(sum(logged), len(logged))
        self._took("reward", started)
        weights = reward_weights(self.config, len(names))
        rewards = Rewards(
            names=names, weights=weights, values=results.values, texts=texts, metrics=metrics, extra=results.extra
        )
        generations = len(completions) // max(len(rows), 1)
        metrics |= variety_metrics(completions, texts, generations)
        metrics |= repeat_metrics(names, results.values, completions, max(generations, 1))
        metrics |= worth_metrics(rewards.totals(), completions)
        return rewards

    def watch(self, rows: list[Row], completions: list[Completion]) -> tuple[dict[str, Metric], list[dict[str, Any]]]:
        """Return the rewards of completions that aren't trained on: metrics, and for each completion what samples.jsonl
        shows.

        Empty where the config has no rewards. All ranks must call it at once.
        """
        if not self.config.reward:
            return {}, [{} for _ in completions]
        rewards = self.reward(rows, completions)
        return rewards.metrics | rewards.group_metrics(), [
            {"rewards": dict(zip(rewards.names, values, strict=True))} for values in rewards.values
        ]

    def _together(self, work: Callable[[], Any]) -> Any:
        """Return the result of `work`. What it raises on one rank is raised on all, so that no rank waits for another
        forever.
        """
        result, problem = None, None
        try:
            result = work()
        except _Elsewhere as error:
            raise everywhere(error.kind(error.text)) from None
        except FtHostError as error:
            problem = error
        told = [each for each in self.gather(None if problem is None else (type(problem), str(problem))) if each]
        if problem is not None:
            raise everywhere(problem)
        if told:
            kind, text = told[0]
            raise everywhere(kind(text))
        return result

    def _more(self, wants: bool) -> bool:
        """Return whether any rank has something to generate.

        A rank that has failed since the last call is at the end of `_together`, and reports its error in
        this exchange.
        """
        told = self.gather(wants)
        for each in told:
            if isinstance(each, tuple):
                raise _Elsewhere(*each)
        return any(told)

    def _begins(self, what: str) -> float:
        self.doing, self.since = what, time.monotonic()
        return time.perf_counter()

    def _took(self, what: str, started: float) -> None:
        self.doing, self.since = "", time.monotonic()
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - started


# ---------------------------------------------------------------- shared with evaluation


def completed(
    rows: list[Row],
    generations: int,
    engine: Callable[[list[Request], Sampling], list[Completion]],
    sampling: Sampling,
    tokenizer: PreTrainedTokenizerBase,
    config: RolloutConfig,
    toolbox: Toolbox | None,
    positions: int | None,
    more: Callable[[bool], bool],
    submit: Callable[[Request, Sampling], Future[Completion]] | None = None,
) -> list[Completion]:
    """Return `generations` completions of each prompt row. A row's `group` determines its noise. `more` says, on all
    ranks, whether any of them has something to generate. See `run_episodes` for `submit`."""
    if toolbox is not None:
        return run_episodes(rows, generations, engine, sampling, tokenizer, config, toolbox, more, positions, submit)
    requests = [
        Request(prompt_ids=row["prompt_ids"], number=row["group"] * generations + index)
        for row in rows
        for index in range(generations)
    ]
    return engine(requests, sampling)


def reward_names(pool: RewardPool, toolbox: Toolbox | None) -> list[str]:
    return [*pool.names, *([ENVIRONMENT] if toolbox is not None and toolbox.rewards else [])]


def reward_weights(config: RolloutConfig, count: int) -> list[float]:
    """Return the weights of `count` rewards; that of an environment comes last and is 1."""
    weights = list(config.reward_weights) or [1.0] * len(config.reward)
    return weights + [1.0] * (count - len(weights))


def scored(
    pool: RewardPool,
    toolbox: Toolbox | None,
    rows: list[Row],
    completions: list[Completion],
    texts: list[str],
    trainer_state: Any,
    tokenizer: PreTrainedTokenizerBase,
) -> Scored:
    """Return the rewards of completions, each with the row of its prompt; an environment's own comes last."""
    if not completions:
        return Scored(values=[])
    results = pool.score(scoring_of(rows, completions, texts, trainer_state, tokenizer))
    if toolbox is not None and toolbox.rewards:
        talks: list[Conversation] = completions
        for values, talk in zip(results.values, talks, strict=True):
            values.append(talk.reward)
        problems = [(index, talk.reward_problem) for index, talk in enumerate(talks) if talk.reward_problem]
        results = replace(results, failures=results.failures | ({ENVIRONMENT: problems} if problems else {}))
    return results
