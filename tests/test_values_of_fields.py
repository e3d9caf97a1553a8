"""Values of fields that later steps can't take: expanded or refused when they are read, the same way in every field."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest

from ft_host import registry
from ft_host.config import resolve
from ft_host.config.fields import LARGEST, fields_of
from ft_host.config.paths import check_output
from ft_host.config.resolve import check
from ft_host.errors import ConfigError


def all_configs():
    """The config classes of all installed methods and backends."""
    found = {}
    for info in registry.catalog():
        if info.kind == "method":
            found[info.name] = registry.config_class(info)
        elif info.kind == "backend" and registry.backend_config_class(info) is not None:
            found[info.name] = registry.backend_config_class(info)
    return found


def resolved(flags, **given):
    from ft_sft.config import SFTConfig

    return resolve.resolve(SFTConfig, None, ["--model", "org/m", "--dataset", "org/d", *flags]).config


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MY_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("NOT_SET", raising=False)
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "reward.py").write_text("def good(completions, **columns):\n    return [1.0] * len(completions)\n")
    return tmp_path


def test_home_and_variables_are_expanded_in_every_path(home):
    flags = ["--output-dir=~/x", "--parent-run=$MY_RUNS/one", "--eval-reward=~/reward.py:good"]
    flags += ["--eval-dataset={one: ~/a.jsonl, two: {path: '${HOME}/b.jsonl', split: 'train[:1]'}}"]
    config = resolved(flags)
    assert config.output_dir == f"{home}/x" and config.parent_run == f"{home}/runs/one"
    assert config.eval_reward == [f"{home}/reward.py:good"]
    assert config.eval_dataset == {"one": f"{home}/a.jsonl", "two": {"path": f"{home}/b.jsonl", "split": "train[:1]"}}
    made = dataclasses.replace(config, output_dir="~/y", dataset=[{"path": "~/a.jsonl", "columns": {"$x": "text"}}])
    check(made)
    assert made.output_dir == f"{home}/y"
    assert made.dataset == [{"path": f"{home}/a.jsonl", "columns": {"$x": "text"}}]


@pytest.mark.parametrize("field", ["--output-dir", "--parent-run", "--resume-from-checkpoint", "--chat-template-path"])
def test_a_variable_or_user_that_is_not_there_is_refused(home, field):
    with pytest.raises(ConfigError, match=f"{field}: .*the environment variable NOT_SET isn't set"):
        resolved([f"{field}=$NOT_SET/x"])
    with pytest.raises(ConfigError, match=rf"{field}: .*there is no user nobody-at-all"):
        resolved([f"{field}=~nobody-at-all/x"])


def test_fields_that_name_files_say_so():
    """A field whose help speaks of a file or folder expands ~; a method that declares it anew changes nothing."""
    speaks = re.compile(r"\b([Ff]olders? (or|of|with|saved)|[Ff]ile (\(|or|that|of)|file\.py|\.jinja)")
    # Values that merely concern files: kinds of transfer, names of functions beside import paths.
    others = {"lora", "loss_type", "save_total_limit"}
    for name, config_class in all_configs().items():
        for field in fields_of(config_class).values():
            if speaks.search(field.help) and str in str(field.type).split("|") and field.name not in others:
                assert field.path, f"{name}: {field.name} isn't declared with path=True"


def whole_numbers():
    for name, config_class in all_configs().items():
        for field in fields_of(config_class).values():
            if int in field.arms and not field.choices:
                yield name, config_class, field


def test_whole_numbers_have_bounds_that_libraries_can_hold():
    from ft_host.config.fields import Mismatch, fit

    seen = 0
    for name, _, field in whole_numbers():
        for value in (10**30, -(10**30), 2**63):
            with pytest.raises(Mismatch, match="expected a whole number|expected "):
                fit(field, value)
        seen += 1
        assert field.le is None or field.le <= 2**32 - 1, f"{name}: {field.name}"
    assert seen > 100 and LARGEST < 2**31


@pytest.mark.parametrize("seed", ["-1", str(2**32), "9" * 30])
def test_seeds_are_those_that_numpy_takes(seed):
    with pytest.raises(ConfigError, match=f"--seed: found the number {seed}, expected a whole number at least 0"):
        resolved(["--seed", seed])
    assert resolved(["--seed", str(2**32 - 1)]).seed == 2**32 - 1


def test_no_steps_are_refused():
    with pytest.raises(ConfigError, match="max_steps: found 0, which trains nothing; -1, the default"):
        resolved(["--max-steps", "0"])
    assert resolved(["--max-steps", "-1"]).max_steps == -1


def test_folders_that_can_not_be_made_are_refused(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    for place, said in (
        ("/proc/x/y", "no folder can be made in /proc: "),
        ("/proc", "no folder can be made in /proc: "),
        (tmp_path / "loop", "a symbolic link that leads to itself"),
        (tmp_path / "gone", "a symbolic link to nowhere, which isn't there"),
        (tmp_path / "pipe", "a named pipe"),
        (tmp_path / "file", "is a file, expected a folder"),
        (tmp_path / "file" / "x", "no folder can be made in .*file: Not a directory"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(ConfigError, match=f"output_dir: .*{said}"):
            check_output(str(place))
    check_output(str(tmp_path / "new" / "run"))
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".ft-host*"))


def test_groups_of_one_are_not_suggested():
    from ft_grpo.config import GRPOConfig

    config = GRPOConfig(model="m", dataset="d", reward=["r"], num_generations=2, per_device_train_batch_size=3)
    with pytest.raises(ConfigError, match=r"nearest num_generations: 3, or"):
        config.rollout_plan(1)
    config = GRPOConfig(model="m", dataset="d", reward=["r"], num_generations=2, per_device_train_batch_size=1)
    with pytest.raises(ConfigError, match="nearest: a rollout of 2 completions"):
        config.rollout_plan(1)


@pytest.mark.parametrize(
    "spec, said",
    [
        ({"a b": "x"}, "'a b' is no name for metrics"),
        ({"a": "gone.jsonl"}, "a: gone.jsonl: no such file or folder"),
        ({"a": {"split": "train"}}, "a: has no path"),
        ({"a": {"path": "org/d", "weight": 2}}, "a: unknown key weight; there are path, name, split"),
        ({"a": {"path": "org/d", "splt": "train"}}, "a: unknown key splt; did you mean split"),
        ({"a": 3}, "a: found the number 3, expected a path"),
        (["org/d", ""], "found an empty text, expected a path"),
        ({}, "found nothing in it"),
        ([], "found nothing in it"),
        ({"path": "org/d", "weight": 1}, "unknown key weight"),
    ],
)
def test_evaluation_sets_that_can_not_be_are_refused(spec, said):
    from ft_sft.config import SFTConfig

    with pytest.raises(ConfigError, match=f"eval_dataset: .*{said}"):
        resolve.resolve(SFTConfig, None, {"model": "org/m", "dataset": "org/d", "eval_dataset": spec})


def test_links_that_lead_nowhere_are_named_before_anything_is_loaded(tmp_path):
    for field, flag in (("model", "--model"), ("dataset", "--dataset")):
        (tmp_path / field).symlink_to("nowhere")
        flags = {"--model": "org/m", "--dataset": "org/d"} | {flag: str(tmp_path / field)}
        with pytest.raises(ConfigError, match=f"{flag}: .*a symbolic link to nowhere, which isn't there"):
            from ft_sft.config import SFTConfig

            resolve.resolve(SFTConfig, None, [each for pair in flags.items() for each in pair])
    assert Path(tmp_path).is_dir()
