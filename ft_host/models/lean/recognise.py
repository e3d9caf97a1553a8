"""Which modules of a model are lean from now on: those found to compute what `norm`, `gated` and `rotary` do."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from torch import nn

from ft_host.models.lean.fusing import fuse_norm, fuse_product
from ft_host.models.lean.mlps import form_of_gate, form_of_mlp, forms_of_mlp, inner_of, lean_gate, lean_mlp, linears_of
from ft_host.models.lean.norms import form_of_norm, is_norm, lean_norm
from ft_host.models.lean.rotary import is_rotation, lean_attention, rotation_of_class
from ft_host.models.lean.trying import TOLERANCE, takes_one
from ft_host.util.devices import TRITON


@dataclass
class Found:
    """How many modules of a kind there are, how many compute what is known, and how many of these in kernels for the
    whole of it, compiled or torch's own. Experts count as fused MLPs alone."""

    norms: int = 0
    lean_norms: int = 0
    mlps: int = 0
    lean_mlps: int = 0
    others: set[str] = field(default_factory=set)  # classes of those that don't
    experts: int = 0  # mixtures whose experts share one product of gate and up
    lean_experts: int = 0
    lean_rotations: int = 0  # attention modules whose rotation is known; others keep no more than they did
    fused_norms: int = 0
    fused_mlps: int = 0
    eager: dict[str, set[str]] = field(default_factory=dict)  # by reason, what isn't fused where Triton might

    def notes(self) -> list[str]:
        """What the plan says of modules that keep all that they kept."""
        kinds = (
            ("norms", self.norms, self.lean_norms),
            ("gated MLPs", self.mlps, self.lean_mlps),
            ("mixtures of experts", self.experts, self.lean_experts),
        )
        left = [f"{total - lean} of {total} {what}" for what, total, lean in kinds if lean < total]
        classes = ", ".join(sorted(self.others))
        said = [f"{' and '.join(left)} are not of a known form, and keep more memory: {classes}"] if left else []
        return said + [
            f"{', '.join(sorted(what))} are computed operation by operation, which takes longer: {why}"
            for why, what in self.eager.items()
        ]

    def fused(self, what: str, failed: dict[torch.dtype, str]) -> bool:
        """Whether a module is, for inputs of all types; which is noted if it isn't."""
        for dtype, why in failed.items():
            self.eager.setdefault(why, set()).add(f"{what} of {str(dtype).removeprefix('torch.')}")
        return not failed


def _key(module: nn.Module) -> tuple[Any, ...]:
    """Modules with the same key compute the same of their weights."""
    plain = (int, float, bool, str)
    values = sorted((name, repr(value)) for name, value in vars(module).items() if type(value) in plain)
    called = sorted((name, id(value)) for name, value in vars(module).items() if inspect.isroutine(value))
    parts = [(name, type(child), repr(child) if not vars(child)["_modules"] else "") for name, child in _small(module)]
    return type(module), tuple(values), tuple(called), tuple(parts)


def _small(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The parts of a module that aren't linear layers."""
    linear = linears_of(module)
    return [(name, child) for name, child in module.named_children() if name not in linear]


HALF = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def make_lean(model: nn.Module, device: torch.device, precision: str, fuse: bool = True) -> Found:
    """Give the norms, gated MLPs and attentions of a model, whose form is known, their lean forward.

    `precision`: accelerate's name of the type of matrix products, a key of `HALF`. `fuse`: compile them, where Triton
    compiles for the device. Modules whose forward was already exchanged stay as they are, and so does a model in
    float64.
    """
    found, known, autocast = Found(), dict[Any, Any](), HALF[precision]
    held = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    held &= set(TOLERANCE)
    types = held | ({autocast} if autocast else set())
    if not types or any(parameter.dtype == torch.float64 for parameter in model.parameters()):
        return found
    fuse = fuse and device.type in TRITON
    widest = max(held or types, key=lambda dtype: dtype.itemsize)

    def once(module: nn.Module, find: Callable[[], Any]) -> Any:
        key = _key(module)
        if key not in known:
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                known[key] = find()
        return known[key]

    for module in list(model.modules()):
        if "forward" in vars(module):
            continue
        if is_norm(module):
            form = once(module, lambda module=module: form_of_norm(module, device, types))
            found.norms += 1
            if form is None:
                found.others.add(type(module).__name__)
                continue
            found.lean_norms += 1
            name = next((name for name, _ in module.named_parameters()), None)
            module.forward = MethodType(lean_norm(form, name), module)
            if fuse:
                found.fused_norms += found.fused(
                    "norms", fuse_norm(form, next(module.parameters(), None), types, device)
                )
        elif forms_of_mlp(linears_of(module)) and takes_one(module):
            form = once(module, lambda module=module: form_of_mlp(module, device, widest))
            found.mlps += 1
            if form is None:
                found.others.add(type(module).__name__)
                continue
            found.lean_mlps += 1
            module.forward = MethodType(lean_mlp(form), module)
            if fuse:
                width = linears_of(module)[form.down][0]
                failed = fuse_product(form.activation, width, form.gate is None, types, device)
                found.fused_mlps += found.fused("gated MLPs", failed)
        elif "_apply_gate" in dir(type(module)) and vars(module).get("has_gate", True):
            form = once(module, lambda module=module: form_of_gate(module, device, widest))
            found.experts += 1
            if form is None:
                found.others.add(type(module).__name__)
                continue
            found.lean_experts += 1
            module._apply_gate = MethodType(lean_gate(*form), module)
            if fuse:
                failed = fuse_product(form[0], inner_of(module), True, types, device)
                found.fused_mlps += found.fused("experts", failed)
        elif rotation := rotation_of_class(type(module)):
            names, own = rotation
            if own not in known:
                known[own] = is_rotation(own, device, types)
            if known[own]:
                found.lean_rotations += 1
                module.forward = MethodType(lean_attention(type(module), names, own), module)
    return found
