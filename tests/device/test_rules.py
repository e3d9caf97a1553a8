"""The device itself: what it refuses, what it reports as a wait; and what a run makes of its limits."""

from __future__ import annotations

import os

import pytest
import torch

from device import cases
from ft_host.config import RunConfig
from ft_host.distributed.processes import _grow_memory_in_place
from ft_host.testing import assert_same


def test_it_has_the_rules_of_a_gpu(on_device):
    on_device(cases.rules_of_a_gpu)


def test_what_the_host_waits_for(on_device):
    assert on_device(cases.kinds_of_waits) == {
        "item": ["item"],
        "tolist": ["d2h"],
        "mask": ["sync"],
        "fill by a mask": [],
        "write by a mask": ["sync"],
        "indices of the CPU": ["h2d"],
        "tensor": ["h2d"],
        "pageable": ["h2d"],
        "pinned": ["async"],
        "pinned, blocking": ["h2d"],
        "repeats": ["sync"],
        "repeats of a known number": [],
        "synchronize": ["sync"],
        "arithmetic": [],
        "to_device": ["async"],
    }


def test_tensors_that_travel_together_arrive_as_they_were(on_device):
    on_device(cases.copied)


AT_ONCE = ("sft lora", "grpo")  # the others nightly
GOES_ON = (
    *("sft lora", "sft in bf16", "dpo", "kto", "reward", "orpo", "simpo", "distill", "gkd", "gold", "sdft"),
    *("grpo", "grpo kl in bf16", "grpo experts", "rloo", "ppo", "sdpo", "online dpo", "bon"),
)


@pytest.mark.nightly(*(case for case in GOES_ON if case not in AT_ONCE))
@pytest.mark.parametrize("case", GOES_ON)
def test_a_run_that_goes_on_is_the_one_that_never_stopped(case, root, on_device):
    """In "sft lora", dropout is drawn from the device's random state, which a checkpoint keeps."""
    whole, gone_on = on_device(cases.resumed, case, root / f"resumed-{case}" / "device")
    assert [line["step"] for line in whole] == [1, 2, 3, 4]
    assert_same(whole, gone_on, rel=0)


def test_memory_that_runs_out_is_told_and_the_step_before_is_saved(root, on_device):
    said, checkpoints, codes = on_device(cases.ran_out, "sft", root / "short" / "device")
    assert "memory ran out in the forward pass of step 2" in said or "memory ran out in the backward pass" in said
    assert checkpoints == ["step-1"] and "SYS004" in codes


def test_memory_grows_in_place_unless_somebody_has_said_how(monkeypatch):
    def asked(device: str, backend: str = "transformers", **said: str) -> str | None:
        for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
            monkeypatch.delenv(name, raising=False)
        for name, value in said.items():
            monkeypatch.setenv(name, value)
        _grow_memory_in_place(RunConfig(model="m", dataset="d", backend=backend), torch.device(device))
        return os.environ.get("PYTORCH_ALLOC_CONF")

    assert asked("cuda") == "expandable_segments:True"
    assert asked("cpu") is None
    assert asked("cuda", backend="vllm") is None
    assert asked("cuda", PYTORCH_CUDA_ALLOC_CONF="max_split_size_mb:64") is None
    assert asked("cuda", PYTORCH_ALLOC_CONF="max_split_size_mb:64") == "max_split_size_mb:64"
