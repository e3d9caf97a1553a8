"""What a run depends on is compared when it goes on: refused by name, told, or allowed and recorded."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from ft_host import registry
from ft_host.cli.train import run as train_command
from ft_host.config import option
from ft_host.config.fields import fields_of
from ft_host.config.recorded import resolve_resumed
from ft_host.errors import ConfigError, UsageError
from ft_host.rundir.folder import RunFolder
from ft_host.rundir.opening import Resuming
from ft_host.testing.invariants import assert_same, assert_same_weights, beside, lines, run_in
from ft_host.testing.models import save_adapter, save_tiny
from ft_host.training.launch import train


@pytest.fixture
def base(tiny, tmp_path):
    """A model's folder that a test may change."""
    return Path(shutil.copytree(tiny / "model", tmp_path / "base"))


@pytest.fixture
def rows(tiny, tmp_path):
    return Path(shutil.copy(tiny / "train.jsonl", tmp_path / "rows.jsonl"))


def go_on(config, folder: Path, *allowed: str, **changes) -> None:
    train(
        beside(config, folder.name, **{"max_steps": 4, **changes}), resume=folder, asked=Resuming(allow_changed=allowed)
    )


def said(folder: Path) -> str:
    return "\n".join(event["text"] for event in RunFolder(folder).read("events.jsonl"))


def manifest(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def edit(folder: Path, change) -> None:
    record = manifest(folder)
    change(record)
    (folder / "run.json").write_text(json.dumps(record))


def replace_weights(folder: Path) -> None:
    """Other weights of the same shape: same size, same time."""
    file = folder / "model.safetensors"
    before = file.stat()
    weights = load_file(file)
    save_file({name: tensor + 0.01 for name, tensor in weights.items()}, file, metadata={"format": "pt"})
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size


# ---------------------------------------------------------------- models and other files


@pytest.mark.parametrize("use_peft", [True, False], ids=["lora", "full"])
def test_a_base_that_was_replaced_is_refused_and_allowed_on_request(config, base, use_peft):
    config = dataclasses.replace(config, model=str(base), use_peft=use_peft)
    folder = run_in(config, "a", max_steps=2)
    replace_weights(base)
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(
        ConfigError, match=r"^model: .*base: model\.safetensors \(.* bytes, digest .*--allow-changed model"
    ):
        go_on(config, folder)
    assert (folder / "metrics.jsonl").read_bytes() == before and manifest(folder)["status"] == "finished"
    go_on(config, folder, "model")
    (change,) = manifest(folder)["allowed_changes"]
    assert change["field"] == "model" and change["step"] == 2 and change["was"] != change["now"]
    assert "model has changed since the run began, as --allow-changed says" in said(folder)
    go_on(config, folder, max_steps=5)  # what was allowed is what the run depends on from then on
    assert [line["step"] for line in lines(folder)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("changes", [{"precompute_ref_log_probs": True}, {"precompute_ref_log_probs": False}])
def test_the_initial_model_of_dpo_is_compared(tiny, base, tmp_path, changes):
    from ft_dpo.config import DPOConfig

    data = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"p {n}?", "chosen": f" it is {n}", "rejected": " no"} for n in range(12)]
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    config = DPOConfig(
        model=str(base), dataset=str(data), max_steps=2, output_dir=str(tmp_path / "runs"), progress="quiet", **changes
    )
    folder = run_in(config, "a")
    replace_weights(base)
    with pytest.raises(ConfigError, match=r"^model: .*model\.safetensors"):
        go_on(config, folder)


