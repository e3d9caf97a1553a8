"""A server that the run starts, or finds: how it begins, what it is told, how it ends, and what is said when it fails.

The server is fake_vllm.py: vLLM's routes without vLLM. tests/test_real.py asks the real one.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from ft_grpo.config import GRPOConfig
from ft_vllm import backend, command, opening, server
from ft_vllm.client import Client
from ft_vllm.sampling import seed_of
from ft_vllm.weights import as_saved
from peft import LoraConfig, get_peft_model

from ft_host.api import ConfigError, DataError, FtHostError, Request, Sampling
from ft_host.testing import disturb, tiny_llama, tiny_moe, tiny_qwen

PROMPTS = [[(7 * row + 13 * place) % 200 + 20 for place in range(5 + row)] for row in range(20)]
SAMPLING = Sampling(max_new_tokens=6, seed=3)


def state(run) -> dict:
    """What the server has been told."""
    return Client(backend.opened(run).client.url, 5).get("/state")


def sums(named) -> dict[str, list]:
    """What the server says that it got, where it got these weights."""
    return {
        name: [list(weight.shape), weight.double().sum().item(), weight.double().abs().sum().item()]
        for name, weight in named
    }


def expected(prompt: list[int], number: int, length: int = 6) -> list[int]:
    """What the server makes of a prompt, if nothing ends it."""
    start = sum(prompt) + seed_of(SAMPLING.seed, number) % 7
    return [(start + place) % 200 for place in range(length)]


def processes_of(run) -> list[psutil.Process]:
    guard = psutil.Process(backend.opened(run).started.process.pid)
    return [guard, *guard.children(recursive=True)]


def gone(processes: list[psutil.Process], seconds: float = 10) -> bool:
    return not psutil.wait_procs(processes, timeout=seconds)[1]


# ---------------------------------------------------------------- what is asked


@pytest.mark.parametrize("make_model", [tiny_qwen, tiny_llama, tiny_moe])
def test_weights_arrive_paused_and_whole_and_completions_carry_their_version(make, python, make_model):
    model = make_model()
    run = make(model, python=python)
    for version in (0, 4):
        disturb(model)
        backend.ft_sync_weights(run.policy, version, run)
        told = state(run)
        assert told["received"] == sums(as_saved(run.policy, list(model.named_parameters())))
        assert told["version"] == str(version) and not told["paused"]
        completions = run.generate([Request(prompt_ids=prompt) for prompt in PROMPTS], SAMPLING)
        assert [each.versions for each in completions] == [[version] * len(each.token_ids) for each in completions]
    updates = [line for line in told["asked"] if "weight" in line or "pause" in line or "resume" in line]
    steps = [
        "/pause?mode=wait&clear_cache=true",
        "/start_weight_update",
        "/update_weights",
        "/finish_weight_update",
        "/resume",
    ]
    assert updates[-5:] == [f"POST {step}" for step in steps]
    assert updates.count("POST /init_weight_transfer_engine") == 1


def test_completions_come_in_order_each_with_its_own_seed(make, python):
    run = make(tiny_qwen(), python=python, max_num_seqs=4)
    completions = run.generate([Request(prompt_ids=prompt) for prompt in PROMPTS], SAMPLING)
    ends = backend.jobs_of([Request(prompt_ids=[5])], SAMPLING, run, 64)[0].params["stop_token_ids"]
    for index, (prompt, completion) in enumerate(zip(PROMPTS, completions, strict=True)):
        tokens = expected(prompt, index)
        end = next((place for place, token in enumerate(tokens) if token in ends), None)
        assert completion.token_ids == (tokens if end is None else tokens[: end + 1])
        assert completion.finish_reason == ("length" if end is None else "stop")
        assert completion.logprobs == [-0.5] * len(completion.token_ids)
        assert completion.versions == []
    assert run.generate([], SAMPLING) == []
    with pytest.raises(DataError, match="prompt 1 of 1 has 70 tokens, vLLM has room for 64"):
        run.generate([Request(prompt_ids=[5] * 70)], SAMPLING)


def test_an_adapter_goes_as_a_folder_under_a_name_of_its_own(make, python):
    peft = get_peft_model(tiny_qwen(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    run = make(peft.get_base_model(), python=python)
    run.policy.model = peft
    for version, name in ((0, "update-0"), (7, "update-1")):
        backend.ft_sync_weights(run.policy, version, run)
        told = state(run)
        assert told["models"] == ["the model", name] and told["version"] == str(version) and not told["received"]
        assert run.generate([Request(prompt_ids=[5, 6])], SAMPLING)[0].versions[0] == version
    folder = backend.opened(run).folder
    assert [path.name for path in folder.iterdir()] == ["update-1"]
    with open(run.folder.path / "vllm.log") as log:
        assert "--enable-lora --max-loras 1 --max-cpu-loras 2 --max-lora-rank 8" in log.read()
    backend.ft_close(run)
    assert not folder.exists()


def test_the_command_line_and_environment_of_a_server(make, python, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    run = make(
        tiny_qwen(),
        python=python,
        max_model_len=64,
        server_args=["--seed=5"],
        server_env={"MINE": "1"},
        cpu_kv_cache_gib=2,
    )
    what = opening.served(run.backend_config, run, "gloo")
    line = " ".join(command.arguments(run.backend_config, what, 8000))
    for part in (
        "serve /",
        "--dtype float32",
        "--logprobs-mode processed_logprobs",
        "--enable-scale-out",
        "--max-model-len 64",
        '--weight-transfer-config {"backend": "gloo"}',
        "--enforce-eager",
        "--host 127.0.0.1 --port 8000",
    ):
        assert part in line
    assert line.endswith("--seed=5") and "--enable-lora" not in line and "--gpu-memory" not in line
    found = command.environment(run.backend_config, what)
    assert not {"RANK", "TORCHELASTIC_RUN_ID", "PYTHONPATH"} & found.keys()
    assert found["VLLM_SERVER_DEV_MODE"] == "1" and found["VLLM_CPU_KVCACHE_SPACE"] == "2" and found["MINE"] == "1"
    assert "VLLM_ALLOW_INSECURE_SERIALIZATION" not in found
    assert [command.lora_rank(rank) for rank in (1, 4, 16, 400)] == [1, 8, 16, 512]
    with pytest.raises(ConfigError, match="up to rank 512, found 600; set backend_config.lora: merged"):
        command.lora_rank(600)


# ---------------------------------------------------------------- a server at a URL


@pytest.fixture
def elsewhere(python, tmp_path):
    """`elsewhere(FAKE)`: the URL of a server that somebody else has started."""
    started = []

    def start(fake: str = "") -> str:
        port = server.free_port("127.0.0.1")
        with open(tmp_path / "elsewhere.log", "w") as log:
            process = subprocess.Popen(
                [python, "--port", str(port)], env=os.environ | {"FAKE": fake}, stdout=log, stderr=log
            )
        started.append(process)
        found = server.Server(url=f"http://127.0.0.1:{port}", process=process, log=tmp_path / "elsewhere.log")
        server.wait(found, 20)
        return found.url

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_server_at_a_url_is_used_and_left_running(make, elsewhere):
    url = elsewhere()
    for _ in range(2):  # one run after the other
        run = make(tiny_qwen(), url=url)
        backend.ft_sync_weights(run.policy, 2, run)
        assert run.generate([Request(prompt_ids=[5, 6])], SAMPLING)[0].versions[0] == 2
        backend.ft_close(run)
    assert Client(url, 5).get("/health") == {}


@pytest.mark.parametrize(
    "fake, says",
    [
        ("old", "is version 0.31.0; this package is written for 0.32.*"),
        (
            "no weights",
            "has no routes for weights; it must be started as docs/vllm.md says, with VLLM_SERVER_DEV_MODE=1",
        ),
        ("no tokens", "doesn't take tokens; .* with --enable-scale-out .*scale-out is disabled"),
        ("raw", "gives log-probs of another distribution than it samples from; .*--logprobs-mode processed_logprobs"),
    ],
)
def test_a_server_that_was_started_otherwise_is_refused(make, elsewhere, fake, says):
    run = make(tiny_qwen(), url=elsewhere(fake))
    with pytest.raises(ConfigError, match=f"(?s)backend_config.url: http://127.0.0.1:[0-9]+ {says}"):
        backend.ft_sync_weights(run.policy, 0, run)


def test_no_server_at_a_url(make):
    port = server.free_port("127.0.0.1")
    run = make(tiny_qwen(), url=f"http://127.0.0.1:{port}")
    with pytest.raises(
        FtHostError, match=f"(?s)vLLM at http://127.0.0.1:{port}: GET /version: Connection.*isn't the run"
    ):
        run.generate([Request(prompt_ids=[5])], SAMPLING)


# ---------------------------------------------------------------- beginnings that fail


@pytest.mark.parametrize(
    "versions, says",
    [
        ({"vllm": None, "cli": None}, "has no vLLM; see docs/vllm.md"),
        ({"vllm": "0.31.2"}, "has vLLM 0.31.2; this package is written for 0.32.*"),
        ({"cli": None}, "needs a distribution named vllm beside it"),
        ({"ft_vllm": None}, "transfer: gloo needs ft-vllm .* and .* has no ft-vllm"),
        ({"ft_vllm": "0.0.1"}, "has ft-vllm 0.0.1: .* -m pip install"),
    ],
)
def test_an_environment_that_lacks_something_is_refused(make, environment, versions, says):
    run = make(tiny_qwen(), python=environment(**versions))
    with pytest.raises(ConfigError, match=f"backend_config.python: .*{says}"):
        run.generate([Request(prompt_ids=[5])], SAMPLING)


def test_a_python_that_is_none_is_refused(make):
    run = make(tiny_qwen(), python="/bin/true")
    with pytest.raises(ConfigError, match="backend_config.python: /bin/true can't be run as a Python"):
        run.generate([Request(prompt_ids=[5])], SAMPLING)


def test_a_port_that_is_taken_is_refused(make, python):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = make(tiny_qwen(), python=python, port=port)
        with pytest.raises(
            ConfigError, match=f"backend_config.port: {port} at 127.0.0.1 can't be had: Address already"
        ):
            run.generate([Request(prompt_ids=[5])], SAMPLING)


def test_a_model_that_vllm_refuses_ends_with_what_it_said(make, python):
    run = make(tiny_qwen(), python=python, server_env={"FAKE": "refuses model"})
    with pytest.raises(
        FtHostError, match="(?s)ended while it started .exit code 1.*ValueError: head_dim=16 is nothing"
    ):
        run.generate([Request(prompt_ids=[5])], SAMPLING)


def test_a_server_that_never_starts_ends_the_run_after_a_while(make, python):
    run = make(tiny_qwen(), python=python, server_env={"FAKE": "never starts"}, start_timeout=1.5)
    before = psutil.Process().children(recursive=True)
    with pytest.raises(FtHostError, match="(?s)not started within 1.5 seconds .*start_timeout.*starting with"):
        run.generate([Request(prompt_ids=[5])], SAMPLING)
    assert psutil.Process().children(recursive=True) == before


# ---------------------------------------------------------------- ends


def test_closing_ends_the_server_and_can_be_asked_twice(make, python):
    run = make(tiny_qwen(), python=python)
    run.generate([Request(prompt_ids=[5])], SAMPLING)
    processes = processes_of(run)
    assert len(processes) == 2
    backend.ft_close(run)
    backend.ft_close(run)
    assert gone(processes) and run.backend_state == {}


def test_a_server_that_dies_is_named_with_its_last_words(make, python):
    run = make(tiny_qwen(), python=python, server_env={"FAKE": "dies"}, max_num_seqs=2)
    backend.ft_sync_weights(run.policy, 1, run)
    # Each of two connections asks for the version first: either request may be the one that finds the server gone.
    asked = "(POST /inference/v1/generate|GET /weight_info)"
    with pytest.raises(FtHostError, match=f"(?s){asked}.*has ended.*the engine has had enough"):
        run.generate([Request(prompt_ids=prompt) for prompt in PROMPTS], SAMPLING)


def test_a_server_that_hangs_is_not_waited_for_forever(make, python):
    run = make(tiny_qwen(), python=python, server_env={"FAKE": "hangs"}, timeout=1.0)
    backend.ft_sync_weights(run.policy, 1, run)
    started = time.monotonic()
    with pytest.raises(FtHostError, match="(?s)no answer to POST /inference/v1/generate within 1 seconds.*still runs"):
        run.generate([Request(prompt_ids=PROMPTS[0])], SAMPLING)
    assert time.monotonic() - started < 30  # three tries; the server sleeps for 60 s in each


def test_a_server_that_refuses_weights_is_heard_at_once(make, python):
    run = make(tiny_qwen(), python=python, server_env={"FAKE": "refuses weights"})
    started = time.monotonic()
    with pytest.raises(FtHostError, match="(?s)POST /update_weights: 500.*model.embed_tokens.weight"):
        backend.ft_sync_weights(run.policy, 1, run)
    backend.ft_close(run)
    assert time.monotonic() - started < 20  # and not the 300 s that a transfer may take


def test_a_server_elsewhere_that_refuses_weights_is_let_go_of(make, elsewhere):
    run = make(tiny_qwen(), url=elsewhere("refuses weights"))
    started = time.monotonic()
    with pytest.raises(FtHostError, match="(?s)POST /update_weights: 500"):
        backend.ft_sync_weights(run.policy, 1, run)
    backend.ft_close(run)
    assert time.monotonic() - started < 20


def test_the_server_ends_when_the_trainer_is_killed(python, tmp_path):
    """A guard watches over it: nobody else can, once the trainer has had SIGKILL."""
    port = server.free_port("127.0.0.1")
    guard = Path(server.__file__).with_name("guard.py")
    code = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); time.sleep(60)"
    trainer = subprocess.Popen(
        [sys.executable, "-c", code, sys.executable, str(guard), python, "--port", str(port)], stdout=subprocess.DEVNULL
    )
    client = Client(f"http://127.0.0.1:{port}", 5)
    server.wait(server.Server(url=client.url, process=trainer, log=tmp_path / "none"), 20)
    processes = psutil.Process(trainer.pid).children(recursive=True)
    assert len(processes) == 2
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    assert gone(processes)


# ---------------------------------------------------------------- several processes


@pytest.mark.nightly("ddp")
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_share_a_server(python, tmp_path, strategy):
    port = str(server.free_port("127.0.0.1"))
    script = Path(__file__).with_name("two_ranks.py")
    ranks = []
    for rank in "01":
        variables = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        with open(tmp_path / f"{rank}.log", "w") as log:
            command = [sys.executable, str(script), str(tmp_path), python, strategy]
            ranks.append(subprocess.Popen(command, env=os.environ | variables, stdout=log, stderr=log))
    for rank, process in enumerate(ranks):
        assert process.wait(120) == 0, (tmp_path / f"{rank}.log").read_text()


def test_a_start_that_outlasts_the_patience_of_other_ranks_is_refused(make, python, monkeypatch):
    run = make(tiny_qwen(), python=python, start_timeout=1800.0)
    monkeypatch.setattr(type(run), "world_size", 2)
    with pytest.raises(ConfigError, match="start_timeout: 1800 seconds, but .* give up after 1800 .ddp_timeout."):
        opening.of_servers(run.backend_config, run)


def test_a_wait_for_servers_that_outlasts_the_patience_with_the_rollout_process_is_refused(make, python):
    run = make(tiny_qwen(), python=python, recovery_timeout=500.0)
    run.config = GRPOConfig(model="m", dataset="d", reward=["r"], rollouts="async")
    with pytest.raises(ConfigError, match="recovery_timeout: 500 seconds, but .* nothing for 450"):
        opening.of_servers(run.backend_config, run)


def test_an_engine_in_the_process_is_for_one_process(make, monkeypatch):
    run = make(tiny_qwen(), mode="inprocess")
    monkeypatch.setattr(type(run), "world_size", 2)
    with pytest.raises(ConfigError, match="mode: inprocess is for runs of one process, this one has 2.*mode: server"):
        run.generate([], SAMPLING)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_an_engine_in_the_process_needs_vllm(make):
    run = make(tiny_qwen(), mode="inprocess")
    with pytest.raises(ConfigError, match="inprocess needs vLLM in the trainer's environment, where it"):
        run.generate([], SAMPLING)
