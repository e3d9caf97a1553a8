"""Whole runs whose completions come from the real vLLM, as a server that the run starts; and one whose teacher it
serves.

FT_VLLM_PYTHON=FOLDER/bin/python python -m pytest plugins/ft-vllm/tests/test_training.py
"""

from __future__ import annotations

import collections
import dataclasses
import os
import random
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from ft_distill.config import DistillConfig
from ft_grpo.config import GRPOConfig

import ft_host
from ft_host.api import FtHostError
from ft_host.testing import (
    RunFolder,
    as_if_killed,
    lines,
    resume_in,
    save_tiny,
    sentence,
    tiny_llama,
    tiny_run,
    tiny_tokenizer,
    train_apart,
)

PYTHON = os.environ.get("FT_VLLM_PYTHON")
REWARD = """
def letters(completions, **columns):
    return [sum(letter.isalpha() for letter in text) / (len(text) + 1) for text in completions]
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="FT_VLLM_PYTHON isn't set: the Python of an environment with vLLM"),
]


@pytest.fixture
def config(tmp_path: Path) -> GRPOConfig:
    """Four rollouts of two prompts, four completions each, a step each."""
    noise = random.Random(4)
    rows = [{"prompt": f"{sentence(noise, 8)}? "} for _ in range(16)]
    (tmp_path / "pays.py").write_text(REWARD, encoding="utf-8")
    model = save_tiny(tmp_path / "llama", tiny_llama(head_dim=32), tiny_tokenizer())
    return tiny_run(
        GRPOConfig,
        model,
        tmp_path,
        rows,
        reward=[f"{tmp_path / 'pays.py'}:letters"],
        max_completion_length=12,
        num_generations=4,
        per_device_train_batch_size=8,
        max_steps=4,
        learning_rate=1e-3,
        backend="vllm",
        backend_config={"python": PYTHON, "max_num_seqs": 32, "start_timeout": 300.0, "timeout": 120.0},
    )


def run_of(config: GRPOConfig, name: str, **changes) -> Path:
    return ft_host.train(dataclasses.replace(config, output_dir=f"{config.output_dir}/{name}", **changes)).folder


def rollouts(folder: Path) -> list[tuple]:
    """Step, prompt and completion of each sample of a rollout."""
    samples = RunFolder(folder).read("samples.jsonl")
    return [(each["step"], each["prompt"], each["completion"]) for each in samples if each["kind"] == "rollout"]


def assert_each_once(folder: Path, prompts: int) -> None:
    """Each prompt was learnt from once, with its four completions, within the bound of 1, and each token that is of the
    policy's version has its log-prob."""
    found = lines(folder)
    assert max(line["rollouts/staleness_max"] for line in found) <= 1
    matched = [line["rollouts/mismatch_max"] for line in found if "rollouts/mismatch_max" in line]
    assert matched and max(matched) < 1e-4
    learnt = collections.Counter(each[1] for each in rollouts(folder))
    assert len(learnt) == prompts and set(learnt.values()) == {4}


def test_a_run_and_its_resumption(config):
    """vLLM has the weights of every step; a run that goes on has the prompts and the noise that it would have had."""
    whole = run_of(config, "whole", save_steps=2, save_total_limit=None)
    said = [event["text"] for event in RunFolder(whole).read("events.jsonl")]
    assert sum("the log-probs of the backend vllm match the policy's within" in text for text in said) == 2
    found = lines(whole)
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    for line in found:
        assert line["sampling/sampling_logp_difference/max"] < 1e-4
        assert line["sampling/effective_sample_size"] > 0.999
    timed = [entry for entry in RunFolder(whole).read("metrics.jsonl") if entry["kind"] == "train"]
    assert all(0 < entry["perf/weight_sync_time"] < entry["perf/step_time"] for entry in timed)

    folder = Path(f"{config.output_dir}/resumed")
    assert as_if_killed(whole, folder) == 2
    resume_in(dataclasses.replace(config, output_dir=str(folder), save_steps=2, save_total_limit=None), folder)
    assert [each[:2] for each in rollouts(folder)] == [each[:2] for each in rollouts(whole)]
    same = [one == other for one, other in zip(rollouts(whole), rollouts(folder), strict=True)]
    assert sum(same) > 0.8 * len(same)  # round-off may turn a token: batches are not put together as they were


@pytest.mark.nightly
def test_an_adapter(config):
    """What vLLM is given of a LoRA run is the adapter."""
    folder = run_of(config, "lora", use_peft=True, learning_rate=1e-2, max_steps=3)
    assert all(line["sampling/sampling_logp_difference/max"] < 1e-4 for line in lines(folder))
    assert not list(Path(folder).glob("**/ft-vllm-adapters-*"))


