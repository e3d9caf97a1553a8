"""Flex attention compiles for an H100, forward and backward, for the heads of the models that are trained most."""

from __future__ import annotations

from pathlib import Path

import pytest

from nightly.compiled import SHARED, told_of
from nightly.families import CASES, FAMILIES

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    return told_of(CASES, tmp_path_factory.mktemp("caches"))


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_it_compiles_within_the_shared_memory_of_a_block(case, told):
    assert told[case]["error"] is None
    assert all(size <= SHARED for _, size in told[case]["kernels"])


@pytest.mark.nightly
@pytest.mark.slow
def test_what_is_compiled_serves_other_models_and_batches(told):
    """Kernels are those of a head layout: neither a window nor a number of tokens makes others."""
    assert told["mistral 7B"]["graphs"] == told["four query heads a key head, 33 tokens"]["graphs"] == 0
    assert told["llama 3 8B"]["graphs"] == 1 and len(told["llama 3 8B"]["kernels"]) >= 3, "forward and backward"


@pytest.mark.nightly
@pytest.mark.slow
def test_the_table_of_the_docs_is_of_these_kernels(told):
    text = (HERE.parents[1] / "docs" / "attention.md").read_text(encoding="utf-8")
    for family in FAMILIES:
        assert f"| {row(told[family])} |" in text


def row(found: dict) -> str:
    """A line of the table: the case, and KiB of the kernels that attend, forward and backward."""
    sizes = [size for name, size in found["kernels"] if "_tem_" in name]
    return f"{found['case']} | " + (" | ".join(f"{size / 1024:.0f}" for size in sizes) or "as llama 3 8B | ")
