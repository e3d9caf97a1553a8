"""A run that is refused before its first step leaves its config and its findings in its folder, and another may begin
there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import ft_host
from ft_host.cli import autopilot, patch, runs
from ft_host.cli.train import run as train_command
from ft_host.config.paths import was_refused
from ft_host.diagnostics.replay import diagnose
from ft_host.errors import ConfigError, DataError, FtHostError, Interrupted, StoppedByFinding, UsageError
from ft_host.models import folder as model_folder
from ft_host.report import read_run
from ft_host.rundir.folder import RunFolder
from ft_host.rundir.owner import FILE, Owner
from ft_host.testing.invariants import lines
from ft_host.testing.models import save_adapter, save_tiny, tiny_qwen
from ft_host.training import build, launch, preflight, refusal

LONG = "very long " * 60


@pytest.fixture
def mine(config, tmp_path):
    """The run of `config`, on rows that a test may change."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(Path(config.dataset).read_text())
    return replace(config, dataset=str(rows), eval_dataset=None, max_steps=2)


def with_a_bad_row(config, number: int) -> None:
    text = Path(config.dataset).read_text().splitlines()
    text[number - 1] = json.dumps({"prompt": "what?", "completion": 7})
    Path(config.dataset).write_text("\n".join(text) + "\n")


def refused(config, kind: type = FtHostError, **what) -> tuple[Path, str]:
    """The folder of a run that ends before its first step, and what was said."""
    with pytest.raises(kind, **what) as told:
        ft_host.train(config)
    folder = Path(config.output_dir)
    assert was_refused(folder) and not (folder / FILE).exists()
    assert read_run(folder).status == "refused" and not read_run(folder).problems
    assert f"`ft-host diagnose {folder}`" in str(told.value)
    return folder, str(told.value)


def found(folder: Path, code: str) -> dict:
    """The finding, as the run has written it, which is as the folder gives it."""
    *_, written = [each for each in RunFolder.open(folder).read("findings.jsonl") if each["code"] == code]
    [made] = [each for each in diagnose(folder).findings if each["code"] == code]
    assert made["message"] == written["message"] and made["state"] == written["state"] == "open"
    return made


def unloadable(*_, **__):
    raise ValueError("the weights are torn\nin two")


def test_a_row_by_file_and_line(mine):
    with_a_bad_row(mine, 3)
    folder, said = refused(mine, DataError, match=r"rows\.jsonl, line 3")
    message = found(folder, "SYS005")["message"]
    assert "before it had made a step" in message and "rows.jsonl, line 3" in message
    assert read_run(folder).config["learning_rate"] == mine.learning_rate
    assert found(folder, "SYS005")["remedies"][0]["why"].endswith("and start it again")
    assert (folder / "report.html").is_file() and "was refused before its first step" in (
        (folder / "report.html").read_text()
    )


def test_a_row_that_only_the_first_step_meets(mine):
    config = replace(mine, train_sampling_strategy="sequential", per_device_train_batch_size=20, data_window=4)
    with_a_bad_row(mine, 18)
    folder, _ = refused(config, DataError, match=r"rows\.jsonl, line 18")
    assert found(folder, "SYS005") and read_run(folder).plan["planned_steps"] == 2


def test_a_finding_that_stop_on_names_is_patched(mine, capsys):
    rows = [json.dumps({"prompt": f"{n}?", "completion": f" {n} {LONG}"}) for n in range(40)]
    Path(mine.dataset).write_text("\n".join(rows))
    folder, _ = refused(replace(mine, max_length=32, stop_on=["patchable"]), StoppedByFinding)
    codes = {each["code"] for each in diagnose(folder).findings if each["remedies"] and each["remedies"][0]["patch"]}
    assert "DATA005" in codes and found(folder, "DATA005")
    assert patch.run([str(folder), "DATA005"]) == 0
    written = capsys.readouterr().out
    assert "max_length" in written and f"parent_run: {folder}" in written and "method: sft" in written