@pytest.mark.nightly
def test_a_sampler_with_other_numbers_is_refused(config):
    """bfloat16 in vLLM beside float32 here, which the default of the field would let pass."""
    coarse = config.backend_config | {"dtype": "bfloat16"}
    with pytest.raises(FtHostError, match="before training, the log-probs of the backend vllm differ"):
        run_of(config, "coarse", backend_config=coarse, max_sampling_logp_difference=1e-6)


@pytest.mark.nightly
def test_a_teacher_that_is_served_teaches_what_one_does_that_is_held(config, tmp_path, served):
    """Distillation of three steps: what it says of all tokens is what its forward pass does."""
    torch.manual_seed(5)
    teacher = tiny_llama(head_dim=32, hidden_size=96)
    with torch.no_grad():
        teacher.lm_head.weight.normal_(std=0.2)
    folder = save_tiny(tmp_path / "teacher", teacher, tiny_tokenizer())
    usual = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    shared = (
        "model",
        "dataset",
        "output_dir",
        "use_cpu",
        "save_steps",
        "train_sampling_strategy",
        "eval_on_start",
        "progress",
        "max_completion_length",
        "per_device_train_batch_size",
        "backend",
    )
    given = {name: usual[name] for name in shared} | {"max_steps": 3, "learning_rate": 1e-3}
    whole = teacher.config.vocab_size

    def run(name: str, **fields) -> list[dict]:
        return lines(run_of(DistillConfig(**given, **fields), name))

    held = run("held", teacher_model_name_or_path=str(folder), backend_config=config.backend_config)
    with served(PYTHON, folder, tmp_path / "teacher.log", top=whole) as url:
        told = run("served", loss_top_k=whole, backend_config=config.backend_config | {"teacher_url": url})
    assert [line["step"] for line in told] == [1, 2, 3]
    for mine, theirs in zip(held, told, strict=True):
        assert theirs["distillation/divergence"] == pytest.approx(mine["distillation/divergence"], rel=1e-3)
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-3)
        assert theirs["grad_norm"] == pytest.approx(mine["grad_norm"], rel=1e-2)
        assert theirs["distillation/teacher_top_k_mass"] == pytest.approx(1, abs=1e-4)
    assert held[2]["loss"] != pytest.approx(held[0]["loss"], rel=1e-2)


def test_a_run_that_does_not_wait_for_its_rollouts(config):
    """Every token has the log-prob of the policy whose version it carries, through updates in flight."""
    folder = run_of(config, "async", rollouts="async", max_staleness=1)
    assert [line["step"] for line in lines(folder)] == [1, 2, 3, 4]
    assert_each_once(folder, 8)


@pytest.mark.nightly
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_trainers_and_two_servers(config, strategy):
    """What both learn from has the log-probs that the policy of its version gives it, whichever server it is from."""
    config.rollouts, config.max_staleness, config.max_steps = "async", 1, 6
    config.distributed_strategy, config.per_device_train_batch_size = strategy, 4
    config.backend_config["servers"] = 2
    train_apart(config, 2)
    folder = Path(config.output_dir)
    assert [line["step"] for line in lines(folder)] == [1, 2, 3, 4, 5, 6]
    assert_each_once(folder, 12)
    logged = {name for entry in RunFolder(folder).read("metrics.jsonl") for name in entry}
    assert {f"rollouts/server_{number}/tokens_per_second" for number in (0, 1)} <= logged  # both of them sampled


@pytest.mark.nightly
def test_a_server_that_is_killed_takes_nothing_along(config):
    """The other one goes on with its prompts; it is started anew, gets the weights, and samples again."""
    config.rollouts, config.max_staleness, config.max_steps = "async", 1, 8
    config.backend_config["servers"] = 2
    folder = Path(config.output_dir)
    killed: list[int] = []

    def kill() -> None:
        while not (folder / "metrics.jsonl").exists() or len(lines(folder)) < 2:
            time.sleep(0.05)
        guard = next(each for each in psutil.Process().children() if "guard.py" in " ".join(each.cmdline()))
        for each in guard.children(recursive=True):
            each.kill()
            killed.append(each.pid)

    chaos = threading.Thread(target=kill, daemon=True)
    chaos.start()
    ft_host.train(config)
    chaos.join(20)
    assert killed
    assert [line["step"] for line in lines(folder)] == list(range(1, 9))
    assert_each_once(folder, 16)
