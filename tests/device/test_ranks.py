"""Two ranks with a device each: the numbers of one, and nothing that is pickled goes over the devices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial

import pytest

from device import allowed, cases
from ft_host.testing import assert_same

BATCH = {"sft": 4, "sft in bf16": 4, "dpo": 4, "grpo": 8}
# In bfloat16 a gradient is rounded in each rank, and then added up.
TOLERANCES = {"sft in bf16": (1e-2, 1e-3)}


@pytest.fixture(scope="module")
def one(root, on_device) -> Callable[[str], cases.Trained]:
    """What one device gives, by case."""

    @functools.cache
    def run(case: str) -> cases.Trained:
        call = partial(cases.trained, per_device_train_batch_size=BATCH[case])
        return on_device(call, case, root / f"one-{case}" / "device")

    return run


@pytest.mark.nightly(*(name for name in cases.RANKS if name not in ("ddp", "fsdp2")))
@pytest.mark.parametrize("name", cases.RANKS)
def test_two_ranks_give_the_numbers_of_one(name, one, root, on_device):
    strategy, case = cases.RANKS[name]
    changes = {"per_device_train_batch_size": BATCH[case] // 2, "distributed_strategy": strategy}
    config = cases.config_of(case, root / name / "device", **changes)  # whose files ranks would write over each other's
    ranks = on_device.ranks(2, cases.run_of_rank, config)
    assert [backend for _, backend in ranks] == ["cpu:gloo,cuda:nccl"] * 2
    assert one(case).lines
    assert_same(one(case).lines, ranks[0][0].lines, *TOLERANCES.get(case, (5e-5, 1e-6)))
    for run, _ in ranks:
        more, _ = allowed.compared(name, run.waits)
        # What gloo has reduced are tensors of the CPU in the same memory, which DDP copies in its backward pass.
        more = [line for line in more if not line.startswith("backward")]
        assert not more, "\n".join(more)
