"""The reference of a run: which model it is, what is held for it, what is kept on disk, and that it stays what it
was."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ft_dpo.config import DPOConfig
from ft_dpo.method import reference_log_probs

import ft_host
from ft_host.errors import HookError, UsageError
from ft_host.hooks import hookimpl
from ft_host.models import annotate as annotation
from ft_host.models import aux_models as companions
from ft_host.models import load as loading
from ft_host.models.store import Store, fingerprint, model_key, row_key
from ft_host.rundir.folder import RunFolder
from ft_host.testing.invariants import as_if_killed, assert_same, first_step, lines
from ft_host.testing.models import save_adapter, save_tiny, tiny_llama
from ft_host.testing.rows import WORDS, write_rows
from ft_host.training import launch
from ft_host.types import ModelSpec

ROWS = [
    {
        "prompt": " ".join(WORDS[i % 7 : i % 7 + 1 + i % 3]) + "?",
        "chosen": " " + " ".join(WORDS[i % 5 : i % 5 + 2 + i % 4]),
        "rejected": " " + " ".join(WORDS[i % 11 : i % 11 + 1 + i % 5]) + f" {i}",
    }
    for i in range(24)
]


@pytest.fixture
def cache(tmp_path) -> Path:
    """What the root conftest.py has runs keep for later ones."""
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("companions") / "llama", tiny_llama())


@pytest.fixture(scope="module")
def adapter(llama, tmp_path_factory) -> Path:
    """An adapter whose B is not zero, so that it differs from its base."""
    return save_adapter(llama, tmp_path_factory.mktemp("companions") / "adapter")


@pytest.fixture
def make(tmp_path, llama):
    """`make(**fields)`: a run of six steps of four pairs on the tiny model, evaluated and saved in between."""

    def config(**fields: Any) -> DPOConfig:
        for name, rows in (("train", ROWS), ("test", ROWS[:5])):
            write_rows(tmp_path / f"{name}.jsonl", rows)
        given = {
            "model": str(llama),
            "dataset": str(tmp_path / "train.jsonl"),
            "eval_dataset": str(tmp_path / "test.jsonl"),
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "max_steps": 6,
            "save_steps": 3,
            "save_total_limit": None,
            "eval_steps": 3,
            "progress": "quiet",
            "use_cpu": True,
            "beta": 0.5,
        }
        return DPOConfig(**(given | fields))

    return config


@pytest.fixture
def loaded(monkeypatch) -> list[str]:
    """The names of all models whose weights are loaded, policy and companions."""
    names: list[str] = []
    for module, function in ((loading, "load_model"), (loading, "load_weights")):
        original = getattr(module, function)

        def noted(*args, original=original, **kwargs):
            names.append(str(getattr(args[0], "model", None) if original.__name__ == "load_model" else args[1]))
            return original(*args, **kwargs)

        monkeypatch.setattr(module, function, noted)
    return names


def went(config: DPOConfig, **fields: Any) -> list[dict[str, Any]]:
    return lines(ft_host.train(dataclasses.replace(config, **fields)).folder)


# ---------------------------------------------------------------- what is held

LORA = {"use_peft": True, "lora_r": 4}


@pytest.mark.parametrize(
    ("fields", "copies"),
    [
        ({}, 0),  # made ahead, by the policy itself
        ({"precompute_ref_log_probs": False}, 1),
        (LORA, 0),
        (LORA | {"precompute_ref_log_probs": True}, 0),
        ({"sync_ref_model": True, "ref_model_sync_steps": 2}, 1),
        ({"reference_free": True}, 0),
    ],
)
def test_no_copy_is_held_that_can_be_saved(make, loaded, fields, copies):
    config = make(**fields)
    whole = went(config)
    assert len(loaded) == 1 + copies
    # the same after a restart in the middle
    folder = Path(config.output_dir + "-resumed")
    assert as_if_killed(Path(config.output_dir), folder) == 3
    loaded.clear()
    launch.train(dataclasses.replace(config, output_dir=str(folder)), resume=folder)
    assert len(loaded) == 1 + copies
    assert_same(whole, lines(folder), rel=0)


def test_training_that_starts_from_an_adapter_keeps_that_adapter(make, adapter, loaded):
    """The base is loaded once, and after six steps the reference is what it was: the first step's rows, asked again."""
    config = make(model=str(adapter), use_peft=True)
    whole = went(config)
    assert len(loaded) == 1
    assert whole[0]["loss"] == pytest.approx(math.log(2), rel=1e-6)  # the reference is the policy as it began
    assert whole[-1]["rewards/margins"] != 0
    folder = Path(config.output_dir + "-resumed")
    as_if_killed(Path(config.output_dir), folder)
    launch.train(dataclasses.replace(config, output_dir=str(folder)), resume=folder)
    assert_same(whole, lines(folder), rel=0)
    saved = {path.name for path in (folder / "model").rglob("*")}
    assert "adapter_model.safetensors" in saved and "reference" not in saved


