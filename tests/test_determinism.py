"""What depends on the seed depends on nothing else: not on a process's hashes, on the number of workers, on a restart,
nor on how busy the machine is."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ft_host.monitor import row_overlap
from ft_host.testing.invariants import as_if_killed, assert_same, lines, resume_in, run_in
from ft_host.util.seeds import aside, reseed, seed_all, seed_of

DRAWING = """
import random

import numpy as np


@hookimpl
def ft_prepare(row, tokenizer, config):
    drawn = f"{random.random():.6f} {np.random.rand():.6f}"
    return ft_sft.method.ft_prepare(row=row | {"completion": drawn}, tokenizer=tokenizer, config=config)
"""


def test_all_random_states_are_seeded_and_what_is_drawn_aside_changes_none():
    def drawn():
        return random.random(), np.random.rand(), float(torch.rand(()))

    seed_all(5)
    first = drawn()
    seed_all(5)
    assert drawn() == first
    seed_all(5)
    with aside():
        reseed(9)
        random.random()
    assert drawn() == first
    assert seed_of(1, "a") != seed_of(1, "b") and seed_of("\ud83d") == seed_of("\ud83d")


@pytest.fixture
def drawing(config, sft_with):
    """A run whose rows and rewards are drawn at random, from one row a step on."""
    method = sft_with(DRAWING)
    fields = {name: value for name, value in vars(config).items() if name != "loss_type"}
    return method(**fields | {"max_steps": 4, "save_total_limit": None})


def test_rows_that_a_plugin_draws_depend_on_the_seed_alone(drawing):
    whole = run_in(drawing, "whole")
    assert_same(lines(whole), lines(run_in(drawing, "again")), rel=0)
    assert_same(lines(whole, "eval"), lines(whole.parent / "again", "eval"), rel=0)
    other = lines(run_in(drawing, "other", seed=drawing.seed + 1))
    assert [line["loss"] for line in other] != [line["loss"] for line in lines(whole)]
    assert len({line["loss"] for line in lines(whole)}) == 4
    stopped = whole.parent / "stopped"
    as_if_killed(whole, stopped)
    resume_in(replace(drawing, output_dir=str(stopped)), stopped)
    for kind in ("train", "eval"):
        assert_same(lines(whole, kind), lines(stopped, kind), rel=0)


@pytest.mark.slow
def test_rows_that_a_plugin_draws_do_not_depend_on_the_workers(drawing):
    whole = run_in(drawing, "whole")
    assert_same(lines(whole), lines(run_in(drawing, "workers", dataloader_num_workers=2)), rel=0)


def test_what_is_measured_of_rows_does_not_depend_on_the_clock(config, monkeypatch):
    def facts(name):
        found = json.loads((run_in(config, name, max_steps=1, save_steps=0) / "run.json").read_text())["facts"]
        return {fact: value for fact, value in found.items() if fact.startswith("data/")}

    quiet = facts("quiet")
    assert quiet["data/compared"] == 40
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() * 1000)
    assert facts("busy") == quiet


def test_rows_are_compared_up_to_a_number_of_characters():
    rows = [{"text": "x" * 100}] * 10
    assert len(list(row_overlap.within(iter(rows), 250))) == 3
    assert len(list(row_overlap.within(iter(rows), 10_000))) == 10
    assert len(list(row_overlap.within(iter(rows), 1))) == 1


def test_a_resumed_optimizer_has_the_rate_that_the_run_began_with(config, monkeypatch):
    from ft_host.training import checkpoint

    rates, save = [], checkpoint.save

    def noted(run, optimizer, *arguments):
        rates.append([group["initial_lr"] for group in optimizer.param_groups])
        return save(run, optimizer, *arguments)

    monkeypatch.setattr(checkpoint, "save", noted)
    whole = run_in(config, "whole", save_total_limit=None)
    stopped = whole.parent / "stopped"
    as_if_killed(whole, stopped)
    resume_in(replace(config, output_dir=str(stopped), save_total_limit=None), stopped)
    assert len(rates) == 5 and all(rate == 1e-2 for each in rates for rate in each)


REWARDS = """
import random

import numpy as np

AT_IMPORT = random.random()


def drawn(completions, **columns):
    return [random.random() + np.random.rand() + AT_IMPORT for _ in completions]


def of_a_set(completions, log_extra, **columns):
    log_extra("letters", [sorted(set(text)) for text in completions])
    return [len(set(text)) / 10 for text in completions]
"""


@pytest.mark.slow
def test_two_processes_with_other_hashes_write_the_same_run(tiny, tmp_path):
    """Metrics, samples and findings but for times, weights, and every byte of the adapter's files."""
    (tmp_path / "pays.py").write_text(REWARDS)
    prompts = [json.loads(line) for line in (tiny / "train.jsonl").read_text().splitlines()]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in prompts))
    folders = []
    for number, workers in ((1, 1), (2, 2), (3, 2)):
        folder = tmp_path / f"run-{number}"
        command = [sys.executable, "-m", "ft_host", "train", "grpo", "--model", str(tiny / "model")]
        command += ["--dataset", str(tmp_path / "rows.jsonl"), "--eval-dataset", str(tmp_path / "rows.jsonl")]
        command += ["--reward", f"{tmp_path / 'pays.py'}:drawn", f"{tmp_path / 'pays.py'}:of_a_set"]
        command += ["--use-peft", "--lora-target-modules", "q_proj", "v_proj", "k_proj", "o_proj", "up_proj"]
        command += ["--max-steps", "3", "--num-generations", "4", "--per-device-train-batch-size", "8"]
        command += ["--max-completion-length", "6", "--output-dir", str(folder), "--progress", "quiet"]
        command += ["--reward-workers", str(workers), "--eval-max-rows", "4"]
        environment = os.environ | {"PYTHONHASHSEED": str(number), "FT_HOST_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        folders.append(folder)
    first, *others = folders
    for other in others:
        assert told(first) == told(other)
        names = sorted(path.name for path in (first / "model").iterdir())
        assert names == sorted(path.name for path in (other / "model").iterdir())
        for name in names:
            assert (first / "model" / name).read_bytes() == (other / "model" / name).read_bytes(), name
    targets = json.loads((first / "model" / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets) and len(targets) == 5
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)


def told(folder: Path) -> dict[str, list[dict]]:
    """The lines of a run without times, and without findings about them."""
    out = {}
    for name in ("metrics", "samples", "findings"):
        read = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().split("\n") if line]
        rows = [{key: value for key, value in row.items() if not key.startswith("perf/")} for row in read]
        if name == "findings":
            rows = [row for row in rows if not any("perf/" in str(each.get("metric")) for each in row["evidence"])]
        out[name] = rows
    assert out["metrics"] and out["samples"]
    return out
