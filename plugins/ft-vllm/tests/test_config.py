"""What is refused before anything is loaded, and that asking needs neither torch nor vLLM."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import ft_vllm
import pytest
from ft_vllm.config import VLLMConfig

from ft_host.api import ConfigError
from ft_host.testing import fields_of

URL = {"url": "http://127.0.0.1:8000"}


def test_a_server_and_an_engine_in_the_process():
    VLLMConfig(python=sys.executable).check()
    VLLMConfig(**URL).check()
    VLLMConfig(urls=["http://a:1", "http://b:1"], transfer="folder", weights_folder="/shared").check()
    VLLMConfig(python=sys.executable, servers=2, devices="0,1,2,3", tensor_parallel_size=2).check()
    VLLMConfig(mode="inprocess", gpu_memory_utilization=0.5, engine_args={"seed": 1}).check()
    assert all(field.help.endswith(".") for field in fields_of(VLLMConfig).values())


@pytest.mark.parametrize(
    "fields, says",
    [
        ({}, "mode: server needs python.*or url"),
        ({"python": "/nowhere/python"}, "python: /nowhere/python does not exist; expected the bin/python"),
        ({"python": __file__}, "python: .*test_config.py is not executable"),
        ({"mode": "inprocess", "python": sys.executable}, "python: is of a server"),
        ({"mode": "inprocess", "timeout": 5.0}, "timeout: is of a server"),
        (
            {"mode": "inprocess", "transfer": "gloo"},
            "transfer: gloo can't be with mode: inprocess; expected auto or dir",
        ),
        (
            {"mode": "inprocess", "tensor_parallel_size": 2},
            "tensor_parallel_size: an engine in the trainer's process is on",
        ),
        ({**URL, "transfer": "direct"}, "transfer: direct can't be with mode: server; expected auto or gloo or nccl"),
        ({**URL, "dtype": "bfloat16"}, "dtype: is of a server that the run starts"),
        ({**URL, "server_args": ["--seed=1"]}, "server_args: is of a server that the run starts"),
        ({**URL, "engine_args": {"seed": 1}}, "engine_args: is of mode: inprocess"),
        ({"url": "127.0.0.1:8000"}, "url: '127.0.0.1:8000' is not the address of a server; expected http://HOST:PORT"),
        ({"url": "http://a:1/v1"}, "url: 'http://a:1/v1' is not the address"),
        ({"python": sys.executable, "transfer": "nccl"}, "nccl needs GPUs that the trainer doesn't use; set devices"),
        ({"python": sys.executable, "transfer": "ipc", "tensor_parallel_size": 2}, "ipc is within one GPU"),
        ({"python": sys.executable, "host": "http://a"}, "host: 'http://a' is a URL"),
        ({"urls": ["http://a:1", "http://a:1"]}, "urls: http://a:1 is given twice"),
        ({"urls": ["http://a:1", "b"]}, "urls: 'b' is not the address of a server"),
        ({**URL, "urls": ["http://a:1"]}, "urls: one server is in url already; give all of them in urls"),
        ({**URL, "servers": 2}, "servers: is of a server that the run starts"),
        ({"urls": ["http://a:1", "http://b:1"], "transfer": "ipc"}, "ipc is within one GPU, for one server"),
        ({"python": sys.executable, "servers": 2, "devices": "0,1,2"}, "devices: 0,1,2 can't be dealt out to 2 server"),
        ({"python": sys.executable, "servers": 2, "devices": "0"}, "devices: 0 can't be dealt out to 2 servers"),
        ({"python": sys.executable, "servers": 3, "port": 65534}, "port: 3 servers from 65534 on go past port 65535"),
        ({"python": sys.executable, "weights_folder": "/a"}, "weights_folder: only transfer: folder writes there"),
        ({"python": sys.executable, "lora_rank": 4}, "lora_rank: is of ft-host serve"),
        ({"mode": "inprocess", "health_period": 1.0}, "health_period: is of a server"),
        ({"mode": "inprocess", "transfer": "folder"}, "transfer: folder can't be with mode: inprocess"),
    ],
)
def test_refusals_name_the_field(fields, says):
    with pytest.raises(ConfigError, match=f"backend_config.*{says}"):
        VLLMConfig(**fields).check()


def test_the_page_lists_every_field_with_its_default():
    page = (Path(__file__).parents[3] / "docs" / "vllm.md").read_text()
    listed = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", page.split("## Fields")[1].split("\n## ")[0], re.MULTILINE))
    shown = {"None": "not set", "True": "true", "[]": "none", "{}": "none"}
    for name, field in fields_of(VLLMConfig).items():
        default = str(field.default).removesuffix(".0")
        assert listed.pop(name).strip("`") == shown.get(default, default), name
    assert not listed


def test_neither_fields_nor_what_runs_in_vllms_environment_load_torch():
    code = (
        "import sys, ft_vllm.config, ft_vllm.guard; print(sorted({'torch', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_the_version_is_that_of_the_distribution():
    """The server is refused where the two environments have other versions, by what the module says."""
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    assert tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["version"] == ft_vllm.__version__
