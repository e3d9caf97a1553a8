"""A run over a policy, and an environment whose Python says that it has vLLM and runs `fake_vllm.py`."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ft_vllm import __version__, backend
from ft_vllm.config import VLLMConfig
from ft_vllm.server import Server, free_port, wait

from ft_host.testing import RunFolder, generating_run, save_tiny, tiny_tokenizer

FAKE = Path(__file__).with_name("fake_vllm.py")
VERSIONS = {"vllm": "0.32.0", "cli": "0.32.0+cpu", "ft-vllm": __version__}


def run_of(folder: Path, model, fields: dict, **config):
    """A run whose policy is `model`, which lies in `folder` for vLLM to read."""
    name = save_tiny(folder / "model", model)
    run = generating_run(model, tiny_tokenizer(), backend=backend, **config)
    run.config.model = str(name)
    run.config.progress = "none"
    run.folder = RunFolder(folder)
    run.backend_config = VLLMConfig(**fields)
    run.backend_config.check()
    run.backend_state = {}
    return run


@pytest.fixture
def make(tmp_path):
    """`make(model, **fields)`: such a run, ended after the test."""
    runs = []

    def made(model, config=None, **fields):
        runs.append(run_of(tmp_path / str(len(runs)), model, fields, **(config or {})))
        return runs[-1]

    yield made
    for run in runs:
        backend.ft_close(run)


@pytest.fixture
def begin_fake():
    """`begin_fake(port)`: a server in this process, of which tests know everything."""
    spec = importlib.util.spec_from_file_location("fake_vllm_of_tests", FAKE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    started = []

    def begun(port=0):
        started.append(module.serve(port).fake)
        return started[-1]

    yield begun
    for fake in started:
        fake.die()


@pytest.fixture
def fakes(begin_fake):
    return [begin_fake(), begin_fake()]


@pytest.fixture
def served():
    return serving


@contextlib.contextmanager
def serving(python: str, folder: Path, log: Path, top: int) -> Iterator[str]:
    """The URL of the model in `folder`, served by a plain `vllm serve` of the environment of `python`, as a user would
    start it, that says up to `top` tokens of a place."""
    port = free_port("127.0.0.1")
    command = [
        python,
        "-m",
        "vllm.entrypoints.cli.main",
        "serve",
        str(folder),
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
    ]
    command += ["--dtype", "float32", "--enforce-eager", "--max-logprobs", str(top), "--max-model-len", "128"]
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    with open(log, "wb") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=said, env=kept | {"VLLM_CPU_KVCACHE_SPACE": "1"}, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait(Server(url=url, process=process, log=log), 300)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def fake_python(folder: Path, **versions: str | None) -> str:
    """A `python` that says what is installed beside it, and serves what fake_vllm.py does."""
    folder.mkdir(parents=True, exist_ok=True)
    python = folder / "python"
    said = json.dumps(VERSIONS | {name.replace("_", "-"): version for name, version in versions.items()})
    python.write_text(f"""#!/bin/sh
if [ "$1" = -c ]; then echo '{said}'; else exec {sys.executable} {FAKE} "$@"; fi
""")
    python.chmod(0o755)
    return str(python)


@pytest.fixture
def environment(tmp_path):
    """`environment(vllm="0.31.0")`: a Python of an environment that has other versions."""
    return lambda **versions: fake_python(tmp_path / "-".join(["environment", *versions]), **versions)


@pytest.fixture
def python(environment):
    return environment()
