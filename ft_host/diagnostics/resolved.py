"""What a run makes of its config: what unset fields stand for, and which have no effect in it. Imports no torch.

A remedy does something where the run, as resolved, would be another one with it, and where the config would be taken.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from ft_host.config.combinations import ONLY_WITH
from ft_host.config.fields import Mismatch, fields_of, fit
from ft_host.config.run import RunConfig
from ft_host.diagnostics.view import View
from ft_host.errors import ConfigError
from ft_host.util.memory import rows_at_a_time

Values = dict[str, Any]
Accepts = Callable[[Values], bool]

# A field that isn't set has the value of another one, or of a fact.
FOLLOWS = {"epsilon_high": "epsilon", "eval_top_p": "top_p", "eval_top_k": "top_k"}
OF_FACTS = {"router_aux_loss_coef": "model/router_aux_loss_coef", "max_staleness": "plan/updates"}
NORMS = 10  # gradient norms to have seen before a limit of them is said to do nothing


def effective(config: Values, view: View) -> Values:
    """Return what the run does with these values, as far as its facts and metrics tell: a field without an effect is
    left out, and one that isn't set has the value that it stands for. Equal for two configs that make the same run."""
    out = dict(config)
    for part in (_stand_ins, _batches, _precision, _without_effect, _limits):
        part(out, view)
    return out


def acceptance(config: RunConfig) -> Accepts:
    """Return whether a run takes a patch of this config: {field: value} -> bool.

    Where the config itself isn't taken here, such as that of a run from another machine, every patch is.
    """
    fields = fields_of(type(config))

    def accepts(patch: Values) -> bool:
        try:
            fitting = {name: fit(fields[name], value) for name, value in patch.items()}
        except Mismatch:
            return False
        return _is_taken(config, fitting) or not _is_taken(config, {})

    return accepts


def _is_taken(config: RunConfig, patch: Values) -> bool:
    try:
        dataclasses.replace(config, **patch).check()
    except ConfigError:
        return False
    return True


# ---------------------------------------------------------------- parts


def _stand_ins(out: Values, view: View) -> None:
    for name, of in FOLLOWS.items():
        if name in out and out[name] is None:
            out[name] = out.get(of)
    for name, fact in OF_FACTS.items():
        if name in out and out[name] is None:
            out[name] = view.facts.get(fact, 0)
    if out.get("lora_target_modules") == "all-linear":
        out["lora_target_modules"] = ["all-linear"]
    if out.get("loss_weights") == [] and isinstance(out.get("loss_type"), list):
        out["loss_weights"] = [1.0] * len(out["loss_type"])
    if "reward_weights" in out and not out["reward_weights"]:
        out["reward_weights"] = [1.0] * len(out["reward"])


def _batches(out: Values, view: View) -> None:
    """A rollout in micro-batches, whichever field says it."""
    if "steps_per_generation" not in out:
        return
    micro = out["per_device_train_batch_size"] * view.facts.get("plan/processes", out["num_processes"])
    size = out.pop("generation_batch_size", None)
    if size is not None:
        out["steps_per_generation"] = size / micro
    elif out["steps_per_generation"] is None:
        out["steps_per_generation"] = out["gradient_accumulation_steps"]


def _precision(out: Values, view: View) -> None:
    if out.get("bf16", True) is None and "plan/mixed_precision" in view.facts:
        out["bf16"] = view.facts["plan/mixed_precision"] == "bf16"
    if out.get("max_grad_norm") == 0:
        out["max_grad_norm"] = math.inf
    warmup, total = out.get("warmup_steps", 0), view.total_steps
    if 0 < warmup < 1 and total:
        out["warmup_steps"] = math.ceil(warmup * total)


def _without_effect(out: Values, view: View) -> None:
    left = [name for switch, names in ONLY_WITH.items() if not out.get(switch) for name in names]
    if out.get("max_steps", -1) > 0:
        left.append("num_train_epochs")
    if not out.get("save_steps"):
        left.append("save_total_limit")
    if view.facts.get("model/dropout") == 0:
        left.append("disable_dropout")
    for name in left:
        out.pop(name, None)


def _limits(out: Values, view: View) -> None:
    """A limit above all that has been met is none."""
    if out.get("decode_batch_size", 0) is None:
        out["decode_batch_size"] = rows_at_a_time(view.config, view.facts)
    norms = view.series.get("grad_norm")
    if norms is not None and len(norms) >= NORMS and math.isfinite(norms.most):
        _open(out, "max_grad_norm", norms.most)
    if not out.get("packing") and not view.facts.get("data/truncated_rows"):
        _open(out, "max_length", view.facts.get("data/length_max"))
    longest = view.series.get("completions/max_length")
    if longest is not None and math.isfinite(longest.most):
        _open(out, "max_completion_length", longest.most)
    if "plan/prompts" in view.facts and "plan/generations" in view.facts:
        whole = view.facts["plan/prompts"] * view.facts["plan/generations"]
        at_a_time = math.ceil(whole / view.facts.get("plan/processes", 1))
        _open(out, "decode_batch_size", max(at_a_time, view.facts.get("plan/scored_rows", 0)))


def _open(out: Values, name: str, most: float | None) -> None:
    if most and name in out and (out[name] is None or out[name] >= most):
        out[name] = math.inf
