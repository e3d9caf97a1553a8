"""Rewards that fail or are slow in runs whose rollouts don't wait for training: the run goes on and counts them, one
that never works ends it soon, by name, and a slow one holds up nothing but the rollout at its bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ft_grpo.config import GRPOConfig

import ft_host
from ft_host.errors import FtHostError
from ft_host.rundir.folder import RunFolder
from ft_host.rundir.recorded import file_of, recorded
from ft_host.scheduling.packed import read_packed
from ft_host.testing.invariants import lines
from ft_host.testing.models import save_tiny
from ft_host.testing.rows import tiny_run

REWARDS = '''
import time
from pathlib import Path

def picky(completions, number, **columns):
    if number[0] == 1:
        raise ValueError("odd")
    if number[0] == 2:
        return [float("nan")] * len(completions)
    if number[0] == 3:
        return []
    if number[0] == 4:
        time.sleep(600)
    return [float(len(text)) for text in completions]

def late(completions, number, **columns):
    """That of the first prompt comes when the second rollout is there."""
    while number[0] == 0 and not Path("runs/rollouts/1-0.safetensors").exists():
        time.sleep(0.01)
    return [float(len(text)) for text in completions]

def broken(completions, **columns):
    raise ValueError("the judge is gone")
'''


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pays.py").write_text(REWARDS)
    model = save_tiny(tmp_path / "model")
    rows = [{"prompt": f"what is {number}? ", "number": number} for number in range(12)]

    def config(reward: str, **fields: Any) -> GRPOConfig:
        given = {
            "reward": [f"{tmp_path / 'pays.py'}:{reward}"],
            "rollouts": "overlap",
            "max_staleness": 1,
            "max_completion_length": 6,
            "num_generations": 2,
            "max_steps": -1,
            "num_train_epochs": 1,
            "per_device_train_batch_size": 4,
            "reward_timeout": 2.0,
        }
        return tiny_run(GRPOConfig, model, tmp_path, rows, **(given | fields))

    return config


def taken(folder: RunFolder) -> list[list[int]]:
    """The numbers of the prompts of each rollout."""
    rollouts = [read_packed(file_of(folder.path, number, 0)) for number in recorded(folder.path)]
    return [[unit["number"] for unit in rollout["prompts"]] for rollout in rollouts]


@pytest.mark.slow
def test_rewards_that_fail_for_some_are_counted_and_each_prompt_is_learnt_from_once(make):
    """Those of four prompts raise, give no number, too few numbers, or hang."""
    config = make("picky")
    ft_host.train(config)
    folder = RunFolder(config.output_dir)
    assert sorted(number for each in taken(folder) for number in each) == list(range(12))
    assert sum(line.get("rewards/picky/failed", 0) for line in lines(folder.path)) == 8
    said = "\n".join(event["text"] for event in folder.read("events.jsonl"))
    for why in ("raised ValueError: odd", "gave float nan", "returned 0 rewards", "took longer than 2 s"):
        assert f"reward picky: no value for 2 of 2 completions: {why}" in said


def test_a_reward_that_never_works_ends_the_run_soon_by_its_name(make):
    config = make("broken", max_reward_failures=3)
    with pytest.raises(FtHostError, match="broken.*failed for 4 completions in a row .*the judge is gone"):
        ft_host.train(config)
    assert not recorded(Path(config.output_dir))


@pytest.mark.slow
def test_a_slow_reward_holds_up_nothing_but_the_rollout_at_its_bound(make):
    """Were one of the first two rollouts to wait for it, it would never come."""
    config = make("late", max_staleness=2, reward_timeout=600.0)
    ft_host.train(config)
    rollouts = taken(RunFolder(config.output_dir))
    assert [number for number, prompts in enumerate(rollouts) if 0 in prompts] == [2]
    assert sorted(number for each in rollouts for number in each) == list(range(12))
