"""The numbers of this package beside those of TRL's KTOTrainer, on the same model, rows and settings.

TRL estimates the KL over a micro-batch of rows as they come: `kl_scope: micro_batch`. What `kl_scope: step` gives is
compared in test_step.py with numbers from the full logits.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from ft_kto.config import KTOConfig

from ft_host.testing import (
    assert_parity,
    lines,
    run_in,
    save_adapter,
    trl_arguments,
    trl_model,
    trl_rows,
    trl_trajectory,
)

OWN = ("loss_type", "beta", "desirable_weight", "undesirable_weight", "max_length")
METRICS = (
    "kl",
    "entropy",
    "logits/chosen",
    "logits/rejected",
    "logps/chosen",
    "logps/rejected",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
)
# Log-probs of a completion are sums of up to 40 terms of about 5 in float32, so that a difference of two such sums may
# be off by 1e-5 however small it is.
ABSOLUTE = 2e-5


def trainer_of(config: KTOConfig, **more: Any) -> Any:
    """TRL's trainer for what `config` says. `more` overrides TRL's arguments."""
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer

    given = trl_arguments(config, *OWN) | {"precompute_ref_log_probs": config.reference_is_made_ahead}
    return trl.KTOTrainer(
        model=trl_model(config),
        ref_model=AutoModelForCausalLM.from_pretrained(config.ref_model) if config.ref_model else None,
        args=trl.KTOConfig(**(given | more)),
        train_dataset=trl_rows(config.dataset),
        eval_dataset=trl_rows(config.eval_dataset) if config.eval_dataset else None,
        processing_class=AutoTokenizer.from_pretrained(config.model),
    )


def assert_close(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """Every metric of each step; one is absent here where it is there. No KL is estimated: TRL logs 0."""
    for mine, other in zip(ours, theirs, strict=True):
        for name in METRICS:
            if "kl" not in mine and name == "kl":
                assert other[name] == 0
                continue
            assert (name in mine) == (name in other), f"step {mine['step']}: {name}"
            if name in mine:
                assert math.isclose(mine[name], other[name], rel_tol=1e-4, abs_tol=ABSOLUTE), (
                    f"step {mine['step']}: {name} is {mine[name]} here and {other[name]} there"
                )


def assert_same_as_trl(config: KTOConfig, **more: Any) -> list[dict[str, Any]]:
    """Both trainings, compared step by step. Gives ours."""
    ours = lines(run_in(config, "ours"))
    assert len(ours) == config.max_steps
    theirs = trl_trajectory(trainer_of(config, **more))
    assert_parity(ours, theirs)
    assert_close(ours, theirs)
    assert any(abs(line["rewards/margins"]) > 100 * ABSOLUTE for line in ours if "rewards/margins" in line)
    if config.estimates_kl:
        assert any(line["kl"] > 100 * ABSOLUTE for line in ours), "the KL never counted"
    return ours


MICRO = {"kl_scope": "micro_batch"}


@pytest.mark.parametrize("precompute", [False, True])
def test_kto(make, judged, precompute):
    ours = assert_same_as_trl(make(judged, **MICRO, precompute_ref_log_probs=precompute))
    assert [("logps/chosen" in line, "rewards/rejected" in line, "rewards/margins" in line) for line in ours] == [
        (True, True, True),
        (True, True, True),
        (True, False, False),
        (False, True, False),
        (True, True, True),
    ]


def test_kto_with_a_reference_of_its_own(make, judged, reference):
    ours = assert_same_as_trl(make(judged, **MICRO, ref_model=str(reference)))
    assert ours[0]["kl"] > 0 and abs(ours[0]["rewards/chosen"]) > 0.01


def test_weights_and_beta(make, judged, reference):
    config = make(judged, **MICRO, ref_model=str(reference), desirable_weight=0.7, undesirable_weight=1.6, beta=0.3)
    assert_same_as_trl(config)


@pytest.mark.parametrize("precompute", [False, True])
def test_apo_zero_unpaired(make, judged, reference, precompute):
    config = make(
        judged,
        loss_type="apo_zero_unpaired",
        ref_model=str(reference),
        precompute_ref_log_probs=precompute,
        undesirable_weight=1.4,
    )
    assert_same_as_trl(config)


def test_conversations(make, chats, reference):
    assert_same_as_trl(make(chats, **MICRO, ref_model=str(reference)))


@pytest.mark.parametrize("loss", [{"loss_type": "apo_zero_unpaired"}, MICRO], ids=["apo", "kto"])
def test_completions_are_cut_where_trl_cuts_them(make, judged, reference, loss):
    """With kto, the mismatched pairs have the uncut completions, cut by the prompt that they are paired with."""
    config = make(judged, **loss, ref_model=str(reference), max_length=45)
    folder = run_in(config, "looked at")
    said = (folder / "events.jsonl").read_text()
    assert "cut" in said or "truncated" in said, said
    assert_same_as_trl(config)


def test_pairs_are_taken_apart(make, pairs, reference, tmp_path):
    """TRL has the good ones of 1000 rows first and then the bad ones, so it is given rows in our order."""
    apart = [
        {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
        for row in pairs
        for name in ("chosen", "rejected")
    ]
    fields = {**MICRO, "ref_model": str(reference), "per_device_train_batch_size": 2}
    whole = lines(run_in(make(pairs, **fields), "pairs"))
    config = make(apart, **fields, gradient_accumulation_steps=2)
    theirs = trl_trajectory(trainer_of(config))
    assert_parity(whole, theirs)
    assert_parity(whole, lines(run_in(config, "apart")), **dict.fromkeys(METRICS, 0.0))
    # With one micro-batch a step the means of TRL's metrics are ours.
    assert_same_as_trl(make(apart, **fields | {"per_device_train_batch_size": 4}))


@pytest.mark.parametrize("precompute", [False, True])
def test_lora(make, judged, llama, tmp_path, precompute):
    """Both start from one adapter, whose frozen copy is the reference."""
    adapter = save_adapter(llama, tmp_path / "adapter")
    config = make(
        judged, **MICRO, model=str(adapter), use_peft=True, precompute_ref_log_probs=precompute, learning_rate=1e-2
    )
    assert_same_as_trl(config)


# ---------------------------------------------------------------- accumulation


SPLIT = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


def test_accumulation(make, judged, reference):
    """The KL is one of each micro-batch there and here, so that loss and gradient agree under accumulation as well."""
    config = make(judged, **MICRO, ref_model=str(reference), **SPLIT)
    ours = lines(run_in(config, "ours"))
    assert_parity(ours, trl_trajectory(trainer_of(config)))
    assert any(line["kl"] > 100 * ABSOLUTE for line in ours)


def test_accumulation_begins_as_one_micro_batch_does(make, judged):
    """In the first step policy and reference are one, so that the KL is nought however the step is cut."""
    whole = lines(run_in(make(judged, **MICRO, max_steps=1), "4x1"))
    split_config = make(judged, **MICRO, max_steps=1, **SPLIT)
    assert_parity(lines(run_in(split_config, "2x2")), whole)
    assert_parity(whole, trl_trajectory(trainer_of(split_config)))


def test_apo_under_accumulation(make, judged, reference):
    """No KL, so that every step is the same however it is cut. Our metrics are those of the whole step."""
    fields = {"loss_type": "apo_zero_unpaired", "ref_model": str(reference)}
    whole = lines(run_in(make(judged, **fields), "4x1"))
    config = make(judged, **fields, **SPLIT)
    split = lines(run_in(config, "2x2"))
    assert_parity(split, whole)
    assert_close(split, [line | {"kl": 0} for line in whole])
    assert_parity(whole, trl_trajectory(trainer_of(config)))
    assert_parity(whole, trl_trajectory(trainer_of(make(judged, **fields))))


# ---------------------------------------------------------------- where TRL's numbers depend on what they should not


def test_nothing_depends_on_how_a_step_is_cut_or_ordered_where_that_of_trl_does(make, judged, reference, by_hand):
    fields = {"ref_model": str(reference), "max_steps": 1}
    changed = {
        "4x1": (judged[:4], (4, 1)),
        "2x2": (judged[:4], (2, 2)),
        "another order": ([judged[at] for at in (0, 2, 1, 3)], (4, 1)),
    }
    ours, theirs = {}, {}
    for name, (rows, (size, steps)) in changed.items():
        config = make(rows, **fields, per_device_train_batch_size=size, gradient_accumulation_steps=steps)
        ours[name] = lines(run_in(config, name))[0]
        theirs[name] = trl_trajectory(trainer_of(config))[0]
    expected = by_hand(config, judged[:4])
    for name in changed:
        mine, other = ours[name]["loss"], theirs[name]["loss"]
        print(f"{name}: loss {mine:.6f}, in TRL {other:.6f}; by hand {expected['loss']:.6f}")
        assert ours[name]["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert ours[name]["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
    for name in ("2x2", "another order"):
        assert abs(theirs[name]["loss"] - theirs["4x1"]["loss"]) > 1e-3 * theirs["4x1"]["loss"]


def test_a_micro_batch_of_one_row_where_trl_refuses(make, judged, reference):
    config = make(judged, ref_model=str(reference), per_device_train_batch_size=1, gradient_accumulation_steps=4)
    whole = make(judged, ref_model=str(reference))
    assert_parity(lines(run_in(config, "1x4")), lines(run_in(whole, "4x1")))
    with pytest.raises(ValueError, match="batch size must be > 1"):
        trainer_of(config)
