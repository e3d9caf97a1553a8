"""What must not change the numbers of supervised fine-tuning: the checks of ft_host.testing, on this method."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ft_sft.config import SFTConfig

from ft_host.api import ConfigError
from ft_host.testing import (
    assert_same,
    invariants,
    lines,
    run_command,
    run_in,
    save_tiny,
    tiny_qwen,
    tiny_tokenizer,
    write_rows,
)


@pytest.fixture
def config(make, prompts) -> SFTConfig:
    """Four steps of eight rows over more than one epoch, in random order, with an evaluation before and after."""
    made = make(prompts, max_steps=4, train_sampling_strategy="random", per_device_train_batch_size=8, max_length=24)
    file = write_rows(Path(made.output_dir) / "eval.jsonl", prompts[:5])
    return dataclasses.replace(made, eval_dataset=str(file), eval_on_start=True)


@pytest.mark.parametrize("loss_type", ["nll", "dft"])
def test_micro_batch_split(config, loss_type):
    invariants.micro_batch_split(dataclasses.replace(config, loss_type=loss_type))


@pytest.mark.parametrize(
    "fields",
    [
        {"packing": True, "packing_strategy": "bfd", "max_length": 40},
        {"packing": True, "packing_strategy": "wrapped", "max_length": 16},
        {"train_sampling_strategy": "group_by_length"},
        {"use_peft": True},
        {"segment_attention": "none"},
    ],
    ids=["packed", "wrapped", "by length", "lora", "rectangle"],
)
def test_micro_batch_split_of(config, fields):
    invariants.micro_batch_split(dataclasses.replace(config, **fields))


def test_row_order(config):
    invariants.row_order(config, "sft")


def test_row_order_of_dft_with_tied_embeddings(config, tmp_path):
    model = save_tiny(tmp_path / "qwen", tiny_qwen(), tiny_tokenizer())
    invariants.row_order(dataclasses.replace(config, model=str(model), loss_type="dft"), "sft")


def test_seeds(config):
    invariants.seeds(config)


def test_lora_at_initialisation(config):
    invariants.lora_at_initialisation(config)


@pytest.mark.slow
def test_resume(config):
    """Killed in the middle of an epoch, with dropout, so that random states count too."""
    config = dataclasses.replace(config, max_steps=16, save_steps=7, use_peft=True, lora_dropout=0.2)
    invariants.resume(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"distributed_strategy": "ddp"},
        {"distributed_strategy": "fsdp2", "use_peft": True, "learning_rate": 1e-2},
        {"distributed_strategy": "ddp", "packing": True, "max_length": 40, "loss_type": "dft"},
    ],
    ids=["ddp", "fsdp2 lora", "ddp packed"],
)
def test_process_count(config, fields):
    """With five evaluation rows, which two processes can't share evenly."""
    invariants.process_count(dataclasses.replace(config, save_steps=2, **fields))


@pytest.mark.slow
def test_two_processes_by_the_command_line(config):
    """`--num-processes 2`, and going on with that run on one: refused with other steps, exact with the same."""
    here = lines(run_in(config, "here"))
    changed = invariants.beside(
        config, "two", per_device_train_batch_size=4, num_processes=2, save_steps=2, distributed_strategy="fsdp2"
    )
    fields, default = dataclasses.asdict(changed), dataclasses.asdict(SFTConfig())
    file = Path(config.output_dir) / "two.json"
    file.write_text(json.dumps({name: value for name, value in fields.items() if value != default[name]}))
    argv = [sys.executable, "-m", "ft_host", "train", "sft", str(file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    folder = Path(changed.output_dir)
    assert_same(here, lines(folder), rel=2e-5)
    killed = folder.with_name("killed")
    invariants.as_if_killed(folder, killed)
    resume = ["--resume", str(killed), "--num-processes=1"]
    with pytest.raises(ConfigError, match="has 8 rows, and would now have 4 .4 a device × 1 accumulated × 1 proc"):
        run_command(["train", *resume])
    run_command(["train", *resume, "--per-device-train-batch-size=8"])
    assert_same(here, lines(killed), rel=2e-5)
