"""Fixtures of the host's tests: a tiny model with rows for it."""

from __future__ import annotations

import json
import os
import signal
import sys

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with a tiny model, 40 training rows of differing lengths, and 6 for evaluation."""
    from ft_host.testing.models import save_tiny

    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder / "model")
    for name, rows in (("train", range(40)), ("test", range(100, 106))):
        lines = [
            {"prompt": f"what is {n} plus {n * 7}?", "completion": f" it is {n * 8}" + "." * (n % 9)} for n in rows
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def config(tiny, tmp_path):
    """A run of five steps over it."""
    from ft_sft.config import SFTConfig

    return SFTConfig(
        model=str(tiny / "model"),
        dataset=str(tiny / "train.jsonl"),
        eval_dataset=str(tiny / "test.jsonl"),
        per_device_train_batch_size=8,
        max_steps=5,
        learning_rate=1e-2,
        save_steps=2,
        output_dir=str(tmp_path / "runs"),
        progress="quiet",
    )


SFT_WITH = """
from dataclasses import dataclass

import ft_sft.config
import ft_sft.method
import torch
from ft_host.api import Drop, LossOutput, ModelSpec, hookimpl, mean, option, total
from ft_sft.method import ft_collate, ft_loss, ft_prepare

@dataclass(kw_only=True)
class Config(ft_sft.config.SFTConfig):
    pass

"""


@pytest.fixture
def sft_with(tmp_path):
    """Writes a method in a file, supervised fine-tuning with `source` in place of hooks or config. Gives its config
    class."""
    from ft_host.registry import config_class

    def write(source: str) -> type:
        file = tmp_path / f"sft_with_{abs(hash((source, str(tmp_path))))}.py"
        file.write_text(SFT_WITH + source)
        return config_class(str(file))

    return write


@pytest.fixture
def without_nohup():
    """SIGHUP as it is where nobody said nohup, which a run respects. Processes that are started have it too."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def forget_made_up_modules() -> None:
    for name in [name for name in sys.modules if name.startswith("fake_")]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def made_up_modules_are_forgotten():
    """Modules of distributions that a test made up are named fake_...; the next test may install others by their names,
    and some ask that none was imported. Before the test too: those of packages' tests."""
    forget_made_up_modules()
    yield
    forget_made_up_modules()