def answers(run, rows) -> list[tuple[float, float]]:
    made = annotation.passes(rows, run, run.models["reference"], reference_log_probs)
    return [(each["ref_chosen_logps"], each["ref_rejected_logps"]) for each in made]


@pytest.mark.parametrize("kind", ["new adapter", "old adapter", "held"])
def test_the_reference_stays_what_it_was_while_the_policy_moves(make, llama, adapter, kind):
    fields = {
        "new adapter": LORA,
        "old adapter": {"model": str(adapter), "use_peft": True},
        "held": {"precompute_ref_log_probs": False},
    }[kind]
    run, rows = first_step(make(**fields), "dpo")
    trained = [parameter for parameter in run.policy.parameters() if parameter.requires_grad]
    before = answers(run, rows)
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    assert answers(run, rows) == before
    now = annotation.policy_values(rows, run, reference_log_probs)
    assert all(abs(row["ref_chosen_logps"] - then[0]) > 1e-2 for row, then in zip(now, before, strict=True))
    # and asking it has changed nothing of what is trained
    assert [parameter for parameter in run.policy.parameters() if parameter.requires_grad] == trained
    assert run.policy.training


def test_a_reference_that_follows_is_mixed_and_survives_a_restart(make):
    config = make(sync_ref_model=True, ref_model_sync_steps=2, ref_model_mixup_alpha=0.6)
    run, _ = first_step(config, "dpo")
    reference = run.models["reference"]
    theirs = next(iter(run.policy.parameters()))
    ours = next(iter(reference.held.parameters()))
    old = ours.clone()
    with torch.no_grad():
        theirs.add_(1.0)
    for run.step in (1, 2):
        reference.follow()
        expected = old if run.step == 1 else 0.4 * old + 0.6 * theirs
        assert torch.allclose(ours, expected, atol=1e-7)
    assert torch.equal(ours.detach(), ours) and not ours.requires_grad


def test_another_models_values_are_made_ahead_and_it_is_let_go(make, tmp_path, loaded, monkeypatch):
    """As with it held, number for number up to round-off; its weights are gone when training begins."""
    other = save_tiny(tmp_path / "other", tiny_llama(seed=9))
    ahead = make(ref_model=str(other), output_dir=str(tmp_path / "ahead"))
    held: list[bool] = []
    release = companions.AuxModel.release

    def watched(self):
        held.append(self.held is not None)
        release(self)
        held.append(self.held is not None)

    monkeypatch.setattr(companions.AuxModel, "release", watched)
    made = went(ahead)
    assert held == [True, False] and loaded[-1] == str(other)
    live = went(ahead, precompute_ref_log_probs=False, output_dir=str(tmp_path / "live"))
    assert_same(made, live, rel=2e-5, abs=1e-5)
    assert abs(made[0]["loss"] - math.log(2)) > 1e-3


def test_a_resumed_run_whose_cache_is_gone_loads_the_model_it_began_with(make, cache, loaded):
    config = make()
    whole = went(config)
    folder = Path(config.output_dir + "-resumed")
    as_if_killed(Path(config.output_dir), folder)
    shutil.rmtree(cache)
    loaded.clear()
    launch.train(dataclasses.replace(config, output_dir=str(folder)), resume=folder)
    assert loaded == [str(folder / "checkpoints" / "step-3" / "model"), config.model]
    assert_same(whole, lines(folder), rel=2e-5, abs=1e-5)


