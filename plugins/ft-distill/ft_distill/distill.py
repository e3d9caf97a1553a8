"""On-policy distillation: complete prompts with the policy, and learn at each place of the completions what a teacher
would have said there (arXiv 2306.13649, with lambda 1).

    loss = 1/N sum_i  D( p(. | x, y_<i)  ,  p_teacher(. | x, y_<i) )

over the N tokens that the policy sampled, of the optimizer step, on all ranks. D is the generalised Jensen-Shannon
divergence of `ft_distill.divergence`, with the KL divergences for its ends, of both models at the temperature that
samples. There is no gradient through the sampling. What tools said is in no loss.
"""

from __future__ import annotations

from ft_distill.taught import against_teacher, columns_of, metrics_of, scored, teacher_of
from ft_host.api import (
    Batch,
    LossOutput,
    ModelSpec,
    Rollout,
    completion_batch,
    completion_metrics,
    completion_row,
    hookimpl,
    prompt_row,
    sampling_metrics,
)


@hookimpl
def ft_models(config) -> dict[str, ModelSpec] | None:
    return teacher_of(config)


@hookimpl
def ft_prepare(row, tokenizer, config):
    return prompt_row(row, tokenizer, config)


@hookimpl
def ft_rollout(rows, rollout) -> Rollout:
    size = rollout.config.num_generations
    completions = rollout.generate(rows, size)
    found = [completion_row(rows[index // size], completion) for index, completion in enumerate(completions)]
    metrics, earned = rollout.watch(rows, completions)
    texts = [rollout.tokenizer.decode(each.token_ids, skip_special_tokens=True) for each in completions]
    samples = [
        {"prompt": rows[index // size]["prompt"], "completion": text} | earned[index]
        for index, text in enumerate(texts)
    ]
    return Rollout(rows=found, metrics=metrics | completion_metrics(completions), samples=samples)


@hookimpl
def ft_annotate(rows, run):
    """Once a rollout: what a teacher says that the backend serves."""
    return None if run.config.loss_top_k is None else scored(rows, run)


@hookimpl
def ft_collate(rows, tokenizer, config) -> Batch:
    batch = completion_batch(rows, targets=("sampling_logps",))
    batch.columns |= columns_of(rows, config)
    return batch


@hookimpl
def ft_loss(model, batch, run) -> LossOutput:
    out = against_teacher(model, batch, run)
    if not len(batch.targets):
        return LossOutput(terms={"tokens": out["divergence"]})
    metrics = metrics_of(out, batch)
    if run.rollouts.updates == 1:  # else the policy has moved since
        apart = (out["logps"] - batch.columns["sampling_logps"]).abs()
        metrics |= sampling_metrics(apart, batch.counts["tokens"])
    return LossOutput(terms={"tokens": out["divergence"]}, metrics=metrics)
