"""GOLD: learn from a teacher with another tokenizer, on completions that are the policy's own, the teacher's, or the
data's (general on-policy logit distillation; universal logit distillation, arXiv 2402.12030).

    loss = w_d/R sum_i  1/U_i sum_u  D_u   -   w_ce/N sum_t  log p(y_t | x, y_<t)

over the U_i units of completion i, runs of tokens of both that spell the same bytes (`ft_gold.tokens`), and the R
completions of the optimizer step that have one, on all ranks. D_u compares what the two expect there
(`ft_gold.losses`):

    hybrid    w_m JSD(tokens that both have)  +  w_u  sum_k |p_(k) - p_teacher,(k)|  (the others, sorted)
    uld       sum_k |p_(k) - p_teacher,(k)|   (all, sorted)

The N tokens of the second term are those that the policy hasn't said itself. The teacher reads the prompt as its own
tokenizer and template make it, and the text of the completion. Where both have the same tokens the loss is the plain
divergence, over all N' tokens of the step:  1/N' sum D(p, p_teacher), as `gkd` of ft-distill has it.

The teacher's sequences are a second batch beside the student's (`batch.linked["teacher"]`), whose targets are the
tokens of its units. Its hidden states live for a micro-batch, and logits of the two for a tile of units.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ft_gold.losses import Aligned, Plain, Weights, ranks_of, shared_of
from ft_gold.metrics import distances, of_tokens, unsure
from ft_gold.rows import asked_as_teacher, introduction, is_chat, policys_row, taught, teachers_row
from ft_gold.tokens import Meeting, meeting
from ft_host.api import (
    Batch,
    Drop,
    LossOutput,
    ModelSpec,
    Rollout,
    RowError,
    TiledDivergence,
    completed_row,
    completion_metrics,
    completion_segments,
    flat_batch,
    hookimpl,
    mean,
    per_target,
    prompt_row,
    seed_of,
    to_device,
    widened,
)

Row = dict[str, Any]


@hookimpl
def ft_models(config) -> dict[str, ModelSpec]:
    spec = ModelSpec(
        source=config.teacher_model_name_or_path,
        field="teacher_model_name_or_path",
        revision=config.teacher_model_revision,
        allow_padded_vocab=True,  # the models of a family may have embeddings of other sizes for the same tokens
        own_tokenizer=config.use_uld_loss is not False,
        hint="leave use_uld_loss out for a teacher with another tokenizer",
    )
    return {"teacher": spec}


# ---------------------------------------------------------------- rows

OTHERWISE = (
    "with lmbda below 1 gold learns from completions of the data too. Set lmbda to 1, or seq_kd to let the teacher"
    " complete prompts"
)


@hookimpl
def ft_prepare(row, tokenizer, config):
    """A prompt as both read it, and beside it the row's own completion, where completions of the data are used."""
    met = meeting(tokenizer, config)
    prompt = prompt_row(row, tokenizer, config)
    if isinstance(prompt, Drop):
        return prompt
    if met is not None:
        if row.get("input_ids") is not None:
            raise RowError(
                "input_ids: tokens are the student's, and the teacher reads others; expected text or messages"
            )
        asked = prompt_row(row, met.theirs.tokenizer, config)
        if isinstance(asked, Drop):
            return Drop("the prompt as the teacher reads it is longer than max_length")
        ids = asked["prompt_ids"]
        prompt |= {"teacher_prompt_ids": ids, "length": max(prompt["length"], len(ids))}
    if not config.uses_data:
        return prompt
    own = completed_row(row, tokenizer, config, OTHERWISE)
    if isinstance(own, Drop):
        return own
    own["on_policy"] = False
    if met is not None:
        if own["prompt_ids"] != prompt["prompt_ids"]:
            return Drop(
                "a token is of both the prompt and its completion, so that the teacher can't be asked from there"
            )
        own = taught(own | {"teacher_prompt_ids": prompt["teacher_prompt_ids"]}, met, config, chat=is_chat(prompt))
    return prompt | {"own": own, "length": max(prompt["length"], own["length"])}


# ---------------------------------------------------------------- rollouts


# Same as ft_distill.gkd.on_policy
def on_policy(config: Any, rollout: int, group: int) -> bool:
    """Whether the policy completes this prompt of a rollout: it depends on nothing else, so that a run that goes on, or
    has other processes, draws the same."""
    return seed_of(config.seed, "on policy", rollout, group) < config.lmbda * 2**31


