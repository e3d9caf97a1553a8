"""From hidden states to log-probs of targets, in tiles, so that [targets, vocabulary] never exists.

Three ways, chosen by `Policy`:

- `tiled_loss`: the loss is a sum over targets, each a function of its own log-prob and entropy. The function is
  differentiated within a tile, so the gradient is made in the same pass: three matrix products.
- `log_probs`: log-probs with gradient, for a loss of any form; the logits of a tile are made again in the backward pass
  (four products), or kept for it where they are few (three).
- `log_probs_of_module`: for a head that isn't one plain matrix (LoRA on it, a bias, quantised weights): the head module
  is called tile by tile under activation checkpointing.

Log-probs, entropy and the mean of the vocabulary's log-probs have a gradient in all three; top-1 hits, the mean logit
and the sum of squared probabilities in none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ft_host.models.logit_scaling import LogitScaling
from ft_host.models.tiles import (
    SMOOTH,
    WANTS,
    HeadPass,
    Results,
    keep_gradients,
    kept_gradients,
    product_dtype,
    slope_of_products,
    softmax_tile,
    tiles_of,
    wanted_of,
    wide,
)

# `logp` and what else is wanted of some targets, (n,) each, and which of the batch's targets they are; to the loss of
# each, (n,).
Loss = Callable[[dict[str, torch.Tensor], slice], torch.Tensor]

# Where the whole [targets, vocabulary] takes no more than this, it is kept for the backward pass rather than made
# again.
KEPT_BYTES = 64 * 2**20

# ---------------------------------------------------------------- the gradient made in the forward


class _TiledLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, matrix, targets, function, shape, want):
        dtype = product_dtype(hidden, matrix)
        results = Results.empty(hidden.shape[0], wide(dtype), hidden.device, want)
        loss = torch.zeros((), dtype=wide(dtype), device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            made = HeadPass(hidden, matrix, ctx.needs_input_grad[:2], dtype)
            buffer = made.buffer()
            spare = torch.empty_like(buffer) if buffer is not None and "entropy" in want else None
            for start, end in made.tiles:
                logits, bend = made.logits(start, end, shape, buffer)
                picked = targets[start:end]
                shares, total, _ = softmax_tile(logits, picked, results, start, end, want, spare)
                values = results.leaves(start, end, want)
                with torch.enable_grad():
                    summed = _losses(function, values, slice(start, end)).sum()
                loss += summed.detach()
                if made.needs_gradient:
                    of_logp, of_entropy, of_mean = _derivatives(summed, values)
                    slopes = (of_logp, of_entropy, results.entropy[start:end])
                    made.add(start, end, slope_of_products(shares, total, picked, *slopes, bend, shape, of_mean))
        keep_gradients(ctx, made, matrix)
        ctx.mark_non_differentiable(*results.all())
        return loss, *results.all()

    @staticmethod
    def backward(ctx, incoming, *_):
        return *kept_gradients(ctx, incoming), None, None, None, None


def _losses(function: Loss, values: dict[str, torch.Tensor], part: slice) -> torch.Tensor:
    """What a loss gives for some targets. Raises ValueError where it isn't one value for each, or has no gradient."""
    losses, count = function(dict(values), part), part.stop - part.start
    if not isinstance(losses, torch.Tensor) or losses.shape != (count,):
        found = tuple(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
        raise ValueError(f"loss: gives {found} for {count} targets; expected the loss of each, ({count},)")
    if torch.is_grad_enabled() and values["logp"].requires_grad and not losses.requires_grad:
        raise ValueError("loss: gives losses without gradient; expected a function of the log-probs or the entropy")
    return losses


def _derivatives(
    summed: torch.Tensor, values: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Of a tile's loss by each log-prob, and by what else of `SMOOTH` has a part in it."""
    leaves = {name: values[name] for name in SMOOTH if name in values}
    slopes = dict(zip(leaves, torch.autograd.grad(summed, [*leaves.values()], allow_unused=True), strict=True))
    of_logp = slopes["logp"]
    return (
        torch.zeros_like(values["logp"]) if of_logp is None else of_logp,
        slopes.get("entropy"),
        slopes.get("mean_logp"),
    )


def tiled_loss(
    hidden: torch.Tensor,  # (N, H)
    matrix: torch.Tensor,  # (V, H)
    targets: torch.Tensor,  # (N,) long
    function: Loss,
    shape: LogitScaling = LogitScaling(),
    want: tuple[str, ...] = (),
) -> dict[str, torch.Tensor]:
    """`loss`: the sum of the losses of all targets, a scalar with gradient; `logp` and what is wanted, (N,), without.

    `function` is called tile by tile, so it must treat each target by itself. Not for float16 with loss scaling: the
    gradient is made before it is scaled.
    """
    loss, *values = _TiledLoss.apply(hidden, matrix, targets, function, shape, want)
    return {"loss": loss, **wanted_of(values, want)}


def loss_of_values(values: dict[str, torch.Tensor], function: Loss) -> dict[str, torch.Tensor]:
    """What `tiled_loss` gives, from the values of all targets with gradient."""
    count = len(values["logp"])
    # without targets it hangs on the model all the same, as collectives need
    losses = _losses(function, values, slice(0, count)) if count else values["logp"]
    return {"loss": losses.sum(), **{name: value.detach() for name, value in values.items()}}


# ---------------------------------------------------------------- log-probs with gradient


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, matrix, targets, shape, want):
        dtype = product_dtype(hidden, matrix)
        count, vocabulary = hidden.shape[0], matrix.shape[0]
        results = Results.empty(count, wide(dtype), hidden.device, want)
        normaliser = torch.empty(count, dtype=wide(dtype), device=hidden.device)
        small = count * vocabulary * wide(dtype).itemsize <= KEPT_BYTES
        keep = small and dtype == wide(dtype) and shape.softcap is None and any(ctx.needs_input_grad[:2])
        kept = torch.empty(count, vocabulary, dtype=dtype, device=hidden.device) if keep else None
        with torch.autocast(hidden.device.type, enabled=False):
            made = HeadPass(hidden, matrix, (False, False), dtype)
            entropy = "entropy" in want
            buffer = None if keep and not entropy else made.buffer()
            spare = torch.empty_like(buffer) if buffer is not None and entropy and not keep else None
            for start, end in made.tiles:
                # what is kept are exp(logits - max): made from the logits in another tile for entropy, else in place
                here = kept[start:end] if keep else None
                logits, _ = made.logits(start, end, shape, here if keep and not entropy else buffer)
                other = here if keep else spare
                _, total, top = softmax_tile(logits, targets[start:end], results, start, end, want, other)
                normaliser[start:end] = total.squeeze(1) if keep else (top + total.log()).squeeze(1)
        ctx.save_for_backward(hidden, matrix, targets, normaliser, kept, results.entropy)
        ctx.shape, ctx.dtype = shape, dtype
        ctx.set_materialize_grads(False)
        none = [vars(results)[name] for name in WANTS if name not in SMOOTH or name not in ("logp", *want)]
        ctx.mark_non_differentiable(*none)
        return results.all()

    @staticmethod
    def backward(ctx, of_logp, of_entropy, *others):
        of_mean = others[-1]
        hidden, matrix, targets, normaliser, kept, entropy = ctx.saved_tensors
        if of_logp is None:  # nothing was made of the log-probs
            of_logp = torch.zeros_like(normaliser)
        with torch.autocast(hidden.device.type, enabled=False):
            made = HeadPass(hidden, matrix, ctx.needs_input_grad[:2], ctx.dtype)
            buffer = made.buffer(None if kept is None else 0)
            for start, end in made.tiles:
                bend = total = None
                if kept is not None:  # used up: a second backward through the same graph is refused by autograd
                    shares, total = kept[start:end], normaliser[start:end, None]
                else:
                    logits, bend = made.logits(start, end, ctx.shape, buffer)
                    shares = logits.sub_(normaliser[start:end, None]).exp_()
                slopes = (of_logp[start:end], None if of_entropy is None else of_entropy[start:end])
                parts = (*slopes, entropy[start:end], bend, ctx.shape)
                mean = None if of_mean is None else of_mean[start:end]
                made.add(start, end, slope_of_products(shares, total, targets[start:end], *parts, mean))
        grad_matrix = None if made.grad_matrix is None else made.grad_matrix.to(matrix.dtype)
        return made.grad_hidden, grad_matrix, None, None, None


def log_probs(
    hidden: torch.Tensor,  # (N, H)
    matrix: torch.Tensor,  # (V, H)
    targets: torch.Tensor,  # (N,) long
    shape: LogitScaling = LogitScaling(),
    want: tuple[str, ...] = (),
) -> dict[str, torch.Tensor]:
    """`logp` and, where wanted, `entropy` and `mean_logp`, (N,), with gradient; what else is wanted, (N,), without."""
    return wanted_of(_LogProbs.apply(hidden, matrix, targets, shape, want), want)


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
        logits = logits.to(wide(logits.dtype)) * shape.scale
        if shape.softcap is not None:
            logits = shape.softcap * torch.tanh(logits / shape.softcap)
        logits = logits / shape.temperature
        logs = torch.log_softmax(logits, -1)
        none = logs.new_empty(0)
        average = logs.mean(-1) if "mean_logp" in want else none
        entropy = -(logs.exp() * logs).sum(-1) if "entropy" in want else none
        with torch.no_grad():
            hits = logits.argmax(-1) == picked if "top1" in want else none.bool()
            mean = logits.mean(-1) if "mean_logit" in want else none
            squares = torch.logsumexp(2 * logs, -1) if "log_sum_sq_probs" in want else none
        return logs.gather(1, picked[:, None]).squeeze(1), entropy, hits, mean, squares, average

    # at least one tile, if an empty one, so that the head's parameters are in the graph
    tiles = tiles_of(hidden.shape[0], vocabulary, 4, hidden.device) or [(0, 0)]
    parts = [
        (
            checkpoint(tile, hidden[start:end], targets[start:end], use_reentrant=False)
            if torch.is_grad_enabled()
            else tile(hidden[start:end], targets[start:end])
        )
        for start, end in tiles
    ]
    return wanted_of([torch.cat(column) for column in zip(*parts, strict=True)], want)


# ---------------------------------------------------------------- which way


def is_plain(module: nn.Module) -> bool:
    """Whether a head is one matrix and nothing else."""
    return type(module) is nn.Linear and module.bias is None and module.weight.is_floating_point()


def loss_is_scaled(hidden: torch.Tensor, weight: torch.Tensor) -> bool:
    """In float16 the loss is scaled up before the backward pass, so a gradient made beforehand could vanish."""
    return product_dtype(hidden, weight) == torch.float16