# ---------------------------------------------------------------- what is kept


def test_values_are_made_once_for_each_row_and_reused_by_the_next_run(make, cache, monkeypatch):
    asked: list[int] = []
    passes = annotation.passes

    def counted(rows, *rest):
        asked.append(len(rows))
        return passes(rows, *rest)

    monkeypatch.setattr(annotation, "passes", counted)
    config = make(max_steps=-1, num_train_epochs=2.0)
    first = went(config)
    assert sum(asked) == len(ROWS)  # of two epochs and of an evaluation whose rows are among them
    asked.clear()
    again = went(config, output_dir=config.output_dir + "-again", learning_rate=2e-3)
    assert not any(asked)
    assert again[0]["loss"] == first[0]["loss"]
    # rows that are cut otherwise are other rows, and so are those of LD-DPO
    went(config, output_dir=config.output_dir + "-shorter", max_length=12)
    assert 0 < sum(asked) <= len(ROWS)
    asked.clear()
    went(config, output_dir=config.output_dir + "-ld", ld_alpha=0.5)
    assert sum(asked) == len(ROWS)
    assert len(list(cache.rglob("*.tmp"))) == 0


def test_only_the_rows_of_the_steps_to_come_are_asked_about(make, monkeypatch):
    asked: list[int] = []
    passes = annotation.passes

    def counted(rows, *rest):
        asked.append(len(rows))
        return passes(rows, *rest)

    monkeypatch.setattr(annotation, "passes", counted)
    went(make(max_steps=2, eval_dataset=None, eval_steps=None))
    assert sum(asked) == 8


def test_a_mixture_draws_other_rows_in_each_epoch_and_all_are_known(make, tmp_path, loaded):
    parts = []
    for name, rows in (("a", ROWS[:18]), ("b", ROWS[18:])):
        parts.append({"path": str(write_rows(tmp_path / f"{name}.jsonl", rows)), "weight": 1.0})
    went(make(dataset=parts, max_steps=-1, num_train_epochs=3.0))
    assert len(loaded) == 1, "a row that was not asked about ahead needs the model that the run began with"


def test_a_bad_row_is_named_before_training(make, tmp_path):
    config = make(max_steps=-1, num_train_epochs=1.0, eval_dataset=None, eval_steps=None)
    write_rows(tmp_path / "train.jsonl", [*(ROWS * 5)[:100], {"prompt": 3, "chosen": "a", "rejected": "b"}])
    with pytest.raises(UsageError, match="line 101"):
        ft_host.train(config)
    assert not (Path(config.output_dir) / "metrics.jsonl").exists()


def test_the_store_keeps_what_several_runs_put(tmp_path):
    key = row_key({"a": [1, 2], "b": []}, ("a", "b"), "x")
    others = {row_key({"a": [1], "b": [2]}, ("a", "b"), "x"), row_key({"a": [1, 2], "b": []}, ("a", "b"), "y")}
    assert key not in others and len(others) == 2
    one, two = Store(tmp_path), Store(tmp_path)
    one.put({key: {"left": 0.1, "right": -3.5e8}})
    two.put(dict.fromkeys(others, {"kl": 1.5}))
    one.flush()
    two.flush()
    two.flush()  # nothing new, nothing written
    assert len(list(tmp_path.glob("*"))) == 2
    found = Store(tmp_path)
    assert found[key] == {"left": 0.1, "right": -3.5e8} and all(found[other] == {"kl": 1.5} for other in others)
    assert found.made == 0 and one.made == 1
    memory = Store(None)
    memory.put({key: {"kl": 1.0}})
    memory.flush()
    assert key in memory


