"""`ft-host serve`: servers outside of a run, by the command itself."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
from ft_vllm import serve, server
from ft_vllm.client import Client
from ft_vllm.config import VLLMConfig

from ft_host.api import ConfigError, FtHostError
from ft_host.testing import save_tiny, tiny_qwen


@pytest.fixture
def model(tmp_path):
    return str(save_tiny(tmp_path / "model", tiny_qwen()))


@pytest.mark.slow  # a process that imports torch
def test_the_command_starts_servers_says_how_a_run_finds_them_and_ends_them(model, python, tmp_path):
    fields = f"{{python: {python}, log: {tmp_path}/served.log, transfer: folder}}"
    command = [sys.executable, "-m", "ft_host", "serve", model, "--servers", "2", "--backend-config", fields]
    with open(tmp_path / "said", "wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        end = time.monotonic() + 60
        while "Ctrl-C ends them" not in (text := (tmp_path / "said").read_text()):
            assert time.monotonic() < end and process.poll() is None, text
            time.sleep(0.05)
        urls = re.findall(r"^serving .* at (http://127.0.0.1:\d+)$", text, re.MULTILINE)
        assert len(urls) == 2 and "secret" not in text
        found = re.search(r"backend: vllm\nbackend_config: (.*)", text).group(1)
        assert VLLMConfig(**json.loads(found)).found == urls
        assert all(Client(url, 5).get("/health") == {} for url in urls)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 4  # guards and servers
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
        assert not psutil.wait_procs(children, timeout=10)[1]
        assert "--enable-scale-out" in (tmp_path / "served.log").read_text()
        assert "starting with" in (tmp_path / "served-2.log").read_text()
    finally:
        process.kill()


def test_others_than_this_machine_need_a_key_which_is_made(model, python, tmp_path, monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    config = VLLMConfig(python=python, log=str(tmp_path / "log"), lora_rank=12)
    with serve.serving(model, 1, "0.0.0.0", config) as served:
        key = served.environment["VLLM_API_KEY"]
        url = served.urls[0]
        assert len(key) > 30 and url.startswith("http://127.0.0.1:")
        with pytest.raises(FtHostError, match="401.*VLLM_API_KEY"):
            Client(url, 5).get("/weight_info")
        assert Client(url, 5, key=key).get("/weight_info") == {"weight_version": "default"}
        said = (tmp_path / "log").read_text()
        assert "--middleware ft_vllm.door.Door" in said and "--max-lora-rank 16" in said and key not in said
        assert served.look() == []
        first = psutil.Process(os.getpid()).children(recursive=True)
        first[-1].kill()
        psutil.wait_procs(first, timeout=20)
        assert any("was started anew" in text for text in served.look())  # at the same address
        assert Client(url, 5, key=key).get("/health") == {}
    assert server.is_loopback("127.0.0.1") and server.is_loopback("localhost") and server.is_loopback("::1")
    assert not server.is_loopback("0.0.0.0") and not server.is_loopback("node-7")


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"url": "http://127.0.0.1:1"}, "backend_config.url: has no effect on servers outside of a run"),
        ({"lora": "merged"}, "backend_config.lora: has no effect"),
        ({"host": "0.0.0.0"}, "backend_config.host: .*give --host"),
        ({"servers": 2}, "backend_config.servers: .*give --servers"),
        ({"devices": "0,1,2"}, "backend_config.devices: 0,1,2 can't be dealt out to 2 servers"),
        ({"mode": "inprocess"}, "backend_config.python: not set"),
    ],
)
def test_fields_without_effect_are_refused(model, python, fields, says):
    config = VLLMConfig(**{"python": None if "mode" in fields else python, **fields})
    with pytest.raises(ConfigError, match=says), serve.serving(model, 2, "127.0.0.1", config):
        raise AssertionError("it was let in")
