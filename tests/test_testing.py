"""The kit for tests of plugins: backends of fixed completions, a run before its first step, hooks and metrics alone."""

from __future__ import annotations

import importlib
import json
import math
import os
import signal

import pytest
import torch
from ft_rloo.config import RLOOConfig
from ft_sft.config import SFTConfig

from ft_host.api import maximum, mean
from ft_host.testing import (
    Command,
    command,
    fixed_completion,
    fixed_completions,
    invariants,
    make_distribution,
    method_hooks,
    metric_values,
    ready_run,
    small_tiles,
    tiny_run,
)
from ft_host.testing.fixed import fixed_where_sampled
from ft_host.testing.runs import make_run

PAYS = """
def letters(completions, **columns):
    return [sum(letter.isalpha() for letter in text) / (len(text) + 1) for text in completions]
"""


@pytest.fixture
def rollouts(llama, tmp_path) -> RLOOConfig:
    (tmp_path / "pays.py").write_text(PAYS)
    rows = [{"prompt": f"{index} plus {index}? "} for index in range(8)]
    fields = {"reward": [f"{tmp_path / 'pays.py'}:letters"], "max_completion_length": 8, "max_steps": 2, "beta": 0.0}
    return tiny_run(RLOOConfig, llama, tmp_path, rows, num_generations=4, per_device_train_batch_size=8, **fields)


def test_fixed_completions_depend_on_the_prompt_alone():
    four = fixed_completions("what?", 4)
    assert four == fixed_completions("what?", 5)[:4] == [fixed_completion("what?", place) for place in range(4)]
    assert four != fixed_completions("who?", 4)
    assert [ids[-1] == 7 for ids in four] == [True, True, False, True] and max(map(len, four)) <= 12
    assert fixed_completion("what?", 0, end=9)[-1] == 9


def test_a_backend_of_fixed_completions(rollouts, fixed_backend):
    name = fixed_backend(generations=4, logprob=-2.0)
    config = invariants.beside(
        rollouts, "told", backend=name, max_sampling_logp_difference=1e3, max_completion_length=12
    )
    invariants.run_in(config, "told")
    asked = importlib.import_module(f"fake_{name}").ASKED
    assert ("policy", 8) in asked
    (first, *_) = invariants.lines(config.output_dir + "/told")
    sizes = [len(ids) for row in range(2) for ids in fixed_completions(f"{row} plus {row}? ", 4)]
    assert first["completions/mean_length"] == sum(sizes) / len(sizes)


def test_a_command_has_an_exit_code_an_environment_and_a_folder_and_can_be_stopped(tmp_path):
    done = command("train", "stf")
    assert done.returncode == 4 and done.stdout == "" and "did you mean 'sft'" in done.stderr
    make_run(tmp_path / "runs" / "a", steps=3)
    done = command("runs", "--json", folder=tmp_path)
    assert done.returncode == 0 and [run["name"] for run in json.loads(done.stdout)] == ["a"]
    make_distribution(tmp_path, "ft-beside", entry_points={"ft_host.methods": {"beside": "ft_beside"}})
    listed = command("plugins", environment=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert "ft-beside" in listed.stdout and "ft-beside" not in command("plugins").stdout
    killed = Command(["plugins"])
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.finish().returncode == -signal.SIGKILL and killed.ended()


def test_two_backends_in_one_test(rollouts, fixed_backend):
    assert fixed_backend() != fixed_backend()


def test_a_run_before_its_first_step(rollouts, tmp_path):
    run = ready_run(rollouts)
    assert run.step == 0 and run.rollouts.prompts == 2 and run.models == {}
    assert not run.folder.path.exists()
    config = tiny_run(SFTConfig, rollouts.model, tmp_path, [{"text": "the quick brown fox"}])
    assert ready_run(config).rollouts is None


def test_the_order_of_a_rollouts_rows(rollouts):
    invariants.row_order(rollouts, abs=1e-6)
    invariants.row_order(rollouts, "rloo", abs=1e-6)


def test_the_invariants_backend_says_what_the_policy_says(rollouts, tmp_path):
    """So that neither the probe nor a ratio of old and new policy sees another sampler."""
    with fixed_where_sampled(rollouts, tmp_path) as fields:
        config = invariants.beside(rollouts, "here", **fields)
        run, rows = invariants.first_step(config)
    batch = run.collate(rows)
    with torch.no_grad():
        logp = run.policy(batch, want=("logp",), temperature=config.temperature)["logp"]
    said = [value for row in rows for value in row["sampling_logps"]]
    assert torch.tensor(said) == pytest.approx(logp, abs=1e-5)
    assert {row["completion_ids"][-1] == run.tokenizer.eos_token_id for row in rows} == {True, False}


def test_a_backend_of_ones_own_is_kept(rollouts, tmp_path, fixed_backend):
    config = invariants.beside(rollouts, "own", backend=fixed_backend())
    with fixed_where_sampled(config, tmp_path) as fields:
        assert fields == {}


def test_hooks_and_metrics_alone():
    counts = method_hooks("sft").ft_collate(rows=[], tokenizer=None, config=SFTConfig()).counts
    assert counts["tokens"] == 0
    found = metric_values({"a": mean(torch.tensor(3.0), 2), "b": maximum(1)}, {"a": mean(5, 2), "b": maximum(4)})
    assert found == {"a": 2.0, "b": 4.0}


def test_small_tiles():
    from ft_host.models import tiles

    before = tiles.tile_rows(256, 4, torch.device("cpu"))
    with small_tiles(2):
        assert tiles.tiles_of(5, 256, 4, torch.device("cpu")) == [(0, 2), (2, 4), (4, 5)]
    assert tiles.tile_rows(256, 4, torch.device("cpu")) == before > 2 and math.isfinite(before)
