"""Lean layers as compiled kernels, on the pretended device: what is compiled when, and what becomes of one that fails.

What is compiled is traced there and runs as it was traced, so that the numbers are those of the functions that Inductor
gets. tests/nightly compiles them for a GPU."""

from __future__ import annotations

import pytest

from device import lean
from ft_host.testing import assert_same

NORMS, MLPS = (f"{what} of bfloat16, {what} of float32" for what in ("norms", "gated MLPs"))
FUNCTIONS = {"normed", "of_states", "of_weight", "product", "of_gate_and_up"}


@pytest.mark.nightly("moe")
@pytest.mark.parametrize("family", ["qwen", "gemma", "moe"])
def test_a_run_in_bfloat16_uses_them_and_compiles_nothing_more(family, tmp_path, on_device):
    """Micro-batches of any length, with an evaluation; and layers that are made again for the backward pass."""
    seen = on_device(lean.trained, tmp_path, family)
    assert seen["calls"].keys() == FUNCTIONS and seen["loaded"] > 0
    assert seen["compiled"] == 0
    assert_same(seen["eager"], seen["fused"], 2e-2, 1e-3)
    # which expert gets a token may turn on a rounding
    assert_same(seen["cpu"], seen["fused"], 3e-2, 3e-2, ("moe/max_violation",))


def test_an_adapter_wants_no_gradients_of_weights(tmp_path, on_device):
    seen = on_device(lean.checkpointed_adapter, tmp_path)
    assert seen["calls"].keys() == FUNCTIONS - {"of_weight"} and seen["compiled"] == 0


def test_they_give_the_numbers_of_operations_one_by_one(on_device):
    for name, narrow, apart in on_device(lean.differences):
        assert apart <= (1e-2 if narrow else 1e-6), name


def test_one_kernel_serves_all_lengths(on_device):
    """With gradient and without, under autocast and not. A single row runs operation by operation."""
    assert on_device(lean.compiled_by, [300, 2, 37, 1, 16, 24, 1024]) == [5, 0, 0, 0, 0, 0, 0]


def test_a_small_product_isn_t_worth_the_call(on_device):
    assert on_device(lean.sizes) == [{}, {"product": 1, "of_gate_and_up": 1}]


@pytest.mark.parametrize(
    ("failure", "fused", "said"),
    [
        (None, (5, 2), None),
        ("forward", (0, 0), f"{MLPS}, {NORMS} are computed operation by operation"),
        ("backward", (0, 2), f"{NORMS} are computed operation by operation, which takes longer: a bad kernel"),
        ("compiler", (5, 0), "there is no C compiler"),
        ("numbers", (5, 0), "what is compiled differs by"),
        ("disabled", (0, 0), "TORCH_COMPILE_DISABLE is set"),
        ("limit", (0, 2), "norms of float32 are computed operation by operation, which takes longer: normed has"),
    ],
)
def test_what_fails_stays_eager_and_the_plan_says_why(failure, fused, said, tmp_path, on_device):
    found = on_device(lean.loaded, tmp_path, failure)
    assert found["fused"] == fused and found["lean"] == (5, 2)
    assert bool(found["notes"]) == (said is not None)
    assert said is None or said in found["notes"][0]
    kept = {what for what, count in zip(("norm", "product"), fused, strict=True) if count}
    assert found["kept"] == (kept | {"norm"} if failure == "limit" else kept)


def test_memory_that_runs_out_is_no_reason_to_go_on(tmp_path, on_device):
    assert on_device(lean.memory_ran_out, tmp_path) == "CUDA out of memory"


def test_layers_that_are_compiled_whole_compile_no_parts(tmp_path, on_device):
    found = on_device(lean.compiled_whole, tmp_path)
    assert found["fused"] == (0, 0) and found["notes"] == []
