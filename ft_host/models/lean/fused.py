"""The norm and the gated product as compiled kernels, forward and backward, where Triton compiles for the device.

Pure functions over rows, (N, H), that autograd doesn't see into: `norm.Norm` and `gated.Gated` call them in both passes
in place of their operations one by one, for what `fusing` has tried and put into `FUSED`. N is a symbol of what is
compiled, H a constant. With `emulate_precision_casts` Inductor rounds where those operations do, in registers, so that
a run has the numbers that it would have without.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch._dynamo.comptime import comptime
from torch.nn import functional as F

from ft_host.models import compiling

if TYPE_CHECKING:
    from ft_host.models.lean.norm import NormForm

aten = torch.ops.aten

FUSED: set[Any] = set()  # keys, below, of what gives the numbers of operations one by one
LEAST = 2  # rows: 0 and 1 would be other kernels
# Elements of a product from which on it is computed here. To call what is compiled takes Python 50 µs, as long as to
# launch ten kernels, and stands for two or three. An estimate: with fewer elements a GPU waits for Python in any case.
MANY = 1 << 23

VALUES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
}
# The gradient by x, from that by the value in float32. As torch's own, of a sigmoid it goes by the value as rounded.
SLOPES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "silu": lambda grad, x: aten.silu_backward(grad, x.float()),
    "gelu": lambda grad, x: aten.gelu_backward(grad, x.float()),
    "gelu_tanh": lambda grad, x: aten.gelu_backward(grad, x.float(), approximate="tanh"),
    "relu": lambda grad, x: aten.threshold_backward(grad, x.float(), 0),
    "sigmoid": lambda grad, x: aten.sigmoid_backward(grad, value_of(x, "sigmoid").float()),
}


# ---------------------------------------------------------------- what is compiled


def value_of(x: torch.Tensor, name: str) -> torch.Tensor:
    """An activation. Rounded once, as torch's own: Inductor takes them apart, and would round each part."""
    return VALUES[name](x.float()).to(x.dtype)


def product(gate: torch.Tensor, up: torch.Tensor, name: str) -> torch.Tensor:  # (N, I)
    comptime.force_static(gate.stride(0))  # of halves of one tensor: else values would be loaded one by one
    comptime.force_static(up.stride(0))
    return value_of(gate, name) * up


