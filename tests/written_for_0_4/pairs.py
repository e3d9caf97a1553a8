"""DPO with the NLL of the chosen completion beside it, written against ft-host 0.4.0 and its docs.

loss = 1/P  sum_p  -log sigmoid(beta * ((c_p - r_p) - (ref_c_p - ref_r_p)) - level)  +  alpha / T  sum_p  -c_p

over the P pairs and T tokens of chosen completions of the optimizer step, with c and r the log-probs of a pair's
completions, and level the mean of c - r over the step, times gamma."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ft_host import hookimpl
from ft_host.annotate import annotate, evaluate_rows
from ft_host.batch import IGNORE, Batch, Segment, count_targets, forest
from ft_host.config import RunConfig, option
from ft_host.data import fit_length, is_empty, preference_row, tokenize_completions
from ft_host.diagnostics import Rule, percent
from ft_host.errors import ConfigError
from ft_host.generation.rows import sum_by_row
from ft_host.metrics import maximum, mean
from ft_host.run import Drop, LossOutput, ModelSpec, Run
from ft_host.settings.paths import place_problems

NAMES = ("chosen", "rejected")


@dataclass(kw_only=True)
class Config(RunConfig):
    """Preferences, with a reference."""

    learning_rate: float = option(1e-3, "Peak learning rate.", group="optimisation", gt=0)
    beta: float = option(0.1, "How much a log-ratio counts.", gt=0)
    alpha: float = option(0.5, "Weight of the NLL of the chosen completions.", ge=0)
    gamma: float = option(0.1, "Share of the step's mean margin that is taken off each.", ge=0)
    ref_model: str | None = option(None, "Another model as the reference.")
    precompute_ref_log_probs: bool = option(True, "Make the reference's log-probs before the first step.")

    def check(self) -> None:
        super().check()
        for problem in place_problems(self.ref_model or "", ""):
            raise ConfigError(f"ref_model: {problem}")


@hookimpl
def ft_prepare(row, tokenizer, config):
    found = preference_row(row, tokenizer)
    if any(is_empty(found[name]) for name in NAMES):
        return Drop("empty completion")
    prompt, (chosen, rejected) = tokenize_completions(found, tokenizer, NAMES)
    fitted = fit_length(prompt, [chosen, rejected], config)
    if isinstance(fitted, Drop):
        return fitted
    prompt, (chosen, rejected), cut = fitted
    if chosen == rejected:
        return Drop("chosen and rejected are the same")
    length = len(prompt) + len(chosen) + len(rejected)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "length": length, "truncated": bool(cut)}


@hookimpl
def ft_collate(rows, tokenizer, config):
    segments = []
    for pair, row in enumerate(rows):
        prompt, at = row["prompt"], len(segments)
        segments.append(Segment(input_ids=prompt, labels=[IGNORE] * len(prompt), row=2 * pair))
        for side, answer in enumerate((row["chosen"], row["rejected"])):
            segments.append(Segment(input_ids=answer, labels=answer, row=2 * pair + side, parent=at))
    columns = {
        name: torch.tensor([row[name] for row in rows], dtype=torch.float32)
        for name in ("ref_chosen", "ref_rejected", "level")
        if all(name in row for row in rows)
    }
    counts = {"pairs": len(rows), "tokens": sum(len(row["chosen"]) for row in rows)}
    batch = forest(segments, num_rows=2 * len(rows), columns=columns, counts=counts)
    good = []
    for index, row in enumerate(rows):
        ids, labels = row["prompt"] + row["chosen"], [IGNORE] * len(row["prompt"]) + row["chosen"]
        assert count_targets(labels) == len(row["chosen"])
        good.append(Segment(input_ids=ids, labels=labels, row=index))
    batch.beside["good"] = forest(good, num_rows=len(rows))
    return batch


@hookimpl
def ft_models(config):
    ahead = "rows" if config.precompute_ref_log_probs else None
    return {
        "reference": ModelSpec(
            source=config.ref_model,
            field="ref_model",
            ahead=ahead,
            live=False,
            own_tokens=False,
            padded=False,
            otherwise="train a reference with the policy's vocabulary",
        )
    }


def margins(logp: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,) log-probs of targets to those of chosen and rejected completions, (P,) each."""
    by_row = sum_by_row(logp, batch)
    return by_row[0::2], by_row[1::2]


def of_reference(model, batch):
    chosen, rejected = margins(model(batch, want=("logp",))["logp"], batch)
    return {"ref_chosen": chosen, "ref_rejected": rejected}


def of_policy(model, batch):
    chosen, rejected = margins(model(batch, want=("logp",))["logp"], batch)
    return {"margin": chosen - rejected}


@hookimpl
def ft_annotate(rows, run):
    return annotate(rows, run, "reference", of_reference, identity=("prompt", "chosen", "rejected"))


@hookimpl
def ft_step(rows, run: Run):
    rows = evaluate_rows(rows, run, of_policy)
    ranks = run.gather((sum(row["margin"] for row in rows), len(rows)))
    level = run.config.gamma * sum(total for total, _ in ranks) / max(1, sum(count for _, count in ranks))
    run.took("matching", 0.25)
    run.learn({"model/quiet": True})
    return [row | {"level": level} for row in rows]


@hookimpl
def ft_loss(model, batch, run):
    config, columns = run.config, batch.columns
    chosen, rejected = margins(model(batch, want=("logp",))["logp"], batch)
    away = (chosen - rejected) - (columns["ref_chosen"] - columns["ref_rejected"])
    pairs = -torch.nn.functional.logsigmoid(config.beta * away - columns["level"])
    good = model(batch.beside["good"], want=("entropy",), weight=torch.ones_like)
    run.state["batches"] = run.state.get("batches", 0) + 1
    return LossOutput(
        loss=pairs.sum() / run.totals["pairs"] + config.alpha * good["nll"] / run.totals["tokens"],
        metrics={
            "rewards/accuracies": mean((away > 0).sum(), batch.counts["pairs"]),
            "rewards/margins": mean(config.beta * away.sum(), batch.counts["pairs"]),
            "largest": maximum(pairs.max()),
        },
    )


@hookimpl
def ft_rules():
    return [Rule(
        code="MINE001", title="Pairs aren't told apart", stage="train", needs=("rewards/accuracies",),
        test=lambda view: view["rewards/accuracies"] < 0.02 if view.step > 20 else None,
        message=lambda view: f"{percent(view.mean('rewards/accuracies'))} of pairs are right {view.often}.",
        when="Fewer than 2 % of pairs are right after 20 steps.", why="The model can't read the data.",
        remedy="Look at rows with ft-host data.", source="own judgement",
    )]  # fmt: skip
