"""Asks for the key on all routes of a server: vLLM by itself leaves those for weights open, with which anybody could
change the model.

Runs in vLLM's processes, as `vllm serve --middleware ft_vllm.door.Door`; imports neither ft_host nor the rest of this
package. The key is that of the variable VLLM_API_KEY, which vLLM itself reads.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

OPEN = ("/health",)


class Door:
    """An ASGI application around another one. Raises ValueError where there is no key to ask for."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app
        key = os.environ.get("VLLM_API_KEY")
        if not key:
            raise ValueError("ft_vllm.door: the variable VLLM_API_KEY has no key")
        self.wanted = f"Bearer {key}".encode()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" or scope.get("path") in OPEN or self._knows(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"error": "the key is missing, or another one"}'})
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _knows(self, scope: dict[str, Any]) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and secrets.compare_digest(given[0], self.wanted)
