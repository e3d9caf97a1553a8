"""Servers outside of a run: `ft-host serve`."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from ft_host.api import ConfigError, FtHostError, Served
from ft_vllm import server
from ft_vllm.client import KEY, Client
from ft_vllm.command import Served as Model
from ft_vllm.config import VLLMConfig
from ft_vllm.keeper import STARTS
from ft_vllm.server import Launch, Server
from ft_vllm.tasks import together

ELSEWHERE = (
    "url",
    "urls",
    "teacher_url",
    "lora",
    "adapter_folder",
    "weights_folder",
    "trainer_address",
    "servers",
    "host",
)


@contextlib.contextmanager
def serving(model: str, servers: int, host: str, config: VLLMConfig) -> Iterator[Served]:
    """Start servers and end them when the context is left. Raises ConfigError for fields without effect here, and
    FtHostError where one doesn't start."""
    config = settled(config, servers, host)
    on_gpu = torch.cuda.is_available()
    what = Model(
        **server.known_model(model),
        revision=None,
        trust_remote_code="--trust-remote-code" in config.server_args,
        dtype=config.dtype,
        on_gpu=on_gpu,
        transfer=config.transfer if config.transfer != "auto" else "nccl" if on_gpu else "gloo",
        lora_rank=config.lora_rank,
    )
    key = server.key_for(host)
    log = Path(config.log or "vllm.log").resolve()
    launches = server.launches(config, what, log, key)
    kept = [OneServer(launch) for launch in launches]
    try:
        errors = together([each.start for each in kept])
        if errors:
            raise errors[0]
        yield Served(
            urls=[each.launch.url for each in kept],
            backend_config=backend_config([each.launch.url for each in kept], config, what.transfer),
            environment={} if key is None else {KEY: key},
            look=lambda: look(kept),
        )
    finally:
        together([each.stop for each in kept])


def settled(config: VLLMConfig, servers: int, host: str) -> VLLMConfig:
    """The fields with the number of servers and the address. Without `python` it is this one's, if it has vLLM."""
    usual = VLLMConfig()
    for name in ELSEWHERE:
        if getattr(config, name) != getattr(usual, name):
            option = f"give --{name}" if name in ("servers", "host") else "it is a field of runs"
            raise ConfigError(f"backend_config.{name}: has no effect on servers outside of a run; {option}")
    python = config.python
    if python is None and importlib.util.find_spec("vllm") is not None:
        python = sys.executable
    if config.mode != "server" or python is None:
        raise ConfigError(
            "backend_config.python: not set; it is the Python of vLLM's environment, with which servers are started"
        )
    out = dataclasses.replace(config, python=python, servers=servers, host=host)
    out.check(in_run=False)
    return out


def backend_config(urls: list[str], config: VLLMConfig, transfer: str) -> dict[str, object]:
    found: dict[str, object] = {"url": urls[0]} if len(urls) == 1 else {"urls": urls}
    found["transfer"] = transfer
    if config.max_num_seqs != VLLMConfig().max_num_seqs:
        found["max_num_seqs"] = config.max_num_seqs
    return found


class OneServer:
    """A server and how it is started; one that ends is started anew at the same address, where runs find it again."""

    def __init__(self, launch: Launch):
        self.launch = launch
        self.server = Server(url=launch.url, log=launch.log)
        self.failed_starts = 0

    def start(self) -> None:
        self.launch.start(self.server)
        client = Client(
            self.launch.url, self.launch.config.timeout, lambda: server.circumstances(self.server), self.launch.key
        )
        server.attach(self.server, client)

    def stop(self) -> None:
        server.stop(self.server)

    @property
    def ended(self) -> bool:
        return self.server.process is None or self.server.process.poll() is not None


def look(kept: list[OneServer]) -> list[str]:
    """Start anew what has ended. Raises FtHostError for a server that doesn't start several times in a row."""
    said = []
    for each in kept:
        if not each.ended:
            continue
        end = server.tail(each.server)
        try:
            each.start()
        except FtHostError:
            each.failed_starts += 1
            if each.failed_starts >= STARTS:
                raise
            continue
        each.failed_starts = 0
        said.append(f"the server at {each.launch.url} had ended, and was started anew\n{end}")
    return said
