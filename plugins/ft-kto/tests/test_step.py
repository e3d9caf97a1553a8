"""`kl_scope: step`: the numbers of a step against full logits, whatever it is cut into; the reference; the weights."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from ft_host.testing import RunFolder, as_if_killed, assert_same, lines, run_in, train_apart, write_rows

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
ABSOLUTE = 2e-5  # as in test_trl_parity.py


@pytest.fixture(scope="session")
def solutions() -> list[dict[str, Any]]:
    """Several completions of each prompt, one after the other, as data of solved problems have them."""
    noise = random.Random(11)
    words = "one two three apples are left over by question step answer".split()

    def some(most: int) -> str:
        return " ".join(noise.choice(words) for _ in range(noise.randint(2, most)))

    prompts = [f"{some(6)}? " for _ in range(12)]
    return [
        {"prompt": prompt, "completion": f"{some(8)} {index}", "label": noise.random() < 0.5}
        for prompt in prompts
        for index in range(3)
    ]


@pytest.mark.parametrize("split", [(8, 1), (3, 3), (1, 8)], ids=str)
def test_a_step_by_hand(make, solutions, reference, split, by_hand):
    """Rows of which three share a prompt; nine of them, or eight."""
    size, steps = split
    config = make(
        solutions,
        ref_model=str(reference),
        max_steps=1,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=steps,
        undesirable_weight=1.3,
        beta=0.2,
    )
    [ours] = lines(run_in(config, "ours"))
    expected = by_hand(config, solutions[: size * steps])
    assert expected["kl"] > 0.1
    assert ours["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert ours["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
    for name in METRICS:
        assert ours[name] == pytest.approx(expected[name], rel=1e-5, abs=ABSOLUTE), name


def test_the_last_step_may_be_one_row(make, judged, reference):
    """It has no other completion to be paired with: its KL is nought."""
    config = make(judged[:5], ref_model=str(reference), max_steps=-1, num_train_epochs=1)
    first, last = lines(run_in(config, "ours"))
    assert first["kl"] > 0 and last["kl"] == 0
    expected = torch.sigmoid(torch.tensor(-last["rewards/chosen"] if judged[4]["label"] else last["rewards/rejected"]))
    assert last["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_evaluation_is_one_step_whatever_its_batch_size(make, judged, reference, tmp_path, by_hand):
    file = write_rows(tmp_path / "eval.jsonl", judged[10:17])
    for size in (1, 3, 8):
        config = make(
            judged,
            ref_model=str(reference),
            max_steps=1,
            eval_dataset=str(file),
            eval_on_start=True,
            per_device_eval_batch_size=size,
        )
        found = lines(run_in(config, f"eval-{size}"), "eval")[0]
        expected = by_hand(config, judged[10:17])
        for name in ("loss", *METRICS):
            assert found[f"eval_{name}"] == pytest.approx(expected[name], rel=1e-5, abs=ABSOLUTE), name


# ---------------------------------------------------------------- the reference


@pytest.mark.parametrize("scope", ["step", "micro_batch"])
def test_a_reference_asked_ahead_says_what_a_live_one_says(make, solutions, scope, tmp_path):
    cache = tmp_path / "cache"  # by the root conftest.py
    fields = {"kl_scope": scope, "train_sampling_strategy": "random", "per_device_train_batch_size": 8}
    live = lines(run_in(make(solutions, **fields), "live"))
    config = make(solutions, **fields, precompute_ref_log_probs=True)
    ahead = lines(run_in(config, "ahead"))
    assert_same(ahead, live, rel=1e-5, abs=ABSOLUTE)
    assert any(line["kl"] > 100 * ABSOLUTE for line in live)
    files = sorted(cache.rglob("*.safetensors"))
    assert files
    again = lines(run_in(config, "again"))
    assert again == ahead and sorted(cache.rglob("*.safetensors")) == files, "what was on disk was not used"


def test_a_reference_that_follows_at_once(make, judged):
    """Copied after each step it is the policy in each: no log-ratio ever leaves nought."""
    still = lines(run_in(make(judged), "still"))
    fields = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 1.0}
    for line in lines(run_in(make(judged, **fields), "following")):
        assert line["kl"] == pytest.approx(0, abs=ABSOLUTE)
        assert line["loss"] == pytest.approx(0.5, abs=ABSOLUTE)
    assert abs(still[-1]["loss"] - 0.5) > 1e-3


# ---------------------------------------------------------------- a word on the weights


def warnings_of(folder: Path) -> list[str]:
    return [each["text"] for each in RunFolder(folder).read("events.jsonl") if each["level"] == "warning"]


def test_unbalanced_labels_are_named_once_and_over_a_resume(make, judged, tmp_path):
    """One good row in ten. 64 rows have been seen in step 8: a run that goes on after step 4 knows of the 32 before.
    Held-out rows don't count."""
    rows = [row | {"label": index % 10 == 0} for index, row in enumerate(judged)]
    file = write_rows(tmp_path / "eval.jsonl", [row | {"label": True} for row in judged])
    config = make(
        rows,
        per_device_train_batch_size=8,
        max_steps=12,
        save_steps=4,
        save_total_limit=None,
        eval_dataset=str(file),
        eval_steps=2,
    )
    folder = run_in(config, "ours")
    [said] = [text for text in warnings_of(folder) if "desirable" in text]
    assert said.startswith("7 desirable and 57 undesirable completions so far, with weights 1 and 1")
    assert "either desirable_weight between 8.14 and 10.9, or undesirable_weight between 0.0921 and 0.123" in said
    killed = tmp_path / "killed"
    assert as_if_killed(folder, killed) == 4
    (killed / "events.jsonl").unlink()
    train_apart(config, resume=killed)
    assert [text for text in warnings_of(killed) if "desirable" in text] == [said]


def test_labels_of_one_kind(make, judged):
    rows = [row | {"label": True} for row in judged]
    # An epoch of 40 rows is steps of 16, 16 and 8: after the fifth step 72 have been seen.
    folder = run_in(make(rows, per_device_train_batch_size=16, max_steps=7), "ours")
    found = Counter(text for text in warnings_of(folder) if "desirable" in text)
    assert len(found) == 1 and set(found.values()) == {1}
    assert next(iter(found)).startswith("all of the first 72 completions are desirable")


def test_balanced_labels_need_no_word(make, judged):
    rows = [row | {"label": index % 2 == 0} for index, row in enumerate(judged)]
    folder = run_in(make(rows, per_device_train_batch_size=20, max_steps=4), "ours")
    assert not [text for text in warnings_of(folder) if "desirable" in text]
