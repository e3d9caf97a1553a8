"""KTO: learn from single completions that are marked good or bad (Kahneman-Tversky optimization, arXiv 2402.01306).

    r_i  = log p(y_i | x_i) - log p_ref(y_i | x_i)                     summed over the tokens of the completion
    z    = max(0, 1/N sum_i  log p(y_k | x_i) - log p_ref(y_k | x_i))  y_k: another row's completion, k = k(i)
    loss = 1/N sum_i  w_i l(r_i, z)                                    N: rows of the whole optimizer step, on all ranks

    kto                l = 1 - sigmoid(b (r - z)) of a good completion, 1 - sigmoid(b (z - r)) of a bad one
    apo_zero_unpaired  the same with z = 0 (APO-zero, arXiv 2408.06266, applied to single completions)

z estimates how far policy and reference are apart on what neither was asked to say; it holds no gradient. The paper
makes it over a micro-batch; here it is made over the whole step at the weights before the update (`kl_scope: step`), so
that it does not depend on how the step is cut, ordered or spread over ranks. `kl_scope: micro_batch` is the other one.

Simplified: a step of one row has z = 0. Where more than half of a step's rows share one prompt, some of them must be
paired with a completion of their own prompt; where all do, each gets its neighbour's. Equal completions of different
prompts are not kept apart.
"""

from __future__ import annotations

import hashlib
from array import array
from itertools import zip_longest
from typing import Any

import torch

from ft_host.api import (
    IGNORE,
    Batch,
    Drop,
    LossOutput,
    ModelSpec,
    Segment,
    annotate,
    fit_length,
    flat_batch,
    hookimpl,
    is_empty,
    mean,
    policy_values,
    sum_by_row,
    tokenize_completions,
    total,
    unpaired_rows,
)
from ft_kto.balance import weigh_labels

# ---------------------------------------------------------------- maths


def kto_loss(ratios: torch.Tensor, labels: torch.Tensor, kl: torch.Tensor, beta: float) -> torch.Tensor:
    """Return KTO's losses, without weights: (R,) log-ratios in nats, (R,) bool labels and (R,) or scalar KL, to (R,)
    losses.
    """
    away = beta * (ratios - kl)
    return torch.where(labels, 1 - torch.sigmoid(away), 1 - torch.sigmoid(-away))


def apo_zero_unpaired_loss(ratios: torch.Tensor, labels: torch.Tensor, kl: torch.Tensor, beta: float) -> torch.Tensor:
    """Return APO-zero's losses of single completions, with the same shapes; `kl` is ignored."""
    value = torch.sigmoid(beta * ratios)
    return torch.where(labels, 1 - value, value)


LOSSES = {"kto": kto_loss, "apo_zero_unpaired": apo_zero_unpaired_loss}