def of_gate_and_up(
    grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients by gate and by up, in one pass over all three."""
    comptime.force_static(gate.stride(0))
    comptime.force_static(up.stride(0))
    of_up = (value_of(gate, name) * grad).to(up.dtype)
    of_value = (grad * up).to(gate.dtype)
    return SLOPES[name](of_value.float(), gate).to(gate.dtype), of_up


def normed(
    states: torch.Tensor, weight: torch.Tensor, eps: float, offset: float, narrow_first: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, H) to the output and (N, 1), by which a row is multiplied. See `norm.NormForm`."""
    wide = states.float()
    ratio = (wide.pow(2).mean(-1, keepdim=True) + eps).rsqrt()
    out = wide * ratio
    if narrow_first:
        out = out.to(states.dtype)
    out = out * (weight.float() + offset if offset else weight)
    return (out if narrow_first else out.to(states.dtype)), ratio


def of_states(
    grad: torch.Tensor, states: torch.Tensor, weight: torch.Tensor, ratio: torch.Tensor, offset: float
) -> torch.Tensor:
    unit, wide = grad.float() * (weight.float() + offset), states.float()
    slope = (unit * wide).mean(-1, keepdim=True) * ratio.pow(3)
    return (unit * ratio - wide * slope).to(states.dtype)


def of_weight(grad: torch.Tensor, states: torch.Tensor, weight: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
    """A function of its own: beside `of_states` Inductor would look at the number of rows, and compile both again for
    many of them."""
    return (grad.float() * (states.float() * ratio)).sum(0).to(weight.dtype)


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    why = "for types and widths that changed; TORCH_LOGS=recompiles says which. Set TORCH_COMPILE_DISABLE=1 in the "
    why += "environment to go on without it"
    exact = {"emulate_precision_casts": True}
    return compiling.compiled(function, function.__name__, why, compiling.KERNELS, exact)


def run(function: Callable[..., Any], *arguments: Any) -> Any:
    """A function of these, compiled. Autocast has nothing to do in them, and would count as another kernel."""
    given = [each.detach() if isinstance(each, torch.Tensor) else each for each in arguments]
    for each in given:
        if isinstance(each, torch.Tensor):
            torch._dynamo.mark_static(each, each.dim() - 1)
    with torch.autocast(given[0].device.type, enabled=False):
        return compiled(function)(*given)


# ---------------------------------------------------------------- for tensors of any shape


def flat(tensor: torch.Tensor) -> torch.Tensor:  # (..., I) to (N, I)
    return tensor.reshape(-1, tensor.shape[-1])


def order_of(tensor: torch.Tensor) -> list[int]:
    """The dimensions of a tensor as they lie in memory, the last one last: some models put heads before tokens."""
    inner = tensor.dim() - 1
    return [*sorted(range(inner), key=tensor.stride, reverse=True), inner]


def rows_of(tensor: torch.Tensor, order: list[int]) -> torch.Tensor:
    return flat(tensor.permute(order)).contiguous()


def unflat(rows: torch.Tensor, like: torch.Tensor, order: list[int]) -> torch.Tensor:
    """The undo of `rows_of` for a tensor of the shape of `like`, but for its last dimension."""
    sizes = [like.shape[each] for each in order[:-1]]
    return rows.view(*sizes, rows.shape[-1]).permute([order.index(each) for each in range(len(order))])


@contextlib.contextmanager
def of_any_size() -> Iterator[None]:
    """In this block products with few elements are computed here too, in all threads."""
    global MANY
    before, MANY = MANY, 0
    try:
        yield
    finally:
        MANY = before


def key_of_product(gate: torch.Tensor, up: torch.Tensor, name: str) -> tuple[Any, ...]:
    strides = [each.stride(-2) == each.shape[-1] for each in (gate, up)]  # or both are halves of one tensor
    return "product", gate.device.type, gate.dtype, up.dtype, gate.shape[-1], *strides, name


def takes_product(gate: torch.Tensor, up: torch.Tensor, name: str) -> bool:
    """Whether the product and its gradients are to be computed here."""
    if not FUSED or gate.dim() < 2 or gate.shape != up.shape or gate.numel() < max(MANY, LEAST * gate.shape[-1]):
        return False
    return gate.stride(-1) == up.stride(-1) == 1 and key_of_product(gate, up, name) in FUSED


def gated(gate: torch.Tensor, up: torch.Tensor, name: str) -> torch.Tensor:
    return run(product, flat(gate), flat(up), name).view(gate.shape)


def gated_backward(
    grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    of_gate, of_up = run(of_gate_and_up, flat(grad).contiguous(), flat(gate), flat(up), name)
    return of_gate.view(gate.shape), of_up.view(up.shape)


def key_of_norm(states: torch.Tensor, weight: torch.Tensor, form: NormForm) -> tuple[Any, ...]:
    return "norm", states.device.type, states.dtype, weight.dtype, states.shape[-1], form


def takes_norm(states: torch.Tensor, weight: torch.Tensor, form: NormForm) -> bool:
    """Whether the norm and its gradients are to be computed here."""
    if not FUSED or states.numel() < LEAST * states.shape[-1]:
        return False
    return key_of_norm(states, weight, form) in FUSED


def norm(states: torch.Tensor, weight: torch.Tensor, form: NormForm) -> tuple[torch.Tensor, torch.Tensor]:
    """The output, and (..., 1), by which a token is multiplied."""
    order = order_of(states)
    found = run(normed, rows_of(states, order), weight, form.eps, form.offset, form.narrow_first)
    return unflat(found[0], states, order), unflat(found[1], states, order)


def norm_backward(
    grad: torch.Tensor,
    states: torch.Tensor,
    weight: torch.Tensor,
    ratio: torch.Tensor,
    form: NormForm,
    wanted: Sequence[bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The gradients by states and by weight, each where it is wanted."""
    order, by_states, by_weight = order_of(states), None, None
    rows = [rows_of(each, order) for each in (grad, states, ratio)]
    if wanted[0]:
        by_states = unflat(run(of_states, rows[0], rows[1], weight, rows[2], form.offset), states, order)
    if wanted[1]:
        by_weight = run(of_weight, rows[0], rows[1], weight, rows[2])
    return by_states, by_weight
