"""Attention over a flat batch of segments, through unmodified transformers models.

`install(model)` sets one of our names as the model's attention implementation, once. While `flat(layout)` is active the
model's own code asks transformers for a mask and gets a `FlatMask` instead of a tensor. It passes it to its layers like
any mask, and our attention function then attends segment by segment. The mask is an argument of each layer, so a layer
that is recomputed under gradient checkpointing receives it again. For any other mask the function is the model's own
implementation, so generation and evaluation between two steps are unaffected.

What a model needs and we don't support (a chunked mask, a position bias, an unknown argument) raises `NotFlat`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch

from ft_host.errors import ConfigError
from ft_host.models.bands import bands_for, by_bands
from ft_host.models.flex import flex_segments
from ft_host.models.layout import FlatMask, Layout, NotFlat
from ft_host.models.lean.parts import attention_call, rotation_of
from ft_host.models.reach import text_part
from ft_host.models.segments import per_segment
from ft_host.models.varlen import varlen_rows

PREFIX = "ft_segments_"
ORIGINALS = ("sdpa", "eager", "flex_attention")

# Arguments that attention modules pass on and that have no effect here. `position_ids` are already in query and key;
# the rest are flags of the outer forward that travel through **kwargs.
HARMLESS = frozenset(
    ("position_ids", "cache_position", "use_cache", "return_dict", "output_router_logits", "output_hidden_states")
)


_layout: ContextVar[Layout | None] = ContextVar("ft_host_layout", default=None)


@contextlib.contextmanager
def flat(layout: Layout) -> Iterator[None]:
    """Inside this block the model's masks are of `layout`."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)


# ---------------------------------------------------------------- what transformers calls


def install(model: Any) -> None:
    """Make a transformers model able to take flat batches.

    Of a vision-language model, its text decoder. Raises NotFlat where that isn't possible, ConfigError for an attention
    implementation that depends on its own name.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    model = text_part(model)
    original = model.config._attn_implementation or "eager"
    if original.startswith(PREFIX):
        return
    if original not in ORIGINALS:
        raise ConfigError(
            f"attn_implementation: {original!r} reads its own name from the model's config, so it can't be used "
            f"for the segment attention; expected one of {', '.join(ORIGINALS)}, or set segment_attention: none"
        )
    if not model._can_set_attn_implementation():
        raise NotFlat(f"{type(model).__name__} doesn't take its attention from transformers' interface")
    name = PREFIX + original
    AttentionInterface.register(name, _attention(original))
    AttentionMaskInterface.register(name, _mask(original))
    model.set_attn_implementation(name)


def original_of(config: Any) -> str | None:
    """Return the implementation behind ours in a model's config, or the configured one."""
    name = config._attn_implementation
    return name.removeprefix(PREFIX) if name else name


def _attention(original: str) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    def attention(module, query, key, value, attention_mask, **arguments):
        if isinstance(attention_mask, FlatMask):
            return segment_attention(module, query, key, value, attention_mask, **arguments), None
        if _layout.get() is not None:
            raise NotFlat(f"{type(module).__name__} doesn't pass the model's mask to its attention")
        own, bands = _own_attention(module, original), bands_for(query, key, attention_mask, arguments)
        if bands is not None:
            return by_bands(own, bands, module, query, key, value, attention_mask, **arguments)
        return own(module, query, key, value, attention_mask, **arguments)

    return attention


def _own_attention(module: torch.nn.Module, original: str) -> Callable[..., Any]:
    from transformers import AttentionInterface

    if original == "eager":  # each modeling file defines its own
        return sys.modules[type(module).__module__].eager_attention_forward
    return AttentionInterface._global_mapping[original]


def _mask(original: str) -> Callable[..., Any]:
    def mask(*, mask_function: Callable, local_size: int | None = None, **arguments):
        layout = _layout.get()
        if layout is not None:
            _check_mask(mask_function, local_size, arguments.get("use_vmap", False))
            return FlatMask(layout, local_size)
        from transformers import AttentionMaskInterface

        if local_size is not None:
            arguments["local_size"] = local_size
        return AttentionMaskInterface._global_mapping[original](mask_function=mask_function, **arguments)

    return mask


def _check_mask(mask_function: Callable, window: int | None, custom: bool) -> None:
    """Refuse a mask that is neither causal nor causal within a window, by testing a few distant positions.

    This needs a mask function of absolute positions, which it is as long as the model is given a 2-D attention mask
    (transformers looks for packed rows only without one).
    """
    if custom:
        raise NotFlat("the model adds its own mask to the causal one")
    size = window or 1000
    at = 3 * size + size // 2
    expected = {at: True, at + 1: False, at - size + 1: True, at - size: window is None, 0: window is None}
    for seen, visible in expected.items():
        answer = mask_function(0, 0, torch.tensor(at), torch.tensor(seen))
        if bool(answer) != visible:
            raise NotFlat("the model's mask is neither causal nor causal within a sliding window")


# ---------------------------------------------------------------- the attention

# The kernels of a layout, by name. All take a forest of segments, but for varlen: rows that share no prompt.
KERNELS = {"sdpa": per_segment, "flex": flex_segments, "varlen": varlen_rows}


def of_one_type(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return them in autocast's type where that is on, as torch's own attention has them.

    A norm of float32 weights on queries and keys leaves these in float32, while values are in bfloat16. Not every
    kernel takes that, nor would it be as fast.
    """
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors)


@torch.compiler.disable
def segment_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, heads, T, D)
    key: torch.Tensor,  # (1, kv_heads, T, D)
    value: torch.Tensor,  # (1, kv_heads, T, D')
    mask: FlatMask,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> torch.Tensor:
    """Return (1, T, heads, D'): each token attends to its segment's ancestors and, causally, to its segment.

    `softcap`: scores become softcap * tanh(scores / softcap). `s_aux`: (heads,) attention sinks, a further logit in the
    softmax without a value. Raises NotFlat for an unknown argument.
    """
    name = type(module).__name__
    unknown = sorted(key for key, value in others.items() if value is not None and key not in HARMLESS)
    if others.pop("output_attentions", None):
        raise NotFlat(f"{name}: attention weights aren't kept for a flat batch")
    unknown = [argument for argument in unknown if argument != "output_attentions"]
    if unknown:
        raise NotFlat(
            f"{name} passes {', '.join(unknown)} to its attention, which the segment attention doesn't support"
        )
    if is_causal is False:
        raise NotFlat(f"{name} isn't causal")
    if sliding_window is not None and sliding_window != mask.window:
        raise NotFlat(f"{name} has a sliding window of {sliding_window}, but its mask has {mask.window}")
    layout = mask.layout
    if query.shape[2] != key.shape[2] or query.shape[2] != sum(layout.lengths):
        raise NotFlat(f"{name}: {query.shape[2]} queries and {key.shape[2]} keys for {sum(layout.lengths)} tokens")
    rotations = [rotation_of(tensor) for tensor in (query, key)]
    query, key, value = of_one_type(query, key, value)
    with attention_call() as parts:
        for tensor, rotation in zip((query, key), rotations, strict=True):
            parts.rotated(tensor, rotation)
        return KERNELS[layout.kernel](query, key, value, mask, scaling, dropout, softcap, s_aux)