@hookimpl
def ft_rollout(rows, rollout) -> Rollout:
    """A completion of each prompt, by whoever's turn it is."""
    config, met = rollout.config, meeting(rollout.tokenizer, rollout.config)
    if rollout.number == 0:
        rollout.say(introduction(met, config))
    mine = [row for row in rows if on_policy(config, rollout.number, row["group"])]
    groups = {row["group"] for row in mine}
    others = [row for row in rows if row["group"] not in groups]
    # all ranks must ask at once, those too that have nothing to ask about
    completions = rollout.generate(mine) if config.samples_policy else []
    metrics, earned = rollout.watch(mine, completions) if config.samples_policy else ({}, [])
    made = {row["group"]: policys_row(row, each, met, config) for row, each in zip(mine, completions, strict=True)}
    if config.asks_teacher:
        asked = others if met is None else [row | {"prompt_ids": row["teacher_prompt_ids"]} for row in others]
        ends = None if met is None else sorted({met.theirs.end, met.theirs.turn_end})
        answers = rollout.generate(asked, role="teacher", stop_token_ids=ends)
        made |= {row["group"]: teachers_row(row, each, met, config) for row, each in zip(others, answers, strict=True)}
    else:
        made |= {row["group"]: row["own"] | {"group": row["group"]} for row in others}
    shown = {row["group"]: more for row, more in zip(mine, earned, strict=True)}
    by = {True: "policy", False: "teacher" if config.seq_kd else "data"}
    found = [made[row["group"]] for row in rows]
    samples = [
        {
            "prompt": row["prompt"],
            "completion": rollout.tokenizer.decode(each["completion_ids"], skip_special_tokens=True),
            "extra": {"by": by[each["on_policy"]]},
        }
        | shown.get(row["group"], {})
        for row, each in zip(rows, found, strict=True)
    ]
    metrics |= completion_metrics(completions)
    metrics["distillation/on_policy_share"] = mean(len(mine), len(rows))
    return Rollout(rows=found, metrics=metrics, samples=samples)


# ---------------------------------------------------------------- the loss


@hookimpl
def ft_collate(rows, tokenizer, config) -> Batch:
    rows = [row | row["own"] | {"group": index} if "own" in row else row for index, row in enumerate(rows)]  # held out
    columns = {
        "sampling_logps": per_target(rows, "sampling_logps"),
        "on_policy": torch.tensor([row["on_policy"] for row in rows], dtype=torch.bool),
    }
    host = {}
    aligned = all("units" in row for row in rows)
    if aligned:
        units = [unit for row in rows for unit in row["units"]]
        host["units"] = torch.tensor(units, dtype=torch.long).view(-1, 2)
        spans = [span for row in rows for span in row["unit_spans"]]
        columns["unit_spans"] = torch.tensor(spans, dtype=torch.long).view(-1, 4)
        columns["unit_rows"] = torch.tensor(
            [index for index, row in enumerate(rows) for _ in row["units"]], dtype=torch.long
        )
    batch = flat_batch(completion_segments(rows), num_rows=len(rows), columns=columns)
    batch.host = host
    own = sum(sum(row["sampled"]) for row in rows if row["on_policy"])
    batch.counts = {
        "rows": len(rows),
        "tokens": len(batch.targets),
        "on_policy": own,
        "off_policy": len(batch.targets) - own,
        "trained": 0,
        "compared": 0,
        "own_compared": 0,
    }
    if aligned:
        # a completion of nothing but an end that isn't compared has no token that the teacher could be asked about
        read = [row for row in map(asked_as_teacher, rows) if row["completion_ids"]]
        batch.linked["teacher"] = flat_batch(completion_segments(read), num_rows=len(read))
        compared = [sum(b > 0 for _, b in row["units"]) for row in rows]
        batch.counts |= {
            "trained": sum(count > 0 for count in compared),
            "compared": sum(compared),
            "own_compared": sum(count for count, row in zip(compared, rows, strict=True) if row["on_policy"]),
        }
    return batch


@hookimpl
def ft_loss(model, batch, run) -> LossOutput:
    met = meeting(run.tokenizer, run.config)
    return plain_loss(model, batch, run) if met is None else aligned_loss(model, batch, run, met)


