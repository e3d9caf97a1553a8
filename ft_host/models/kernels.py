"""Chooses the kernel of a model's attention: the first one that reproduces the model's own numbers for single rows."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import nn

from ft_host.errors import ConfigError
from ft_host.models import probe as trial
from ft_host.models import varlen
from ft_host.models.attention import install, original_of
from ft_host.models.compiling import reason_of
from ft_host.models.layout import NotFlat
from ft_host.models.reach import backbone_of, text_part
from ft_host.util import devices
from ft_host.util.memory import ran_out

if TYPE_CHECKING:
    from ft_host.config import RunConfig
    from ft_host.models.policy import Policy

WHAT = {
    "flex": "one compiled kernel with a block mask",
    "varlen": "torch's flash kernels over rows end to end",
    "sdpa": "one call a segment",
    "none": "padded rows and the model's own attention",
}
ELSEWHERE = ("sdpa", "none")
AUTO = dict.fromkeys(devices.TRITON, ("flex", *ELSEWHERE))  # by type of device
ROUNDING = 5e-3  # in 16 bits: a leak beyond it is none of rounding


def _mixes_otherwise(policy: Policy) -> str | None:
    """Return what in the model is known to mix tokens other than by attention, or None."""
    kinds = policy.config.to_dict().get("layer_types") or ()
    others = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if others:
        return f"it has layers of type {', '.join(others)}"
    for name, module in backbone_of(policy.causal_lm, policy.head).named_modules():
        if isinstance(module, nn.Conv1d):
            return f"{name} is a convolution over tokens"
    return None


def _tolerances(policy: Policy, config: RunConfig) -> tuple[float, float]:
    """Return the largest difference that is rounding, and the largest leak, by the type of the maths.

    A product in 8 bits takes the columns that stand out in any of its rows at full precision: what a row gives does
    depend on the others, within the rounding. So do an expert's products in 16 bits: by how many tokens it has, the
    device picks a kernel.
    """
    if config.load_in_8bit:
        return 0.5, 0.5
    if not trial.rounds(policy):
        return 1e-3, 1e-5
    fields = policy.config.to_dict().items()
    mixture = any("experts" in name and isinstance(value, int) and value > 1 for name, value in fields)
    return 0.5, 0.1 if mixture else ROUNDING


def choose_layout(policy: Policy, config: RunConfig) -> None:
    """Set `policy.kernel` to the first allowed kernel that gives the model's own log-probs or scores, `rows_kernel` to
    that for rows which share no prompt, and `attention` to what is said of both.

    Raises ConfigError where none does: the head isn't supported, or the requested kernel doesn't work. An out-of-memory
    error is let through.
    """
    asked, model, reasons = config.segment_attention, policy.causal_lm, []
    auto = AUTO.get(policy.device.type, ELSEWHERE)
    part = text_part(model)
    original = original_of(part.config)
    for kernel in {"auto": auto, "varlen": auto[:-1]}.get(asked, (asked,)):
        policy.kernel = policy.rows_kernel = kernel
        refusal = _refusal(policy, config)
        if refusal is None:
            break
        reasons.append(f"{kernel}: {refusal}")
        if original_of(part.config) != part.config._attn_implementation:
            part.set_attn_implementation(original)
    else:
        _refuse(policy, config, reasons)
    said = [f"attention: {policy.kernel}, {WHAT[policy.kernel]}"]
    if policy.kernel == "none":
        why = f" ({reasons[0]})" if reasons else ""
        policy.notes.append(f"{type(model).__name__} takes padded batches: it can't take flat ones{why}")
    elif asked == "varlen" or (asked == "auto" and auto != ELSEWHERE):
        said.append(_choose_for_rows(policy, config))
    if asked == "auto" and policy.kernel != auto[0]:
        policy.attention.refused = "; ".join(reasons)
        said.append(policy.attention.refused)
    elif asked != "auto":
        said.append("as segment_attention says")
    policy.attention.said = "; ".join(said)


def _choose_for_rows(policy: Policy, config: RunConfig) -> str:
    """Take varlen for rows that share no prompt, where it can be. Returns what the plan says of it."""
    policy.rows_kernel = "varlen"
    refusal = varlen.missing() or _refusal(policy, config, shared=False)
    if refusal is None:
        return f"where rows share no prompt varlen, {WHAT['varlen']}"
    if config.segment_attention == "varlen":
        raise ConfigError(f"segment_attention varlen: {refusal}")
    policy.rows_kernel = policy.kernel
    return f"not varlen, since {refusal}"


def _refusal(policy: Policy, config: RunConfig, shared: bool = True) -> str | None:
    """Return why the policy's kernel can't be used, for rows that share a prompt or for others; None where it can."""
    kernel = policy.kernel if shared else policy.rows_kernel
    values = "log-probs" if policy.head is None else "scores"
    try:
        if kernel == "flex" and policy.device.type not in devices.TRITON:
            raise NotFlat("torch has a backward pass of flex_attention on CUDA and XPU only")
        if kernel != "none":
            mixer = _mixes_otherwise(policy)
            if mixer:
                raise NotFlat(mixer)
            install(policy.causal_lm)
        difference, leak = trial.probe(policy) if shared else trial.probe(policy, shared=False)
    except (
        NotFlat,
        RuntimeError,
        TypeError,
        AttributeError,
        ValueError,
    ) as error:  # it may read its mask, for instance
        if ran_out(error):
            raise
        return reason_of(error)
    except (subprocess.SubprocessError, OSError) as error:  # of a compiler
        if kernel != "flex":
            raise
        return reason_of(error)
    tolerance, leaking = _tolerances(policy, config)
    if kernel != "none" and leak > leaking:
        return f"a row changes the {values} of another one by {leak:.2g}"
    if not difference <= tolerance:
        return f"{values} differ by {difference:.2g} from those of single rows"
    if shared:
        policy.layout_difference = difference
        # where others' tokens change a row's rounding, the number says nothing
        policy.layout_leak = leak if kernel != "none" and leaking <= ROUNDING else None
    return None


def _refuse(policy: Policy, config: RunConfig, reasons: list[str]) -> NoReturn:
    model, values = policy.causal_lm, "log-probs" if policy.head is None else "scores"
    broken = next((name for name, p in model.named_parameters() if not torch.isfinite(p).all()), None)
    if broken is not None:
        raise ConfigError(
            f"model: {broken} has NaN or infinite values, so all outputs of the model have",
            facts={
                "watch/not_finite": "weight",
                "watch/not_finite_value": "nan",
                "watch/not_finite_step": 0,
                "watch/not_finite_of": "weight",
                "watch/not_finite_parameter": broken,
            },
        )
    raise ConfigError(
        f"model: {type(model).__name__} does not give its own {values} through segment_attention "
        f"{config.segment_attention} ({'; '.join(reasons)})"
    )
