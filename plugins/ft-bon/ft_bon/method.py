"""Best of n: sample n completions of each prompt, and fine-tune on those that earn the most (rejection sampling; RAFT,
arXiv 2304.06767).

    loss = - 1/T  sum over completions that are kept  sum_t log p(y_t)

T: sampled tokens of kept completions of the whole optimizer step. Kept are the `num_kept` with the highest rewards of
their prompt, the first of equals, without those below `min_reward`. A prompt whose completions all earn the same has no
best one: it is left out, unless `keep_equal`. A reward of None is never the best.

There is no reference and no baseline: what is worse than the best is not learnt from, not even as what to avoid.
Log-probs are those of the distribution that was sampled (`temperature`).
"""

from __future__ import annotations

from ft_host.api import (
    Batch,
    LossOutput,
    Rollout,
    completion_batch,
    completion_metrics,
    completion_row,
    groups_differ,
    hookimpl,
    masked_row,
    mean,
    prompt_row,
    sampling_metrics,
)

# ---------------------------------------------------------------- maths


def best(rewards: list[float | None], count: int) -> list[int]:
    """The places of the `count` highest rewards, highest first and the first of equals; None comes last."""
    order = sorted(range(len(rewards)), key=lambda place: (rewards[place] is None, -(rewards[place] or 0.0)))
    return order[:count]


# ---------------------------------------------------------------- hooks


@hookimpl
def ft_prepare(row, tokenizer, config):
    return prompt_row(row, tokenizer, config)


@hookimpl
def ft_rollout(rows, rollout) -> Rollout:
    """The best completions of each prompt; without targets where they are rejected."""
    config, size = rollout.config, rollout.config.num_generations
    completions = rollout.generate(rows, size)
    rewards = rollout.reward(rows, completions)
    earned, samples = rewards.totals(), rewards.samples(rows)
    least = float("-inf") if config.min_reward is None else config.min_reward
    made, shown = [], []
    kept = gains = total = 0.0
    for index, differ in enumerate(groups_differ([earned], size)):
        group = earned[index * size : (index + 1) * size]
        known = [value for value in group if value is not None]
        for place in best(group, config.num_kept):
            row, value = completion_row(rows[index], completions[index * size + place]), group[place]
            if value is None or value < least or not (differ or config.keep_equal):
                row = masked_row(row)
            else:
                kept, total, gains = kept + 1, total + value, gains + value - sum(known) / len(known)
            made.append(row)
            shown.append(samples[index * size + place])
    metrics = rewards.metrics | completion_metrics(completions) | rewards.group_metrics(size)
    metrics |= {
        "best/reward": mean(total, kept),
        "best/gain": mean(gains, kept),
        "best/kept_share": mean(kept, len(made)),
    }
    return Rollout(rows=made, metrics=metrics, samples=shown)


@hookimpl
def ft_collate(rows, tokenizer, config) -> Batch:
    return completion_batch(rows, targets=("sampling_logps",))


@hookimpl
def ft_loss(model, batch, run) -> LossOutput:
    def losses(values, part):  # of some targets, a slice
        return -values["logp"]

    out = model(batch, want=("logp", "entropy"), loss=losses, temperature=run.config.temperature)
    tokens = batch.counts["tokens"]
    apart = (batch.columns["sampling_logps"] - out["logp"].detach()).abs()
    return LossOutput(
        terms={"tokens": out["loss"]},
        metrics={"entropy": mean(out["entropy"].detach().sum(), tokens)} | sampling_metrics(apart, tokens),
    )
