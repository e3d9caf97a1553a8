"""From hidden states to log-probs of targets, in tiles, so that [targets, vocabulary] never exists.

Three ways, chosen by `Policy`:

- `weighted_nll`: the weights of the loss are known from the log-probs alone, so the gradient is made in the same pass:
  three matrix products. It gives  sum_i w(logp_i) * -logp_i  with w held constant.
- `log_probs`: log-probs with gradient; the logits of a tile are made again in the backward pass (four products), or
  kept for it where they are few (three).
- `log_probs_of_module`: for a head that isn't one plain matrix (LoRA on it, a bias, quantised weights): the head module
  is called tile by tile under activation checkpointing.

Entropy carries gradient as log-probs do, in the last two; top-1 hits, the mean logit and the sum of squared
probabilities never. Softmax, log and sums are in float32 (float64 for float64 weights); matrix products are in
autocast's type where it is on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

WANTS = ("logp", "entropy", "top1", "mean_logit", "log_sum_sq_probs")
# Log-probs of a tile, (n,), to the weights of its targets, (n,); or the weights themselves, (N,), where they are known.
Weight = Callable[[torch.Tensor], torch.Tensor] | torch.Tensor

# Logits of a tile in bytes. On a CPU it should stay in cache through a dozen passes; on a GPU it should fill the
# device.
TILE_BYTES = {"cpu": 8 * 2**20, "cuda": 256 * 2**20}
# But no fewer targets than this: each tile adds to the gradient of the whole matrix, and with a vocabulary of 150k that
# pass over memory is what costs (16 targets a tile took twice the time of 128; more gained nothing).
TILE_TARGETS = 128
# Where the whole [targets, vocabulary] takes no more than this, it is kept for the backward pass rather than made
# again.
KEPT_BYTES = 64 * 2**20


@dataclass(frozen=True)
class LogitScaling:
    """What is done to logits: `softcap * tanh(scale * logits / softcap) / temperature`, each where there is one. Scale
    and soft cap are the model's, the temperature is the caller's."""

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    @property
    def slope(self) -> float:
        """Of the result by the product of states and matrix, but for the bend of the soft cap."""
        return self.scale / self.temperature


# Config attribute -> what it means. Read from the fields that a config class declares; a model that does something else
# to its logits is found out by the probe in load.py, which compares with the model's own logits.
SCALES: dict[str, Callable[[float], float]] = {
    "logit_scale": lambda value: value,  # Cohere
    "logits_scaling": lambda value: 1 / value,  # Granite
    "lm_head_multiplier": lambda value: value,  # Falcon-H1
}
MULTIPLIES = {"hyperclovax"}  # model types whose logits_scaling multiplies
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma, RecurrentGemma, xLSTM


def logit_scaling_of(config: Any) -> LogitScaling:
    """The scale and soft cap that a model's config (its text config) declares."""
    fields = config.to_dict()
    scale = 1.0
    for name, meaning in SCALES.items():
        if fields.get(name) is not None:
            value = float(fields[name])
            scale *= value if config.model_type in MULTIPLIES else meaning(value)
    if fields.get("dim_model_base") is not None:  # MiniCPM: by how much wider it is than the model it was tuned on
        scale *= fields["dim_model_base"] / fields["hidden_size"]
    caps = [float(fields[name]) for name in SOFTCAPS if fields.get(name) is not None]
    return LogitScaling(scale, caps[0] if caps else None)


# ---------------------------------------------------------------- one tile


