"""Whole runs of five steps beside TRL's: the same completions and rewards at every step, whatever the policy has
become. A backend that says what it was told, and TRL's trainer with a `rollout_func` that gives the same."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
from ft_grpo.config import GRPOConfig

from ft_host.api import FtHostError
from ft_host.testing import (
    RunFolder,
    assert_same,
    lines,
    run_in,
    save_adapter,
    trl_arguments,
    trl_model,
    trl_rows,
    trl_trajectory,
)

OWN = (
    "num_generations",
    "steps_per_generation",
    "generation_batch_size",
    "num_iterations",
    "loss_type",
    "beta",
    "epsilon",
    "epsilon_high",
    "delta",
    "importance_sampling_level",
    "scale_rewards",
    "multi_objective_aggregation",
    "mask_truncated_completions",
    "top_entropy_quantile",
    "entropy_coef",
    "use_adaptive_entropy",
    "entropy_coef_delta",
    "entropy_target",
    "max_completion_length",
    "temperature",
    "disable_dropout",
    "sync_ref_model",
    "ref_model_mixup_alpha",
    "ref_model_sync_steps",
)

TOLD = '''
"""Completions and rewards that depend on the prompt and the place in its group alone."""

import random

from ft_host.api import hookimpl
from ft_host.api import Completion

END, COUNT = 7, 4


def completion_of(prompt_ids, place):
    noise = random.Random(f"{prompt_ids} {place}")
    ids = [noise.randrange(8, 200) for _ in range(noise.randint(2, 11))]
    return ids + [END] if noise.random() < 0.8 else (ids * 12)[:12]


def rewards_of(ids):
    return [round(random.Random(f"{ids} {name}").uniform(-1, 2), 3) for name in ("first", "second")]


def first(completion_ids, **columns):
    return [rewards_of(ids)[0] for ids in completion_ids]


def second(completion_ids, **columns):
    return [3 * rewards_of(ids)[1] for ids in completion_ids]


@hookimpl
def ft_generate(requests, sampling, run):
    made = [completion_of(each.prompt_ids, (each.number or 0) % COUNT) for each in requests]
    return [
        Completion(token_ids=ids, logprobs=[-5.0] * len(ids), finish_reason="stop" if ids[-1] == END else "length")
        for ids in made
    ]
'''


@pytest.fixture
def told(install_plugin):
    """The module of the backend `told`, which is installed for this test."""
    install_plugin(
        "ft-told",
        entry_points={"ft_host.backends": {"told": "told_completions"}},
        modules={"told_completions": TOLD},
        requires=["ft-host"],
    )
    return importlib.import_module("told_completions")


@pytest.fixture
def make_told(make, prompts, told):
    rewards = [f"{told.__file__}:{name}" for name in ("first", "second")]
    given = {
        "reward": rewards,
        "backend": "told",
        "importance_sampling_correction": "none",
        "reward_weights": [1.0, 0.2],
        "max_sampling_logp_difference": 1e3,
        "learning_rate": 1e-3,
    }
    return lambda **fields: make(prompts, **(given | fields))


def trainer_of(config: GRPOConfig, told: Any) -> Any:
    import trl
    from ft_grpo.method import ft_prepare
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.model)

    def rollout_func(prompts: list[str], trainer: Any) -> dict[str, list]:
        ids = [ft_prepare({"prompt": prompt}, tokenizer, config)["prompt_ids"] for prompt in prompts]
        said = [told.completion_of(each, index % told.COUNT) for index, each in enumerate(ids)]
        return {"prompt_ids": ids, "completion_ids": said, "logprobs": [[-5.0] * len(each) for each in said]}

    trainer = trl.GRPOTrainer(
        model=trl_model(config),
        reward_funcs=[told.first, told.second],
        args=trl.GRPOConfig(**trl_arguments(config, *OWN), shuffle_dataset=False, reward_weights=config.reward_weights),
        train_dataset=trl_rows(config.dataset),
        processing_class=tokenizer,
        rollout_func=rollout_func,
    )
    if config.ref_model is not None:
        trainer.ref_model.load_state_dict(AutoModelForCausalLM.from_pretrained(config.ref_model).state_dict())
    return trainer


def assert_same_as_trl(config: GRPOConfig, told: Any) -> list[dict[str, Any]]:
    """Both trainings, compared step by step. Gives ours."""
    ours = lines(run_in(config, "ours"))
    theirs = trl_trajectory(trainer_of(config, told))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == [1, 2, 3, 4, 5]
    known = set()
    for mine, other in zip(ours, theirs, strict=True):
        for name in (set(mine) & set(other)) - {"kind", "num_tokens", "epoch"}:
            known.add(name)
            # losses are sums of terms of both signs, of about 1; advantages are of weights that were trained on others
            assert math.isclose(mine[name], other[name], rel_tol=1e-4, abs_tol=5e-6), (
                mine["step"],
                name,
                mine[name],
                other[name],
            )
    assert {"loss", "grad_norm", "entropy", "reward", "reward_std", "rewards/first/mean"} <= known
    assert set(theirs[0]) - known <= {"kind", "epoch", "num_tokens", "total_flos", "train_loss", "step_time"}
    return ours


OFF = {"num_iterations": 2}
FIELDS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "two passes of grpo": {"loss_type": "grpo", **OFF},
    "GSPO": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-2, **OFF},
    "DAPO": {"epsilon_high": 0.28, "mask_truncated_completions": True, **OFF},
    "two steps, two passes": {"loss_type": "dr_grpo", "scale_rewards": "none", "generation_batch_size": 16, **OFF},
    "several rewards": {"multi_objective_aggregation": "normalize_then_sum", "loss_type": "sapo"},
    "adaptive entropy": {
        "use_adaptive_entropy": True,
        "entropy_coef": 0.2,
        "entropy_coef_delta": 0.1,
        "entropy_target": 5.05,
        "top_entropy_quantile": 0.6,
    },
    "the reference follows": {"beta": 0.3, "sync_ref_model": True, "ref_model_sync_steps": 2, **OFF},
}


@pytest.mark.parametrize("name", FIELDS)
def test_five_steps(name, make_told, told, monkeypatch):
    fields = FIELDS[name]
    if "generation_batch_size" in fields:  # TRL shuffles what it cuts
        monkeypatch.setattr("trl.trainer.grpo_trainer.shuffle_sequence_dict", lambda rollout: rollout)
    ours = assert_same_as_trl(make_told(**fields), told)
    if "num_iterations" in fields:
        assert any(line["clip_ratio/region_mean"] for line in ours), "the policy went nowhere"
    if "use_adaptive_entropy" in fields:
        # without a bonus the two are the same sum, but for the order in which float32 adds it up
        bonus = [abs(line["loss"] - line["policy_loss"]) > 1e-6 * abs(line["loss"]) for line in ours]
        assert not bonus[0] and any(bonus)


def test_a_reference_of_its_own(make_told, told, reference):
    ours = assert_same_as_trl(make_told(beta=0.3, ref_model=str(reference)), told)
    assert ours[0]["kl"] > 1e-2


def test_lora(make_told, told, llama, tmp_path):
    """The reference is a frozen copy of the adapter that training starts from, in both."""
    adapter = save_adapter(llama, Path(tmp_path / "adapter"))
    fields = {"use_peft": True, "learning_rate": 1e-2, "beta": 0.3}
    ours = assert_same_as_trl(make_told(model=str(adapter), **fields, **OFF), told)
    assert max(line["kl"] for line in ours) > 1e-3


def test_accumulation(make_told):
    """Steps of four micro-batches are those of one, metrics too; a group may be in two of them."""
    fields = {"beta": 0.1, "top_entropy_quantile": 0.5, "loss_type": "grpo", **OFF}
    whole = lines(run_in(make_told(**fields), "whole"))
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    assert_same(whole, lines(run_in(make_told(**fields, **cut), "cut")), rel=1e-4, abs=2e-6)


def test_groups_without_a_signal_are_replaced(make_told, told):
    """Rewards of half of the prompts are constant: with dynamic sampling each step has eight completions that
    aren't."""
    file = Path(told.__file__).with_name("halves.py")
    file.write_text(
        "def half(number, completion_ids, **columns):\n"
        "    return [ids[0] if each % 2 else 1.0 for each, ids in zip(number, completion_ids)]\n"
    )
    fields = {"reward": [f"{file}:half"], "reward_weights": [], "max_steps": 3}
    plain = lines(run_in(make_told(**fields), "plain"))
    assert [line["frac_reward_zero_std"] for line in plain] == [0.5] * 3
    folder = run_in(make_told(dynamic_sampling=True, **fields), "refilled")
    refilled = lines(folder)
    assert [line["frac_reward_zero_std"] for line in refilled] == [0.5] * 3
    assert [line["rollout/prompts_drawn"] for line in refilled] == [4, 4, 4]
    samples = [each for each in RunFolder(folder).read("samples.jsonl") if each["kind"] == "rollout"]
    groups = {(each["rollout"], each["group"]): [] for each in samples}
    for each in samples:
        groups[each["rollout"], each["group"]].append(each["advantage"])
    assert len(groups) == 6 and all(
        len(gains) == 4 and max(gains) > 0.5 > -0.5 > min(gains) for gains in groups.values()
    )


