"""A loss of two models' distributions over the vocabulary, in tiles, so that [targets, vocabulary] exists of neither.

    teacher = run.models["teacher"](batch, want=("hidden",))["hidden"]           # (M, H'), without gradient
    head = run.models["teacher"].logits_head()
    out = model(batch, want=("entropy",), divergence=TiledDivergence(teacher, head, function))
    out["divergence"]                                                             # a scalar, with gradient

`function` is the method's: plain torch on the logits of both for some targets, differentiated within a tile, so that
the gradient is made in the same pass and only a tile's intermediate values are ever held. It must be a sum over units,
whose weights it holds itself: a target and a target, unless `units` says otherwise (tokens of two tokenizers). On a CPU
it is asked about few targets at a time, so that its dozens of passes stay in cache; matrix products are of more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ft_host.models.logit_scaling import LogitScaling
from ft_host.models.tiles import (
    HeadPass,
    keep_gradients,
    kept_gradients,
    logits_buffer,
    product,
    product_dtype,
    tile_rows,
    wide,
)
from ft_host.util.moved import names_of

# Logits that the function is asked about at a time, in bytes; where it isn't said, all of a tile. (On one core, with
# 128k tokens, the loss of both models took 1.5 times as long with whole tiles, most of it page faults; with 32k 1.05
# times.)
PART_BYTES = {"cpu": 2**20}

# (n, V) logits, with gradient, and (m, V') of the other model, both in float32 or wider with scale, soft cap and
# temperature applied; the units that they are of, as a slice; to their summed loss and values (units, ...) of theirs.
# None stands for the logits of a model that isn't here: the function then knows what it said.
Function = Callable[..., tuple[torch.Tensor, dict[str, torch.Tensor]]]  # (ours, theirs or None, units)


@dataclass(frozen=True)
class Head:
    """What makes logits of hidden states: `matrix` (V, H), or `module` where it is no plain one."""

    matrix: torch.Tensor | None
    module: nn.Module | None
    shape: LogitScaling
    vocabulary: int

    def logits(self, hidden: torch.Tensor, space: torch.Tensor | None = None) -> torch.Tensor:
        """(n, H) to (n, V), in wide precision. Without a gradient they can be made in `space`, n rows of it or more."""
        if self.matrix is None:
            made = self.module(hidden)
        else:
            dtype = product_dtype(hidden, self.matrix)
            with torch.autocast(hidden.device.type, enabled=False):
                made = product(hidden.to(dtype), self.matrix.to(dtype), space)
        return shaped(made.to(wide(made.dtype)), self.shape)

    def space(self, hidden: torch.Tensor, rows: int) -> torch.Tensor | None:
        """For so many rows of logits, where they need no change of type."""
        return None if self.matrix is None else logits_buffer(rows, self.matrix, product_dtype(hidden, self.matrix))


@dataclass(frozen=True)
class TiledDivergence:
    """Another model to compare whole distributions with. `hidden` (M, H') and `head` are that model's, None if it isn't
    held here. `units`: how many of our targets and of its states each unit has, in order; None: one and one."""

    hidden: torch.Tensor | None
    head: Head | None
    function: Function
    units: list[tuple[int, int]] | None = None

    def logits(self, which: slice, space: torch.Tensor | None = None) -> torch.Tensor | None:
        """The other model's, of some of its states."""
        return None if self.hidden is None else self.head.logits(self.hidden[which], space)


def shaped(logits: torch.Tensor, shape: LogitScaling) -> torch.Tensor:
    """Scale, soft cap and temperature."""
    if shape.softcap is not None:
        logits = shape.softcap * torch.tanh(logits * (shape.scale / shape.softcap))
        return logits / shape.temperature if shape.temperature != 1.0 else logits
    return logits * shape.slope if shape.slope != 1.0 else logits


def _size(of: slice) -> int:
    return of.stop - of.start


@dataclass(frozen=True)
class _Tile:
    """Some units, and the states of both models that they have."""

    units: slice
    ours: slice
    theirs: slice
    parts: list[_Tile] = field(default_factory=list)

    def within(self, part: _Tile) -> tuple[slice, slice]:
        """Where our and their states of a part are in those of the tile."""
        ours, theirs = self.ours.start, self.theirs.start
        return (
            slice(part.ours.start - ours, part.ours.stop - ours),
            slice(part.theirs.start - theirs, part.theirs.stop - theirs),
        )


def tiles_of_units(count: int, divergence: TiledDivergence, vocabulary: int, device: torch.device) -> list[_Tile]:
    """Units of as many targets as a tile holds. Raises ValueError where they don't add up to what there is."""
    other = count if divergence.hidden is None else divergence.hidden.shape[0]
    units = divergence.units
    if units is None:
        if count != other:
            raise ValueError(
                f"{count} targets against {other} states of the other model; say which belong together (units)"
            )
        both = [(1, 1)] * count
    else:
        both = units
        if (sum(ours for ours, _ in both), sum(theirs for _, theirs in both)) != (count, other):
            raise ValueError(
                f"units of {sum(a for a, _ in both)} and {sum(b for _, b in both)} states for {count} and {other}"
            )
    widest = vocabulary if divergence.head is None else max(vocabulary, divergence.head.vocabulary)
    most = tile_rows(widest, 4, device)
    few = max(1, PART_BYTES[device.type] // (4 * widest)) if device.type in PART_BYTES else most
    ours, theirs = [0, *accumulate(a for a, _ in both)], [0, *accumulate(b for _, b in both)]

    def cut(first: int, end: int, size: int) -> list[_Tile]:
        """Units from `first` to `end`, in groups of at most `size` states of either, one unit at least."""
        out: list[_Tile] = []
        while first < end:
            last = first + 1
            while last < end and max(ours[last + 1] - ours[first], theirs[last + 1] - theirs[first]) <= size:
                last += 1
            out.append(_Tile(slice(first, last), slice(ours[first], ours[last]), slice(theirs[first], theirs[last])))
            first = last
        return out

    tiles = cut(0, len(both), most)
    return [replace(tile, parts=cut(tile.units.start, tile.units.stop, few)) for tile in tiles]


class _TiledDivergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, matrix, shape, divergence, tiles, names):
        dtype = product_dtype(hidden, matrix)
        total = torch.zeros((), dtype=wide(dtype), device=hidden.device)
        parts: dict[str, list[torch.Tensor]] = {}
        with torch.autocast(hidden.device.type, enabled=False):
            made = HeadPass(hidden, matrix, ctx.needs_input_grad[:2], dtype)
            here = made.buffer(max(_size(tile.ours) for tile in tiles))
            there = None
            if divergence.hidden is not None:
                there = divergence.head.space(divergence.hidden, max(_size(tile.theirs) for tile in tiles))
            for tile in tiles:
                start, end = tile.ours.start, tile.ours.stop
                logits_of_tile = product(made.states[start:end], made.matrix, here).to(made.wide)
                other = divergence.logits(tile.theirs, there)
                for part in tile.parts:
                    mine, theirs = tile.within(part)
                    with torch.enable_grad():
                        logits = logits_of_tile[mine].detach().requires_grad_(made.needs_gradient)
                        told = None if other is None else other[theirs]
                        loss, values = divergence.function(shaped(logits, shape), told, part.units)
                    total += loss.detach()
                    for name, value in values.items():
                        parts.setdefault(name, []).append(value.detach().clone())  # may be a view of what is used again
                    if made.needs_gradient:  # no other part has its logits: the gradient can take their place
                        (logits_of_tile[mine],) = torch.autograd.grad(loss, logits)
                if made.needs_gradient:
                    made.add(start, end, logits_of_tile)
        keep_gradients(ctx, made, matrix)
        found = {name: torch.cat(each) for name, each in parts.items()}
        ctx.mark_non_differentiable(*found.values())
        names.extend(found)  # autograd hands tensors on, not their names
        return total, *found.values()

    @staticmethod
    def backward(ctx, incoming, *_):
        return *kept_gradients(ctx, incoming), None, None, None, None


def tiled_divergence(
    hidden: torch.Tensor,  # (N, H)
    head: Head,
    divergence: TiledDivergence,
    made_ahead: bool,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The sum of `divergence.function` over all units, with gradient, and its values, without, in the order of units.

    `made_ahead`: the gradient may be made in the same pass; otherwise (a head that isn't one plain matrix, a loss that
    is scaled up afterwards) tiles are made again in the backward pass.
    """
    tiles = tiles_of_units(hidden.shape[0], divergence, head.vocabulary, hidden.device)
    if not tiles:  # states and head are still part of it: DDP waits for the gradients of every parameter
        return (hidden.sum() + head.logits(hidden).sum()) * 0.0, {}
    if made_ahead and head.matrix is not None:
        names: list[str] = []
        total, *values = _TiledDivergence.apply(hidden, head.matrix, head.shape, divergence, tiles, names)
        return total, dict(zip(names, values, strict=True))

    def tile(states: torch.Tensor, each: _Tile) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with torch.no_grad():
            other = divergence.logits(each.theirs)
        loss, values = divergence.function(head.logits(states), other, each.units)
        return loss, {name: value.detach() for name, value in values.items()}

    total, parts = hidden.new_zeros((), dtype=torch.float32), {}
    for each in tiles:
        states = hidden[each.ours]
        again = torch.is_grad_enabled()
        loss, values = checkpoint(tile, states, each, use_reentrant=False) if again else tile(states, each)
        total = total + loss
        for name, value in values.items():
            parts.setdefault(name, []).append(value)
    return total, {name: torch.cat(each) for name, each in parts.items()}


__getattr__ = names_of(__name__)
