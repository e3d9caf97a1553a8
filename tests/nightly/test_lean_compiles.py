"""Norms and gated products compile for an H100, forward and backward, each as one kernel a pass where that can be."""

from __future__ import annotations

import shutil

import pytest
import torch
from device import lean

from nightly.compiled import SHARED, told_of
from nightly.layers import LAYERS, PRODUCTS


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    return told_of(LAYERS, tmp_path_factory.mktemp("caches"))


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("case", LAYERS)
def test_it_compiles_once_for_all_lengths(case, told):
    """Of 4,096 tokens, two, and 333. A norm has three functions, a product two."""
    assert told[case]["error"] is None
    assert told[case]["graphs"] == (2 if case in PRODUCTS else 3)
    assert all(size <= SHARED for _, size in told[case]["kernels"])


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("case", LAYERS)
def test_a_pass_is_one_kernel(case, told):
    """But for the gradient by a norm's weight, a sum over all tokens in two steps. Each may be there with several sizes
    of blocks, of which a GPU takes the fastest."""
    kernels = {name for name, _ in told[case]["kernels"]}
    assert len(kernels) == (2 if case in PRODUCTS else 4), kernels


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="Inductor needs a C++ compiler")
def test_what_inductor_generates_rounds_where_operations_one_by_one_do():
    """In C++ for the CPU, by the same lowering: in bfloat16 to its last bit or the one before."""
    for name, narrow, apart in lean.differences(torch.device("cpu")):
        assert apart <= (4e-3 if narrow else 1e-6), name