def reference_log_probs(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
    """Return the reference's log-prob of each row's completion, (R,) in nats."""
    return {"ref_logps": sum_by_row(model(batch, want=("logp",))["logp"], batch)}


def policy_log_probs(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
    """Return the policy's log-prob of each row's completion, (R,) in nats."""
    return {"logps": sum_by_row(model(batch, want=("logp",))["logp"], batch)}


# ---------------------------------------------------------------- mismatched pairs


def digest(token_ids: list[int]) -> bytes:
    """Return a name for a list of tokens, the same in every process."""
    return hashlib.blake2b(array("q", token_ids).tobytes(), digest_size=16).digest()


def rotation(names: list[tuple[bytes, bytes]]) -> list[int]:
    """Return for each row the index of the row whose completion it is paired with. Each completion is used once.

    `names`: names of prompt and completion of each row. The pairs depend on the set of rows, not on their order: rows
    are sorted by name, so that those of one prompt are adjacent, and completions are rotated by the size of the largest
    such group. A prompt is then paired with its own completion only where one prompt has more than half of the rows;
    with a single prompt, completions are rotated by one. Needs two rows.
    """
    order = sorted(range(len(names)), key=lambda index: names[index])
    sizes: dict[bytes, int] = {}
    for prompt, _ in names:
        sizes[prompt] = sizes.get(prompt, 0) + 1
    turn = max(sizes.values()) if len(sizes) > 1 else 1
    partners = [0] * len(names)
    for place, index in enumerate(order):
        partners[index] = order[(place + turn) % len(order)]
    return partners


def chunks(rows: list, config: Any) -> list[list]:
    """Return the rows of each KL estimate: all of them, or those of each micro-batch."""
    if config.kl_scope == "step":
        return [rows]
    size = config.per_device_train_batch_size
    return [rows[at : at + size] for at in range(0, len(rows), size)]


def uncut(row: dict) -> list[int]:
    """Return the tokens of a row's completion as it was before `max_length` cut it."""
    return row.get("uncut_ids", row["completion_ids"])


def other_completions(rows: list[dict], run: Any) -> list[list[int] | None]:
    """Return another row's completion, uncut, for each of this rank's rows; None where there is no other row. All ranks
    call it.

    Its own prompt has cut it where it is trained on; beside another prompt another part of it fits.
    """
    if run.config.kl_scope == "micro_batch":  # each gets the one before it, the first of a micro-batch the last
        others = []
        for chunk in chunks([uncut(row) for row in rows], run.config):
            others += [None] if len(chunk) == 1 else [chunk[-1], *chunk[:-1]]
        return others
    mine = [(digest(row["prompt_ids"]), digest(uncut(row)), uncut(row)) for row in rows]

    def paired(step: list[tuple[bytes, bytes, list[int]]]) -> list[list[int] | None]:
        if len(step) < 2:
            return [None] * len(step)
        return [step[index][2] for index in rotation([each[:2] for each in step])]

    return run.over_ranks(mine, paired)


def mismatched(row: dict, completion_ids: list[int], max_length: int | None) -> dict:
    """Return a row with another row's completion, truncated at its end if necessary. At least one token of
    it is kept.
    """
    prompt_ids = row["prompt_ids"]
    if max_length is not None:
        completion_ids = completion_ids[: max_length - len(prompt_ids)]
    length = len(prompt_ids) + len(completion_ids)
    return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "label": row["label"], "length": length}


# ---------------------------------------------------------------- hooks


@hookimpl
def ft_models(config) -> dict[str, ModelSpec] | None:
    ahead = None
    if config.reference_is_made_ahead:
        ahead = "steps" if config.estimates_kl else "rows"  # who is paired with whom depends on the rows of a step
    return config.reference_models(ahead)


@hookimpl
def ft_prepare(row, tokenizer, config):
    """One row of each completion: two of a pair, which is left out as a whole where one of them can't be used."""
    rows = [prepared(each, tokenizer, config) for each in unpaired_rows(row, tokenizer)]
    for each in rows:
        if isinstance(each, Drop):
            return each
    if len(rows) == 2 and rows[0]["completion_ids"] == rows[1]["completion_ids"]:
        return Drop("chosen and rejected are the same")
    return rows


def prepared(row: dict, tokenizer: Any, config: Any) -> dict | Drop:
    """Return the tokens of one completion and its prompt, within max_length."""
    if is_empty(row["completion"] if "completion" in row else row["completion_ids"]):
        return Drop("empty completion")
    prompt_ids, completions = tokenize_completions(row, tokenizer, ("completion",))
    fitted = fit_length(prompt_ids, completions, config)
    if isinstance(fitted, Drop):
        return fitted
    (prompt_ids, [completion_ids], cut), whole = fitted, completions[0]
    if len(prompt_ids) + len(completion_ids) < 2:
        return Drop("a completion of one token without a prompt, which nothing predicts")
    return {
        "prompt_ids": prompt_ids,
        "completion_ids": completion_ids,
        "label": row["label"],
        "length": len(prompt_ids) + len(completion_ids),
        "truncated": bool(cut),
        "cut": {"completion" if name == 0 else name: count for name, count in cut.items()},
        **({"uncut_ids": whole} if len(whole) > len(completion_ids) else {}),
    }


@hookimpl
def ft_annotate(rows, run):
    """Reference log-probs of the rows and of the mismatched pairs that the KL is estimated on."""
    config = run.config
    others = other_completions(rows, run) if config.estimates_kl else []
    pairs = {
        index: mismatched(rows[index], other, config.max_length)
        for index, other in enumerate(others)
        if other is not None
    }
    asked = annotate(
        [*rows, *pairs.values()],
        run,
        "reference",
        reference_log_probs,
        identity=("prompt_ids", "completion_ids"),
        key="sum",
    )
    out = [dict(row) for row in asked[: len(rows)]]
    for index, pair in zip(pairs, asked[len(rows) :], strict=True):
        out[index]["mismatched"] = pair
    return out


@hookimpl
def ft_step(rows, run):
    """The KL estimate at current weights, as a column of the rows."""
    if run.model.training:
        weigh_labels(rows, run)
    if not run.config.estimates_kl:
        return rows
    asked = iter(policy_values([row["mismatched"] for row in rows if "mismatched" in row], run, policy_log_probs))
    apart = []  # (sum of the log-ratios, how many) of each chunk
    for chunk in chunks(rows, run.config):
        pairs = [next(asked) for row in chunk if "mismatched" in row]
        apart.append((sum(pair["logps"] - pair["ref_logps"] for pair in pairs), len(pairs)))
    kls = []
    for ranks in zip_longest(*run.gather(apart), fillvalue=(0.0, 0)):  # micro-batches of one number belong together
        count = sum(each[1] for each in ranks)
        kls.append(max(0.0, sum(each[0] for each in ranks) / count) if count else 0.0)
    return [row | {"kl": kl} for chunk, kl in zip(chunks(rows, run.config), kls) for row in chunk]


@hookimpl
def ft_collate(rows, tokenizer, config) -> Batch:
    segments = [
        Segment(
            input_ids=row["prompt_ids"] + row["completion_ids"],
            labels=[IGNORE] * len(row["prompt_ids"]) + row["completion_ids"],
            row=index,
        )
        for index, row in enumerate(rows)
    ]
    labels = [row["label"] for row in rows]
    columns = {"labels": torch.tensor(labels, dtype=torch.bool)}
    for name in ("ref_logps", "kl"):
        if all(name in row for row in rows):  # absent while they are computed
            columns[name] = torch.tensor([row[name] for row in rows], dtype=torch.float32)
    batch = flat_batch(segments, num_rows=len(rows), columns=columns)
    batch.counts = {
        "rows": len(rows),
        "desirable": sum(labels),
        "undesirable": len(rows) - sum(labels),
        "tokens": len(batch.targets),
    }
    return batch


@hookimpl
def ft_loss(model, batch, run) -> LossOutput:
    config, labels, totals = run.config, batch.columns["labels"], run.totals
    out = model(batch, want=("logp", "entropy", "mean_logit"))
    logps = sum_by_row(out["logp"], batch)
    ratios = logps - batch.columns["ref_logps"]
    kl = batch.columns["kl"] if config.estimates_kl else torch.zeros_like(ratios)
    losses = LOSSES[config.loss_type](ratios, labels, kl, config.beta)
    weights = torch.where(labels, config.desirable_weight, config.undesirable_weight)

    metrics = {"entropy": mean(out["entropy"].detach().sum(), batch.counts["tokens"])}
    if config.estimates_kl:
        metrics["kl"] = mean(kl.sum(), batch.num_rows)
    rewards, margin = config.beta * ratios.detach(), 0.0
    for name, label, where, sign in (("chosen", "desirable", labels, 1), ("rejected", "undesirable", ~labels, -1)):
        of_tokens = where[batch.rows]
        metrics[f"logits/{name}"] = mean((out["mean_logit"] * of_tokens).sum(), of_tokens.sum())
        metrics[f"logps/{name}"] = mean((logps.detach() * where).sum(), batch.counts[label])
        metrics[f"rewards/{name}"] = mean((rewards * where).sum(), batch.counts[label])
        margin = margin + sign * (rewards * where).sum() / max(totals[label], 1)
    if totals["desirable"] and totals["undesirable"]:  # the difference of two means; adds up over micro-batches
        metrics["rewards/margins"] = total(margin)
    return LossOutput(terms={"rows": (weights * losses).sum()}, metrics=metrics)
