"""The segment attention as one kernel with a block mask: torch's flex_attention, compiled. Uncompiled it serves
tests on a CPU.

What is compiled must serve a whole run, whatever its batches: a kernel is compiled anew for each combination of types,
head layout, soft cap, and whether there is a gradient, but not for another number of tokens or segments or another
window. So a mask is tensors of a few numbers a token (`layout.Intervals`), and there are always two blocks at least.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch.nn import functional as F
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from ft_host.models import compiling
from ft_host.models.layout import FlatMask, Layout, NotFlat, blocks, intervals, table
from ft_host.util.transfer import to_device

BLOCK = 128  # tokens: torch's own size of a block
LEAST = 2 * BLOCK  # of fewer tokens torch would make another kernel, for decoding, which many head layouts don't fit
KERNELS = compiling.KERNELS


def padded_length(total: int) -> int:
    """Return how many tokens the kernel is given for a batch of `total`."""
    return max(total, LEAST)


def block_mask(layout: Layout, window: int | None) -> BlockMask:
    """Return the mask of a layout, made once per forward and kind of layer.

    It is computed on the host from lengths and parents. Of T tokens it takes 16 bytes a token and 16 a pair of blocks,
    T/128 squared: 17 MiB at 128k tokens.
    """
    key = ("flex", window)
    if key in layout.masks:
        return layout.masks[key]
    total, device = sum(layout.lengths), layout.device
    length = padded_length(total)
    lengths, parents = layout.lengths, layout.parents
    if length > total:  # what fills it up sees itself alone
        lengths, parents = [*lengths, length - total], [*parents, -1]
    partly, wholly = blocks(lengths, parents, window, BLOCK)
    tables = [
        each[None, None]
        for dense in (partly, wholly, partly.t(), wholly.t())  # keys of each query, and queries of each key
        for each in table(dense)
    ]
    tokens = intervals(lengths, parents)
    reach = length if window is None else window
    order, leave, position, first, *tables = to_device(
        [tokens.order, tokens.leave, tokens.position, tokens.position - reach + 1, *tables], device
    )

    def mask_mod(batch, head, query, key):
        inside = (order[key] <= order[query]) & (order[query] < leave[key])
        return inside & (position[key] >= first[query])

    layout.masks[key] = BlockMask((length, length), *tables, BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=mask_mod)
    return layout.masks[key]


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: BlockMask,
    scaling: float | None,
    softcap: float | None,
    sinks: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the output, (1, heads, T, D'), and with `sinks` the logarithm of the softmax's denominator, (1, heads, T).

    A function of its own: what torch counts as compiled anew belongs to it alone.
    """

    def score_mod(score, batch, head, query, key):
        return softcap * torch.tanh(score / softcap)

    out = flex_attention(
        query,
        key,
        value,
        score_mod=None if softcap is None else score_mod,
        block_mask=mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options={"FORCE_USE_FLEX_ATTENTION": True},
        return_aux=AuxRequest(lse=True) if sinks else None,
    )
    return (out[0], out[1].lse) if sinks else (out, None)


# Torch traces even this. A second soft cap of a process would be a symbol there, which torch 2.15 doesn't take.
_uncompiled = torch._dynamo.config.patch(specialize_float=True)(_attend)


@functools.cache
def compiled() -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    """Return the compiled kernel."""
    why = (
        "for head layouts, types and the like that changed; TORCH_LOGS=recompiles says which. "
        "Set segment_attention to sdpa to go on without it"
    )
    return compiling.compiled(_attend, "flex_attention", why, KERNELS)


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
    if dropout:
        raise NotFlat("flex_attention has no dropout on attention weights")
    total = query.shape[2]
    missing = padded_length(total) - total
    if missing:
        # in the order that models have them, heads within tokens: other strides would be another kernel
        query, key, value = (
            F.pad(each.transpose(1, 2), (0, 0, 0, 0, 0, missing)).transpose(1, 2) for each in (query, key, value)
        )
    kernel = _uncompiled if query.device.type == "cpu" else compiled()
    of_blocks = block_mask(mask.layout, mask.window)
    out, normaliser = kernel(query, key, value, of_blocks, scaling, softcap, s_aux is not None)
    if normaliser is not None:
        # a sink is one more logit in the softmax: it takes a share from the others
        share = torch.sigmoid(normaliser - s_aux.reshape(1, -1, 1).to(normaliser.dtype))
        out = out * share[..., None].to(out.dtype)
    return out[:, :, :total].transpose(1, 2).contiguous()
