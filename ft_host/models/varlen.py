"""The segment attention of rows that share no prompt, as torch's variable-length attention: flash kernels over rows
that lie end to end, without a mask and without a compiler.
"""

from __future__ import annotations

import functools
import inspect

import torch

from ft_host.models.layout import FlatMask, Layout, NotFlat
from ft_host.util.transfer import to_device


def flash_takes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Return whether torch's flash kernels on CUDA take these heads, (…, D), of these types."""
    size = query.shape[-1]
    return (
        query.device.type == "cuda"
        and {query.dtype, key.dtype, value.dtype} in ({torch.bfloat16}, {torch.float16})
        and size == value.shape[-1]
        and size % 8 == 0
        and size <= 256
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


@functools.cache
def missing() -> str | None:
    """Return why the installed torch has no variable-length attention with windows and shared heads, or None."""
    try:
        from torch.nn.attention import varlen
    except ImportError:
        return f"torch {torch.__version__} has no variable-length attention"
    arguments = inspect.signature(varlen.varlen_attn).parameters
    if not {"window_size", "enable_gqa"} <= arguments.keys():
        return f"the variable-length attention of torch {torch.__version__} has no windows or no shared heads"
    return None


def ends_of_rows(layout: Layout) -> torch.Tensor:
    """Return (S + 1,) int32 on the device: where each row begins, and where the last one ends."""
    if "varlen" not in layout.masks:
        lengths = torch.tensor([0, *layout.lengths])
        layout.masks["varlen"] = to_device([lengths.cumsum(0, dtype=torch.int32)], layout.device)[0]
    return layout.masks["varlen"]


def varlen_rows(
    query: torch.Tensor,  # (1, heads, T, D)
    key: torch.Tensor,  # (1, kv_heads, T, D)
    value: torch.Tensor,  # (1, kv_heads, T, D')
    mask: FlatMask,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    s_aux: torch.Tensor | None,
) -> torch.Tensor:
    """Return (1, T, heads, D'), as `attention.segment_attention`. Raises NotFlat for what the kernel lacks: dropout,
    soft caps, sinks (it returns a logarithm of the denominator, without gradient), other types and head dimensions.
    """
    named = {"dropout on attention weights": dropout, "soft caps": softcap is not None, "sinks": s_aux is not None}
    for what, wanted in named.items():
        if wanted:
            raise NotFlat(f"torch's variable-length attention has no {what}")
    if not flash_takes(query, key, value):
        raise NotFlat(
            "torch's variable-length attention is for heads of up to 256 dimensions, a multiple of 8, in bfloat16 or "
            f"float16 on CUDA cards since Ampere; here {query.shape[-1]} and {value.shape[-1]} dimensions in "
            f"{str(query.dtype).removeprefix('torch.')}"
        )
    from torch.nn.attention.varlen import varlen_attn

    ends, longest = ends_of_rows(mask.layout), max(mask.layout.lengths)
    out = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        ends,
        ends,
        longest,
        longest,
        scale=scaling,
        # keys to the left of the query, besides its own
        window_size=(-1 if mask.window is None else mask.window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out[None].contiguous()
