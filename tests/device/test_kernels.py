"""Attention's kernels where they are meant to be used: what is compiled anew, gradients, and what `auto` ends at."""

from __future__ import annotations

import torch

from device import kernels

RUN = [  # an ordinary run: micro-batches of any size, and an evaluation
    {"lengths": [90] * 7 + [70]},
    {"lengths": [300] * 5},
    {"lengths": [600]},
    {"lengths": [90]},
    {"lengths": [33]},
    {"lengths": [1]},
    {"lengths": [256]},
    {"lengths": [257]},
    {"lengths": [1024]},
    {"lengths": [100, 50, 50, 60, 80, 30, 40], "parents": [-1, 0, 0, 0, -1, 4, 4]},
    {"lengths": [300] * 5, "window": 128},
    {"lengths": [70, 20], "window": 7},
]


def test_one_kernel_serves_all_batches_of_a_run(on_device):
    silent = [call | {"gradient": False} for call in RUN]
    counts = on_device(kernels.compiled_by, RUN + silent)
    assert counts == [1] + [0] * (len(RUN) - 1) + [1] + [0] * (len(RUN) - 1)


def test_what_is_compiled_anew(on_device):
    calls = [
        {"lengths": [300] * 2},
        {"lengths": [310] * 2, "heads": 8},
        {"lengths": [300] * 2, "width": 32},
        {"lengths": [300] * 2, "dtype": torch.float32},
        {"lengths": [300] * 2, "softcap": 50.0},
        {"lengths": [310] * 3, "softcap": 50.0},
        {"lengths": [300] * 2, "sinks": True},
        {"lengths": [300] * 2},
    ]
    assert on_device(kernels.compiled_by, calls) == [1, 1, 1, 1, 1, 0, 1, 0]


def test_at_the_limit_there_is_an_error_and_no_uncompiled_pass(on_device):
    said = on_device(kernels.beyond_the_limit)
    assert said.startswith("FtHostError: flex_attention has been compiled 2 times") and "segment_attention" in said


def test_gradients_of_flex_are_those_of_sdpa(on_device):
    found = on_device(kernels.differences)
    assert len(found) == 4 * len(kernels.LAYERS) + 1  # one layer has sinks
    for at, name, difference in found:
        assert difference < 2e-5, (kernels.LAYERS[at], name)


def test_auto_ends_at_flex_with_four_query_heads_a_key_head(tmp_path, on_device):
    wide = on_device(kernels.chosen, tmp_path / "model", False)
    assert (wide["kernel"], wide["rows_kernel"], wide["refused"]) == ("flex", "flex", None)
    assert wide["difference"] < 1e-4 and wide["leak"] == 0
    assert wide["said"].startswith("attention: flex, one compiled kernel with a block mask; not varlen, since")
    assert "16 dimensions in float32" in wide["said"]


def test_auto_under_autocast(tmp_path, on_device):
    """The probe's maths is the run's. The device has no flash kernels, which the plan says."""
    narrow = on_device(kernels.chosen, tmp_path / "model", True)
    assert (narrow["kernel"], narrow["rows_kernel"]) == ("flex", "flex")
    assert 1e-4 < narrow["difference"] < 0.5
    assert "not varlen, since" in narrow["said"] and "float32" not in narrow["said"]


def test_a_mask_is_sent_without_a_wait(on_device):
    assert on_device(kernels.waits_of_a_mask) == 0