def test_a_model_that_cannot_be_loaded(mine, monkeypatch):
    monkeypatch.setattr(build, "load_policy", unloadable)
    folder, said = refused(mine, match="the weights are torn")
    assert "the weights are torn" in found(folder, "SYS005")["message"]
    assert "traceback.txt" in said and "in two" in (folder / "traceback.txt").read_text()


def test_an_adapter_of_another_model(mine, tmp_path):
    adapter = save_adapter(mine.model, tmp_path / "adapter")
    other = save_tiny(tmp_path / "other", tiny_qwen(hidden_size=16, head_dim=8))
    config = replace(mine, model=str(adapter), use_peft=True, lora_base_model=str(other))
    folder, _ = refused(config, ConfigError, match="doesn't fit its base")
    assert found(folder, "SYS005")["evidence"][0]["value"] == "config"


def test_no_memory_for_the_model(mine, monkeypatch):
    def full(*_, **__):
        raise MemoryError("no room")

    monkeypatch.setattr(build, "load_policy", full)
    folder, _ = refused(mine, match="memory ran out")
    assert found(folder, "SYS004")["remedies"]


def test_what_is_found_out_before_the_plugins_rules_are_there(mine, monkeypatch):
    def broken(*_):
        raise ConfigError("backend: it is odd")

    monkeypatch.setattr(launch, "choose", broken)
    folder, _ = refused(mine, ConfigError, match="it is odd")
    assert "it is odd" in found(folder, "SYS005")["message"]


def test_an_error_of_a_library_keeps_its_traceback(mine, monkeypatch):
    monkeypatch.setattr(model_folder, "check_folder", unloadable)
    monkeypatch.setattr(preflight, "check_folder", unloadable)
    folder, said = refused(mine, match="ValueError: the weights are torn")
    assert f"traceback: {folder / 'traceback.txt'}" in said
    assert "test_refusals.py" in (folder / "traceback.txt").read_text()


# ---------------------------------------------------------------- the folder afterwards


def test_the_next_run_takes_its_place_and_leaves_what_is_the_users(mine):
    with_a_bad_row(mine, 3)
    folder = Path(mine.output_dir)
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "mine.txt").write_text("a model that the user put here")
    (folder / "train.jsonl").write_text("{}")
    refused(mine, DataError)
    traceback = (folder / "traceback.txt").read_text()
    refused(mine, DataError)  # again: nothing piles up
    assert len(RunFolder.open(folder).read("findings.jsonl")) == len(diagnose(folder).findings)
    assert {path.name for path in folder.iterdir()} == {
        "model",
        "train.jsonl",
        "run.json",
        "findings.jsonl",
        "report.html",
        "traceback.txt",
    }
    assert (folder / "traceback.txt").read_text().count("Traceback") == traceback.count("Traceback")
    Path(mine.dataset).write_text(Path(mine.dataset).read_text().replace(": 7}", ': "7"}'))
    (folder / "model" / "mine.txt").unlink()
    ft_host.train(mine)
    assert read_run(folder).status == "finished" and len(lines(folder)) == 2
    assert (folder / "train.jsonl").read_text() == "{}"
    assert not any(each["code"] == "SYS005" for each in RunFolder.open(folder).read("findings.jsonl"))
    with pytest.raises(ConfigError, match="holds a run"):
        ft_host.train(mine)


def test_a_patch_in_the_same_folder_is_not_its_own_parent(mine):
    with_a_bad_row(mine, 3)
    folder, _ = refused(mine, DataError)
    Path(mine.dataset).write_text(Path(mine.dataset).read_text().replace(": 7}", ': "7"}'))
    ft_host.train(replace(mine, parent_run=str(folder)))
    assert read_run(folder).parent is None