def plain_loss(model: Any, batch: Batch, run: Any) -> LossOutput:
    config, teacher = run.config, run.models["teacher"]
    head = teacher.logits_head(config.temperature)
    # a student whose embedding is larger may have sampled what is no token at all
    read = replace(batch, input_ids=batch.input_ids.clamp(max=head.vocabulary - 1))
    states = teacher(read, want=("hidden",), temperature=config.temperature)["hidden"]
    function = Plain(targets=batch.targets, beta=config.beta)
    out = model(batch, want=(), temperature=config.temperature, divergence=TiledDivergence(states, head, function))
    if not len(batch.targets):
        return LossOutput(terms={"tokens": out["divergence"]})
    own, counts = batch.columns["on_policy"][batch.rows], batch.counts
    metrics = distances(out["losses"], own, (counts["tokens"], counts["on_policy"]), config)
    metrics["distillation/teacher_agreement"] = mean(out["agree"].sum(), counts["tokens"])
    metrics |= unsure(out, head.vocabulary, counts["tokens"])
    return LossOutput(terms={"tokens": out["divergence"]}, metrics=metrics | of_tokens(out, batch, sampled=True))


def aligned_loss(model: Any, batch: Batch, run: Any, met: Meeting) -> LossOutput:
    config, teacher, columns, counts = run.config, run.models["teacher"], batch.columns, batch.counts
    read, units = batch.linked["teacher"], batch.host["units"]
    head = teacher.logits_head(config.teacher_temperature)
    states = teacher(read, want=("hidden",), temperature=config.teacher_temperature)["hidden"]
    compared = (units[:, 1] > 0).nonzero()[:, 0]
    alone = (units[compared] == 1).all(-1)
    compared, alone = to_device([compared, alone], run.device)
    rows_compared = columns["unit_rows"][compared]
    of_row = rows_compared.new_zeros(batch.num_rows).index_add(0, rows_compared, torch.ones_like(rows_compared))
    of_row = of_row.clamp(min=1)
    hybrid, share, strategy = config.uld_use_hybrid_loss, 0.0, config.merge_strategy
    sizes = run.policy.config.vocab_size, head.vocabulary
    if hybrid:
        share = len(met.shared[0]) / head.vocabulary
    given = config.uld_hybrid_matched_weight, config.uld_hybrid_unmatched_weight
    matched, unmatched = (share, 1 - share) if given[0] is None else given
    own, off_policy = columns["on_policy"], run.totals["off_policy"]
    weight = config.uld_crossentropy_weight
    function = Aligned(
        units=units,
        weights=config.uld_distillation_weight / widened(of_row[columns["unit_rows"]] * max(run.totals["trained"], 1)),
        targets=batch.targets,
        their_targets=read.targets,
        spans=columns["unit_spans"],
        ranks=ranks_of((met.ours.ranks, met.theirs.ranks), sizes, run.device) if strategy == "text" else (own, own),
        supervised=(~own[batch.rows]) * (weight / max(off_policy, 1)) if weight else None,
        temperature=config.student_temperature,
        shared=shared_of(met.shared, sizes, run.device, strategy) if hybrid else None,
        parts=Weights(matched=matched, unmatched=unmatched, beta=config.beta),
        loss="hybrid" if hybrid else "uld",
        strategy=strategy,
    )
    divergence = TiledDivergence(states, head, function, [tuple(unit) for unit in units.tolist()])
    out = model(batch, want=(), temperature=config.student_temperature, divergence=divergence)
    if not len(batch.targets):
        return LossOutput(loss=out["divergence"])
    metrics = of_tokens(out, batch, sampled=config.student_temperature == config.temperature)
    metrics["distillation/aligned_share"] = mean(units[units[:, 1] > 0, 0].sum(), counts["tokens"])
    own_units = own[rows_compared]
    metrics |= distances(out["losses"], own_units, (counts["compared"], counts["own_compared"]), config)
    metrics |= unsure(out, head.vocabulary, counts["compared"])
    if hybrid:
        # a token has an equal only where the two are asked for the same text
        if strategy == "text":
            alone = torch.ones_like(alone)
        metrics |= {
            "distillation/matched_loss": mean(out["matched"].sum(), counts["compared"]),
            "distillation/unmatched_loss": mean(out["unmatched"].sum(), counts["compared"]),
            "distillation/matched_mass": mean(out["mass"].sum(), counts["compared"]),
            "distillation/teacher_agreement": mean((out["agree"] * alone).sum(), alone.sum()),
        }
    if weight:
        loss = -(out["exact"] * ~own[batch.rows]).sum()
        metrics["distillation/crossentropy"] = mean(loss, counts["off_policy"])
    # A sum over completions and one over tokens of the data, each divided by its own count: made in one pass over
    # tiles, so they can't be two terms.
    return LossOutput(loss=out["divergence"], metrics=metrics)
