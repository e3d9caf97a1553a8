"""What must not change the numbers of a run. Each check takes a config that trains in seconds and raises
AssertionError with the first difference; a method package calls them as they are:

    from ft_host.testing import invariants

    def test_micro_batch_split(config):          # a fixture: a SFTConfig on a tiny model and a few rows
        invariants.micro_batch_split(config)

The config's `output_dir` is the folder that the runs are made in.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ft_host
from ft_host.config import RunConfig
from ft_host.folder import RunFolder

Line = dict[str, Any]


def lines(folder: str | Path, kind: str = "train") -> list[Line]:
    """The entries of metrics.jsonl of one kind, without what depends on the clock."""
    return [
        {key: value for key, value in entry.items() if not key.startswith("perf/")}
        for entry in RunFolder(folder).read("metrics.jsonl")
        if entry["kind"] == kind
    ]


def weights(folder: str | Path) -> dict[str, Any]:
    """The tensors of the model (or adapter) that a run left."""
    from safetensors.torch import load_file

    tensors: dict[str, Any] = {}
    for file in sorted(Path(folder, "model").glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def run_in(config: RunConfig, name: str, **changes: Any) -> Path:
    """Train `config` with some fields changed, in this process, in a folder beside `config.output_dir`."""
    folder = Path(config.output_dir) / name
    ft_host.train(dataclasses.replace(config, output_dir=str(folder), progress="quiet", **changes))
    return folder


def command(config: RunConfig, method: str, name: str, **changes: Any) -> tuple[list[str], Path]:
    """The command line that trains `config`, its fields in a file, and the folder of the run."""
    folder = Path(config.output_dir) / name
    changed = dataclasses.replace(config, output_dir=str(folder), progress="quiet", **changes)
    default = type(config)()
    fields = {
        field.name: getattr(changed, field.name)
        for field in dataclasses.fields(changed)
        if getattr(changed, field.name) != getattr(default, field.name)
    }
    file = Path(config.output_dir) / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(fields))
    return [sys.executable, "-m", "ft_host", "train", method, str(file)], folder


def run_apart(config: RunConfig, method: str, name: str, **changes: Any) -> Path:
    """Train `config` through the command line, in processes of its own."""
    argv, folder = command(config, method, name, **changes)
    done = subprocess.run(argv, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return folder


def assert_same(a: list[Line], b: list[Line], rel: float, abs: float = 1e-7, skip: tuple[str, ...] = ()) -> None:
    """Two trajectories with the same steps and metrics, each number within `rel` (0: bit for bit)."""
    assert [line["step"] for line in a] == [line["step"] for line in b]
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys(), f"step {one['step']}: {sorted(one.keys() ^ other.keys())}"
        for key in one.keys() - set(skip):
            if rel == 0:
                assert one[key] == other[key], f"step {one['step']}: {key} is {one[key]} and {other[key]}"
            elif isinstance(one[key], (int, float)):
                assert math.isclose(one[key], other[key], rel_tol=rel, abs_tol=abs), (
                    f"step {one['step']}: {key} is {one[key]} and {other[key]}"
                )


def assert_close_weights(a: Path, b: Path, atol: float) -> None:
    """The models that two runs left, tensor by tensor."""
    import torch

    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=atol, msg=lambda text, n=name: f"{n}: {text}")


# ---------------------------------------------------------------- the checks


def micro_batch_split(config: RunConfig, rel: float = 2e-5) -> None:
    """8×1, 2×4 and 1×8 rows a step, and micro-batches by a token budget, log the same numbers."""
    reference = lines(run_in(config, "8x1", per_device_train_batch_size=8, gradient_accumulation_steps=1))
    assert reference, "the run logged no step"
    for size, steps in ((2, 4), (1, 8)):
        name = f"{size}x{steps}"
        folder = run_in(config, name, per_device_train_batch_size=size, gradient_accumulation_steps=steps)
        assert_same(reference, lines(folder), rel)
    budget = run_in(
        config, "tokens", per_device_train_batch_size=8, gradient_accumulation_steps=1, max_tokens_per_micro_batch=64
    )
    assert_same(reference, lines(budget), rel)


def process_count(config: RunConfig, method: str, rel: float = 2e-5, **changes: Any) -> None:
    """Two processes log the numbers of one, and leave its weights."""
    one = run_apart(config, method, "one", per_device_train_batch_size=8, **changes)
    two = run_apart(config, method, "two", per_device_train_batch_size=4, num_processes=2, **changes)
    assert_same(lines(one), lines(two), rel)
    assert_same(lines(one, "eval"), lines(two, "eval"), rel)
    assert_close_weights(one, two, atol=1e-5)


def row_order(config: RunConfig, prepared: list[dict[str, Any]], run: Any, rel: float = 1e-5) -> None:
    """The loss of a micro-batch doesn't depend on the order of its rows. `run` has a policy, `prepared` its rows."""
    import torch

    results = []
    for rows in (prepared, prepared[::-1]):
        batch = run.plugins.hook.ft_collate(rows=rows, tokenizer=run.tokenizer, config=config)
        run.totals = batch.counts
        run.policy.zero_grad()
        loss = run.plugins.hook.ft_loss(model=run.model, batch=batch, run=run).loss
        loss.backward()
        grads = [p.grad.flatten() for p in run.policy.parameters() if p.grad is not None]
        results.append((float(loss), torch.cat(grads)))
    (first, grad), (second, other) = results
    assert math.isclose(first, second, rel_tol=rel), f"loss {first} and {second}"
    assert (grad - other).norm() <= 10 * rel * grad.norm(), "the gradients differ"


def seeds(config: RunConfig) -> None:
    """The same seed gives the same run bit for bit, another seed another order of rows."""
    first = lines(run_in(config, "seed-a", seed=1))
    assert_same(first, lines(run_in(config, "seed-b", seed=1)), rel=0)
    other = lines(run_in(config, "seed-c", seed=2))
    assert [line["loss"] for line in first] != [line["loss"] for line in other]


def resume(config: RunConfig, method: str, kill: Callable[[Path], bool] | None = None) -> None:
    """A run that is killed (SIGKILL) and resumed logs the losses of one that never was, bit for bit.

    `kill(folder)` says when; by default as soon as a checkpoint has been written and a step logged after it.
    """
    whole = run_apart(config, method, "whole")
    argv, folder = command(config, method, "killed")
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
                               env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    when = kill or _after_a_checkpoint
    while process.poll() is None and not when(folder):
        time.sleep(0.005)
    assert process.poll() is None, f"the run ended before it could be killed: {process.stderr.read().decode()}"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run(
        [sys.executable, "-m", "ft_host", "train", "--resume", str(folder)],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_same(lines(whole), lines(folder), rel=0)
    assert_same(lines(whole, "eval"), lines(folder, "eval"), rel=0)
    assert_close_weights(whole, folder, atol=0)


def _after_a_checkpoint(folder: Path) -> bool:
    saved = [int(path.name.removeprefix("step-")) for path in folder.glob("checkpoints/step-*")]
    logged = RunFolder(folder).read("metrics.jsonl") if saved else []
    return bool(saved) and logged[-1]["step"] > max(saved)


def lora_at_initialisation(config: RunConfig) -> None:
    """An adapter that has learnt nothing yet gives the losses of the model without it."""
    full = lines(run_in(config, "full", max_steps=1), "eval")
    lora = lines(run_in(config, "lora", max_steps=1, use_peft=True), "eval")
    assert full and lora, "the config needs an eval_dataset"
    assert_same(full[:1], lora[:1], rel=1e-6)
