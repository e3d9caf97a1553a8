"""What distill and gkd have in common: a teacher, and the loss of a batch against it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ft_distill.divergence import Taught, TaughtByTop
from ft_host.api import Batch, FtHostError, Metric, ModelSpec, Sequence, TiledDivergence, mean

Row = dict[str, Any]

OTHERWISE = "ft-gold (ft-host train gold) is for a teacher with another tokenizer"


def teacher_of(config: Any) -> dict[str, ModelSpec] | None:
    """The teacher that the run holds; None where the backend serves it."""
    if config.loss_top_k is not None:
        return None
    spec = ModelSpec(
        source=config.teacher_model_name_or_path,
        field="teacher_model_name_or_path",
        revision=config.teacher_model_revision,
        allow_padded_vocab=True,  # the models of a family may have embeddings of other sizes for the same tokens
        hint=OTHERWISE,
    )
    return {"teacher": spec}


# ---------------------------------------------------------------- a teacher that the backend serves


def scored(rows: list[Row], run: Any) -> list[Row]:
    """Each row with what the teacher says in the place of each target: its likeliest tokens and their log-probs. Raises
    FtHostError for tokens that the student hasn't."""
    top, size = run.config.loss_top_k, run.policy.config.vocab_size
    sequences = [
        Sequence(token_ids=row["prompt_ids"] + row["completion_ids"], start=len(row["prompt_ids"])) for row in rows
    ]
    found = []
    for row, scores in zip(rows, run.score(sequences, top), strict=True):
        pairs = zip(scores.token_ids, scores.logprobs, row["sampled"], strict=True)
        kept = [(ids[:top], logps[:top]) for ids, logps, own in pairs if own]
        for ids, _ in kept:
            if len(ids) < top:
                raise FtHostError(f"loss_top_k: asked for {top} tokens of a place, and the teacher gave {len(ids)}")
            if max(ids) >= size:
                raise FtHostError(
                    f"the backend's teacher says token {max(ids)}, and {run.config.model} has {size}: it reads other "
                    f"tokens; {OTHERWISE}"
                )
        found.append(row | {"teacher_ids": [ids for ids, _ in kept], "teacher_logps": [logps for _, logps in kept]})
    return found


def columns_of(rows: list[Row], config: Any) -> dict[str, torch.Tensor]:
    """What `scored` has put into rows, (N, k) each, where the teacher is the backend's."""
    if config.loss_top_k is None:
        return {}
    shape = (-1, config.loss_top_k)
    return {
        "teacher_ids": torch.tensor([ids for row in rows for ids in row["teacher_ids"]], dtype=torch.long).view(shape),
        "teacher_logps": torch.tensor([logps for row in rows for logps in row["teacher_logps"]]).float().view(shape),
    }


# ---------------------------------------------------------------- the loss


def against_teacher(model: Any, batch: Batch, run: Any) -> dict[str, torch.Tensor]:
    """`divergence`, the sum of the losses of the targets, and, where there are any, their values (N,): see
    `ft_distill.divergence`. The teacher's hidden states live for a micro-batch, and logits of the two for a tile of it.
    """
    config = run.config
    common = {"targets": batch.targets, "beta": config.beta}
    if config.loss_top_k is not None:
        columns, tail = batch.columns, config.loss_add_tail
        function = TaughtByTop(ids=columns["teacher_ids"], teacher=columns["teacher_logps"], tail=tail, **common)
        return model(batch, want=(), temperature=config.temperature, divergence=TiledDivergence(None, None, function))
    teacher = run.models["teacher"]
    head = teacher.logits_head(config.temperature)
    # a student whose embedding is larger may have sampled what is no token at all
    read = replace(batch, input_ids=batch.input_ids.clamp(max=head.vocabulary - 1))
    states = teacher(read, want=("hidden",), temperature=config.temperature)["hidden"]
    divergence = TiledDivergence(states, head, Taught(**common))
    return model(batch, want=(), temperature=config.temperature, divergence=divergence)


def metrics_of(out: dict[str, torch.Tensor], batch: Batch) -> dict[str, Metric]:
    """Means over all targets."""
    tokens = batch.counts["tokens"]
    found = {
        "entropy": mean(out["entropy"].sum(), tokens),
        "distillation/divergence": mean(out["losses"].sum(), tokens),
        "distillation/teacher_agreement": mean(out["agree"].sum(), tokens),
    }
    if "teacher_entropy" in out:  # of a teacher that is here
        found["distillation/teacher_entropy"] = mean(out["teacher_entropy"].sum(), tokens)
    if "teacher_logps" in batch.columns:
        found["distillation/teacher_top_k_mass"] = mean(batch.columns["teacher_logps"].exp().sum(), tokens)
    return found
