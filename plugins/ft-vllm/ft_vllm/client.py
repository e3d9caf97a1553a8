"""A server's routes. Uses Python's own HTTP client, so that the trainer needs no package of vLLM's environment."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode, urlsplit

from ft_host.api import FtHostError


class Refused(FtHostError):
    """The server answered with an error. `status` is HTTP's."""

    def __init__(self, message: str, status: int = 0):
        super().__init__(message)
        self.status = status


class Client:
    """One server at `url`. Each thread keeps its own connection.

    `circumstances` is called when a request fails, and returns what is known of the server (its last lines of output);
    it may raise a better error.
    """

    def __init__(self, url: str, timeout: float, circumstances: Callable[[], str] = str):
        parts = urlsplit(url)
        self.url = url.rstrip("/")
        self.address = (parts.hostname, parts.port or 80)
        self.timeout = timeout
        self.circumstances = circumstances
        self.local = threading.local()
        self.lock = threading.Lock()
        self.told: tuple[float, str] | None = None  # when, and what

    def get(self, path: str, timeout: float | None = None) -> Any:
        return self._ask("GET", path, None, timeout)

    def post(self, path: str, body: Any = None, timeout: float | None = None, **query: str) -> Any:
        return self._ask("POST", path + (f"?{urlencode(query)}" if query else ""), body, timeout)

    # -- weights: vLLM's update protocol

    def pause(self, timeout: float) -> None:
        """Wait for running requests, and drop what was computed with the old weights."""
        self.post("/pause", timeout=timeout, mode="wait", clear_cache="true")

    def resume(self, timeout: float) -> None:
        self.post("/resume", timeout=timeout)

    # -- plumbing

    def _ask(self, method: str, path: str, body: Any, timeout: float | None) -> Any:
        """Return the answer's JSON, or None. Raises Refused for an answer that isn't 2xx, FtHostError without an
        answer.
        """
        patience = self.timeout if timeout is None else timeout
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if data is not None else {}
        connection = self._connection(patience)
        try:
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
        except TimeoutError as error:
            self._drop()
            raise FtHostError(
                f"vLLM at {self.url}: no answer to {method} {path} within {patience:g} seconds{self.known()}"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            self._drop()
            raise FtHostError(f"vLLM at {self.url}: {method} {path}: {said(error)}{self.known()}") from error
        if answer.status // 100 != 2:
            raise Refused(
                f"vLLM at {self.url}: {method} {path}: {answer.status} {answer.reason}: {reason(text)}{self.known()}",
                answer.status,
            )
        return json.loads(text) if text.startswith(("{", "[")) else None

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        """Return this thread's connection; a new one where it has none, or where the server has closed it."""
        kept = self.local.__dict__.get("connection")
        if kept is not None and not closed(kept):
            kept.sock.settimeout(timeout)
            return kept
        self.local.connection = http.client.HTTPConnection(*self.address, timeout=timeout)
        return self.local.connection

    def _drop(self) -> None:
        self.local.connection.close()
        self.local.connection = None

    def known(self) -> str:
        """Return further lines for the message of a failure. Determined once, where many requests fail."""
        with self.lock:
            if self.told is None or time.monotonic() - self.told[0] > 10:
                self.told = time.monotonic(), self.circumstances()
        return f"\n{self.told[1]}" if self.told[1] else ""


def closed(connection: http.client.HTTPConnection) -> bool:
    """Return whether the server has closed an idle connection."""
    import select

    if connection.sock is None:
        return True
    readable, _, _ = select.select([connection.sock], [], [], 0)
    return bool(readable)  # no request is pending, so readable data means the end


def said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def reason(text: str) -> str:
    """Return the text of an error's body, without its wrapping."""
    try:
        body = json.loads(text)
    except ValueError:
        return text.strip()[:1000] or "no reason given"
    for key in ("error", "detail", "message"):
        if isinstance(body, dict) and key in body:
            body = body[key]
            if isinstance(body, dict):
                body = body.get("message", body)
            break
    return str(body)[:1000]
