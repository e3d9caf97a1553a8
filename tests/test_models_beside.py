"""What is said of the attention of models beside the policy: in the plan, printed, in run.json, and to rules."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ft_dpo.config import DPOConfig
from ft_grpo.config import GRPOConfig
from ft_ppo.config import PPOConfig
from ft_sft.config import SFTConfig

from ft_host.diagnostics.rules import probes
from ft_host.models import attention, beside, kernels, segments
from ft_host.models.layout import Choice
from ft_host.models.lean import Found
from ft_host.models.policy import Policy
from ft_host.rundir.folder import RunFolder
from ft_host.testing import as_classifier, preference_texts, run_in, save_tiny, tiny_llama, tiny_run, write_rows

PLAIN = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in preference_texts()]
REFUSED = "flex: no heads of 24"
ROLLOUTS = {"max_completion_length": 6, "per_device_train_batch_size": 8}
PAID = {"reward": ["scorer"], "num_generations": 4, "eval_dataset": None}
AHEAD = {"rollouts": "overlap", "max_steps": 4}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Models whose heads have 16 dimensions, and others with heads of 24."""
    place = tmp_path_factory.mktemp("beside")
    made = {
        "policy": tiny_llama(),
        "other": tiny_llama(seed=9, hidden_size=96),
        "scorer": as_classifier(tiny_llama(seed=3, hidden_size=96)),
    }
    (place / "pays.py").write_text(
        "def length(completions, **columns):\n    return [len(c) / 9 for c in completions]\n"
    )
    found = {name: str(save_tiny(place / name, model)) for name, model in made.items()}
    return found | {"length": f"{place / 'pays.py'}:length"}


@pytest.fixture
def narrow_heads(monkeypatch):
    """The CPU takes the place of a GPU whose flex, sdpa in fact, has no heads of 24 dimensions."""

    def flex(query, *rest):
        if query.shape[-1] == 24:
            raise NotImplementedError("no heads of 24")
        return segments.per_segment(query, *rest)

    monkeypatch.setattr(kernels.devices, "TRITON", ("cpu",))
    monkeypatch.setattr(probes, "FOR_FLEX", ("cpu",))
    monkeypatch.setitem(kernels.AUTO, "cpu", ("flex", *kernels.ELSEWHERE))
    monkeypatch.setitem(attention.KERNELS, "flex", flex)


def trained(config_class: Any, folders: dict[str, str], folder: Path, **fields: Any) -> Path:
    rows = preference_texts() if config_class is DPOConfig else PLAIN
    held_out = str(write_rows(folder / "held-out.jsonl", rows[-2:]))
    given = {"max_steps": 2, "eval_dataset": held_out, **fields}
    return run_in(tiny_run(config_class, folders["policy"], folder, rows, **given), "run")


def told_of(folder: Path) -> tuple[list[str], dict[str, Any], list[str], set[str]]:
    """The plan's sentences on attention, the facts, what was printed on attention, and the messages of PRB008."""
    manifest, run = json.loads((folder / "run.json").read_text()), RunFolder(folder)
    printed = [event["text"] for event in run.read("events.jsonl")]
    found = {each["message"] for each in run.read("findings.jsonl") if each["code"] == "PRB008"}
    notes, printed = ([text for text in texts if "attention" in text] for texts in (manifest["plan"]["notes"], printed))
    return notes, manifest["facts"], printed, found


@pytest.mark.parametrize(
    ("config_class", "fields", "name"),
    [
        (DPOConfig, {"ref_model": "other", "precompute_ref_log_probs": False}, "reference"),
        (DPOConfig, {"ref_model": "other", "precompute_ref_log_probs": True}, "reference"),
        (PPOConfig, {"value_model": "scorer", "reward": ["length"], "kl_coef": 0.0} | ROLLOUTS, "value"),
        (SFTConfig, {"eval_reward": ["scorer"], "max_completion_length": 6}, "the reward model scorer"),
        (GRPOConfig, PAID | ROLLOUTS, "the reward model scorer"),
        (GRPOConfig, PAID | ROLLOUTS | AHEAD, "the reward model scorer"),
    ],
    ids=[
        "a reference",
        "one that is loaded after the plan",
        "a value model",
        "one that scores held-out rows",
        "rewards",
        "rewards of rollouts beside training",
    ],
)
def test_the_kernel_of_a_model_that_isnt_the_policys_is_told(
    folders, tmp_path, narrow_heads, config_class, fields, name
):
    def place(value: Any) -> Any:
        return [place(each) for each in value] if isinstance(value, list) else folders.get(value, value)

    fields = {key: place(value) if isinstance(value, (str, list)) else value for key, value in fields.items()}
    notes, facts, printed, found = told_of(trained(config_class, folders, tmp_path, **fields))
    ours, theirs = notes
    assert ours.startswith("attention: flex, ")
    assert theirs.startswith(f"attention of {name}: sdpa, one call a segment; ") and theirs.endswith(REFUSED)
    assert printed == notes
    assert facts["plan/companions_refused"] == {name: REFUSED} and "plan/kernel_refused" not in facts
    assert found == {f"Attention of {name} on cpu isn't flex, which is meant for this device: {REFUSED}."}


def test_a_model_with_the_policys_own_kernel_isnt_told_of(folders, tmp_path, narrow_heads):
    notes, facts, printed, found = told_of(trained(DPOConfig, folders, tmp_path, precompute_ref_log_probs=False))
    assert len(notes) == 1 and printed == notes and "plan/companions_refused" not in facts and not found


def a_policy(training: bool, refused: str | None = None, kernel: str = "sdpa") -> Policy:
    policy = Policy(torch.nn.Linear(1, 1), kernel=kernel).train(training)
    policy.attention = Choice(f"attention: {kernel}, words", refused)
    policy.lean = Found(2, 1, 0, 0, {"OddNorm"})
    return policy


def test_what_is_the_policys_own_is_told_once_and_a_frozen_model_keeps_nothing():
    policy = a_policy(True, "flex: no compiler")
    frozen, value = a_policy(False, "flex: no compiler"), a_policy(True, "flex: no compiler")
    assert beside.notes_of({"reference": frozen}, policy) == []
    assert beside.refused_of({"reference": frozen}, policy) == {}
    lean = "value: 1 of 2 norms are not of a known form, and keep more memory: OddNorm"
    assert beside.notes_of({"reference": frozen, "value": value}, policy) == [lean]
    teacher = a_policy(False, None, "flex")
    assert beside.notes_of({"teacher": teacher}, policy) == ["attention of teacher: flex, words"]
    assert beside.refused_of({"teacher": teacher}, policy) == {}


def test_in_a_rollout_process_the_user_alone_is_told():
    said: list[str] = []
    run = SimpleNamespace(policy=a_policy(True), said=set(), watch=None, say_once=said.append, folder=None)
    beside.tell_of(run, "teacher", a_policy(False, "flex: no compiler"))
    assert said == ["attention of teacher: sdpa, words"]
