"""Two processes, each with some of the rows, have the losses and gradients of one with all of them.

The two processes run this file as a script, once for all cases, on CPUs over gloo.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ft_host.batch import Batch, Segment, flat_batch
from ft_host.config import RunConfig
from ft_host.models import Policy, load_policy, save_model, shard
from ft_host.testing import models

CPU = torch.device("cpu")
WORLD = 2
LORA = {"use_peft": True, "lora_r": 4}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "full, untied": ("llama", {}),
    "full, tied": ("qwen", {}),
    "full, tied, checkpointed": ("qwen", {"gradient_checkpointing": True}),
    "experts": ("moe", {"router_aux_loss_coef": 0.5}),
    "LoRA, untied": ("llama", LORA),
    "LoRA, tied": ("qwen", LORA),
    "LoRA, tied, head too": ("qwen", LORA | {"lora_target_modules": ["q_proj", "lm_head"]}),
    "LoRA, head saved": ("llama", LORA | {"lora_modules_to_save": ["lm_head"]}),
    "LoRA, checkpointed": ("llama", LORA | {"gradient_checkpointing": True}),
    "rectangle": ("llama", {"segment_attention": "none"}),
}
WAYS = ("fsdp2", "ddp")
# Rows of each rank's micro-batches; the second rank has nothing left for the second one.
SPLIT = [[[0, 2], [4]], [[1, 3], []]]


def prepared(folder: Path, fields: dict[str, Any]) -> Policy:
    torch.manual_seed(0)  # an adapter starts at random, the same on every rank
    policy = load_policy(RunConfig(model=str(folder), **fields), models.tiny_tokenizer(), CPU)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # away from where half of an adapter's gradients are zero
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return policy


def rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 256, (length,), generator=generator).tolist() for length in (9, 17, 2, 12, 20)]


def batch_of(indices: list[int]) -> Batch:
    chosen = [rows()[index] for index in indices]
    segments = [Segment(input_ids=row, labels=row, row=index) for index, row in enumerate(chosen)]
    return flat_batch(segments, num_rows=len(chosen))


TARGETS = sum(len(row) - 1 for row in rows())


def dft(values: dict[str, torch.Tensor], part: slice) -> torch.Tensor:
    return -values["logp"].detach().exp() * values["logp"]


def loss_of(model: Any, policy: Policy, indices: list[int], way: str) -> torch.Tensor:
    """This micro-batch's part of the step's loss, as a sum. `way`: "nll" makes the gradient in the forward."""
    batch = batch_of(indices)
    if way == "nll":
        loss = model(batch, loss=dft)["loss"] / TARGETS
    else:
        logp = model(batch)["logp"]
        loss = -(logp.detach().exp() * logp).sum() / TARGETS
    if policy.aux_loss is not None:
        loss = loss + policy.router_aux_loss_coef * policy.aux_loss * len(indices) / len(rows())
    return loss


def step(model: Any, policy: Policy, micro_batches: list[list[int]], way: str, scale: float) -> list[float]:
    """Forward and backward of each. Gives their losses."""
    losses = []
    for indices in micro_batches:
        loss = loss_of(model, policy, indices, way)
        (loss * scale).backward()
        losses.append(float(loss.detach()))
    return losses


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, torch.distributed.tensor.DTensor) else tensor.clone()


def grads_of(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: whole(p.grad) for name, p in policy.named_parameters() if p.grad is not None}


# ---------------------------------------------------------------- in each of the two processes


def worker(folder: Path, rank: int) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.nn.parallel import DistributedDataParallel

    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    results = {}
    for case, (name, fields) in CASES.items():
        for strategy in WAYS:
            config = RunConfig(model=str(folder / name), distributed_strategy=strategy, **fields)
            policy = prepared(folder / name, fields)
            model = shard(policy, config) if strategy == "fsdp2" else DistributedDataParallel(policy)
            optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.1)
            entry: dict[str, Any] = {}
            for way in ("logp", "nll"):
                optimizer.zero_grad()
                # DDP and FSDP2 average over ranks; the loss is a sum over them
                entry[f"losses {way}"] = step(model, policy, SPLIT[rank], way, WORLD)
                entry[f"grads {way}"] = grads_of(policy)
            optimizer.step()
            with torch.no_grad():
                # ranks evaluate different numbers of rows, and take part in each other's forwards
                entry["after"] = [float(loss_of(model, policy, indices, "nll")) for indices in SPLIT[rank]]
            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            state = get_model_state_dict(policy, options=options) if strategy == "fsdp2" else None
            if rank == 0:
                save_model(policy, folder / strategy / case, state)
            results[strategy, case] = entry
    config = RunConfig(model=str(folder / "qwen"), distributed_strategy="fsdp2", bf16=True)
    half = prepared(folder / "qwen", {})
    model = shard(half, config)
    assert all(isinstance(p, torch.distributed.tensor.DTensor) and p.dtype == torch.float32 for p in half.parameters())
    results["bfloat16"] = {"losses nll": step(model, half, SPLIT[rank], "nll", WORLD), "grads nll": grads_of(half)}
    torch.save(results, folder / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharding")
    for name in {name for name, _ in CASES.values()}:
        models.save_tiny(folder / name, getattr(models, f"tiny_{name}")())
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, str(folder), str(rank)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return folder


# ---------------------------------------------------------------- and in one


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_as_one(ran, case):
    name, fields = CASES[case]
    policy = prepared(ran / name, fields)
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.1)
    expected: dict[str, Any] = {}
    for way in ("logp", "nll"):
        optimizer.zero_grad()
        expected[f"losses {way}"] = [step(policy, policy, mine, way, 1.0) for mine in SPLIT]
        expected[f"grads {way}"] = grads_of(policy)
    assert expected["losses nll"][1][1] == 0 and all(grad.any() for grad in expected["grads nll"].values())
    if policy.aux_loss is None:  # then the split doesn't matter either
        optimizer.zero_grad()
        everything = step(policy, policy, [[0, 1, 2, 3, 4]], "nll", 1.0)
        assert everything[0] == pytest.approx(sum(map(sum, expected["losses nll"])), rel=1e-6)
        assert_close(grads_of(policy), expected["grads nll"])
    optimizer.step()
    with torch.no_grad():
        after = [[float(loss_of(policy, policy, indices, "nll")) for indices in mine] for mine in SPLIT]

    for rank in range(WORLD):
        results = torch.load(ran / f"rank-{rank}.pt")
        for strategy in WAYS:
            found = results[strategy, case]
            for way in ("logp", "nll"):
                assert found[f"losses {way}"] == pytest.approx(expected[f"losses {way}"][rank], rel=1e-6, abs=1e-8)
                assert_close(found[f"grads {way}"], expected[f"grads {way}"], f"{strategy}, rank {rank}, {way}")
            assert found["after"] == pytest.approx(after[rank], rel=1e-5, abs=1e-8)

    # what the first process saved is the model that one process has
    with torch.no_grad():
        logp = policy(batch_of([0, 1, 2, 3, 4]))["logp"]
        for strategy in WAYS:
            config = RunConfig(model=str(ran / strategy / case), use_peft=fields.get("use_peft", False))
            again = load_policy(config, models.tiny_tokenizer(), CPU)
            torch.testing.assert_close(again(batch_of([0, 1, 2, 3, 4]))["logp"], logp, rtol=1e-5, atol=1e-5)


def test_shards_in_bfloat16(ran):
    """The maths in bfloat16, over float32 shards, with float32 gradients: near to all in float32."""
    policy = prepared(ran / "qwen", {})
    losses = [step(policy, policy, mine, "nll", 1.0) for mine in SPLIT]
    expected = grads_of(policy)
    for rank in range(WORLD):
        found = torch.load(ran / f"rank-{rank}.pt")["bfloat16"]
        assert found["losses nll"] == pytest.approx(losses[rank], rel=0.1, abs=1e-8)
        for name, wanted in expected.items():
            assert found["grads nll"][name].dtype == torch.float32
            assert (found["grads nll"][name] - wanted).norm() < 0.25 * wanted.norm(), name


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], where: str = "one process") -> None:
    assert found.keys() == expected.keys(), where
    for name, wanted in expected.items():
        error = (found[name] - wanted).norm() / wanted.norm()
        assert error < 1e-5, f"{where}: gradients of {name} differ by {error:.2g}"


if __name__ == "__main__":
    worker(Path(sys.argv[1]), int(sys.argv[2]))
