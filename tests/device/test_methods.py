"""Every method on the device: it runs there, with the numbers of the CPU, and waits for what waits.toml says alone."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from device import allowed, cases
from device.waits import Place
from ft_host.testing import assert_same

# Values near 0 are differences of larger ones; sums are in another order on the device, whose attention is another. In
# bfloat16 products are the CPU's, bit for bit.
TOLERANCE, ABSOLUTE = 1e-4, 1e-5
ROUNDED = {
    # CUDA's autocast sums what the experts give in float32, the CPU's in bfloat16.
    "sft experts": (3e-2, 3e-2),
    "sft experts balanced": (3e-2, 3e-2),
    # Scores are in float32 in flex_attention.
    "sft flex in bf16": (5e-3, 1e-3),
    "dpo flex in bf16": (3e-2, 5e-3),
    # Of equal probabilities, which are many in bfloat16, numpy's sort and torch's take another one first.
    "gold in bf16": (5e-2, 5e-3),
}
DRAWN = {
    "sft lora": "dropout is the device's own",
    "sft noise": "noise is the device's own",
    "grpo experts": "what rounds otherwise samples other tokens",
    "grpo overlap": "what is sampled before an update and what after it is a matter of time",
}
LATER = (
    *("sft packed", "sft lora", "sft noise", "sft experts balanced", "dpo live", "dpo synchronised"),
    *("grpo paid by a model", "grpo experts", "grpo experts in float32", "grpo overlap", "grpo overlap of nothing"),
    *(f"{case} in bf16" for case in cases.ALSO_IN_BF16 if case not in ("sft", "dpo", "grpo")),
)


@pytest.mark.nightly(*LATER)
@pytest.mark.parametrize("case", cases.CASES)
def test_the_device_gives_the_numbers_of_the_cpu_and_waits_for_little(case, root, on_device):
    cpu, device = on_device(cases.on_both, case, root / case.replace(" ", "-"))
    assert [line["step"] for line in cpu.lines] == [1, 2] and any(line["grad_norm"] > 0 for line in cpu.lines)
    if case in DRAWN:
        assert [line["step"] for line in device.lines] == [1, 2]
        for name in ("loss", "entropy"):
            assert device.lines[0][name] == pytest.approx(cpu.lines[0][name], rel=0.1, abs=0.02)
    else:
        tolerance, absolute = ROUNDED.get(case, (TOLERANCE, ABSOLUTE))
        assert_same(cpu.lines, device.lines, tolerance, absolute)
        assert_same(cpu.evaluations, device.evaluations, tolerance, absolute)
    assert [line["step"] for line in device.evaluations] == [2]
    assert not cpu.waits.keys() & set(allowed.WATCHED), "a run on the CPU has nothing to wait for"
    more, fewer = allowed.compared(case, device.waits)
    assert not more, "the host waits for the device more often than tests/device/waits.toml allows:\n" + "\n".join(more)
    if fewer:
        warnings.warn(
            "less waiting than in tests/device/waits.toml, which can be lowered:\n" + "\n".join(fewer), stacklevel=1
        )


def test_modules_of_a_known_form_are_found_on_the_device(on_device):
    """In bfloat16 too, where an activation's gradient in parts would round otherwise."""
    for cpu, device in on_device(cases.lean_forms).values():
        assert (device.fused_norms, device.fused_mlps) == (5, 2) and device.eager == {}  # the device's alone
        found = replace(device, fused_norms=0, fused_mlps=0)
        assert found == cpu and found.lean_norms == 5 and found.lean_mlps == 2


def test_a_line_that_is_not_in_the_table_is_told_with_its_number():
    place = Place("ft_host/training/step.py", "loss_of", "print(float(loss))", 61)
    more, fewer = allowed.compared("sft", {"forward": {place: 2}})
    assert more == ["forward: 2 times, 0 allowed, at line 61 of ft_host/training/step.py loss_of: print(float(loss))"]
    assert any("step: 0 times, 1 allowed" in line and "clip" in line for line in fewer)


def test_the_table_names_cases_and_units_that_there_are():
    """Lines that have changed are told by the runs."""
    for entry in allowed.table():
        assert entry.unit in allowed.WATCHED and set(entry.cases) <= {*cases.CASES, *cases.RANKS}, entry
        file = entry.line.split(" ", 1)[0]
        package = Path(__file__).resolve().parents[2]
        assert file == "torch" or (package / file).is_file() or list(package.glob(f"plugins/*/{file}")), entry


def test_of_decoded_tokens_the_host_looks_at_one_in_eight(root, on_device):
    looks = [_looks(on_device, root, tokens) for tokens in (24, 72)]
    assert 0 < looks[1] - looks[0] <= (72 - 24) / 8


def _looks(on_device, root: Path, tokens: int) -> int:
    run = on_device(partial(cases.trained, max_completion_length=tokens), "rloo", root / f"tokens-{tokens}" / "device")
    return sum(run.waits["generation"].values())
