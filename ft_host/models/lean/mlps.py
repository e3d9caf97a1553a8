"""Which modules are gated MLPs whose product `gated` computes, found by trying; and mixtures of such experts.

An MLP is tried with small linear layers in place of its own: what it computes of them doesn't depend on their size, on
an adapter or on quantisation, and needs no weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ft_host.models.lean.gated import ACTIVATIONS, gated
from ft_host.models.lean.trying import TOLERANCE, apart_by, bound, outcome, random, trial, twin_of

ROWS, INPUT, INNER = 5, 6, 10  # sizes of what an MLP is tried on


@dataclass(frozen=True)
class MlpForm:
    """The names of the linear layers. `gate` is None where one layer makes both; `first`: its first half is gate."""

    gate: str | None
    up: str
    down: str
    activation: str
    first: bool = True

    def __call__(self, modules: dict[str, Any], states: torch.Tensor) -> torch.Tensor:
        if self.gate is None:
            one, other = modules[self.up](states).chunk(2, -1)
            gate, up = (one, other) if self.first else (other, one)
        else:
            gate, up = modules[self.gate](states), modules[self.up](states)
        return modules[self.down](gated(gate, up, self.activation))


def linears_of(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of those parts of a module that say so: linear layers, with or without adapter."""
    found = {}
    for name, child in module.named_children():
        given = vars(child)
        if "in_features" in given and "out_features" in given:
            found[name] = (given["in_features"], given["out_features"])
    return found


def forms_of_mlp(linears: dict[str, tuple[int, int]]) -> list[MlpForm]:
    """All that a module with these linear layers might be."""
    forms: list[MlpForm] = []
    if len(linears) not in (2, 3):
        return forms
    for order in itertools.permutations(linears):
        *before, down = order
        inner, hidden = linears[down]
        if len(before) == 2 and all(linears[name] == (hidden, inner) for name in before):
            forms += [MlpForm(before[0], before[1], down, activation) for activation in ACTIVATIONS]
        elif len(before) == 1 and linears[before[0]] == (hidden, 2 * inner):
            forms += [MlpForm(None, before[0], down, name, first) for name in ACTIVATIONS for first in (True, False)]
    return forms


def form_of_mlp(module: nn.Module, device: torch.device, dtype: torch.dtype) -> MlpForm | None:
    """What a module with these weights computes: where autocast is on, with it and, more exactly, without it."""
    linears = linears_of(module)
    forms = forms_of_mlp(linears)
    if not forms:
        return None
    with trial(device) as generator:
        twin = twin_of(module)
        parts: dict[str, Any] = dict(module.named_children())
        small = forms[0]
        # of a square one, any layer may be the last
        inner = INPUT if small.gate and len(set(linears[small.down])) == 1 else INNER
        sizes = {small.down: (inner, INPUT)}
        sizes |= {name: (INPUT, inner if small.gate else 2 * inner) for name in linears if name != small.down}
        for name, child in parts.items():
            if name in sizes:
                child = nn.Linear(*sizes[name], bias=False, device=device, dtype=dtype)
                child.weight.data = random(generator, *child.weight.shape, dtype=dtype, device=device)
                parts[name] = child
            twin.add_module(name, child)
        weights = [parts[name].weight for name in sizes]
        states = random(generator, 1, ROWS, INPUT, dtype=dtype, device=device).requires_grad_()
        apart = dict.fromkeys(forms, 0.0)
        for mixed in sorted({False, torch.is_autocast_enabled(device.type)}):
            limit = TOLERANCE[torch.get_autocast_dtype(device.type) if mixed else dtype]
            with torch.autocast(device.type, enabled=mixed):
                torch.manual_seed(0)
                theirs = outcome(twin, states, weights)
                for form in list(apart):
                    torch.manual_seed(0)  # a dropout of its own would be found
                    ours = outcome(bound(lambda given, form: form(parts, given), form), states, weights)
                    apart[form] += apart_by(ours, theirs)
                    if not apart[form] <= limit:
                        del apart[form]
    return min(apart, key=lambda form: apart[form], default=None)  # in 16 bits two kinds of GELU are near each other


def lean_mlp(form: MlpForm) -> Callable[..., torch.Tensor]:
    def forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling():
            return type(self).forward(self, hidden_states)
        return form(self._modules, hidden_states)

    return forward


# ---------------------------------------------------------------- experts


def form_of_gate(module: Any, device: torch.device, dtype: torch.dtype) -> tuple[str, bool] | None:
    """The activation of experts that share one product of gate and up, and whether gate is its first half."""
    with trial(device) as generator:
        joined = random(generator, ROWS, 2 * INNER, dtype=dtype, device=device).requires_grad_()
        theirs = outcome(module._apply_gate, joined, [])
        for name, first in itertools.product(ACTIVATIONS, (True, False)):
            if apart_by(outcome(bound(_gate_of_halves, name, first), joined, []), theirs) <= TOLERANCE[dtype]:
                return name, first
    return None


def inner_of(module: nn.Module) -> int | None:
    """The width of an expert's product, by the matrices that make both its halves and take it; None where there are
    none of such sizes."""
    shapes = [tuple(parameter.shape[1:]) for parameter in module.parameters() if parameter.dim() == 3]
    for makes, takes in itertools.permutations(shapes, 2):
        for at, inner in itertools.product((0, 1), (0, 1)):
            if makes[at] == 2 * takes[inner] and makes[1 - at] == takes[1 - inner]:
                return takes[inner]
    return None


def _gate_of_halves(joined: torch.Tensor, name: str, first: bool) -> torch.Tensor:
    one, other = joined.chunk(2, -1)
    return gated(one, other, name) if first else gated(other, one, name)


def lean_gate(name: str, first: bool) -> Callable[..., torch.Tensor]:
    def apply_gate(self: Any, gate_up_out: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling():
            return type(self)._apply_gate(self, gate_up_out)
        return _gate_of_halves(gate_up_out, name, first)

    return apply_gate
