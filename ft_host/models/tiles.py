"""One pass over the targets of a batch in tiles: how large a tile is, in which types it is computed, where its logits
are made, and the gradients that tiles add up to.

Softmax, log and sums are in float32 (float64 for float64 weights); matrix products are in autocast's type where it is
on. A pass runs with autocast off, in the types that autocast would have chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ft_host.models.logit_scaling import LogitScaling

# What a pass can give of each target, and what of it has a gradient.
WANTS = ("logp", "entropy", "top1", "mean_logit", "log_sum_sq_probs", "mean_logp")
SMOOTH = ("logp", "entropy", "mean_logp")

# Logits of a tile in bytes. On a CPU it should stay in cache through a dozen passes; on a GPU it should fill the
# device.
TILE_BYTES = {"cpu": 8 * 2**20, "cuda": 256 * 2**20}
# But no fewer targets than this: each tile adds to the gradient of the whole matrix, and with a vocabulary of 150k that
# pass over memory is what costs (16 targets a tile took twice the time of 128; more gained nothing).
TILE_TARGETS = 128


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def product_dtype(hidden: torch.Tensor, matrix: torch.Tensor) -> torch.dtype:
    """The type of a product of the two, which is autocast's where it is on."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(hidden.dtype, matrix.dtype)


def tile_rows(vocabulary: int, width: int, device: torch.device) -> int:
    """Targets of a tile, of so many bytes a logit."""
    return max(TILE_TARGETS, TILE_BYTES.get(device.type, TILE_BYTES["cuda"]) // (width * vocabulary))


def tiles_of(count: int, vocabulary: int, width: int, device: torch.device) -> list[tuple[int, int]]:
    rows = tile_rows(vocabulary, width, device)
    return [(start, min(start + rows, count)) for start in range(0, count, rows)]


def logits_buffer(rows: int, matrix: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
    """A tile to make logits in, where they need no change of type. What is allocated anew for each tile is fetched from
    the system page by page, and leaves holes."""
    if dtype != wide(dtype):
        return None
    return torch.empty(rows, matrix.shape[0], dtype=dtype, device=matrix.device)


def product(states: torch.Tensor, matrix: torch.Tensor, buffer: torch.Tensor | None) -> torch.Tensor:
    """(n, H) and (V, H) to (n, V), in the first n rows of `buffer` if there is one."""
    if buffer is None:
        return states @ matrix.t()
    return torch.mm(states, matrix.t(), out=buffer[: states.shape[0]])


class HeadPass:
    """Hidden states (N, H) and matrix (V, H) in the type of their product, and the gradients of both.

    `grad_hidden` (N, H) and `grad_matrix` (V, H) are None where they aren't needed. `add` must be called for each tile.
    """

    def __init__(self, hidden: torch.Tensor, matrix: torch.Tensor, needed: tuple[bool, bool], dtype: torch.dtype):
        self.dtype, self.wide = dtype, wide(dtype)
        self.states, self.matrix = hidden.to(dtype), matrix.to(dtype)
        self.grad_hidden = torch.empty_like(hidden) if needed[0] else None
        # wide, so that many tiles of a bfloat16 matrix add up without loss
        self.grad_matrix = torch.zeros(matrix.shape, dtype=self.wide, device=matrix.device) if needed[1] else None
        self.tiles = tiles_of(hidden.shape[0], matrix.shape[0], self.wide.itemsize, hidden.device)

    @property
    def needs_gradient(self) -> bool:
        return self.grad_hidden is not None or self.grad_matrix is not None

    def buffer(self, rows: int | None = None) -> torch.Tensor | None:
        """For tiles of so many rows, by default for the largest."""
        largest = self.tiles[0][1] if self.tiles else 0
        return logits_buffer(largest if rows is None else rows, self.matrix, self.dtype)

    def logits(
        self, start: int, end: int, shape: LogitScaling, buffer: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(n, V) logits in wide precision, in `buffer` where there is one, and the slope of the soft cap at each."""
        logits = product(self.states[start:end], self.matrix, buffer).to(self.wide)
        if shape.softcap is None:
            return logits.mul_(shape.slope) if shape.slope != 1.0 else logits, None
        bent = logits.mul_(shape.scale / shape.softcap).tanh_()
        slope = torch.addcmul(torch.ones((), dtype=bent.dtype, device=bent.device), bent, bent, value=-1)
        return bent.mul_(shape.softcap / shape.temperature), slope

    def add(self, start: int, end: int, of_products: torch.Tensor) -> None:
        """Add what follows from the gradient of a tile's products of states and matrix, (n, V)."""
        of_products = of_products.to(self.dtype)
        if self.grad_hidden is not None:
            self.grad_hidden[start:end] = of_products @ self.matrix
        if self.grad_matrix is not None:
            states = self.states[start:end]
            if self.wide == self.dtype:
                self.grad_matrix.addmm_(of_products.t(), states)
            else:
                self.grad_matrix.add_(of_products.t() @ states)


def keep_gradients(ctx: Any, made: HeadPass, matrix: torch.Tensor) -> None:
    """Keep the gradients that a forward pass has made for its backward pass: see `kept_gradients`."""
    ctx.save_for_backward(made.grad_hidden, made.grad_matrix)
    ctx.matrix_dtype = matrix.dtype


def kept_gradients(ctx: Any, incoming: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The gradients of hidden states and matrix, times `incoming`, a scalar.

    In place: the matrix of a large vocabulary twice is what we are here to avoid. A second backward through the same
    graph is refused by autograd, since the saved tensors have changed.
    """
    grad_hidden, grad_matrix = ctx.saved_tensors
    if grad_hidden is not None:
        grad_hidden = grad_hidden.mul_(incoming)
    if grad_matrix is not None:
        grad_matrix = grad_matrix.mul_(incoming).to(ctx.matrix_dtype)
    return grad_hidden, grad_matrix


# ---------------------------------------------------------------- one tile


@dataclass
class Results:
    """Per-target values of all tiles, made as wanted."""

    logp: torch.Tensor
    entropy: torch.Tensor
    top1: torch.Tensor
    mean_logit: torch.Tensor
    log_sum_sq_probs: torch.Tensor
    mean_logp: torch.Tensor

    @staticmethod
    def empty(count: int, dtype: torch.dtype, device: torch.device, want: tuple[str, ...]) -> Results:
        def made(name: str, kind: torch.dtype = dtype) -> torch.Tensor:
            return torch.empty(count if name in want else 0, dtype=kind, device=device)

        return Results(
            logp=torch.empty(count, dtype=dtype, device=device),
            entropy=made("entropy"),
            top1=made("top1", torch.bool),
            mean_logit=made("mean_logit"),
            log_sum_sq_probs=made("log_sum_sq_probs"),
            mean_logp=made("mean_logp"),
        )

    def all(self) -> tuple[torch.Tensor, ...]:
        """In the order of WANTS."""
        return tuple(vars(self)[name] for name in WANTS)

    def leaves(self, start: int, end: int, want: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Those of a tile; those of `SMOOTH` can be differentiated by."""
        values = wanted_of([value[start:end].detach() for value in self.all()], want)
        for name in values.keys() & {*SMOOTH}:
            values[name].requires_grad_()
        return values


def softmax_tile(
    logits: torch.Tensor,
    targets: torch.Tensor,
    results: Results,
    start: int,
    end: int,
    want: tuple[str, ...],
    spare: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fill the tile's results; the logits are used up. Returns exp(logits - max), their sum (n, 1), the max (n, 1).

    `spare` is a second tile, for entropy: one that is allocated anew each time costs a page fault every 4 KiB.
    """
    if "mean_logit" in want:
        results.mean_logit[start:end] = logits.mean(-1)
    if "top1" in want:
        top, place = logits.max(-1, keepdim=True)
        results.top1[start:end] = place.squeeze(1) == targets
    else:
        top = logits.amax(-1, keepdim=True)
    shifted = logits.sub_(top)
    chosen = shifted.gather(1, targets[:, None])
    average = shifted.mean(-1, keepdim=True) if "mean_logp" in want else None
    if "entropy" in want:
        shares = shifted.exp() if spare is None else torch.exp(shifted, out=spare[: shifted.shape[0]])
        total = shares.sum(-1, keepdim=True)
        # H = log sum exp - sum p z. Not by einsum: as a batch of dot products it takes three times as long on a CPU.
        expected = shifted.mul_(shares).sum(-1, keepdim=True) / total
        results.entropy[start:end] = (total.log() - expected).squeeze(1)
    else:
        shares = shifted.exp_()
        total = shares.sum(-1, keepdim=True)
    results.logp[start:end] = (chosen - total.log()).squeeze(1)
    if average is not None:
        results.mean_logp[start:end] = (average - total.log()).squeeze(1)
    if "log_sum_sq_probs" in want:
        results.log_sum_sq_probs[start:end] = 2 * (torch.linalg.vector_norm(shares, dim=-1) / total.squeeze(1)).log()
    return shares, total, top


def slope_of_products(
    shares: torch.Tensor,  # (n, V), used up; probabilities are shares / total
    total: torch.Tensor | None,  # (n, 1); None: 1
    targets: torch.Tensor,  # (n,)
    of_logp: torch.Tensor,  # (n,) the loss's derivative by each log-prob
    of_entropy: torch.Tensor | None,  # (n,) and by each entropy
    entropy: torch.Tensor,  # (n,)
    bend: torch.Tensor | None,  # (n, V) the slope of the soft cap
    shape: LogitScaling,
    of_mean: torch.Tensor | None = None,  # (n,) and by each mean of the log-probs of the vocabulary
) -> torch.Tensor:
    """The derivative of the loss by the products of states and matrix, (n, V)."""
    column = of_logp[:, None].to(shares.dtype)
    mean = None if of_mean is None else of_mean[:, None].to(shares.dtype)
    both = column if mean is None else column + mean
    if of_entropy is None:  # d logp / d logits = onehot - p, and of the mean of all log-probs 1 / V - p
        factor = -both if total is None else -both / total
    else:  # d entropy / d logits = -p (log p + entropy); where p is 0 in this type, so is that
        if total is not None:
            shares.div_(total)
        logs = shares.clamp_min(torch.finfo(shares.dtype).tiny).log_().add_(entropy[:, None])
        factor = logs.mul_(-of_entropy[:, None].to(shares.dtype)).sub_(both)
    shares.mul_(factor).scatter_add_(1, targets[:, None], column)
    if mean is not None:
        shares.add_(mean / shares.shape[1])
    if bend is not None:
        shares.mul_(bend)
    if shape.slope != 1.0:
        shares.mul_(shape.slope)
    return shares


def wanted_of(values: Sequence[torch.Tensor], want: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """`values` in the order of WANTS; `logp` always, the others where wanted."""
    return {name: value for name, value in zip(WANTS, values, strict=True) if name == "logp" or name in want}
