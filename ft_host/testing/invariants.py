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
import shutil
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
from ft_host.run import Run

Line = dict[str, Any]


def lines(folder: str | Path, kind: str = "train") -> list[Line]:
    """The entries of metrics.jsonl of one kind, without what depends on the clock."""
    return [
        {key: value for key, value in entry.items() if not key.startswith("perf/")}
        for entry in RunFolder(folder).read("metrics.jsonl")
        if entry["kind"] == kind
    ]


def tensors(folder: Path) -> dict[str, Any]:
    """The tensors of a model (or adapter) in a folder."""
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def run_in(config: RunConfig, name: str, **changes: Any) -> Path:
    """Train `config` with some fields changed, in this process, in a folder beside `config.output_dir`."""
    folder = Path(config.output_dir) / name
    ft_host.train(dataclasses.replace(config, output_dir=str(folder), progress="quiet", **changes))
    return folder


def command(config: RunConfig, method: str, name: str, **changes: Any) -> tuple[list[str], Path]:
    """The command line that trains `config`, its fields in a file, and the folder of the run."""
    folder = Path(config.output_dir) / name
    changed = dataclasses.replace(config, output_dir=str(folder), progress="quiet", **changes)
    default = dataclasses.asdict(type(config)())
    fields = {name: value for name, value in dataclasses.asdict(changed).items() if value != default[name]}
    file = Path(config.output_dir) / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(fields))
    return [sys.executable, "-m", "ft_host", "train", method, str(file)], folder


def execute(argv: list[str]) -> None:
    """Run a command with one thread, and fail with what it said when it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, f"{' '.join(argv)}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}"


def run_apart(config: RunConfig, method: str, name: str, **changes: Any) -> Path:
    """Train `config` through the command line, in processes of its own."""
    argv, folder = command(config, method, name, **changes)
    execute(argv)
    return folder


def resume_apart(folder: Path, **changes: Any) -> None:
    """Go on with a run through the command line, some fields changed."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in changes.items()]
    execute([sys.executable, "-m", "ft_host", "train", "--resume", str(folder), *flags])


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

    one, other = tensors(a / "model"), tensors(b / "model")
    assert one and one.keys() == other.keys()
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
    one = run_in(config, "one", per_device_train_batch_size=8, **changes)
    two = run_apart(config, method, "two", per_device_train_batch_size=4, num_processes=2, **changes)
    assert_same(lines(one), lines(two), rel)
    assert_same(lines(one, "eval"), lines(two, "eval"), rel)
    assert_close_weights(one, two, atol=1e-5)


def gradients_of_ranks(config: RunConfig, method: str, rel: float = 2e-5, **changes: Any) -> None:
    """Each of two processes has, at every step, the gradient of one process."""
    import torch

    from ft_host.testing.gradients import recorded

    def recording(name: str) -> dict[str, Any]:
        folder = Path(config.output_dir) / f"{name}-gradients"
        folder.mkdir(parents=True)
        return {"optim": "ft_host.testing.gradients:RecordedSGD", "optim_args": {"folder": str(folder)}, **changes}

    one, two = recording("alone"), recording("together")
    steps = len(lines(run_in(config, "alone", per_device_train_batch_size=8, **one)))
    run_apart(config, method, "together", per_device_train_batch_size=4, num_processes=2, **two)
    for step in range(1, steps + 1):
        expected = recorded(one["optim_args"]["folder"], 0, step)
        assert expected.norm() > 0
        for rank in range(2):
            found = recorded(two["optim_args"]["folder"], rank, step)
            assert torch.linalg.vector_norm(found - expected) <= rel * expected.norm(), f"step {step}, rank {rank}"


def row_order(config: RunConfig, method: str, rel: float = 1e-5) -> None:
    """Loss and gradient of a micro-batch don't depend on the order of its rows."""
    import torch

    run, rows = first_step(config, method)
    results = []
    for ordered in (rows, rows[::-1]):
        batch = run.plugins.hook.ft_collate(rows=ordered, tokenizer=run.tokenizer, config=config)
        run.totals = batch.counts
        run.policy.zero_grad()
        loss = run.plugins.hook.ft_loss(model=run.model, batch=batch.to(run.device), run=run).loss
        loss.backward()
        grads = [p.grad.flatten() for p in run.policy.parameters() if p.grad is not None]
        results.append((float(loss), torch.cat(grads)))
    (first, grad), (second, other) = results
    assert len(rows) > 1 and grad.norm() > 0
    assert math.isclose(first, second, rel_tol=rel), f"loss {first} and {second}"
    assert (grad - other).norm() <= 10 * rel * grad.norm(), "the gradients differ"


def first_step(config: RunConfig, method: str) -> tuple[Run, list[dict[str, Any]]]:
    """A run that is ready for its first step, and the prepared rows of that step. Its folder is never written."""
    from functools import partial

    from accelerate import Accelerator

    from ft_host import data, registry
    from ft_host.models import load_policy

    tokenizer = data.load_tokenizer(config)
    plugins = registry.session(registry.find("method", method), None)
    prepare = partial(_prepare, plugins.hook.ft_prepare, tokenizer, config)
    step = next(iter(data.TrainStream(data.open_train(config), prepare, config)))
    accelerator = Accelerator(cpu=config.use_cpu)
    policy = load_policy(config, tokenizer, accelerator.device)
    run = Run(
        config=config, folder=RunFolder(config.output_dir), tokenizer=tokenizer, plugins=plugins,
        accelerator=accelerator, policy=policy, model=policy,
    )  # fmt: skip
    return run, [row for unit in step.units for row in unit]


def _prepare(hook: Callable[..., Any], tokenizer: Any, config: RunConfig, row: dict[str, Any]) -> Any:
    return hook(row=row, tokenizer=tokenizer, config=config)


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
    resume_apart(folder)
    assert_same(lines(whole), lines(folder), rel=0)
    assert_same(lines(whole, "eval"), lines(folder, "eval"), rel=0)
    assert_close_weights(whole, folder, atol=0)


def resume_elsewhere(config: RunConfig, method: str, *, saved_by: int, rel: float = 2e-5, **changes: Any) -> None:
    """A checkpoint that one process has saved resumes on two (`saved_by=1`), or the other way round (`saved_by=2`),
    and the run goes on as it did. The config's `save_steps` must leave a checkpoint in the middle.
    """
    goes_on = 3 - saved_by
    per_device = {1: 8, 2: 4}
    folder = run_apart(
        config, method, f"saved-by-{saved_by}", num_processes=saved_by,
        per_device_train_batch_size=per_device[saved_by], save_total_limit=None, **changes,
    )  # fmt: skip
    before = folder.with_name(f"{folder.name}-before")
    shutil.copytree(folder, before)
    # What a run looks like that was killed after its first checkpoint: later ones, and the model, are not there.
    first, *later = sorted(int(path.name.removeprefix("step-")) for path in folder.glob("checkpoints/step-*"))
    assert later, "save_steps leaves no checkpoint in the middle"
    for step in later:
        shutil.rmtree(folder / "checkpoints" / f"step-{step}")
    shutil.rmtree(folder / "model")
    resume_apart(folder, num_processes=goes_on, per_device_train_batch_size=per_device[goes_on])
    said = [event["text"] for event in RunFolder(folder).read("events.jsonl")]
    assert f"resumed from step-{first}" in said, said
    assert_same(lines(before), lines(folder), rel)
    assert_same(lines(before, "eval"), lines(folder, "eval"), rel)
    assert_close_weights(before, folder, atol=1e-5)


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