def test_no_byte_of_a_stores_file_can_be_flipped_or_lost_unseen(tmp_path):
    key = row_key({"a": [1, 2]}, ("a",), "x")
    store = Store(tmp_path)
    store.put({key: {"left": 0.1, "right": -3.5e8}})
    store.flush()
    [file] = tmp_path.iterdir()
    whole, refused = file.read_bytes(), 0
    changed = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
    for content in (*changed, *(whole[:at] for at in range(0, len(whole), 7)), whole + b"x", b"\0" * len(whole)):
        file.write_bytes(content)
        found = Store(tmp_path)
        if key in found:
            assert found[key] == {"left": 0.1, "right": -3.5e8} and not found.damaged
        else:
            assert len(found.damaged) == 1 and found.damaged[0].startswith(file.name)
            refused += 1
    assert refused > len(whole) / 2


@pytest.mark.parametrize("damage", ["cut", "emptied", "flipped", "of an earlier version"])
def test_damaged_values_are_named_and_computed_again(make, tmp_path, monkeypatch, damage):
    from safetensors.numpy import load_file, save_file

    monkeypatch.setenv("FT_HOST_CACHE", str(tmp_path / "cache"))
    config = make()
    whole = went(config)
    [file] = (tmp_path / "cache").rglob("*.safetensors")
    content = file.read_bytes()
    if damage == "of an earlier version":
        save_file(load_file(file), file, metadata={"columns": '["ref_chosen_logps", "ref_rejected_logps"]'})
    else:
        file.write_bytes({"cut": content[:-40], "emptied": b"", "flipped": content[:-3] + b"\0\1\2"}[damage])
    again = dataclasses.replace(config, output_dir=str(tmp_path / "again"))
    assert_same(whole, lines(ft_host.train(again).folder), rel=0)
    said = [event["text"] for event in RunFolder(again.output_dir).read("events.jsonl") if event["level"] == "warning"]
    assert any(file.name in text and "computed again" in text for text in said)


def test_a_models_key_is_of_its_weights_and_of_the_type_they_are_used_in(make, llama, adapter, tmp_path):
    cpu = torch.device("cpu")
    copy = shutil.copytree(llama, tmp_path / "copy")
    config = make()
    key = model_key(config, ModelSpec(), cpu)
    assert key == model_key(dataclasses.replace(config, model=str(copy)), ModelSpec(), cpu)
    assert key == model_key(config, ModelSpec(source=str(copy)), cpu)
    differ = [
        model_key(dataclasses.replace(config, bf16=True), ModelSpec(), cpu),
        model_key(dataclasses.replace(config, dtype="bfloat16"), ModelSpec(), cpu),
        model_key(config, ModelSpec(head="reward"), cpu),
        model_key(dataclasses.replace(config, model=str(adapter)), ModelSpec(), cpu),
    ]
    save_tiny(copy, tiny_llama(seed=3))
    differ.append(model_key(config, ModelSpec(source=str(copy)), cpu))
    assert len({key, *differ}) == 6
    assert fingerprint(str(llama), None) == fingerprint(str(llama), "main")  # a folder has no revision


def test_values_dont_depend_on_which_rows_are_asked_about_together(make):
    run, rows = first_step(make(per_device_train_batch_size=8, precompute_ref_log_probs=False), "dpo")
    together = answers(run, rows)
    alone = [answers(run, [row])[0] for row in rows]
    run.config = dataclasses.replace(run.config, max_tokens_per_micro_batch=40)
    cut = answers(run, rows[::-1])[::-1]
    for one, two, three in zip(together, alone, cut, strict=True):
        assert one == pytest.approx(two, rel=1e-5) and one == pytest.approx(three, rel=1e-5)
    assert answers(run, []) == []


def test_a_hook_that_loses_rows_is_refused(make):
    run, rows = first_step(make(), "dpo")
    from ft_host.training.step import before_collating

    loses = hookimpl(lambda rows: rows[1:], specname="ft_step")
    run.plugins.register(SimpleNamespace(ft_step=loses), name="method ft-dpo:loses")
    with pytest.raises(HookError, match=r"ft_step of the method 'loses' \(ft-dpo .*\) was given 4 rows and gave 3"):
        before_collating(run, [rows])
