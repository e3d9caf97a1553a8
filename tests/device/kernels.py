"""What tests of attention's kernels do on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ft_host.config import RunConfig
from ft_host.models import flex, load_policy
from ft_host.models.attention import FlatMask, Layout, segment_attention
from ft_host.testing import save_tiny, tiny_llama, tiny_tokenizer

DEVICE = torch.device("cuda")
FOREST = ([7, 6, 150, 5, 9], [-1, 0, -1, 0, 3])


def tensors_for(
    tokens: int, heads: int, keys: int, width: int, dtype: torch.dtype = torch.float32, gradient: bool = True
) -> list[torch.Tensor]:
    """Query, key and value as a model has them: heads within tokens."""
    noise = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, tokens, count, width, generator=noise).to(DEVICE, dtype).transpose(1, 2).requires_grad_(gradient)
        for count in (heads, keys, keys)
    ]


def compiled_by(calls: list[dict[str, Any]]) -> list[int]:
    """How many kernels each of these calls of flex attention compiles, in one process."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    flex.compiled.cache_clear()
    counts = []
    for call in calls:
        given = {"parents": None, "window": None, "heads": 4, "keys": 2, "width": 16, "gradient": True} | call
        lengths, gradient = given["lengths"], given["gradient"]
        layout = Layout(lengths, given["parents"] or [-1] * len(lengths), DEVICE, "flex")
        inputs = tensors_for(
            sum(lengths), given["heads"], given["keys"], given["width"], given.get("dtype", torch.bfloat16), gradient
        )
        sinks = torch.zeros(given["heads"], device=DEVICE) if given.get("sinks") else None
        before = counters["stats"]["unique_graphs"]
        with torch.set_grad_enabled(gradient):
            flex.flex_segments(*inputs, FlatMask(layout, given["window"]), 0.25, 0.0, given.get("softcap"), sinks)
        counts.append(counters["stats"]["unique_graphs"] - before)
    return counts


def beyond_the_limit() -> str:
    """The error where more kernels are asked for than may be compiled."""
    flex.KERNELS = 2
    try:
        compiled_by([{"lengths": [300], "width": width} for width in (8, 16, 32)])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


# query heads, key heads, window, and what else an attention layer asks for
LAYERS = [
    (4, 4, None, {}),
    (8, 2, 4, {}),
    (5, 1, 4, {"softcap": 2.0}),
    (7, 1, None, {"scaling": 0.7}),
    (8, 1, 40, {"s_aux": True}),
]


def differences() -> list[tuple[int, str, float]]:
    """By how much flex and sdpa differ, layer by layer: the output, and gradients of query, key, value and sinks."""
    found = []
    for at, (heads, keys, window, extra) in enumerate(LAYERS):
        results = []
        for kernel in ("sdpa", "flex"):
            inputs, given = tensors_for(sum(FOREST[0]), heads, keys, 16), dict(extra)
            if "s_aux" in given:
                given["s_aux"] = torch.linspace(-1, 2, heads).to(DEVICE).requires_grad_()
                inputs.append(given["s_aux"])
            mask = FlatMask(Layout(*FOREST, DEVICE, kernel), window)
            out = segment_attention(torch.nn.Identity(), *inputs[:3], mask, **given)
            weights = torch.linspace(-1, 1, out.numel()).to(DEVICE).view(out.shape)
            results.append([out, *torch.autograd.grad((out * weights).sum(), inputs)])
        names = ("output", "query", "key", "value", "sinks")
        found += [(at, name, float((one - other).abs().max())) for name, one, other in zip(names, *results)]
    return found


def chosen(folder: Path, bf16: bool) -> dict[str, Any]:
    """What a policy with four query heads a key head gets, on the device."""
    if not folder.is_dir():
        save_tiny(folder, tiny_llama(num_attention_heads=8, num_key_value_heads=2, head_dim=16))
    config = RunConfig(model=str(folder), dataset="d", bf16=bf16)
    policy = load_policy(config, tiny_tokenizer(), DEVICE)
    return {
        "kernel": policy.kernel,
        "rows_kernel": policy.rows_kernel,
        "said": policy.attention.said,
        "refused": policy.attention.refused,
        "difference": policy.layout_difference,
        "leak": policy.layout_leak,
    }


def waits_of_a_mask() -> int:
    """How often the host waits while masks of two windows are made and sent."""
    from device import pretended

    layout = Layout([90, 300, 40], [-1, 0, 0], DEVICE, "flex")
    with pretended.log() as log:
        for window in (None, 64):
            flex.block_mask(layout, window)
    return len(log.waits)
