"""For all tests, the host's and the plugins': what one leaves in the process must not reach the next."""

from __future__ import annotations

import os
import sys

import pytest


@pytest.fixture(autouse=True)
def accelerate_forgets():
    """accelerate keeps its state per process, and transformers' TrainingArguments (TRL's configs) write environment
    variables that it reads."""
    before = {name: value for name, value in os.environ.items() if name.startswith("ACCELERATE_")}
    yield
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        del os.environ[name]
    os.environ.update(before)
    if "accelerate.state" in sys.modules:
        from ft_host.testing.parity import forget_accelerate

        forget_accelerate()


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    """What runs keep for later runs is kept for those of one test."""
    monkeypatch.setenv("FT_HOST_CACHE", str(tmp_path / "cache"))