# ---------------------------------------------------------------- rewards that apply to nothing


NEVER = '''
def never(completions, **columns):
    return [None] * len(completions)


def odd(completions, **columns):
    """NaN and None in turn: neither is a reward."""
    return [float("nan") if index % 2 else None for index in range(len(completions))]


def always(completions, **columns):
    return [float(len(text)) for text in completions]
'''


@pytest.fixture
def never(tmp_path) -> str:
    file = tmp_path / "never.py"
    file.write_text(NEVER, encoding="utf-8")
    return str(file)


@pytest.mark.parametrize("name", ["never", "odd"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_rewards_that_are_none_for_all_are_a_finding_and_the_end(make, prompts, never, name, dynamic):
    config = make(
        prompts, reward=[f"{never}:{name}"], max_reward_failures=10, dynamic_sampling=dynamic, max_rollout_draws=2
    )
    with pytest.raises(FtHostError, match=f"no reward for 11 completions in a row .*: {name} gave no value"):
        run_in(config, "never")
    folder = next(Path(config.output_dir).parent.glob("**/never*/findings.jsonl")).parent
    found = {line["code"]: line for line in RunFolder(folder).read("findings.jsonl")}
    assert "REW003" in found and name in found["REW003"]["message"]


def test_one_of_several_rewards_that_is_none_for_all_is_named(make, prompts, never):
    config = make(prompts, reward=[f"{never}:never", f"{never}:always"], max_reward_failures=10, max_steps=3)
    folder = run_in(config, "one of two")
    assert [line["rewards/never/none_share"] for line in lines(folder)] == [1.0] * 3
    found = [line for line in RunFolder(folder).read("findings.jsonl") if line["code"] == "REW001"]
    assert found and all(line["severity"] == "warning" and "never" in line["message"] for line in found)
