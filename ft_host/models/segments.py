"""The segment attention as one call of torch's scaled_dot_product_attention per segment. Serves every device."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ft_host.models.layout import FlatMask
from ft_host.models.lean.parts import current
from ft_host.models.varlen import flash_takes


def per_segment(
    query: torch.Tensor,  # (1, heads, T, D)
    key: torch.Tensor,  # (1, kv_heads, T, D)
    value: torch.Tensor,  # (1, kv_heads, T, D')
    mask: FlatMask,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    s_aux: torch.Tensor | None,
) -> torch.Tensor:
    """Return (1, T, heads, D'), as `attention.segment_attention`."""
    layout = mask.layout
    groups = query.shape[1] // key.shape[1]
    plain = softcap is None and s_aux is None
    on_cpu = query.device.type == "cpu"
    flash = plain and groups > 1 and flash_takes(query, key, value)
    # split, not slices: its backward is one concatenation, while each slice would fill a tensor of the whole batch
    queries, keys, values = (tensor.split(layout.lengths, 2) for tensor in (query, key, value))
    parts = current()
    parts.cut(query, queries)
    parts.cut(key, keys)
    outputs = []
    for index, chain in enumerate(layout.chains):
        k, v = keys[index], values[index]
        if chain:
            k = parts.join([*(keys[ancestor] for ancestor in chain), k])
            v = parts.join([*(values[ancestor] for ancestor in chain), v])
        seen = layout.mask(index, mask.window)
        # Shared between heads, keys and values keep a quarter less for the backward pass. The CPU's kernel can do that;
        # CUDA's flash without a mask as well. With one the call would fall back to computing all scores.
        grouped = plain and groups > 1 and (on_cpu or (flash and seen is None))
        if groups > 1 and not grouped:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        if plain:
            outputs.append(
                F.scaled_dot_product_attention(
                    queries[index],
                    k,
                    v,
                    attn_mask=layout.added(index, mask.window, query.dtype),
                    is_causal=seen is None,
                    scale=scaling,
                    dropout_p=dropout,
                    enable_gqa=grouped,
                )
            )
        else:
            outputs.append(_written_out(queries[index], k, v, seen, scaling, dropout, softcap, s_aux))
    # Kernels order their output by token: joined in that order, nothing is copied twice.
    whole = torch.cat([output.transpose(1, 2) for output in outputs], 1).contiguous()
    parts.settle(outputs, whole)
    return whole


def _written_out(
    query: torch.Tensor,  # (1, heads, L, D)
    key: torch.Tensor,  # (1, heads, K, D)
    value: torch.Tensor,  # (1, heads, K, D')
    seen: torch.Tensor | None,  # (L, K) bool
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    s_aux: torch.Tensor | None,
) -> torch.Tensor:
    """Return (1, heads, L, D') for what fused kernels don't support: capped scores and sinks."""
    length = query.shape[2]
    if seen is None:
        seen = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    scores = query @ key.transpose(2, 3) * (query.shape[3] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, float("-inf"))
    if s_aux is not None:
        sinks = s_aux.reshape(1, -1, 1, 1).expand(1, -1, length, 1).to(scores.dtype)
        scores = torch.cat([scores, sinks], 3)
    wide = torch.promote_types(scores.dtype, torch.float32)
    shares = torch.softmax(scores, 3, dtype=wide).to(query.dtype)
    if s_aux is not None:
        shares = shares[..., :-1]
    return F.dropout(shares, dropout, training=dropout > 0) @ value
