"""Plans of rollouts whose rows aren't completions, as they are printed, refused, and trained."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

import ft_host
from ft_host import registry
from ft_host.api import ConfigError, GroupedRolloutConfig, RolloutConfig, RolloutPlan, option
from ft_host.config.plan import plan, rollout_notes
from ft_host.rundir.manifest import rows_per_step
from ft_host.testing.models import save_tiny

METHODS = Path(__file__).parent / "strangers"


@dataclass(kw_only=True)
class Pairs(GroupedRolloutConfig):
    """One row, a pair, of each prompt's two completions."""

    rows_per_prompt = 1
    num_generations: int = option(2, "Completions of a prompt.", group="rollouts", gt=1)


@dataclass(kw_only=True)
class Uneven(RolloutConfig):
    """A plan that doesn't come out even."""

    def rollout_plan(self, processes: int) -> RolloutPlan:
        return RolloutPlan(prompts=8, generations=4, rows=8, steps=3, passes=1)


@dataclass(kw_only=True)
class Lists(GroupedRolloutConfig):
    """A loss over all completions of a prompt."""

    whole_groups = True


def test_rows_are_completions_unless_a_plan_says_otherwise():
    made = RolloutPlan(prompts=4, generations=8, steps=2, passes=3)
    assert (made.rows, made.completions, made.rows_per_prompt, made.step_sizes) == (32, 32, 8, [16, 16])
    assert (made.rows_per_step, made.updates) == (16, 6)
    pairs = RolloutPlan(prompts=4, generations=8, rows=4, steps=2, passes=1)
    assert (pairs.completions, pairs.rows_per_prompt, pairs.step_sizes) == (32, 1, [2, 2])


def test_rows_that_are_not_as_many_of_each_prompt_are_refused():
    with pytest.raises(ConfigError, match="a rollout of 10 rows from 4 prompts: .* nearest: 8 or 12 rows"):
        RolloutPlan(prompts=4, generations=8, rows=10, steps=1, passes=1)


def test_a_plan_of_pairs_is_printed_as_it_is():
    config = Pairs(per_device_train_batch_size=16, gradient_accumulation_steps=2, max_steps=5)
    made = config.rollout_plan(1)
    assert (made.prompts, made.generations, made.rows, made.steps) == (32, 2, 32, 1)
    assert rollout_notes(made, 1) == [
        "each rollout: 32 prompts × 2 completions = 64, made into 32 rows, in 1 optimizer step of 32"
    ]
    assert "each optimizer step: 32 rows (16 a device × 2 accumulated × 1 process)" in plan(config, 1)


def test_steps_that_differ_are_printed_as_they_are():
    made = Uneven().rollout_plan(1)
    assert rollout_notes(made, 1) == [
        "each rollout: 8 prompts × 4 completions = 32, made into 8 rows, in 3 optimizer steps of 3, the last of 2"
    ]
    config = Uneven(per_device_train_batch_size=8)
    assert "each optimizer step: 3 rows, 8 at a time on each process" in plan(config, 1)
    assert rows_per_step(config, 1) == 3


def test_a_generation_batch_is_counted_in_completions():
    config = Pairs(per_device_train_batch_size=4, generation_batch_size=16)
    made = config.rollout_plan(1)
    assert (made.prompts, made.rows, made.steps) == (8, 8, 2)
    with pytest.raises(ConfigError, match="generation_batch_size: 15 completions .* of 2; nearest: 14 or 16"):
        Pairs(per_device_train_batch_size=4, generation_batch_size=15).check()


def test_whole_groups_that_no_micro_batch_holds_are_refused():
    with pytest.raises(
        ConfigError, match="a micro-batch of 4 rows can't hold the 8 rows of a prompt.* at least 8 .*16"
    ):
        Lists(per_device_train_batch_size=4, gradient_accumulation_steps=2).check()
    Lists(per_device_train_batch_size=8).check()
    Lists(per_device_train_batch_size=4, gradient_accumulation_steps=2, max_tokens_per_micro_batch=4096).check()


# ---------------------------------------------------------------- trained


@pytest.fixture
def train(tmp_path):
    """The first step of `listwise.py`, of two prompts with four completions each."""
    model = save_tiny(tmp_path / "policy")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": f"what is {n}?"}) + "\n" for n in range(4)))
    (tmp_path / "pays.py").write_text(
        "def pays(completion_ids, **columns):\n    return [sum(ids) % 7 / 3 for ids in completion_ids]\n"
    )

    def trained(**fields) -> tuple[dict, list[str]]:
        usual = {
            "model": str(model),
            "dataset": str(tmp_path / "rows.jsonl"),
            "reward": [f"{tmp_path / 'pays.py'}:pays"],
            "output_dir": str(tmp_path / f"run{len(list(tmp_path.iterdir()))}"),
            "use_cpu": True,
            "max_steps": 1,
            "max_completion_length": 6,
            "save_steps": 0,
            "train_sampling_strategy": "sequential",
            "eval_on_start": False,
            "progress": "quiet",
        }
        run = ft_host.train(registry.config_class(str(METHODS / "listwise.py"))(**(usual | fields)))
        entries = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        events = [json.loads(line)["text"] for line in (run.folder / "events.jsonl").read_text().splitlines()]
        return next(entry for entry in entries if entry["kind"] == "train"), events

    return trained


def test_a_loss_over_a_prompts_completions_does_not_depend_on_the_micro_batch(train):
    """`listwise.py` raises where a group isn't whole."""
    together, events = train(per_device_train_batch_size=8)
    apart, _ = train(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    for name in ("loss", "grad_norm"):
        assert apart[name] == pytest.approx(together[name], rel=1e-5)
    assert not any("don't all stand in one micro-batch" in text for text in events)
