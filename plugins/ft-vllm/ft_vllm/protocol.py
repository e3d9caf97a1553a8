"""What is around each update of a server's weights, whatever way they take."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from ft_vllm.client import Client, Refused


@dataclass(frozen=True)
class Pause:
    """What becomes of requests while weights change: "wait" for them, "abort" them or "keep" them, and whether what was
    computed with the old weights is dropped. `seconds` that a server may take to stop; None: those of a transfer."""

    mode: str = "wait"
    clear_cache: bool = True
    seconds: float | None = None


@contextlib.contextmanager
def updating(client: Client, version: int, pause: Pause, timeout: float) -> Iterator[None]:
    """vLLM's protocol around the weights themselves."""
    client.pause(pause.seconds or timeout, pause.mode, pause.clear_cache)
    try:
        client.post("/start_weight_update", timeout=timeout)
    except Refused as error:  # vLLM wants one that broke off to be finished first, with whatever it has
        if "already active" not in str(error):
            raise
        client.post("/finish_weight_update", {}, timeout=timeout)
        client.post("/start_weight_update", timeout=timeout)
    yield
    client.post("/finish_weight_update", {"weight_version": str(version)}, timeout=timeout)
    client.resume(timeout)