def test_a_model_that_was_touched_copied_or_described_anew_is_the_same(config, base, tmp_path):
    config = dataclasses.replace(config, model=str(base), use_peft=True)
    whole = run_in(config, "whole", max_steps=4, lr_scheduler_type="constant")
    folder = run_in(config, "a", max_steps=2, lr_scheduler_type="constant")
    moved = tmp_path / "elsewhere"
    base.rename(moved)
    os.utime(moved / "model.safetensors", (1, 1))
    (moved / "README.md").write_text("A model card.")
    settings = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(settings | {"transformers_version": "9"}, indent=8))
    with pytest.raises(ConfigError, match=r"model: .*base is gone; .* began with it.*--model"):
        go_on(config, folder, lr_scheduler_type="constant")
    go_on(config, folder, model=str(moved), lr_scheduler_type="constant")
    assert f"model: {base} has moved to {moved}; the content is the same" in said(folder)
    assert_same(lines(whole), lines(folder), rel=0)
    assert_same_weights(whole, folder, rel=0)
    adapter = json.loads((folder / "model/adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(moved)


@pytest.mark.parametrize("part", ["tokenizer.json", "config.json", "chat_template.jinja", "modeling_own.py"])
def test_each_part_of_a_models_folder_counts(config, base, part):
    config = dataclasses.replace(config, model=str(base))
    folder = run_in(config, "a", max_steps=2)
    file = base / part
    if part == "config.json":
        file.write_text(json.dumps(json.loads(file.read_text()) | {"rope_theta": 123.0}))
    else:
        file.write_text(file.read_text() + " " if file.exists() else "{{ messages }}")
    with pytest.raises(ConfigError, match=rf"model: .*{part} "):
        go_on(config, folder)


def test_the_base_of_an_adapter_that_the_run_continues_is_compared(config, base, tmp_path):
    adapter = tmp_path / "adapter"
    save_adapter(base, adapter)
    config = dataclasses.replace(config, model=str(adapter), use_peft=True)
    folder = run_in(config, "a", max_steps=2)
    entry = manifest(folder)["depends_on"]["model"]
    assert "adapter_model.safetensors" in entry["files"] and "model.safetensors" in entry["base"]["files"]
    replace_weights(base)
    with pytest.raises(ConfigError, match=r"model: .*the adapter's base: model\.safetensors"):
        go_on(config, folder)


def test_reward_files_templates_methods_and_diagnostics_are_compared(config, tmp_path, sft_with):
    reward, template, rules = tmp_path / "my_reward.py", tmp_path / "chat.jinja", tmp_path / "my_rules.py"
    reward.write_text("def length(completions, **kwargs):\n    return [float(len(c)) for c in completions]\n")
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    rules.write_text("import ft_host\n")
    config = dataclasses.replace(
        config,
        eval_reward=[f"{reward}:length"],
        max_completion_length=2,
        chat_template_path=str(template),
        diagnostics=[str(rules)],
    )
    folder = run_in(config, "a", max_steps=2)
    assert {"eval_reward[0]", "chat_template_path", "diagnostics[my_rules]"} <= manifest(folder)["depends_on"].keys()
    for file, name in ((reward, "eval_reward"), (template, "chat_template_path"), (rules, "diagnostics")):
        text = file.read_text()
        os.utime(file, (1, 1))
        file.write_text(text + "\n" + "# mended" * file.name.endswith(".py"))
        with pytest.raises(ConfigError, match=rf"{name}\S*: .*{file.name}.*--allow-changed {name}"):
            go_on(config, folder)
        file.write_text(text)
    go_on(config, folder)


def test_a_method_in_a_file_is_compared(config, sft_with):
    kind = sft_with("LATER = 1\n")
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    own = kind(**fields)
    folder = run_in(own, "a", max_steps=2)
    file = Path(manifest(folder)["depends_on"]["method"]["value"])
    file.write_text(file.read_text().replace("LATER = 1", "LATER = 2"))
    with pytest.raises(ConfigError, match=rf"method: .*{file.name}.*--allow-changed method"):
        go_on(own, folder)
    go_on(own, folder, "method")


STRANGER = """
@dataclass(kw_only=True)
class Config(ft_sft.config.SFTConfig):
    judge: str = option("", "A model that nothing of the host knows.")
    rubric: str | None = option(None, "A file.")
    scorers: dict[str, str] = option({}, "Functions.")
    log_folder: str | None = option(None, "Where it writes.")
    style: str = option("short", "No file.")

@hookimpl
def ft_models(config):
    return {"judge": ModelSpec(source=config.judge)}
"""


def test_fields_of_a_stranger_are_found_by_what_they_name(config, base, tmp_path, sft_with):
    kind = sft_with(STRANGER)
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    rubric, scorer, log = tmp_path / "rubric.txt", tmp_path / "score.py", tmp_path / "log"
    rubric.write_text("be brief")
    scorer.write_text("def f(): return 1\n")
    log.mkdir()
    own = kind(**fields | {"judge": str(base), "rubric": str(rubric), "scorers": {"a": f"{scorer}:f"}})
    own.log_folder = str(log)
    folder = run_in(own, "a", max_steps=2)
    depends = manifest(folder)["depends_on"]
    assert {"judge", "rubric", "scorers[a]", "model", "method"} == depends.keys()
    (log / "written").write_text("by the run")
    go_on(own, folder, max_steps=3)
    for change, name in (
        (lambda: replace_weights(base), "judge"),
        (lambda: rubric.write_text("be long"), "rubric"),
        (lambda: scorer.write_text("def f(): return 2\n"), "scorers"),
    ):
        change()
        with pytest.raises(ConfigError, match=rf"--allow-changed \S*{name}"):
            go_on(own, folder)
    go_on(own, folder, "judge", "rubric", "scorers")
    assert {each["field"] for each in manifest(folder)["allowed_changes"]} == {"judge", "rubric", "scorers[a]"}


def test_a_name_that_is_no_dependency_is_refused(config):
    folder = run_in(config, "a", max_steps=2)
    with pytest.raises(ConfigError, match=r"--allow-changed modle: .*did you mean model\?; it depends on .*dataset"):
        go_on(config, folder, "modle")


# ---------------------------------------------------------------- data


def changed_rows(rows: Path, change) -> None:
    kept = [json.loads(line) for line in rows.read_text().splitlines()]
    rows.write_text("".join(json.dumps(row) + "\n" for row in change(kept)))


def edited(kept):
    kept[20] = {"prompt": "another", "completion": " row"}
    return kept


@pytest.mark.parametrize("streaming", [False, True], ids=["indexed", "streamed"])
@pytest.mark.parametrize(
    ("change", "what"),
    [
        (edited, "rows that differ"),
        (lambda kept: kept[::-1], "the same rows in another order"),
        (lambda kept: [{"prompt": f"new {n}", "completion": " row"} for n in range(len(kept))], "wholly other rows"),
        (lambda kept: [row | {"prompt": "x"} for row in kept], "wholly other rows"),
    ],
    ids=["edited", "reversed", "replaced", "one-column"],
)
def test_other_rows_are_refused_with_what_has_happened_to_them(config, rows, change, what, streaming):
    config = dataclasses.replace(config, dataset=str(rows), dataset_streaming=streaming)
    folder = run_in(config, "a", max_steps=2)
    changed_rows(rows, change)
    with pytest.raises(ConfigError, match=rf"^dataset: .*rows\.jsonl has {what}.*--allow-changed dataset"):
        go_on(config, folder)
    go_on(config, folder, "dataset")
    assert manifest(folder)["allowed_changes"][0]["field"] == "dataset"


def test_rows_appended_or_another_column_are_refused_with_numbers(config, rows):
    config = dataclasses.replace(config, dataset=str(rows))
    folder = run_in(config, "a", max_steps=2)
    text = rows.read_text()
    changed_rows(rows, lambda kept: kept[:-1])
    with pytest.raises(ConfigError, match="39 rows with prompt, completion, was 40 rows with prompt, completion"):
        go_on(config, folder)
    rows.write_text(text)
    changed_rows(rows, lambda kept: [row | {"id": n} for n, row in enumerate(kept)])
    with pytest.raises(ConfigError, match="40 rows with prompt, completion, id, was 40"):
        go_on(config, folder)


def test_a_file_that_was_touched_moved_or_laid_out_anew_holds_the_same_rows(config, rows, tmp_path):
    config = dataclasses.replace(config, dataset=str(rows), lr_scheduler_type="constant")
    whole = run_in(config, "whole", max_steps=4)
    folder = run_in(config, "a", max_steps=2)
    moved = rows.rename(tmp_path / "moved.jsonl")
    kept = [json.loads(line) for line in moved.read_text().splitlines()]
    moved.write_text("\n\n".join(json.dumps(dict(reversed(row.items()))) for row in kept) + "\n \n")
    go_on(config, folder, dataset=str(moved))
    assert "has moved to" in said(folder) and "the rows are the same" in said(folder)
    assert_same(lines(whole), lines(folder), rel=0)


def test_evaluation_data_is_compared_too(config, tiny, tmp_path):
    held = Path(shutil.copy(tiny / "test.jsonl", tmp_path / "held.jsonl"))
    config = dataclasses.replace(config, eval_dataset=str(held))
    folder = run_in(config, "a", max_steps=2)
    changed_rows(held, lambda kept: kept[::-1])
    with pytest.raises(ConfigError, match=r"^eval_dataset: .*held\.jsonl has the same rows in another order"):
        go_on(config, folder)


def test_one_of_several_data_sets_is_named(config, rows, tiny):
    config = dataclasses.replace(config, dataset=[{"path": str(rows)}, {"path": str(tiny / "train.jsonl")}])
    folder = run_in(config, "a", max_steps=2)
    changed_rows(rows, edited)
    with pytest.raises(ConfigError, match=r"dataset: .*rows\.jsonl: rows that differ"):
        go_on(config, folder)


# ---------------------------------------------------------------- versions, run.json, settings


def test_other_versions_are_told_and_the_old_ones_kept(config):
    folder = run_in(config, "a", max_steps=2)
    now = manifest(folder)["environment"]["torch"]

    def older(record):
        record["environment"] |= {"torch": "2.1.0", "peft": "0.1"}
        for plugin in record["plugins"]:
            plugin["version"] = "0.0.1"

    edit(folder, older)
    go_on(config, folder)
    for words in (f"torch was 2.1.0 and is {now}", "peft was 0.1 and is", "ft-sft was 0.0.1 and is"):
        assert words in said(folder)
    record = manifest(folder)
    assert record["environment"]["torch"] == now
    (past,) = record["history"]
    assert past["environment"]["torch"] == "2.1.0" and past["until_step"] == 2
    go_on(config, folder, max_steps=5)
    assert manifest(folder)["history"] == [past] and said(folder).count("other versions") == 1


@pytest.mark.parametrize("name", ["config", "origins", "environment", "depends_on"])
def test_a_part_of_run_json_of_another_type_is_damage(tmp_path, name):
    (tmp_path / "run.json").write_text(json.dumps({"format": 1, "config": {}, name: [1]}))
    with pytest.raises(UsageError, match=f"run.json is damaged: {name} is a list, expected an object"):
        RunFolder.open(tmp_path)


def test_fields_that_name_models_or_functions_say_so():
    """So that what they name is compared, for every method that is installed."""
    for info in registry.catalog():
        if info.kind != "method" or info.state != "ok":
            continue
        for field in fields_of(registry.config_class(info)).values():
            if re.search(r"[Ff]older or hub id|folders of reward models|file\.py", field.help):
                assert field.path or ":function" in field.help, f"{info.name}: {field.name}"
                assert field.compared or field.name == "lora_base_model", f"{info.name}: {field.name}"


def test_a_newer_format_is_refused(config):
    folder = run_in(config, "a", max_steps=2)
    edit(folder, lambda record: record.update(format=99))
    with pytest.raises(UsageError, match=r"run\.json has format 99, and this ft-host knows formats up to 1"):
        go_on(config, folder)


def test_a_method_edited_by_hand_is_refused(config):
    folder = run_in(config, "a", max_steps=2)
    edit(folder, lambda record: record.update(method="dpo"))
    with pytest.raises(ConfigError, match="method is 'dpo' and reference 'ft-sft:sft'"):
        go_on(config, folder)


def test_lost_fields_are_told(config):
    folder = run_in(config, "a", max_steps=2)
    edit(folder, lambda record: (record["config"].pop("weight_decay"), record["config"].pop("adam_beta2")))
    go_on(config, folder)
    assert "run.json lacks adam_beta2, weight_decay" in said(folder)


def test_lost_parts_of_run_json_are_told(config):
    folder = run_in(config, "a", max_steps=2)
    edit(folder, lambda record: [record.pop(name) for name in ("data", "environment", "plugins", "created", "plan")])
    go_on(config, folder)
    assert "run.json says nothing of the data any more" in said(folder)


def test_a_run_of_an_earlier_version_goes_on_with_a_warning(config, base):
    config = dataclasses.replace(config, model=str(base), use_peft=True)
    folder = run_in(config, "a", max_steps=2)

    def of_0_5(record):
        del record["depends_on"], record["saved"]
        for part in record["data"].values():
            del part["content"]

    edit(folder, of_0_5)
    with pytest.raises(ConfigError, match="run.json has no fingerprint"):
        go_on(config, folder, model=str(shutil.copytree(base, base.parent / "other")))
    go_on(config, folder)
    assert "run.json has no fingerprints" in said(folder)
    assert "whether they are the same rows can't be compared" in said(folder)
    assert "depends_on" in manifest(folder)


def test_what_changes_numbers_is_said_in_a_sentence_each(config):
    folder = run_in(config, "a", max_steps=2)
    go_on(config, folder, max_steps=6, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    text = said(folder)
    assert "per_device_train_batch_size 8 then and 4 now" in text and "differ by round-off" in text
    assert "the run is 6 steps long, was 2 steps: the learning rates of the steps that are left" in text
    edit(folder, lambda record: record["environment"].update(world_size=2))
    go_on(config, folder, max_steps=7, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert "1 processes, was 2" in said(folder)


def test_what_names_a_place_may_move_and_nothing_else(config):
    record, kind = dataclasses.asdict(config), type(config)
    origins = dict.fromkeys(record, "default")
    moved = resolve_resumed(
        kind, record, origins, "run.json", ["--model", config.model + "/", "--dataset", config.eval_dataset]
    )
    assert moved.config.model == config.model + "/" and moved.config.dataset == config.eval_dataset
    for flags in (["--output-dir", "x"], ["--learning-rate", "1"], ["--eval-reward", "x.py:f"], ["--seed", "1"]):
        with pytest.raises(ConfigError, match=f"{flags[0]} can't change when a run is resumed"):
            resolve_resumed(kind, record, origins, "run.json", flags)


# ---------------------------------------------------------------- a start from another run's checkpoint


def test_a_start_from_another_runs_checkpoint_compares_what_both_configs_name(config, base, rows, tiny):
    config = dataclasses.replace(config, model=str(base), dataset=str(rows), use_peft=True)
    run = run_in(config, "a", max_steps=2)
    start = {"resume_from_checkpoint": str(run / "checkpoints/step-2"), "max_steps": 3}
    run_in(config, "b", **start)
    told = run_in(config, "c", dataset=str(tiny / "test.jsonl"), **start)  # said on purpose
    assert "dataset: other data than that of" in said(told)
    changed_rows(rows, edited)
    with pytest.raises(ConfigError, match=r"^dataset: .*rows that differ"):
        run_in(config, "d", **start)
    replace_weights(base)
    with pytest.raises(ConfigError, match=r"model: .*model\.safetensors"):
        run_in(config, "e", **start)
    done = train(beside(config, "f", **start), asked=Resuming(allow_changed=("model", "dataset")))
    assert "as --allow-changed says" in said(done.folder)


def test_the_command_line_takes_the_flag(config, rows):
    config = dataclasses.replace(config, dataset=str(rows))
    folder = run_in(config, "a", max_steps=2)
    changed_rows(rows, edited)
    with pytest.raises(ConfigError, match="--allow-changed dataset"):
        train_command(["--resume", str(folder), "--max-steps", "3"])
    assert train_command(["--resume", str(folder), "--max-steps", "3", "--allow-changed", "dataset"]) == 0


def test_a_declared_output_is_not_compared(config):
    field = option(None, "x", path=True, compared=False)
    assert field.metadata["compared"] is False
    folder = run_in(config, "a", max_steps=2)
    assert manifest(folder)["depends_on"].keys() == {"model"}
    save_tiny(folder / "model")  # the run's own output
    go_on(config, folder)
