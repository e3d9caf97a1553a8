"""What benchmarks/gpu.py measures of a device, on the pretended one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def watched(trace: str) -> dict[str, Any]:
    """Two steps that hold 2 and 4 MiB beside 1 MiB from before, and a third, traced, that holds 16."""
    import torch

    sys.path.insert(0, str(BENCHMARKS))
    from tracing import Trace
    from watch import Watch

    watch = Watch("cuda", Trace(trace, 2))
    before = [torch.zeros(1 << 20, dtype=torch.uint8, device="cuda"), torch.zeros(9 << 20, device="cuda")]
    del before[1]  # held before training began
    watch.begin()
    for number, size in enumerate((2, 4, 16), 1):
        held = torch.zeros(size << 20, dtype=torch.uint8, device="cuda")
        held.sum()
        del held
        watch.tokens.append(10 * number)
        watch.step()
    return watch.report(0.0)


def described() -> dict[str, Any]:
    sys.path.insert(0, str(BENCHMARKS))
    from gpu_parts.machine import describe

    with pytest.raises(SystemExit, match="torch sees no xpu here"):
        describe("xpu")
    return describe("cuda")


def layers() -> list[dict[str, Any]]:
    sys.path.insert(0, str(BENCHMARKS))
    from gpu_parts.jobs import SMALL
    from gpu_parts.layers import measure

    return measure({"device": "cuda", "tokens": 400, "repeats": 1, "shapes": {"0.6B": SMALL}})


def peaks() -> list[float]:
    sys.path.insert(0, str(BENCHMARKS))
    import torch
    from gpu_parts.layers import let_go, peak_of

    device = torch.device("cuda")
    states = torch.randn(1 << 18, device=device, requires_grad=True)
    weight = torch.randn(1 << 18, device=device, requires_grad=True)
    grad = torch.ones(1 << 18, device=device)

    def once() -> None:
        torch.autograd.grad((states * weight).exp() * 2, [states, weight], grad)

    let_go(device)
    return [peak_of(once, device) for _ in range(40)]


def test_a_peak_leaves_out_what_the_pass_before_it_still_holds(on_device):
    """The device's backward thread frees the last of a pass in its own time."""
    found = on_device(peaks)
    assert max(found) - min(found) <= 2 / 1024 and min(found) >= 3, found  # MiB: a number or two


def test_layers_are_timed_in_each_way_that_there_is(on_device):
    """Products of few elements are compiled too. The device has no norm of torch's own, and Liger isn't installed."""
    found = {case["title"]: case["ways"] for case in on_device(layers)}
    assert len(found) == 5
    for title, ways in found.items():
        for label in ("own", "operation by operation", "compiled"):
            assert ways[label].get("ms", 0) > 0 and ways[label]["peak_mib"] > 0, (title, label, ways[label])
        assert ways["Liger"] == {"failed": "liger-kernel isn't installed"}
        assert ("torch's kernel" in ways) == ("norm" in title)
    mlp = found["0.6B: gated MLP, bfloat16 maths, weights in float32"]
    assert mlp["operation by operation"]["peak_mib"] < mlp["own"]["peak_mib"]  # compiled, it is traced alone


def test_the_peak_is_of_the_measured_steps_alone(on_device, tmp_path):
    report = on_device(watched, str(tmp_path / "trace.json.gz"))
    assert report["device_before"]["now_mb"] == 1
    assert 5 <= report["device_peak"]["peak_mb"] < 6
    assert report["tokens"] == [10, 10] and len(report["seconds"]) == 2
    assert report["trace"]["file"] == "trace.json.gz" and report["trace"]["seconds"] > 0
    assert "aten::sum" in [each["name"] for each in report["trace"]["kernels"]]
    assert (tmp_path / "trace.json.gz").stat().st_size > 100


def test_a_card_is_described_with_what_trl_can_attend_with(on_device):
    found = on_device(described)
    assert (found["name"], found["memory_gib"]) == ("Pretended GPU", 8.0)
    assert found["attention"] is None and "flash_attn isn't installed" in found["attention_why"]
