"""Which modules are root-mean-square norms that `norm` computes, found by trying."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ft_host.models.lean.norm import NormForm, norm
from ft_host.models.lean.trying import TOLERANCE, apart_by, bound, outcome, random, takes_one, trial, twin_of


def _floats(module: nn.Module) -> list[float]:
    """What may be a norm's epsilon."""
    return sorted({value for value in vars(module).values() if type(value) is float and 0 <= value < 0.1})


def is_norm(module: nn.Module) -> bool:
    parameters = dict(module.named_parameters())
    flat = all(parameter.dim() == 1 for parameter in parameters.values())
    return (
        next(module.children(), None) is None
        and flat
        and len(parameters) <= 1
        and not isinstance(module, nn.LayerNorm)
        and "norm" in type(module).__name__.lower()
        and takes_one(module)
    )


def form_of_norm(module: nn.Module, device: torch.device, types: set[torch.dtype]) -> NormForm | None:
    """The form of a norm, the same for inputs of all these types, or None."""
    own = next(iter(module.parameters()), None)
    name = next((name for name, _ in module.named_parameters()), None)
    width = 8 if own is None else own.numel()
    kinds = [(0.0, False)] if own is None else [(0.0, True), (0.0, False), (1.0, False), (1.0, True)]
    forms = {NormForm(eps, *kind): 0.0 for eps in _floats(module) for kind in kinds}
    held = {own.dtype, *types} if own is not None else {torch.float32}
    for kind, weight_type in itertools.product(sorted(types, key=str), sorted(held, key=str)):
        with trial(device) as generator:
            twin, weights = twin_of(module), []
            if own is not None:
                weight = nn.Parameter(0.5 + random(generator, width, dtype=weight_type, device=device))
                twin.register_parameter(name, weight)
                weights = [weight]
            # the last rows are so small that the epsilon counts
            states = random(generator, 2, 4, width, dtype=kind, device=device)
            states = states * torch.tensor([1.0, 10.0, 1e-2, 1e-3], device=device, dtype=kind)[:, None]
            states.requires_grad_()
            theirs = outcome(twin, states, weights)

            def lean(given: torch.Tensor, form: NormForm, weights: list[torch.Tensor] = weights) -> torch.Tensor:
                return norm(given, weights[0] if weights else None, form)

            apart = {form: apart_by(outcome(bound(lean, form), states, weights), theirs) for form in forms}
            limit = TOLERANCE[min((kind, weight_type), key=lambda dtype: dtype.itemsize)]
            forms = {form: forms[form] + apart[form] for form in forms if apart[form] <= limit}
    return min(forms, key=lambda form: forms[form], default=None)  # forms may differ by a rounding alone


def lean_norm(form: NormForm, weight: str | None) -> Callable[..., torch.Tensor]:
    def forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling():  # the compiler chooses what to keep
            return type(self).forward(self, hidden_states)
        return norm(hidden_states, None if weight is None else self._parameters[weight], form)

    return forward
