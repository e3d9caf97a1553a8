"""Whole runs of five steps beside TRL's: the same completions and rewards at every step, whatever the policy has
become. A backend that says what it was told, and TRL's trainer that is given the same."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from ft_rloo.config import RLOOConfig

from ft_host.testing import assert_same, lines, run_in, save_adapter, trl_arguments, trl_model, trl_rows, trl_trajectory

OWN = (
    "num_generations",
    "steps_per_generation",
    "generation_batch_size",
    "num_iterations",
    "beta",
    "epsilon",
    "epsilon_high",
    "normalize_advantages",
    "reward_clip_range",
    "max_completion_length",
    "temperature",
    "disable_dropout",
    "sync_ref_model",
    "ref_model_mixup_alpha",
    "ref_model_sync_steps",
)
# Made of what the weights say, so that they show whether both went the same way; loss and KL may be next to 0.
OF_THE_POLICY = {"loss": 2e-6, "kl": 2e-6, "entropy": 1e-6, "grad_norm": 1e-6}

REWARDS = """
{rewards_of}

def first(completion_ids, **columns):
    return [rewards_of(ids)[0] for ids in completion_ids]

def second(completion_ids, **columns):
    return [rewards_of(ids)[1] for ids in completion_ids]
"""


@pytest.fixture
def make_fixed(make, answers, prompts, fixed_backend, tmp_path):
    """A config whose completions and rewards are fixed, from a backend that is installed for this test."""
    rewards = tmp_path / "given.py"
    own = inspect.getsource(answers.__dataclass_fields__["rewards"].default)
    rewards.write_text(REWARDS.format(rewards_of=own), encoding="utf-8")

    def made(**fields: Any) -> RLOOConfig:
        given = {
            "reward": [f"{rewards}:first", f"{rewards}:second"],
            "backend": fixed_backend(generations=fields.get("num_generations", 2)),
            "per_device_train_batch_size": 8,
            "max_sampling_logp_difference": 1e3,
            "learning_rate": 1e-3,
            "beta": 0.3,
        }
        return make(prompts, **(given | fields))

    return made


def trainer_of(config: RLOOConfig, answers: Any) -> Any:
    import trl
    from transformers import AutoTokenizer

    run = answers(config)

    class Given(trl.RLOOTrainer):
        def _generate_single_turn(self, prompt_ids, *_):
            size = self.num_generations
            rows = [{"prompt": text} for text in self.processing_class.batch_decode(prompt_ids)[::size]]
            return [each.token_ids for each in run.generate(rows, size)]

    def first(completion_ids, **columns):
        return [run.rewards(ids)[0] for ids in completion_ids]

    def second(completion_ids, **columns):
        return [run.rewards(ids)[1] for ids in completion_ids]

    return Given(
        model=trl_model(config),
        reward_funcs=[first, second],
        args=trl.RLOOConfig(**trl_arguments(config, *OWN), shuffle_dataset=False),
        train_dataset=trl_rows(config.dataset),
        processing_class=AutoTokenizer.from_pretrained(config.model, padding_side="left"),
    )


def assert_same_as_trl(config: RLOOConfig, answers: Any, skip: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Both trainings, compared step by step. Gives ours."""
    ours = lines(run_in(config, "ours"))
    theirs = trl_trajectory(trainer_of(config, answers))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == [1, 2, 3, 4, 5]
    for mine, other in zip(ours, theirs, strict=True):
        for name, value in other.items():
            if name in mine and name not in ("kind", "frac_reward_zero_std", "num_tokens", "epoch", *skip):
                absolute = OF_THE_POLICY.get(name, 1e-9)
                assert mine[name] == pytest.approx(value, rel=1e-4, abs=absolute), (mine["step"], name)
    assert {"loss", "grad_norm", "kl", "entropy", "reward", "clip_ratio/region_mean"} - set(skip) <= set(theirs[0])
    return ours


FIELDS = {
    "one update a rollout": {},
    "two passes": {"num_iterations": 2},
    "four generations, two steps, two passes": {
        "num_generations": 4,
        "generation_batch_size": 16,
        "num_iterations": 2,
        "normalize_advantages": True,
    },
    "the reference follows": {"sync_ref_model": True, "ref_model_sync_steps": 2},
}


@pytest.mark.parametrize("name", FIELDS)
def test_five_steps(name, make_fixed, answers, monkeypatch):
    fields = FIELDS[name]
    several = "generation_batch_size" in fields
    if several:  # TRL shuffles what it cuts
        monkeypatch.setattr("trl.trainer.rloo_trainer.shuffle_sequence_dict", lambda rollout: rollout)
    # its `kl` is of the whole rollout, in the line of its first step
    ours = assert_same_as_trl(make_fixed(**fields), answers, ("kl",) if several else ())
    clipped = [line["clip_ratio/region_mean"] for line in ours]
    assert any(clipped) == ("num_iterations" in fields)
    assert max(abs(line["kl"]) for line in ours) > 1e-3, "the policy went nowhere"


def test_lora(make_fixed, answers, llama, tmp_path):
    """The reference is a frozen copy of the adapter that training starts from, in both."""
    adapter = save_adapter(llama, Path(tmp_path / "adapter"))
    config = make_fixed(model=str(adapter), use_peft=True, learning_rate=1e-2, num_iterations=2)
    ours = assert_same_as_trl(config, answers)
    assert max(abs(line["kl"]) for line in ours) > 1e-3


def test_accumulation(make_fixed):
    """Steps of two micro-batches are those of one, metrics too."""
    whole = lines(run_in(make_fixed(num_iterations=2), "whole"))
    fields = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_iterations": 2}
    assert_same(whole, lines(run_in(make_fixed(**fields), "halves")), rel=1e-4, abs=2e-6)
