"""What must not change the numbers of a run. Each check takes a config that trains in seconds and raises AssertionError
with the first difference. A method package calls them as they are:

    from ft_host.testing import invariants

    def test_micro_batch_split(config):          # a fixture: a SFTConfig on a tiny model and a few rows
        invariants.micro_batch_split(config)

The runs are made in the config's `output_dir`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ft_host
from ft_host.config import RolloutConfig, RunConfig
from ft_host.rundir.folder import RunFolder
from ft_host.testing.processes import start, train_apart
from ft_host.testing.ready import first_step

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


def beside(config: RunConfig, name: str, **changes: Any) -> RunConfig:
    """`config` with some fields changed, in a folder beside `config.output_dir`."""
    folder = str(Path(config.output_dir) / name)
    return dataclasses.replace(config, **{"output_dir": folder, "progress": "quiet", **changes})


def run_in(config: RunConfig, name: str, **changes: Any) -> Path:
    """Train `config` with some fields changed, in this process. Gives the folder of the run."""
    return ft_host.train(beside(config, name, **changes)).folder


def resume_in(config: RunConfig, folder: str | Path) -> Path:
    """Go on with the run in `folder`, in this process. Gives the folder."""
    from ft_host.training.launch import train

    return train(config, resume=Path(folder)).folder


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


def assert_same_weights(a: Path, b: Path, rel: float) -> None:
    """The models that two runs left: each tensor's difference within `rel` of its norm (0: bit for bit)."""
    import torch

    one, other = tensors(a / "model"), tensors(b / "model")
    assert one and one.keys() == other.keys()
    for name in one:
        # By norms: Adam divides by the size of a gradient, so an element whose gradient is close to 0 moves
        # by round-off alone.
        difference = torch.linalg.vector_norm(one[name] - other[name])
        assert difference <= rel * torch.linalg.vector_norm(one[name]), f"{name}: difference {difference}"


# ---------------------------------------------------------------- the checks


def micro_batch_split(config: RunConfig, rel: float = 2e-5, abs: float = 1e-7) -> None:
    """8×1, 2×4 and 1×8 rows a step, and micro-batches by a token budget, log the same numbers.

    `abs` is for metrics that come close to 0, such as the mean of rewards of both signs: the size of round-off there is
    that of what was added up. A run with rollouts learns from fixed completions, with the log-probs that the policy
    gives them: after an update, round-off could turn a sampled token into another.
    """
    with fixed_completions_of(config) as config:
        reference = lines(run_in(config, "8x1", per_device_train_batch_size=8, gradient_accumulation_steps=1))
        assert reference, "the run logged no step"
        for size, steps in ((2, 4), (1, 8)):
            name = f"{size}x{steps}"
            folder = run_in(config, name, per_device_train_batch_size=size, gradient_accumulation_steps=steps)
            assert_same(reference, lines(folder), rel, abs)
        budget = run_in(
            config,
            "tokens",
            per_device_train_batch_size=8,
            gradient_accumulation_steps=1,
            max_tokens_per_micro_batch=64,
        )
        assert_same(reference, lines(budget), rel, abs)


@contextlib.contextmanager
def fixed_completions_of(config: RunConfig) -> Iterator[RunConfig]:
    """The config, of a run with rollouts with completions that don't depend on weights."""
    if not isinstance(config, RolloutConfig):
        yield config
        return
    from ft_host.testing.fixed import fixed_where_sampled

    with fixed_where_sampled(config, Path(config.output_dir)) as fields:
        yield dataclasses.replace(config, **fields)


def process_count(config: RunConfig, rel: float = 2e-5, abs: float = 1e-7, **changes: Any) -> None:
    """Two processes log the numbers of one, each rank has its gradients, and they leave its weights. A checkpoint
    saved by two resumes on one, and the other way round.

    `save_steps` of the config must leave a checkpoint in the middle.
    """
    one = beside(config, "one", per_device_train_batch_size=8, save_total_limit=None, **changes)
    two = beside(config, "two", per_device_train_batch_size=4, save_total_limit=None, **changes)
    folders = {}
    for each, world_size in ((one, 1), (two, 2)):
        folders[world_size] = Path(f"{each.output_dir}-gradients")
        folders[world_size].mkdir(parents=True)
        recording = {"optim": RECORDER, "optim_args": {"folder": str(folders[world_size])}}
        train_apart(dataclasses.replace(each, **recording), world_size)
    assert_same_gradients(folders[1], folders[2], len(lines(one.output_dir)), rel)
    compare_runs(Path(one.output_dir), Path(two.output_dir), rel, abs)
    for saved, other, world_size in ((one, two, 2), (two, one, 1)):
        folder = Path(f"{saved.output_dir}-resumed")
        first = as_if_killed(Path(saved.output_dir), folder)
        gradients = Path(f"{folder}-gradients")
        gradients.mkdir()
        changed = {"output_dir": str(folder), "optim": RECORDER, "optim_args": {"folder": str(gradients)}}
        train_apart(dataclasses.replace(other, **changed), world_size, resume=folder)
        said = [event["text"] for event in RunFolder(folder).read("events.jsonl")]
        assert f"resumed from step-{first}" in said, said
        compare_runs(Path(saved.output_dir), folder, rel, abs)