def _tile_rows(vocabulary: int, width: int, device: torch.device) -> int:
    """Targets of a tile."""
    return max(TILE_TARGETS, TILE_BYTES.get(device.type, TILE_BYTES["cuda"]) // (width * vocabulary))


def _tiles(count: int, vocabulary: int, width: int, device: torch.device) -> list[tuple[int, int]]:
    rows = _tile_rows(vocabulary, width, device)
    return [(start, min(start + rows, count)) for start in range(0, count, rows)]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _product_dtype(hidden: torch.Tensor, weight: torch.Tensor) -> torch.dtype:
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(hidden.dtype, weight.dtype)


def _logits(
    hidden: torch.Tensor, weight: torch.Tensor, shape: LogitScaling, buffer: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(n, V) logits in wide precision, in `buffer` where the types allow, and the slope of the soft cap at each."""
    if buffer is not None:
        logits = torch.mm(hidden, weight.t(), out=buffer[: hidden.shape[0]])
    else:
        logits = (hidden @ weight.t()).to(_wide(hidden.dtype))
    if shape.softcap is None:
        return logits.mul_(shape.slope) if shape.slope != 1.0 else logits, None
    bent = logits.mul_(shape.scale / shape.softcap).tanh_()
    slope = torch.addcmul(torch.ones((), dtype=bent.dtype, device=bent.device), bent, bent, value=-1)
    return bent.mul_(shape.softcap / shape.temperature), slope


@dataclass
class _Results:
    """Per-target values of all tiles, made as wanted."""

    logp: torch.Tensor
    entropy: torch.Tensor
    top1: torch.Tensor
    mean_logit: torch.Tensor
    log_sum_sq_probs: torch.Tensor

    @staticmethod
    def empty(count: int, dtype: torch.dtype, device: torch.device, want: tuple[str, ...]) -> _Results:
        def made(name: str, kind: torch.dtype = dtype) -> torch.Tensor:
            return torch.empty(count if name in want else 0, dtype=kind, device=device)

        return _Results(
            logp=torch.empty(count, dtype=dtype, device=device),
            entropy=made("entropy"),
            top1=made("top1", torch.bool),
            mean_logit=made("mean_logit"),
            log_sum_sq_probs=made("log_sum_sq_probs"),
        )

    def all(self) -> tuple[torch.Tensor, ...]:
        """In the order of WANTS."""
        return tuple(vars(self)[name] for name in WANTS)


def _softmax_tile(
    logits: torch.Tensor,
    targets: torch.Tensor,
    results: _Results,
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
    if "log_sum_sq_probs" in want:
        results.log_sum_sq_probs[start:end] = 2 * (torch.linalg.vector_norm(shares, dim=-1) / total.squeeze(1)).log()
    return shares, total, top


def _buffer(rows: int, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
    """A tile to make logits in, where they need no change of type."""
    if dtype != _wide(dtype):
        return None
    return torch.empty(rows, weight.shape[0], dtype=dtype, device=weight.device)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """total += left.T @ right, where `total` may be wider than the factors."""
    if total.dtype == left.dtype:
        total.addmm_(left.t(), right)
    else:
        total.add_(left.t() @ right)


# ---------------------------------------------------------------- the gradient made in the forward


class _WeightedNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, matrix, targets, weight, shape, want):
        dtype = _product_dtype(hidden, matrix)
        wide = _wide(dtype)
        count, vocabulary = hidden.shape[0], matrix.shape[0]
        results = _Results.empty(count, wide, hidden.device, want)
        nll = torch.zeros((), dtype=wide, device=hidden.device)
        need_hidden, need_matrix = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        # wide, so that many tiles of a bfloat16 matrix add up without loss
        grad_matrix = torch.zeros(matrix.shape, dtype=wide, device=matrix.device) if need_matrix else None
        with torch.autocast(hidden.device.type, enabled=False):
            states, cast = hidden.to(dtype), matrix.to(dtype)
            tiles = _tiles(count, vocabulary, wide.itemsize, hidden.device)
            buffer = _buffer(tiles[0][1] if tiles else 0, cast, dtype)
            spare = torch.empty_like(buffer) if buffer is not None and "entropy" in want else None
            for start, end in tiles:
                logits, slope = _logits(states[start:end], cast, shape, buffer)
                picked = targets[start:end]
                shares, total, _ = _softmax_tile(logits, picked, results, start, end, want, spare)
                logp = results.logp[start:end]
                weights = (weight[start:end] if isinstance(weight, torch.Tensor) else weight(logp)).to(wide)
                nll -= torch.dot(weights, logp)
                if not (need_hidden or need_matrix):
                    continue
                # d nll / d logits = w (p - onehot)
                column = weights[:, None]
                shares.mul_(column / total).scatter_add_(1, picked[:, None], -column)
                if slope is not None:
                    shares.mul_(slope)
                if shape.slope != 1.0:
                    shares.mul_(shape.slope)
                shares = shares.to(dtype)
                if need_hidden:
                    grad_hidden[start:end] = shares @ cast
                if need_matrix:
                    _add_product(grad_matrix, shares, states[start:end])
        ctx.save_for_backward(grad_hidden, grad_matrix)
        ctx.matrix_dtype = matrix.dtype
        ctx.mark_non_differentiable(*results.all())
        return nll, *results.all()

    @staticmethod
    def backward(ctx, incoming, *_):
        grad_hidden, grad_matrix = ctx.saved_tensors
        # In place: the matrix of a large vocabulary twice is what we are here to avoid. A second backward through the
        # same graph is refused by autograd, since the saved tensors have changed.
        if grad_hidden is not None:
            grad_hidden = grad_hidden.mul_(incoming)
        if grad_matrix is not None:
            grad_matrix = grad_matrix.mul_(incoming).to(ctx.matrix_dtype)
        return grad_hidden, grad_matrix, None, None, None, None


def weighted_nll(
    hidden: torch.Tensor,  # (N, H)
    matrix: torch.Tensor,  # (V, H)
    targets: torch.Tensor,  # (N,) long
    weight: Weight,
    shape: LogitScaling = LogitScaling(),
    want: tuple[str, ...] = (),
) -> dict[str, torch.Tensor]:
    """`nll`: the scalar sum_i w_i * -logp_i, with gradient; `logp` and what is wanted, (N,), without.

    A function `weight` is called tile by tile, so it must treat each target by itself. Not for float16 with loss
    scaling: the gradient is made before it is scaled.
    """
    nll, *values = _WeightedNLL.apply(hidden, matrix, targets, weight, shape, want)
    return {"nll": nll, **_wanted(values, want)}


# ---------------------------------------------------------------- log-probs with gradient


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, matrix, targets, shape, want):
        dtype = _product_dtype(hidden, matrix)
        wide = _wide(dtype)
        count, vocabulary = hidden.shape[0], matrix.shape[0]
        results = _Results.empty(count, wide, hidden.device, want)
        normaliser = torch.empty(count, dtype=wide, device=hidden.device)
        small = count * vocabulary * wide.itemsize <= KEPT_BYTES
        keep = small and dtype == wide and shape.softcap is None and any(ctx.needs_input_grad[:2])
        kept = torch.empty(count, vocabulary, dtype=wide, device=hidden.device) if keep else None
        with torch.autocast(hidden.device.type, enabled=False):
            states, cast = hidden.to(dtype), matrix.to(dtype)
            tiles = _tiles(count, vocabulary, wide.itemsize, hidden.device)
            entropy = "entropy" in want
            buffer = None if keep and not entropy else _buffer(tiles[0][1] if tiles else 0, cast, dtype)
            spare = torch.empty_like(buffer) if buffer is not None and entropy and not keep else None
            for start, end in tiles:
                # what is kept are exp(logits - max): made from the logits in another tile for entropy, else in place
                here = kept[start:end] if keep else None
                logits, _ = _logits(states[start:end], cast, shape, here if keep and not entropy else buffer)
                other = here if keep else spare
                _, total, top = _softmax_tile(logits, targets[start:end], results, start, end, want, other)
                normaliser[start:end] = total.squeeze(1) if keep else (top + total.log()).squeeze(1)
        ctx.save_for_backward(hidden, matrix, targets, normaliser, kept, results.entropy)
        ctx.shape, ctx.dtype = shape, dtype
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*results.all()[2:], *(() if entropy else (results.entropy,)))
        return results.all()

    @staticmethod
    def backward(ctx, incoming, of_entropy, *_):
        hidden, matrix, targets, normaliser, kept, entropy = ctx.saved_tensors
        if incoming is None:  # nothing was made of the log-probs
            incoming = torch.zeros_like(normaliser)
        shape, dtype = ctx.shape, ctx.dtype
        wide = _wide(dtype)
        need_hidden, need_matrix = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_matrix = torch.zeros(matrix.shape, dtype=wide, device=matrix.device) if need_matrix else None
        with torch.autocast(hidden.device.type, enabled=False):
            states, cast = hidden.to(dtype), matrix.to(dtype)
            tiles = _tiles(hidden.shape[0], matrix.shape[0], wide.itemsize, hidden.device)
            buffer = _buffer(tiles[0][1] if tiles and kept is None else 0, cast, dtype)
            for start, end in tiles:
                column = incoming[start:end, None].to(wide)
                slope = None
                # d logp / d logits = onehot - p
                if kept is not None:  # in place: a second backward through the same graph is refused by autograd
                    shares = kept[start:end].div_(normaliser[start:end, None])
                else:
                    logits, slope = _logits(states[start:end], cast, shape, buffer)
                    shares = logits.sub_(normaliser[start:end, None]).exp_()
                factor = -column
                if of_entropy is not None:
                    # d entropy / d logits = -p (log p + entropy); where p is 0 in this type, so is that
                    logs = shares.clamp_min(torch.finfo(wide).tiny).log_().add_(entropy[start:end, None])
                    factor = logs.mul_(-of_entropy[start:end, None].to(wide)).sub_(column)
                shares.mul_(factor).scatter_add_(1, targets[start:end, None], column)
                if slope is not None:
                    shares.mul_(slope)
                if shape.slope != 1.0:
                    shares.mul_(shape.slope)
                shares = shares.to(dtype)
                if need_hidden:
                    grad_hidden[start:end] = shares @ cast
                if need_matrix:
                    _add_product(grad_matrix, shares, states[start:end])
        if need_matrix:
            grad_matrix = grad_matrix.to(matrix.dtype)
        return grad_hidden, grad_matrix, None, None, None


def log_probs(
    hidden: torch.Tensor,  # (N, H)
    matrix: torch.Tensor,  # (V, H)
    targets: torch.Tensor,  # (N,) long
    shape: LogitScaling = LogitScaling(),
    want: tuple[str, ...] = (),
) -> dict[str, torch.Tensor]:
    """`logp` and, where wanted, `entropy`, (N,), with gradient; what else is wanted, (N,), without."""
    return _wanted(_LogProbs.apply(hidden, matrix, targets, shape, want), want)


# ---------------------------------------------------------------- any head module


def log_probs_of_module(
    hidden: torch.Tensor,  # (N, H)
    head: nn.Module,  # (n, H) to (n, V)
    targets: torch.Tensor,  # (N,) long
    vocabulary: int,
    shape: LogitScaling = LogitScaling(),
    want: tuple[str, ...] = (),
) -> dict[str, torch.Tensor]:
    """As `log_probs`, for a head of any kind; its trained parameters get their gradient."""

    def tile(states: torch.Tensor, picked: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = head(states)
        logits = logits.to(_wide(logits.dtype)) * shape.scale
        if shape.softcap is not None:
            logits = shape.softcap * torch.tanh(logits / shape.softcap)
        logits = logits / shape.temperature
        logs = torch.log_softmax(logits, -1)
        none = logs.new_empty(0)
        entropy = -(logs.exp() * logs).sum(-1) if "entropy" in want else none
        with torch.no_grad():
            hits = logits.argmax(-1) == picked if "top1" in want else none.bool()
            mean = logits.mean(-1) if "mean_logit" in want else none
            squares = torch.logsumexp(2 * logs, -1) if "log_sum_sq_probs" in want else none
        return logs.gather(1, picked[:, None]).squeeze(1), entropy, hits, mean, squares

    # at least one tile, if an empty one, so that the head's parameters are in the graph
    tiles = _tiles(hidden.shape[0], vocabulary, 4, hidden.device) or [(0, 0)]
    parts = [
        (
            checkpoint(tile, hidden[start:end], targets[start:end], use_reentrant=False)
            if torch.is_grad_enabled()
            else tile(hidden[start:end], targets[start:end])
        )
        for start, end in tiles
    ]
    return _wanted([torch.cat(column) for column in zip(*parts, strict=True)], want)


def _wanted(values: Sequence[torch.Tensor], want: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """`values` in the order of WANTS; `logp` always, the others where wanted."""
    return {name: value for name, value in zip(WANTS, values, strict=True) if name == "logp" or name in want}
