"""A server's routes. Uses Python's own HTTP client, so that the trainer needs no package of vLLM's environment."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn
from urllib.parse import urlencode, urlsplit

from ft_host.api import FtHostError

KEY = "VLLM_API_KEY"

QUICK = 30.0  # seconds for an answer that needs no work


class Refused(FtHostError):
    """The server answered with an error. `status` is HTTP's."""

    def __init__(self, message: str, status: int = 0):
        super().__init__(message)
        self.status = status


class OtherWeights(FtHostError):
    """The server has other weights than it was given: another process has taken its place."""


def key_of_servers() -> str | None:
    """The key that servers ask for: the variable that vLLM itself reads."""
    return os.environ.get(KEY) or None


class Stream:
    """An answer that comes in parts. `cut`, from any thread, ends it at once."""

    def __init__(self, connection: http.client.HTTPConnection, answer: http.client.HTTPResponse):
        self.connection, self.answer = connection, answer
        self.whole = False  # the server has said that nothing more comes

    def __iter__(self) -> Iterator[Any]:
        for line in self.answer:
            if not line.startswith(b"data:"):  # an empty line, or a sign of life
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                self.whole = True
                return
            yield json.loads(data)

    def cut(self) -> None:
        sock = self.connection.sock
        if sock is not None:
            with contextlib.suppress(OSError):  # the server was faster
                sock.shutdown(socket.SHUT_RDWR)


class Client:
    """One server at `url`, for many threads: connections that are idle are kept and used again.

    `circumstances` is called when a request fails, and returns what is known of the server (its last lines of output);
    it may raise a better error.
    """

    def __init__(self, url: str, timeout: float, circumstances: Callable[[], str] = str, key: str | None = None):
        parts = urlsplit(url)
        self.url = url.rstrip("/")
        self.address = (parts.hostname, parts.port or 80)
        self.timeout = timeout
        self.circumstances = circumstances
        self.key = key_of_servers() if key is None else key
        self.idle: list[http.client.HTTPConnection] = []
        self.lock = threading.Lock()
        self.told: tuple[float, str] | None = None  # when, and what

    def get(self, path: str, timeout: float | None = None) -> Any:
        return self._ask("GET", path, None, timeout)

    def post(self, path: str, body: Any = None, timeout: float | None = None, **query: str) -> Any:
        return self._ask("POST", path + (f"?{urlencode(query)}" if query else ""), body, timeout)

    @contextlib.contextmanager
    def stream(self, path: str, body: Any, same: Callable[[str], bool]) -> Iterator[Stream]:
        """Give the parts of an answer as they come; `timeout` is the longest silence.

        Over a new connection the server is first asked for the version of its weights: another process may have taken
        its place, and a connection leads to one process for as long as it lasts. Raises OtherWeights where `same` says
        no, and what other requests raise; also for an answer that ends half-way.
        """
        with self._errors("POST", path, self.timeout):
            connection, new = self._connection(self.timeout)
            stream = None
            try:
                if new:
                    # A server that hangs is to be noticed here too: what it is asked needs no work.
                    quick = connection.timeout = min(self.timeout, QUICK)
                    with self._errors("GET", "/weight_info", quick):
                        found = self._answer(connection, "GET", "/weight_info", None, quick)["weight_version"]
                    if connection.sock is not None:
                        connection.sock.settimeout(self.timeout)
                    connection.timeout = self.timeout
                    if not same(found):
                        raise OtherWeights(
                            f"vLLM at {self.url}: its weights are of version {found!r}, which it wasn't given"
                        )
                connection.request("POST", path, json.dumps(body).encode(), self._headers(body))
                answer = connection.getresponse()
                if answer.status // 100 != 2:
                    self._refuse("POST", path, answer, answer.read().decode(errors="replace"))
                stream = Stream(connection, answer)
                yield stream
                if not stream.whole:
                    raise http.client.IncompleteRead(b"")
                answer.read()
            except BaseException:
                connection.close()
                raise
        self._keep(connection)

    # -- weights: vLLM's update protocol

    def pause(self, timeout: float, mode: str = "wait", clear_cache: bool = True) -> None:
        """Wait for running requests, end them where they are ("abort") or let them stand still ("keep"), and drop what
        was computed with the old weights."""
        self.post("/pause", timeout=timeout, mode=mode, clear_cache=str(clear_cache).lower())

    def resume(self, timeout: float) -> None:
        self.post("/resume", timeout=timeout)

    def version(self, timeout: float) -> str:
        """The version of its weights, which the engine itself is asked for: one that hangs doesn't answer."""
        return self.get("/weight_info", timeout)["weight_version"]

    # -- plumbing

    def _ask(self, method: str, path: str, body: Any, timeout: float | None) -> Any:
        """Return the answer's JSON, or None. Raises Refused for an answer that isn't 2xx, FtHostError without an
        answer.
        """
        patience = self.timeout if timeout is None else timeout
        with self._errors(method, path, patience):
            connection, _ = self._connection(patience)
            try:
                found = self._answer(connection, method, path, body, patience)
            except Refused:
                self._keep(connection)
                raise
            except BaseException:
                connection.close()
                raise
        self._keep(connection)
        return found

    def _answer(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Any, patience: float
    ) -> Any:
        data = None if body is None else json.dumps(body).encode()
        connection.request(method, path, data, self._headers(body))
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
        if answer.status // 100 != 2:
            self._refuse(method, path, answer, text)
        return json.loads(text) if text.startswith(("{", "[")) else None

    def _headers(self, body: Any) -> dict[str, str]:
        headers = {} if body is None else {"Content-Type": "application/json"}
        return headers if self.key is None else headers | {"Authorization": f"Bearer {self.key}"}

    def _refuse(self, method: str, path: str, answer: http.client.HTTPResponse, text: str) -> NoReturn:
        hint = f" (the variable {KEY} must hold the server's key)" if answer.status == 401 else ""
        raise Refused(
            f"vLLM at {self.url}: {method} {path}: {answer.status} {answer.reason}: {reason(text)}{hint}{self.known()}",
            answer.status,
        )

    @contextlib.contextmanager
    def _errors(self, method: str, path: str, patience: float) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            raise FtHostError(
                f"vLLM at {self.url}: no answer to {method} {path} within {patience:g} seconds{self.known()}"
            ) from error
        except http.client.IncompleteRead as error:
            raise FtHostError(f"vLLM at {self.url}: {method} {path}: half an answer{self.known()}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise FtHostError(f"vLLM at {self.url}: {method} {path}: {said(error)}{self.known()}") from error

    def _connection(self, timeout: float) -> tuple[http.client.HTTPConnection, bool]:
        """Return a connection that is idle; a new one, and True, where there is none that the server hasn't closed."""
        while True:
            with self.lock:
                kept = self.idle.pop() if self.idle else None
            if kept is None:
                return http.client.HTTPConnection(*self.address, timeout=timeout), True
            if not closed(kept):
                kept.sock.settimeout(timeout)
                return kept, False
            kept.close()

    def _keep(self, connection: http.client.HTTPConnection) -> None:
        if connection.sock is not None:  # the server hasn't asked to close it
            with self.lock:
                self.idle.append(connection)

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
