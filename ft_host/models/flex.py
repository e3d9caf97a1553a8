"""The segment attention as one kernel with a block mask: torch's flex_attention, compiled.

Meant for CUDA, where a call per segment would leave the device idle; uncompiled it serves tests on a CPU.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention

if TYPE_CHECKING:
    from ft_host.models.attention import FlatMask, Layout


@functools.cache
def _compiled():
    return torch.compile(flex_attention, dynamic=True)


def visible(layout: Layout) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (T,) segment of each token, (T,) its position, and (S, S) bool: whether a segment attends to another."""
    segments = torch.repeat_interleave(torch.arange(len(layout.lengths)), torch.tensor(layout.lengths))
    positions = torch.cat(
        [torch.arange(before, before + n) for before, n in zip(layout.before, layout.lengths, strict=True)]
    )
    sees = torch.eye(len(layout.lengths), dtype=torch.bool)
    for index, chain in enumerate(layout.chains):
        sees[index, chain] = True
    return segments.to(layout.device), positions.to(layout.device), sees.to(layout.device)


def block_mask(layout: Layout, window: int | None) -> BlockMask:
    """Return the mask of a layout, made once per forward and kind of layer."""
    key = ("flex", window)
    if key not in layout.masks:
        segments, positions, sees = visible(layout)

        def mask_mod(b, h, q, k):
            seen = sees[segments[q], segments[k]] & (positions[k] <= positions[q])
            if window is not None:
                seen = seen & (positions[q] - positions[k] < window)
            return seen

        total = sum(layout.lengths)
        layout.masks[key] = create_block_mask(mask_mod, None, None, total, total, device=layout.device)
    return layout.masks[key]


def flex_segments(
    query: torch.Tensor,  # (1, heads, T, D)
    key: torch.Tensor,  # (1, kv_heads, T, D)
    value: torch.Tensor,  # (1, kv_heads, T, D')
    mask: FlatMask,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    s_aux: torch.Tensor | None,
) -> torch.Tensor:
    """Return (1, T, heads, D'), as `attention.segment_attention`. Raises NotFlat for dropout, which the
    kernel lacks.
    """
    from ft_host.models.attention import NotFlat

    if dropout:
        raise NotFlat("flex_attention has no dropout on attention weights")

    def score_mod(score, b, h, q, k):
        return softcap * torch.tanh(score / softcap)

    kernel = _compiled() if query.is_cuda else flex_attention
    out = kernel(
        query,
        key,
        value,
        score_mod=score_mod if softcap is not None else None,
        block_mask=block_mask(mask.layout, mask.window),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        return_aux=AuxRequest(lse=True) if s_aux is not None else None,
    )
    if s_aux is not None:
        out, normaliser = out[0], out[1].lse
        # a sink is one more logit in the softmax: it takes a share from the others
        share = torch.sigmoid(normaliser - s_aux.reshape(1, -1, 1).to(normaliser.dtype))
        out = out * share[..., None].to(out.dtype)
    return out.transpose(1, 2).contiguous()
