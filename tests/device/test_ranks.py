"""Two ranks with a device each: the numbers of one, and nothing that is pickled goes over the devices."""

from __future__ import annotations

from functools import partial

import pytest

from device import allowed, cases
from ft_host.testing import assert_same


@pytest.fixture(scope="module")
def one(root, on_device) -> cases.Trained:
    return on_device(partial(cases.trained, per_device_train_batch_size=4), "sft", root / "one" / "device")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_give_the_numbers_of_one(strategy, one, root, on_device):
    call = partial(cases.trained_with, per_device_train_batch_size=2, distributed_strategy=strategy)
    ranks = on_device.ranks(2, call, "sft", root / strategy / "device")
    assert [backend for _, backend in ranks] == ["cpu:gloo,cuda:nccl"] * 2
    assert one.lines
    assert_same(one.lines, ranks[0][0].lines, 5e-5, 1e-6)
    for run, _ in ranks:
        more, _ = allowed.compared(strategy, run.waits)
        # What gloo has reduced are tensors of the CPU in the same memory, which DDP copies in its backward pass.
        more = [line for line in more if not line.startswith("backward")]
        assert not more, "\n".join(more)