RECORDER = "ft_host.testing.gradients:RecordedAdamW"


def compare_runs(a: Path, b: Path, rel: float, abs: float = 1e-7) -> None:
    """Two finished runs: their metrics within `rel`, their weights within a little more (0: bit for bit)."""
    assert_same(lines(a), lines(b), rel, abs)
    assert_same(lines(a, "eval"), lines(b, "eval"), rel, abs)
    assert_same_weights(a, b, rel=5 * rel)


def assert_same_gradients(one: Path, two: Path, steps: int, rel: float) -> None:
    """Each of two ranks had at each step the gradient of one process."""
    import torch

    from ft_host.testing.gradients import recorded

    assert steps
    for step in range(1, steps + 1):
        expected = recorded(one, 0, step)
        assert expected.norm() > 0
        for rank in range(2):
            difference = torch.linalg.vector_norm(recorded(two, rank, step) - expected)
            assert difference <= rel * expected.norm(), f"step {step}, rank {rank}: {difference}"


def as_if_killed(run: Path, folder: Path) -> int:
    """Copy a finished run to `folder` as it was after its first checkpoint: without later ones and without a model.
    Gives the step of that checkpoint."""
    shutil.copytree(run, folder)
    first, *later = sorted(int(path.name.removeprefix("step-")) for path in folder.glob("checkpoints/step-*"))
    assert later, "save_steps leaves no checkpoint in the middle"
    for step in later:
        shutil.rmtree(folder / "checkpoints" / f"step-{step}")
    shutil.rmtree(folder / "model")
    return first


def row_order(config: RunConfig, method: str | None = None, rel: float = 1e-5, abs: float = 1e-7) -> None:
    """Loss and gradient of a micro-batch don't depend on the order of its rows. `method` is that of the config's class
    where it isn't given. Of a run with rollouts: of the rows of its first step, from fixed completions."""
    import torch

    from ft_host.training.step import before_collating

    with fixed_completions_of(config) as config:
        run, rows = first_step(config, method)
    results = []
    for ordered in (rows, rows[::-1]):
        [ordered] = before_collating(run, [ordered])
        batch = run.collate(ordered)
        run.totals = batch.counts
        run.policy.zero_grad()
        loss = run.loss(batch.to(run.device)).loss
        loss.backward()
        grads = [p.grad.flatten() for p in run.policy.parameters() if p.grad is not None]
        results.append((float(loss.detach()), torch.cat(grads)))
    (first, grad), (second, other) = results
    assert len(rows) > 1 and grad.norm() > 0
    assert math.isclose(first, second, rel_tol=rel, abs_tol=abs), f"loss {first} and {second}"
    assert (grad - other).norm() <= 10 * rel * grad.norm(), "the gradients differ"


def seeds(config: RunConfig) -> None:
    """The same seed gives the same run bit for bit, another seed another order of rows."""
    first = lines(run_in(config, "seed-a", seed=1))
    assert_same(first, lines(run_in(config, "seed-b", seed=1)), rel=0)
    other = lines(run_in(config, "seed-c", seed=2))
    assert [line["loss"] for line in first] != [line["loss"] for line in other]


def resume(config: RunConfig, kill: Callable[[Path], bool] | None = None) -> None:
    """A run that is killed (SIGKILL) and resumed logs the losses of one that never was, bit for bit.

    `kill(folder)` is asked all the time whether to kill it now, so the config needs more steps than the run makes in
    the time between two answers. By default it dies as soon as a checkpoint has been written and a step logged after
    it, and a few steps more are enough.
    """
    whole, killed = beside(config, "whole"), beside(config, "killed")
    train_apart(whole)
    folder = Path(killed.output_dir)
    [process] = start(killed, dies=kill is None)
    while kill and process.is_alive():
        if kill(folder):
            process.kill()
        time.sleep(0.002)
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the run ended before it could be killed"
    stopped_at = lines(folder)[-1]["step"]
    train_apart(killed, resume=folder)
    assert lines(folder)[-1]["step"] > stopped_at
    compare_runs(Path(whole.output_dir), folder, rel=0)


def lora_at_initialisation(config: RunConfig) -> None:
    """An adapter that has learnt nothing yet gives the losses of the model without it."""
    full = lines(run_in(config, "full", max_steps=1), "eval")
    lora = lines(run_in(config, "lora", max_steps=1, use_peft=True), "eval")
    assert full and lora, "the config needs an eval_dataset"
    assert_same(full[:1], lora[:1], rel=1e-6)
