"""Online direct preference optimization (online AI feedback, arXiv 2402.04792): DPO on pairs of the policy's own.

    a    = log p(chosen | prompt) - log p_ref(chosen | prompt)         summed over the sampled tokens of the completion
    b    = log p(rejected | prompt) - log p_ref(rejected | prompt)
    loss = 1/P  sum over pairs  l(a - b)

Of the completions of a prompt, the one that earns the most is chosen and the one that earns the least rejected. P:
pairs of the whole optimizer step. A prompt whose completions all earn the same, or are the same, has no pair: nothing
tells them apart, and it is in no sum and no count. Log-probs are those of the distribution that is sampled
(`temperature`).

A row is a pair, its completions one after the other: row 2i of a batch is pair i's chosen one, row 2i + 1 its rejected
one, both children of their prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from ft_host.api import (
    Batch,
    LossOutput,
    Rollout,
    annotate,
    completion_batch,
    completion_metrics,
    completion_row,
    hookimpl,
    masked_row,
    mean,
    pair_sums,
    prompt_row,
    sampling_metrics,
)

REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")

# ---------------------------------------------------------------- maths


def best_and_worst(rewards: list[float | None]) -> tuple[int, int, float]:
    """The places of the highest and of the lowest reward, the first of equals, and their difference; (0, 1, 0) where no
    two rewards differ by more than round-off. A reward of None is none."""
    known = [(value, -place) for place, value in enumerate(rewards) if value is not None]
    best, worst = (max(known), min(known, key=lambda each: (each[0], -each[1]))) if known else ((0.0, 0), (0.0, -1))
    apart = best[0] - worst[0]
    return (-best[1], -worst[1], apart) if apart > 1e-8 else (0, 1, 0.0)


def sigmoid(margins: torch.Tensor, beta: float) -> torch.Tensor:
    """DPO, arXiv 2305.18290, eq. 7:  - log sigma(beta (a - b))."""
    return -logsigmoid(beta * margins)


def ipo(margins: torch.Tensor, beta: float) -> torch.Tensor:
    """IPO, arXiv 2310.12036, eq. 17:  (a - b - 1 / (2 beta))^2."""
    return (margins - 1 / (2 * beta)) ** 2


# From (P,) differences a - b to (P,) losses.
LOSSES: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {"sigmoid": sigmoid, "ipo": ipo}

# ---------------------------------------------------------------- hooks: rollouts


@hookimpl
def ft_models(config):
    return config.reference_models()


@hookimpl
def ft_prepare(row, tokenizer, config):
    return prompt_row(row, tokenizer, config)


@hookimpl
def ft_rollout(rows, rollout) -> Rollout:
    """A pair of each prompt; without targets where nothing tells its completions apart."""
    size, penalty = rollout.config.num_generations, rollout.config.missing_eos_penalty or 0.0
    completions = rollout.generate(rows, size)
    rewards = rollout.reward(rows, completions)
    texts = rewards.samples(rows)
    earned = [
        None if value is None else value - penalty * (completion.finish_reason == "length")
        for value, completion in zip(rewards.totals(), completions, strict=True)
    ]
    made, shown, apart = [], [], 0.0
    for index, row in enumerate(rows):
        best, worst, difference = best_and_worst(earned[index * size : (index + 1) * size])
        chosen, rejected = index * size + best, index * size + worst
        kept = difference > 0 and completions[chosen].token_ids != completions[rejected].token_ids
        apart += difference if kept else 0.0
        liked, other = (completion_row(row, completions[place]) for place in (chosen, rejected))
        made.append(pair(liked, other, kept))
        extra = {"rejected": texts[rejected]["completion"], "rejected_rewards": texts[rejected]["rewards"]}
        shown.append(texts[chosen] | {"extra": texts[chosen]["extra"] | extra})
    count = sum(row["kept"] for row in made)
    metrics = rewards.metrics | completion_metrics(completions) | rewards.group_metrics(size, [earned])
    metrics |= {"pairs/reward_margin": mean(apart, count), "pairs/kept_share": mean(count, len(made))}
    return Rollout(rows=made, metrics=metrics, samples=shown)


def pair(chosen: dict[str, Any], rejected: dict[str, Any], kept: bool) -> dict[str, Any]:
    """The row of two completions of a prompt."""
    if not kept:
        chosen, rejected = masked_row(chosen), masked_row(rejected)
    shared = chosen["shared"] if chosen["prompt_ids"] == rejected["prompt_ids"] else 0
    return {
        "group": chosen["group"],
        "completion_ids": chosen["completion_ids"],  # whose length is shown beside the sample
        "chosen": chosen,
        "rejected": rejected,
        "kept": kept,
        "length": chosen["length"] + rejected["length"] - shared,
        "shared": 0,  # with other rows: each prompt has one
    }


# ---------------------------------------------------------------- hooks: the loss


@hookimpl
def ft_collate(rows, tokenizer, config) -> Batch:
    completions = [row[name] for row in rows for name in ("chosen", "rejected")]
    batch = completion_batch(completions, targets=("sampling_logps",))
    for name in ("kept", *REFERENCE):
        if all(name in row for row in rows):  # the reference's are annotated
            batch.columns[name] = torch.tensor([row[name] for row in rows], dtype=torch.float32)
    batch.counts["pairs"] = sum(row["kept"] for row in rows)
    return batch


def reference_log_probs(model: Any, batch: Batch, temperature: float) -> dict[str, torch.Tensor]:
    chosen, rejected = pair_sums(model(batch, want=("logp",), temperature=temperature)["logp"], batch)
    return dict(zip(REFERENCE, (chosen, rejected), strict=True))


@hookimpl
def ft_annotate(rows, run):
    return annotate(rows, run, "reference", partial(reference_log_probs, temperature=run.config.temperature))


@hookimpl
def ft_loss(model, batch, run) -> LossOutput:
    config, counts, columns = run.config, batch.counts, batch.columns
    out = model(batch, want=("logp", "entropy"), temperature=config.temperature)
    chosen, rejected = pair_sums(out["logp"], batch)
    a, b = chosen - columns["ref_chosen_logps"], rejected - columns["ref_rejected_logps"]
    loss = (columns["kept"] * LOSSES[config.loss_type](a - b, config.beta)).sum()
    by_pair = {
        "logps/chosen": chosen,
        "logps/rejected": rejected,
        "rewards/chosen": config.beta * a,
        "rewards/rejected": config.beta * b,
        "rewards/margins": config.beta * (a - b),
        "rewards/accuracies": (a > b).float(),
    }
    # of a pair without targets, all of them are 0
    metrics = {name: mean(values.detach().sum(), counts["pairs"]) for name, values in by_pair.items()}
    metrics |= {
        "kl": mean((columns["kept"] * (a + b).detach()).sum(), counts["tokens"]),
        "entropy": mean(out["entropy"].detach().sum(), counts["tokens"]),
    }
    apart = (columns["sampling_logps"] - out["logp"].detach()).abs()
    return LossOutput(terms={"pairs": loss}, metrics=metrics | sampling_metrics(apart, counts["tokens"]))
