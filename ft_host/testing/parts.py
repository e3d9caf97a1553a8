"""Parts of a step alone: the hooks of a method, the values of metrics, and the head's tiles."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from unittest import mock

from ft_host.metrics import Accumulator, Metric, combine

if TYPE_CHECKING:
    import torch


def method_hooks(method: str) -> Any:
    """The hooks of a method by name, as a run calls them: `method_hooks("sft").ft_prepare(row=…)`."""
    from ft_host import registry

    return registry.session(registry.find("method", method), None).hook


def metric_values(*metrics: dict[str, Metric]) -> dict[str, float]:
    """What a step logs that was given `metrics`, those of a micro-batch each."""
    accumulator = Accumulator()
    for each in metrics:
        accumulator.add(each)
    return combine([accumulator.local()])


@contextlib.contextmanager
def small_tiles(rows: int = 3) -> Iterator[None]:
    """Have the head work on `rows` targets at a time, as it does on a large vocabulary."""
    with (
        mock.patch("ft_host.models.tiles.tile_rows", lambda *_: rows),
        mock.patch("ft_host.models.tiled_divergence.tile_rows", lambda *_: rows),
    ):
        yield


def tiled_loss(
    states: torch.Tensor,
    matrix: torch.Tensor,
    other_states: torch.Tensor,
    other_matrix: torch.Tensor,
    function: Callable[..., Any],
    temperature: float = 1.0,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What `model(batch, divergence=TiledDivergence(…, function))` gives for states (N, H) under a head (V, H), against
    other states (N, H') under another head (V', H'): the loss, of shape (), with gradient, and the values of
    `function`."""
    from ft_host.models.logit_scaling import LogitScaling
    from ft_host.models.tiled_divergence import Head, TiledDivergence, tiled_divergence

    scaling = LogitScaling(temperature=temperature)
    divergence = TiledDivergence(other_states, Head(other_matrix, None, scaling, len(other_matrix)), function)
    return tiled_divergence(states, Head(matrix, None, scaling, len(matrix)), divergence, True)
