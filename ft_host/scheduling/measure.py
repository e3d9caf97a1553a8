"""What an asynchronous run measures of itself: staleness, effective sample size, engine mismatch, units and time.

The three differences between the sampler's log-probs and the policy's are kept apart:
- staleness: updates between the weights that sampled a token and those that learn from it;
- the effective sample size of the sampler's probabilities against the policy's at the update, which holds staleness and
  mismatch together;
- mismatch: two engines with the same weights, on completions made right after an update.

All functions return parts of metrics, which the host reduces over ranks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from ft_host.data.micro_batches import split_micro_batches
from ft_host.metrics import Metric, effective_share, maximum, mean, total
from ft_host.rollouts.probe import Generate, compared, differences
from ft_host.rollouts.rows import num_targets
from ft_host.scheduling.unit import READY, RUNNING, WAITING, Event, Measured, Unit, Updated
from ft_host.types import Row

if TYPE_CHECKING:
    from ft_host.run import Run

POLICY = "policy "  # how the keys of its requests begin; a teacher's tokens aren't the policy's (`inbox.key_of`)
SHARE, LEAST = 16, 16  # a sixteenth of the rows is looked at, and 16 rows at least
SELDOM = 8  # rollouts of few rows, of one of which 16 are looked at


# ---------------------------------------------------------------- staleness


def versions_of(unit: Unit) -> list[list[int]]:
    """Return the weight versions of the tokens that the policy has sampled for a unit: a list for each request."""
    return [begun.versions for key, begun in unit.begun.items() if key.startswith(POLICY) and begun.versions]


def staleness_metrics(taken: Iterable[Unit], step: int) -> dict[str, Metric]:
    """Return how old the tokens of a rollout are when it is taken, after `step` updates, and the lengths of groups that
    came late beside those of the others.

    A group is late if its oldest token is of older weights than that of another group of the rollout: it was begun
    under weights that others weren't. Lengths are sampled tokens of a completion. Units without a token of the policy,
    and those of which nothing is learnt, are left out.
    """
    units = [(unit, versions_of(unit)) for unit in taken if unit.made is None or unit.made.rows]
    units = [(unit, versions) for unit, versions in units if versions]
    if not units:
        return {}
    ages = [step - version for _, versions in units for each in versions for version in each]
    oldest = [min(map(min, versions)) for _, versions in units]
    late = [version < max(oldest) for version in oldest]
    metrics = {
        "rollouts/staleness_mean": mean(sum(ages), len(ages)),
        "rollouts/staleness_max": maximum(max(ages)),
        "rollouts/late_share": mean(sum(late), len(late)),
    }
    for name, wanted in (("late", True), ("on_time", False)):
        of = [each for each, is_late in zip(units, late, strict=True) if is_late is wanted]
        if of:
            tokens, completions = sum(len(v) for _, each in of for v in each), sum(completions_of(*each) for each in of)
            metrics[f"rollouts/{name}_length"] = mean(tokens, completions)
    return metrics


def completions_of(unit: Unit, versions: list[list[int]]) -> int:
    """Return the completions of a unit. A conversation has a request for each turn, and one row."""
    rows = 0 if unit.made is None else len(unit.made.rows)
    return min(rows, len(versions)) or len(versions)


# ---------------------------------------------------------------- the sampler beside the policy


def sampled(row: Row) -> bool:
    """Return whether the row's targets are tokens that the policy sampled, with the sampler's log-prob of each."""
    return row.get("on_policy", True) and 0 < len(row.get("sampling_logps", ())) == num_targets(row)


def some_of(rows: list[Row], world_size: int) -> list[Row]:
    """Return a rank's part of the rows that are looked at, spread over all of them."""
    count = min(len(rows), max(math.ceil(LEAST / world_size), math.ceil(len(rows) / SHARE)))
    return [rows[index * len(rows) // count] for index in range(count)]


def turn_of(number: int, rows: int) -> bool:
    """Return whether rows of this rollout are looked at: of small ones not each, so that it takes a small part of the
    time."""
    return number % min(SELDOM, math.ceil(LEAST * SHARE / max(rows, 1))) == 0


def sample_metrics(rows: list[Row], run: Run, number: int = 0) -> dict[str, Metric]:
    """Return the effective sample size of the sampler's probabilities against the policy's as it is now, and their mean
    absolute difference in nats a token, on some of a rank's rows.

    The weights are p_policy / p_sampler of each token, and their product over a row; 1 means that all count alike, and
    1/n that one of n counts. One forward pass without gradient; all ranks must call it at once, and a rank may have no
    rows. Rows without `sampling_logps` are left out. `number` of the rollout: of small ones not each is looked at.
    """
    mine = [row for row in rows if sampled(row)]
    count = sum(run.gather(len(mine)))
    if not count or not turn_of(number, count):
        return {}
    chosen = some_of(mine, run.world_size)
    config = run.config
    chunks = split_micro_batches(
        [[row] for row in chosen], config.per_device_eval_batch_size, config.max_tokens_per_micro_batch
    )
    tokens: list[torch.Tensor] = []
    sums: list[torch.Tensor] = []
    for index in range(max(run.gather(len(chunks)))):
        chunk = chunks[index] if index < len(chunks) else []
        logs = differences(chunk, run)
        tokens.append(logs)
        sums += [each.sum() for each in logs.split([num_targets(row) for row in chunk])]
    of_tokens, of_rows = torch.cat(tokens), torch.stack(sums) if sums else torch.zeros(0, dtype=torch.float64)
    largest = run.gather([float(each.max()) if len(each) else -math.inf for each in (of_tokens, of_rows)])
    most = [max(rank[place] for rank in largest) for place in (0, 1)]
    return {
        "rollouts/ess": effective(of_tokens, most[0]),
        "rollouts/ess_rows": effective(of_rows, most[1]),
        "rollouts/logp_difference": mean(of_tokens.abs().sum(), len(of_tokens)),
    }


def effective(logs: torch.Tensor, most: float) -> Metric:
    """Return the effective sample size of weights whose logarithms are given, (N,), as a share of their number. `most`
    is the largest of all ranks, by which they are divided: a long row's weight is beyond what a float holds."""
    weights = (logs - most).exp()
    return effective_share(weights.sum(), weights.square().sum(), len(weights))


def mismatch_metrics(rows: list[Row], run: Run, generate: Generate) -> dict[str, Metric]:
    """Return how far the engine's log-probs are from the policy's where both have the same weights: on a few prompts,
    completed right after an update. All ranks must call it at once; a rank may have no prompts."""
    count, average, most = compared(rows, run, generate, same_version=True)
    if not count:
        return {}
    return {"rollouts/mismatch_mean": mean(average, 1), "rollouts/mismatch_max": maximum(most)}


# ---------------------------------------------------------------- units and time


def ledger_metrics(units: Iterable[Unit], failed: dict[str, int], set_aside: int) -> dict[str, Metric]:
    """Return how many units are ready, running and waiting, how many have failed by cause, and how many prompts are set
    aside."""
    states = Counter(unit.state for unit in units)
    counts = {"ready": states[READY], "running": states[RUNNING], "waiting": states[WAITING], "set_aside": set_aside}
    counts |= {f"failed_{cause}": times for cause, times in failed.items()}
    return {f"rollouts/{name}": total(count) for name, count in counts.items()}


@dataclass
class Times:
    """Adds up what a producer tells, from one rollout to the next."""

    seconds: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    scoring: int = 0  # units whose rewards were computed at once, at most, so far
    updating: float = 0.0
    updates: int = 0
    servers: dict[int, tuple[int, float]] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        if isinstance(event, Measured):
            self.seconds.update(event.seconds)
            self.tokens += event.tokens
            self.scoring = max(self.scoring, event.scoring)
            for server, (tokens, seconds) in event.servers.items():
                before = self.servers.get(server, (0, 0.0))
                self.servers[server] = (before[0] + tokens, before[1] + seconds)
        elif isinstance(event, Updated):
            self.updating += event.seconds
            self.updates += 1

    def take(self, units: Iterable[Unit]) -> dict[str, Metric]:
        """Return the metrics of what was added since the last call; `units` are those that the rollout takes.

        `perf/scoring_time` is what their rewards take with as many at once as there were: an engine is at work on all
        of its requests at the same time, and so are the processes of rewards.
        """
        whole, metrics = sum(self.seconds.values()), {}
        scoring = [unit.made.seconds.get("reward", 0.0) for unit in units if unit.made is not None]
        if scoring:
            metrics["perf/scoring_time"] = mean(sum(scoring) / max(self.scoring, 1), 1)
        if whole:
            busy = self.seconds["generating"] + self.seconds["updating"]
            metrics["perf/engine_time"] = mean(busy, 1)
            metrics["perf/rollout_idle_share"] = mean(whole - busy, whole)
            metrics["perf/rollout_scoring_share"] = mean(self.seconds["scoring"], whole)
        if self.seconds["generating"]:
            metrics["perf/generation_tokens_per_second"] = mean(self.tokens, self.seconds["generating"])
        if self.updates:
            metrics["perf/weight_update_time"] = mean(self.updating, self.updates)
        for server, (tokens, seconds) in self.servers.items():
            metrics[f"rollouts/server_{server}/tokens_per_second"] = mean(tokens, seconds)
        self.seconds, self.tokens, self.servers = Counter(), 0, {}
        self.updating, self.updates = 0.0, 0
        return metrics
