"""Every kind of method on a device that has no float64, as Metal's has none: nothing of a run makes one there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from device import cases
from ft_host.util import devices

CASES = ("sft", "sft experts", "rloo", "ppo", "gold", "sdft", "sdpo")  # those that sum in float64 elsewhere


class Without(TorchDispatchMode):
    """Raises, as Metal does, where an operator gives a float64 that isn't on the CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, torch.Tensor) and each.dtype == torch.float64 and each.device.type != "cpu":
                raise TypeError(f"{func}: the device has no float64")
        return out


def finite_losses(case: str, folder: Path) -> list[float]:
    devices.FLOAT64["cuda"] = lambda device: False
    with Without():
        return [line["loss"] for line in cases.trained(case, folder).lines if line["kind"] == "train"]


def caught(folder: Path) -> str:
    """What the mode says of a float64 of the device, which it must see for the test to mean anything."""
    with Without(), pytest.raises(TypeError) as error:
        torch.zeros(2, device="cuda").double()
    return str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_method_trains_without_float64_on_the_device(case, tmp_path, on_device):
    losses = on_device(finite_losses, case, tmp_path / "models" / "runs")
    assert len(losses) == 2 and all(abs(loss) < 1e3 for loss in losses)


def test_a_float64_of_the_device_is_seen(tmp_path, on_device):
    assert "no float64" in on_device(caught, tmp_path)