def test_a_refused_run_can_be_resumed_too_with_data_that_was_mended(mine):
    with_a_bad_row(mine, 3)
    folder, _ = refused(mine, DataError)
    with pytest.raises(DataError):
        launch.train(mine, resume=folder)
    assert was_refused(folder)
    Path(mine.dataset).write_text(Path(mine.dataset).read_text().replace(": 7}", ': "7"}'))
    launch.train(mine, resume=folder)
    assert read_run(folder).status == "finished"
    assert [each["state"] for each in diagnose(folder).findings if each["code"] == "SYS005"] == []


def test_one_that_was_refused_with_its_model_is_resumed_with_other_data(mine, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(build, "load_policy", unloadable)
        folder, _ = refused(mine)
    Path(mine.dataset).write_text("".join(Path(mine.dataset).read_text().splitlines(keepends=True)[::-1]))
    launch.train(mine, resume=folder)
    assert read_run(folder).status == "finished"


def test_a_run_that_goes_on_and_is_refused_stays_what_it_was(mine):
    ft_host.train(mine)
    folder = Path(mine.output_dir)
    before = (folder / "run.json").read_bytes()
    with_a_bad_row(mine, 3)
    with pytest.raises(UsageError):
        launch.train(replace(mine, max_steps=4), resume=folder)
    assert (folder / "run.json").read_bytes() == before and not was_refused(folder)


def test_a_folder_that_another_process_has_is_left_alone(mine):
    with_a_bad_row(mine, 3)
    folder = Path(mine.output_dir)
    folder.mkdir(parents=True)
    owner = Owner.take(folder)
    with pytest.raises(DataError) as told:
        ft_host.train(mine)
    assert [path.name for path in folder.iterdir()] == [FILE] and "diagnose" not in str(told.value)
    owner.release(ended=True)


def test_one_that_was_asked_to_stop_leaves_no_folder(mine, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "preflight", stopped)
    with pytest.raises(Interrupted):
        ft_host.train(mine)
    assert not Path(mine.output_dir).exists()


def test_without_a_folder_it_gets_one(mine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with_a_bad_row(mine, 3)
    with pytest.raises(DataError):
        ft_host.train(replace(mine, output_dir=""))
    [folder] = (tmp_path / "runs").iterdir()
    assert was_refused(folder) and folder.name.startswith("sft-")


def test_where_nothing_can_be_written_the_error_is_the_same(mine, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    with_a_bad_row(mine, 3)
    monkeypatch.setattr(refusal, "new_folder", full)
    with pytest.raises(DataError, match=r"rows\.jsonl, line 3"):
        launch.train(mine)
    assert "could not be written down: OSError" in capsys.readouterr().err and not Path(mine.output_dir).exists()


def test_only_the_first_of_several_processes_writes(mine, monkeypatch):
    with_a_bad_row(mine, 3)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(DataError):
        launch.train(mine)
    assert not Path(mine.output_dir).exists()


# ---------------------------------------------------------------- commands


def test_commands_work_on_it(mine, capsys):
    with_a_bad_row(mine, 3)
    folder, _ = refused(mine, DataError)
    capsys.readouterr()
    assert runs.run([str(folder.parent)]) == 0
    listed = capsys.readouterr().out
    assert " refused " in listed and "rows.jsonl, line 3" in listed
    Path(mine.dataset).write_text(Path(mine.dataset).read_text().replace(": 7}", ': "7"}'))
    given = ["--model", mine.model, "--dataset", mine.dataset, "--max-steps", "1", "--output-dir", str(folder)]
    assert train_command(["sft", *given, "--use-cpu", "true", "--progress", "quiet"]) == 0
    assert read_run(folder).status == "finished"


def test_the_autopilot_takes_a_refused_run_s_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"format": 1, "status": "refused"}))
    assert autopilot._folder(str(folder)) == folder and list(folder.iterdir()) == []
    (folder / "run.json").write_text(json.dumps({"format": 1, "status": "failed"}))
    with pytest.raises(UsageError, match="already contains runs"):
        autopilot._folder(str(folder))
