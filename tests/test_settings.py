"""Files, flags and Python values to a config; what is refused, and where the refusal points."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ft_sft.config import SFTConfig

from ft_host import registry
from ft_host.config import RolloutConfig, RunConfig, option, paths
from ft_host.config import resolve as resolving
from ft_host.config.fields import fields_of, names_of
from ft_host.config.help import method_help
from ft_host.config.paths import OPTIMIZERS
from ft_host.config.plan import dry_run
from ft_host.config.recorded import RESUMABLE, resolve_resumed
from ft_host.config.renamed import RENAMED, hint
from ft_host.config.run import SCHEDULES
from ft_host.config.schema import schema
from ft_host.config.starter import starter
from ft_host.config.text import toml_text, yaml_text
from ft_host.errors import ConfigError, PluginBroken
from ft_host.testing.distributions import make_distribution

GIVEN = ["--model", "org/model", "--dataset", "org/data"]


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name: str, text: str) -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


def resolve(flags=(), file=None, config_class=SFTConfig):
    return resolving.resolve(config_class, file, [*GIVEN, *flags])


def refusal(flags=(), file=None, config_class=SFTConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(flags, file, config_class)
    return str(caught.value)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "run.yaml",
            (
                "method: sft\nmodel: org/m\n# a comment\nlearning_rate: 1e-5\nmax_length: null\nuse_peft:"
                " true\neval_reward:\n  - json:loads\neval_dataset: org/e\nlr_scheduler_kwargs:\n  power:"
                " 2\nnum_train_epochs: 1\ndataset:\n  - path: a/b\n    weight: 2\n"
            ),
        ),
        (
            "run.toml",
            (
                'method = "sft"\nmodel = "org/m"\n# a comment\nlearning_rate = 1e-5\nmax_length = "none"\nuse_peft ='
                ' true\neval_reward = ["json:loads"]\n\neval_dataset = "org/e"\n\nnum_train_epochs ='
                ' 1\nlr_scheduler_kwargs.power = 2\n[[dataset]]\npath = "a/b"\nweight = 2\n'
            ),
        ),
        (
            "run.json",
            (
                '{"method": "sft",\n"model": "org/m",\n\n"learning_rate": 1e-5, \n\t"max_length": null,\n"use_peft":'
                ' true,\n"eval_reward": [\n"json:loads"],\n"eval_dataset": "org/e", "$schema":'
                ' "x",\n"lr_scheduler_kwargs": {"power": 2}, "num_train_epochs": 1,\n\n"dataset": [{"path": "a/b",'
                ' "weight": 2}]}'
            ),
        ),
    ],
)
def test_a_file_gives_values_and_the_line_of_each(name, text):
    resolved = resolving.resolve(SFTConfig, write(name, text), ["--max-steps", "3"], method="sft")
    config = resolved.config
    assert (config.model, config.learning_rate, config.max_length, config.use_peft) == ("org/m", 1e-5, None, True)
    assert config.eval_reward == ["json:loads"] and config.lr_scheduler_kwargs == {"power": 2}
    assert config.num_train_epochs == 1.0 and isinstance(config.num_train_epochs, float)
    assert config.dataset == [{"path": "a/b", "weight": 2}]
    lines = text.splitlines()
    for field in ("model", "learning_rate", "max_length", "eval_reward", "lr_scheduler_kwargs", "dataset"):
        file, line = resolved.origins[field].split(":")
        assert file == name and field in lines[int(line) - 1]
    assert resolved.origins["max_steps"] == "flag --max-steps" and resolved.origins["seed"] == "default"
    assert set(resolved.origins) == {field.name for field in dataclasses.fields(SFTConfig)}


def test_flags_override_the_file():
    file = write("run.yaml", "learning_rate: 1e-3\nreport_to: [wandb]\nseed: 1\n")
    resolved = resolve(["--learning-rate=2e-3", "--report-to", "tensorboard", "mlflow"], file)
    assert resolved.config.learning_rate == 2e-3 and resolved.origins["learning_rate"] == "flag --learning-rate"
    assert resolved.config.report_to == ["tensorboard", "mlflow"]  # replaced, not added to
    assert resolved.config.seed == 1 and resolved.origins["seed"] == "run.yaml:3"


def test_every_problem_is_reported_at_once_with_file_and_line():
    file = write(
        "run.yaml",
        "lerning_rate: 1e-5\nmax_seq_length: 4\nlora_r: 0\nuse_peft: 1\nmax_steps: '8'\nseed: 1.0\nloss_type: ntl\n"
        "report_to: wanbd\nadam_beta1: 1.5\nrun_name: 5\nenv: {A: b}\ngradient_accumulation_steps: true\n"
        "logging_steps:\neval_temperature: .nan\nzzz: 1\n",
    )
    text = refusal(["--nonesuch", "4", "--eval-top-p", "high"], file)
    assert text.startswith("17 problems:\n")
    for line in (
        "run.yaml:1: unknown field lerning_rate; did you mean learning_rate?",
        "run.yaml:2: unknown field max_seq_length; here it is max_length",
        "run.yaml:3: lora_r: found the number 0, expected a whole number above 0",
        "run.yaml:4: use_peft: found the number 1, expected true or false",
        "run.yaml:5: max_steps: found the text '8', expected a whole number at least -1",
        "run.yaml:6: seed: found the number 1.0, expected a whole number",
        "run.yaml:7: loss_type: found the text 'ntl', expected one of nll, dft; did you mean nll?",
        "run.yaml:8: report_to: found the text 'wanbd', expected a list of some of tensorboard, wandb, trackio, "
        "mlflow, comet_ml, clearml, aim, dvclive, swanlab, all; did you mean wandb?",
        "run.yaml:9: adam_beta1: found the number 1.5, expected a number at least 0 and at most 1",
        "run.yaml:10: run_name: found the number 5, expected a text, or none; in quotes it is a text",
        "run.yaml:11: unknown field env; a config doesn't set the environment; set it where ft-host is called",
        "run.yaml:12: gradient_accumulation_steps: found true, expected a whole number above 0",
        "run.yaml:13: logging_steps: found nothing, expected a whole number above 0",
        "run.yaml:14: eval_temperature: found the number nan, expected a number at least 0",
        "run.yaml:15: unknown field zzz; ft-host train METHOD --help lists the fields",
        "--nonesuch: no such flag; --help lists them",
        "--eval-top-p: found the text 'high', expected a number above 0 and at most 1",
    ):
        assert f"\n  {line}" in text


@pytest.mark.parametrize("formats", [("preference",), ("preference", "unpaired preference"), ("prompt-only",)])
def test_rows_that_must_stay_whole_are_not_cut(formats):
    """Of a stranger's method too, before a model is loaded: it needs no check of its own."""

    @dataclass(kw_only=True)
    class Pairs(RunConfig):
        """Pairs."""

    Pairs.formats = formats
    cut = ["--packing", "true", "--packing-strategy", "wrapped"]
    said = refusal(cut, config_class=Pairs)
    assert f"wrapped cuts rows anywhere, but rows of {' or '.join(formats)} must stay whole; use bfd" in said
    for taken in ((), ("language modeling", *formats)):
        Pairs.formats = taken
        assert resolving.resolve(Pairs, None, [*GIVEN, *cut]).config.packing_strategy == "wrapped"


def test_aliases_are_taken_and_two_names_of_one_field_are_refused():
    file = write("run.yaml", "model_name_or_path: org/m\ndataset_name: org/d\n")
    resolved = resolving.resolve(SFTConfig, file)
    assert (resolved.config.model, resolved.config.dataset) == ("org/m", "org/d")
    assert resolved.origins["model"] == "run.yaml:1"
    file = write("run.yaml", "model: org/m\nmodel_name_or_path: org/n\n")
    assert refusal(file=file) == "run.yaml:2: model_name_or_path is model, which is already set in run.yaml:1"
    resolved = resolving.resolve(SFTConfig, None, ["--model_name_or_path", "org/m", "--dataset_name=org/d"])
    assert resolved.config.model == "org/m" and resolved.origins["dataset"] == "flag --dataset"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("run.yaml", "seed: 1\n\nseed: 2\n", "run.yaml:3: seed stands twice; first in line 1"),
        ("run.yaml", "optim_args:\n  a: 1\n  a: 2\n", "run.yaml:3: a stands twice; first in line 2"),
        ("run.toml", "seed = 1\n# x\nseed = 2\n", "run.toml:3: seed stands twice; first in line 1"),
        ("run.json", '{"seed": 1,\n "seed": 2}', "run.json:2: seed stands twice; first in line 1"),
        ("run.json", '{"optim_args": {"a": 1, "a": 2}}', "run.json: a stands twice in one mapping"),
        ("run.yaml", "seed: 1\n  model: x\n", "run.yaml:2:8: mapping values are not allowed here"),
        ("run.yaml", "seed: 1\nmodel: [a\n", "run.yaml:3:1: expected ',' or ']', but got '<stream end>'"),
        ("run.yaml", "optim_args:\n\ta: 1\n", "run.yaml:2:1: a tab; YAML is indented with spaces"),
        ("run.yaml", "- seed\n", "run.yaml:1: expected fields, such as model: some/model"),
        ("run.yaml", "model: !!python/name:os.system\n", "run.yaml:1:8: could not determine a constructor for the tag"),
        ("run.toml", "seed = 1\nmodel = x\n", "run.toml:2:9: Invalid value"),
        ("run.json", '{"seed": 1,\n "model" 2}', "run.json:2:10: Expecting ':' delimiter"),
        ("run.json", "[1]", 'run.json:1: expected fields, such as {"model": "some/model"}'),
        ("run.ini", "seed = 1", "run.ini: a config file ends in .yaml, .yml, .toml, .json"),
    ],
)
def test_a_file_that_cannot_be_read_names_the_line(name, text, said):
    assert said in refusal(file=write(name, text))


def test_a_missing_file_names_the_nearest():
    write("run.yaml", "")
    assert refusal(file="rum.yaml") == "rum.yaml: no such file; did you mean run.yaml?"
    assert refusal(file="nowhere/run.yaml") == "nowhere/run.yaml: no such file; there is no folder nowhere"
    Path("latin.yaml").write_bytes(b"seed: 1\nrun_name: \xe9t\xe9\n")
    assert refusal(file="latin.yaml").startswith("latin.yaml:2: not a text file in UTF-8")


def test_yaml_is_read_as_people_expect():
    text = (
        "\ufefflearning_rate: 1e-5\nadam_epsilon: 1E-9\nweight_decay: .1\nwarmup_steps: 3\n"
        "max_steps: -1\nrun_name: no\ndataset_config: 2024-01-01\nmodel_revision: '123'\nmax_grad_norm: 1.\n"
    )
    config = resolve(file=write("run.yaml", text)).config
    assert (config.learning_rate, config.adam_epsilon, config.weight_decay, config.warmup_steps) == (1e-5, 1e-9, 0.1, 3)
    assert (config.run_name, config.dataset_config, config.model_revision) == ("no", "2024-01-01", "123")
    assert "found the text 'yes', expected true or false" in refusal(file=write("run.yaml", "use_peft: yes\n"))
    assert resolve(file=write("run.yaml", "")).config.seed == 42
    merged = "seed: 3\nlr_scheduler_kwargs: &a {x: 1}\noptim_args:\n  <<: *a\n  y: 2\n"
    assert resolve(file=write("run.yaml", merged)).config.optim_args == {"x": 1, "y": 2}
    assert "optim_args" in refusal(file=write("run.yaml", "optim_args: &a {a: *a}\n"))


def test_the_file_may_name_the_method():
    file = write("run.yaml", "seed: 1\nmethod: dpo\n")
    with pytest.raises(ConfigError, match="run.yaml:2: method: the file is for dpo, the command line says sft"):
        resolving.resolve(SFTConfig, file, GIVEN, method="sft")
    assert "run.yaml:1: method: found the number 3" in refusal(file=write("run.yaml", "method: 3\n"))


# ---------------------------------------------------------------- flags


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (["--max_steps", "-1"], "max_steps", -1),
        (["--max-steps=7"], "max_steps", 7),
        (["--use-peft"], "use_peft", True),
        (["--use-peft", "--seed", "1"], "use_peft", True),
        (["--use-peft", "false"], "use_peft", False),
        (["--use-peft=no"], "use_peft", False),
        (["--no-eval-on-start"], "eval_on_start", False),
        (["--no_eval_on_start"], "eval_on_start", False),
        (["--bf16", "none"], "bf16", None),
        (["--no-bf16"], "bf16", False),
        (
            ["--use-peft", "--lora-target-modules", "q_proj", "v_proj", "--seed", "1"],
            "lora_target_modules",
            ["q_proj", "v_proj"],
        ),
        (["--use-peft", "--lora-target-modules", "q", "--lora-target-modules=v"], "lora_target_modules", ["q", "v"]),
        (["--use-peft", "--lora-target-modules", '["q", "v"]'], "lora_target_modules", ["q", "v"]),
        (["--required-plugins", "ft-sft>=0.1,<1"], "required_plugins", ["ft-sft>=0.1,<1"]),
        (["--report-to", "none"], "report_to", []),
        (["--dataset-columns", '{"q": "prompt"}'], "dataset_columns", {"q": "prompt"}),
        (["--dataset-columns", "{q: prompt}"], "dataset_columns", {"q": "prompt"}),
        (["--optim-args", '{"x": [1, 1e-5]}'], "optim_args", {"x": [1, 1e-5]}),
        (["--max-length", "none"], "max_length", None),
        (["--max-length", "null"], "max_length", None),
        (["--segment-attention", "none"], "segment_attention", "none"),
        (["--run-name", "5"], "run_name", "5"),
        (["--run-name=--odd"], "run_name", "--odd"),
        (["--warmup-steps", "3"], "warmup_steps", 3.0),
    ],
)
def test_flags(flags, field, value):
    resolved = resolve(flags)
    found = getattr(resolved.config, field)
    assert found == value and type(found) is type(value)
    assert resolved.origins[field] == "flag --" + field.replace("_", "-")


def test_a_list_of_data_sets_as_a_flag():
    flags = ["--model", "org/m", "--dataset", '[{"path": "a/b", "weight": 2}, {"path": "c/d"}]']
    assert resolving.resolve(SFTConfig, None, flags).config.dataset == [{"path": "a/b", "weight": 2}, {"path": "c/d"}]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--learn", "1e-5"], "--learn: no such flag; --help lists them"),
        (["--learning", "1e-5"], "--learning: no such flag; did you mean --learning-rate?"),
        (["--lr", "1e-5"], "--lr: no such flag; here it is --learning-rate"),
        (["--warmup-ratio", "0.1"], "no such flag; here it is --warmup-steps (below 1 it is a share of all steps)"),
        (["--config", "run.yaml"], "--config: no such flag; give the config file itself"),
        (["--seed"], "--seed needs a value: a whole number"),
        (["--seed", "--use-peft"], "--seed needs a value"),
        (["--seed", "1e3"], "--seed: found the text '1e3', expected a whole number"),
        (["--seed", "1", "--seed", "2"], "--seed is given twice: 1, then 2"),
        (["--use-peft", "run.yaml"], "unexpected 'run.yaml' after --use-peft; METHOD and CONFIG come first"),
        (["--seed", "1", "2"], "unexpected '2' after 1;"),
        (["-lr", "1e-5"], "-lr: flags take two hyphens, as in --lr"),
        (["--no-seed"], "--no-seed: seed isn't a switch; write --seed value"),
        (["--no-use-peft", "true"], "--no-use-peft: takes no value, found 'true'"),
        (["--dataset-columns", "q=prompt"], "--dataset-columns: found the text 'q=prompt', expected a mapping such as"),
        (["--dataset-columns", "{q: "], "found the text '{q: ', which is neither JSON nor YAML"),
        (["--dataset-columns", "{q: 3}"], "--dataset-columns: dataset_columns.q: found the number 3"),
        (["--report-to", "wandb", "tensorbord"], "found the text 'tensorbord', expected a list of some of tensorboard"),
        (["--learning-rate", "nan"], "--learning-rate: found the number nan"),
        (["--learning-rate", "-1"], "--learning-rate: found the number -1.0, expected a number above 0"),
        (["--use-peft=maybe"], "--use-peft: found the text 'maybe', expected true or false"),
        (["--max-length", "many"], "--max-length: found the text 'many', expected a whole number above 1, or none"),
    ],
)
def test_wrong_flags(flags, said):
    assert said in refusal(flags)


def test_what_is_required_is_named_with_an_example():
    with pytest.raises(ConfigError) as caught:
        resolving.resolve(SFTConfig, write("run.yaml", "dataset: ''\n"))
    said = "model is required: give --model or model: in the config file, for instance --model Qwen/Qwen3-0.6B"
    assert said in str(caught.value)
    assert "dataset is required" in str(caught.value)
    with pytest.raises(ConfigError) as caught:  # given but wrong is not called missing too
        resolving.resolve(SFTConfig, write("run.yaml", "dataset: 3\nmodel: org/m\n"))
    assert "required" not in str(caught.value) and "run.yaml:1: dataset: found the number 3" in str(caught.value)


def test_what_is_required_may_be_so_unless_something_else_is_given():
    @dataclass(kw_only=True)
    class Config(RunConfig):
        target: str = option("", "A text.", required=True, unless="other", example="a.py:f")
        other: str | None = option(None, "In its place.")

    said = "target is required: give --target or target: in the config file, for instance --target a.py:f (or other)"
    assert said in refusal(config_class=Config)
    assert resolve(["--other", "b"], config_class=Config).config.target == ""
    assert resolve(["--target", "a"], config_class=Config).config.other is None
    assert "target is required" in refusal(["--other", "none"], config_class=Config)


def test_combinations_are_refused_with_where_each_comes_from():
    file = write("run.yaml", "bf16: true\n")
    assert (
        refusal(["--fp16"], file)
        == "bf16 and fp16 can't both be set (bf16 is from run.yaml:1, fp16 is from flag --fp16)"
    )
    assert "eval_reward: nothing to evaluate on" in refusal(["--eval-reward", "json:loads"])


def test_old_names_point_at_fields_that_exist():
    methods = [info for info in registry.catalog() if info.kind == "method"]
    known = {info.name: fields_of(registry.config_class(info)) for info in methods}
    for old, (new, _) in RENAMED.items():
        # one method may have it (PPO's kl_coef, a method's max_prompt_length): then it is no question there
        assert any(old not in names_of(fields) for fields in known.values()), f"{old} is a field of every method"
        assert new is None or any(new in fields for fields in known.values()), f"{old} points at {new}"
    assert hint("dpo_beta", {"beta"}) == "here it is beta"
    assert hint("dpo_beta", fields_of(SFTConfig)) == "elsewhere it is what beta is here, and this method has none"
    assert refusal(["--tokenizer", "x"]).startswith("--tokenizer: no such flag; the tokenizer is the model's")


# ---------------------------------------------------------------- files that a config names


def test_local_files_must_be_there():
    Path("data").mkdir()
    write("data/train.jsonl", "{}\n")
    write(
        "rewards.py",
        "import math\nfrom json import loads as parse\n\ndef exact_match():\n    def inner(): ...\n\nf = 1\n"
        "try:\n    import torch\nexcept ImportError:\n    def close(): ...\n",
    )
    assert (
        refusal(["--eval-dataset", "data/tran.jsonl"])
        == "--eval-dataset: data/tran.jsonl: no such file or folder; did you mean data/train.jsonl?"
    )
    assert "--model: ./mdl: no such file or folder" in str(
        pytest.raises(ConfigError, resolving.resolve, SFTConfig, None, ["--model", "./mdl", "--dataset", "a/b"]).value
    )
    assert "--chat-template-path: chat.jinja: no such file" in refusal(["--chat-template-path", "chat.jinja"])
    for good in ("rewards.py:exact_match", "rewards.py:parse", "rewards.py:f", "rewards.py:close", "json:loads"):
        resolve(["--eval-dataset", "data/train.jsonl", "--eval-reward", good])
    for wrong, said in (
        ("rewards.py:exact_mach", "rewards.py defines no function exact_mach; did you mean exact_match?"),
        ("rewards.py:inner", "rewards.py defines no function inner; it defines exact_match, close"),
        ("reward.py:exact_match", "reward.py: no such file; did you mean rewards.py?"),
        ("rewards.py", "found the text 'rewards.py', expected file.py:function or package.module:function"),
        ("no_such_package.rewards:f", "there is no package no_such_package to import"),
    ):
        assert said in refusal(["--eval-dataset", "data/train.jsonl", "--eval-reward", wrong])
    write("broken.py", "x = 1\ndef f(:\n")
    flags = ["--eval-dataset", "a/b", "--eval-reward", "broken.py:f"]
    assert "--eval-reward: broken.py:2: invalid syntax" in refusal(flags)


def test_a_path_beside_the_config_file_is_pointed_out():
    Path("configs").mkdir()
    write("configs/train.jsonl", "{}\n")
    file = write("configs/run.yaml", "model: org/m\ndataset: train.jsonl\n")
    with pytest.raises(ConfigError) as caught:
        resolving.resolve(SFTConfig, file)
    assert (
        str(caught.value)
        == "configs/run.yaml:2: dataset: train.jsonl: no such file or folder; there is configs/train.jsonl, but paths "
        "start from the folder that ft-host is called in"
    )


def test_mixtures_are_checked():
    file = write(
        "run.yaml",
        "model: org/m\ndataset:\n  - {path: a/b, wieght: 2}\n  - {weight: 1}\n  - {path: gone.jsonl, weight: 0}\n",
    )
    with pytest.raises(ConfigError) as caught:
        resolving.resolve(SFTConfig, file)
    for said in (
        "run.yaml:2: dataset: [0]: unknown key wieght; did you mean weight?",
        "run.yaml:2: dataset: [1]: has no path",
        "run.yaml:2: dataset: [2]: gone.jsonl: no such file",
        "run.yaml:2: dataset: [2].weight: found the number 0, expected a number above 0",
    ):
        assert said in str(caught.value)


def test_a_folder_that_holds_a_run_is_not_written_to(monkeypatch):
    Path("runs/a").mkdir(parents=True)
    paths.check_output("runs/a")
    write("runs/a/run.json", "{}")
    with pytest.raises(ConfigError, match=r"`ft-host train --resume runs/a` goes on with it"):
        paths.check_output("runs/a")
    monkeypatch.setenv("RANK", "1")  # by then the first process may have begun the run
    paths.check_output("runs/a")


# ---------------------------------------------------------------- Python


def test_configs_made_in_python_pass_the_same_checks():
    good = SFTConfig(model="org/m", dataset="org/d", learning_rate=1, use_peft=True, lora_target_modules=["q_proj"])
    origins = resolving.check(good)
    assert origins["learning_rate"] == origins["model"] == "python" and origins["seed"] == "default"
    bad = SFTConfig(model="org/m", lora_r="16", loss_type="ntl", max_length="none")
    bad.lerning_rate = 1e-5
    with pytest.raises(ConfigError) as caught:
        resolving.check(bad)
    for said in (
        "lerning_rate: SFTConfig has no such field; did you mean learning_rate?",
        "lora_r: found the text '16', expected a whole number above 0",
        "loss_type: found the text 'ntl'",
        "max_length: found the text 'none'",
        "dataset is required",
    ):
        assert said in str(caught.value)
    with pytest.raises(ConfigError, match="bf16 and fp16"):
        resolving.check(SFTConfig(model="org/m", dataset="org/d", bf16=True, fp16=True))
    resolved = resolving.resolve(SFTConfig, None, {"model": "org/m", "dataset": "org/d", "max_steps": 3})
    assert resolved.config.max_steps == 3 and resolved.origins["max_steps"] == "python"


def test_defaults_are_not_shared_between_configs():
    first, second = SFTConfig(), SFTConfig()
    first.lora_target_modules.append("lm_head")
    assert second.lora_target_modules == ["all-linear"]


# ---------------------------------------------------------------- resuming


def test_a_resumed_run_keeps_its_config_but_for_what_may_change():
    recorded = dataclasses.asdict(
        SFTConfig(model="org/m", dataset="org/d", max_steps=10, use_peft=True, lora_target_modules=["q"])
    )
    origins = dict.fromkeys(recorded, "default") | {"max_steps": "run.yaml:3"}
    flags = ["--max-steps", "20", "--model", "org/m"]
    resolved = resolve_resumed(SFTConfig, recorded, origins, "runs/a/run.json", flags)
    assert resolved.config.max_steps == 20 and resolved.origins["max_steps"] == "flag --max-steps"
    assert resolved.config.lora_target_modules == ["q"] and resolved.origins["model"] == "default"
    with pytest.raises(ConfigError) as caught:
        resolve_resumed(SFTConfig, recorded, origins, "runs/a/run.json", ["--learning-rate", "1", "--seed", "3"])
    assert "--learning-rate can't change when a run is resumed; these can: --max-steps" in str(caught.value)
    assert "--seed can't change" in str(caught.value)
    with pytest.raises(ConfigError, match="runs/a/run.json: the installed method has no field gone"):
        resolve_resumed(SFTConfig, recorded | {"gone": 1}, origins, "runs/a/run.json", [])
    assert set(RESUMABLE) <= set(fields_of(RolloutConfig))


# ---------------------------------------------------------------- made from the fields


def uncommented(text: str) -> str:
    """A starting file with every field that is commented out brought in."""
    lines = text.splitlines()
    return "\n".join(line[1:] if line[:1] == "#" and line[1:2].isalpha() else line for line in lines)


@pytest.mark.parametrize("form", ["yaml", "toml"])
def test_the_starting_file_resolves_to_the_defaults(form):
    text = starter("sft", SFTConfig, form)
    assert "$schema=sft.schema.json" in text.splitlines()[0] or "schema ./sft.schema.json" in text.splitlines()[0]
    with pytest.raises(ConfigError, match="model is required"):
        resolving.resolve(SFTConfig, write(f"run.{form}", text))
    equals = " = " if form == "toml" else ": "
    for field in ("model", "dataset"):
        assert f'\n{field}{equals}""' in text
        text = text.replace(f'\n{field}{equals}""', f'\n{field}{equals}"org/x"')
    expected = SFTConfig(model="org/x", dataset="org/x")
    resolved = resolving.resolve(SFTConfig, write(f"run.{form}", text), method="sft")
    assert resolved.config == expected
    assert {name for name, origin in resolved.origins.items() if origin != "default"} == {"model", "dataset"}
    full = resolving.resolve(SFTConfig, write(f"run.{form}", uncommented(text)), method="sft")
    assert full.config == expected
    assert "default" not in full.origins.values()  # so every field is in the file


def test_the_dry_run_is_a_config_that_gives_the_same_again():
    flags = [
        "--learning-rate",
        "3e-7",
        "--use-peft",
        "--lora-target-modules",
        "q_proj",
        "v_proj",
        "--run-name",
        "a: b #c",
        "--optim-args",
        '{"x": 1e-9}',
        "--max-length",
        "none",
        "--eval-dataset",
        "true",
    ]
    resolved = resolve(flags)
    text = dry_run("sft", "ft-sft 0.2.0, experimental", resolved, 2)
    assert resolving.resolve(SFTConfig, write("full.yaml", text), method="sft").config == resolved.config
    assert "# each optimizer step: 16 rows (8 a device × 1 accumulated × 2 processes)" in text
    assert [line for line in text.splitlines() if line.startswith("learning_rate: 3.0e-07 ")][0].endswith(
        "# flag --learning-rate"
    )
    write("rows.jsonl", "{}\n" * 20)
    resolved = resolving.resolve(SFTConfig, None, ["--model", "org/m", "--dataset", "rows.jsonl"])
    assert "# length: 3 epochs of 20 rows, about 8 steps" in dry_run("sft", "", resolved, 1)


def test_values_are_written_so_that_they_are_read_again():
    for text in ("a: b #c", "'\"\\", "1e-5", "yes", "- x", "{", "\u2028", "\x85 \x7f", "\U0001f600", "\t\n", "..", "~"):
        for form, write_value, equals in (("yaml", yaml_text, ": "), ("toml", toml_text, " = ")):
            values = {"run_name": text, "learning_rate": 1e-22, "optim_args": {text: [text, 1e-5, True]}}
            lines = [f"{name}{equals}{write_value(value)}" for name, value in values.items()]
            config = resolve(file=write(f"run.{form}", "\n".join(lines))).config
            assert {name: getattr(config, name) for name in values} == values, (form, text)


def test_the_schema_is_valid_and_agrees_with_what_is_read():
    made = schema("sft", SFTConfig)
    jsonschema.Draft202012Validator.check_schema(made)
    validator = jsonschema.Draft202012Validator(made)
    fields = fields_of(SFTConfig)
    assert made["additionalProperties"] is False
    assert set(names_of(fields)) | {"method", "$schema"} == set(made["properties"])
    for name, field in fields.items():
        assert field.help in made["properties"][name]["description"]
        assert made["properties"][name]["default"] == field.default
        if not field.required:
            assert validator.is_valid({name: field.default}), name
    base: dict[str, Any] = {"model": "org/m", "dataset": "org/d", "eval_dataset": "org/e"}
    for values in (
        {},
        {"method": "sft", "$schema": "x"},
        {"learning_rate": 1},
        {"max_length": None},
        {"max_length": "none"},
        {"lora_r": 0},
        {"lora_r": True},
        {"loss_type": "dft"},
        {"loss_type": "x"},
        {"unknown": 1},
        {"seed": "1"},
        {"report_to": ["wandb"]},
        {"report_to": "wandb"},
        {"report_to": ["x"]},
        {"report_to": "x"},
        {"report_to": "none"},
        {"report_to": None},
        {"optim_args": None},
        {"loss_type": "chunked_nll"},
        {"torch_dtype": "bf16"},
        {"adam_beta1": 2},
        {"optim_args": {"a": [1]}},
        {"bf16": None},
        {"seed": None},
        {"dataset_columns": {"a": 1}},
        {"dataset_columns": {"a": "b"}},
        {"dataset": [{"path": "a/b", "weight": 1}]},
        {"dataset": [{"weight": 1}]},
        {"dataset": [{"path": "a/b", "x": 1}]},
        {"model": ""},
        {"dataset": [{"path": "a/b", "weight": 0}]},
        {"run_name": None},
        {"run_name": 3},
        {"max_steps": -2},
    ):
        file = write("run.json", json.dumps(base | values))
        try:
            resolving.resolve(SFTConfig, file)
            read = True
        except ConfigError:
            read = False
        assert validator.is_valid(base | values) == read, values


def test_help_lists_every_field_in_order_and_within_the_width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    text = method_help("sft", SFTConfig)
    assert all(len(line) <= 70 for line in text.splitlines())
    flags = [line.split()[0] for line in text.splitlines() if line.startswith("  --")]
    assert flags == [field.flag for field in fields_of(SFTConfig).values()]
    places = [text.index(words) for words in ("sft's own fields", "--loss-type nll|dft", "\nmodel\n", "--model ")]
    assert places == sorted(places)
    assert "--learning-rate NUMBER  (default: 2e-05; above 0)" in text
    words = " ".join(text.split())
    for field in fields_of(SFTConfig).values():
        assert " ".join(field.help.split()) in words


def test_the_reference_is_up_to_date():
    root = Path(__file__).resolve().parent.parent
    spec = importlib.util.spec_from_file_location("generate_config", root / "docs" / "generate_config.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (root / "docs" / "config.md").read_text(encoding="utf-8")
    assert written == module.generate(), "run: python docs/generate_config.py"


def test_lists_of_names_agree_with_the_libraries_they_are_from():
    from transformers import SchedulerType

    from ft_host.training.optim import OPTIMIZERS as made

    assert set(OPTIMIZERS) == set(made)
    assert set(SCHEDULES) <= {each.value for each in SchedulerType}


# ---------------------------------------------------------------- a backend's config


@pytest.fixture
def far(tmp_path, monkeypatch):
    """The backend `far`, which is installed for this test; its hooks can't be imported, and need not be."""
    source = """
        from dataclasses import dataclass
        from ft_host.config import option
        from ft_host.errors import ConfigError

        @dataclass(kw_only=True)
        class Config:
            port: int | None = option(None, "A port.", gt=0)
            modes: list[str] = option([], "Some modes.", choices=("slow", "fast"))

            def check(self):
                if self.port is not None and self.modes:
                    raise ConfigError("backend_config.port: has no effect with modes")
    """
    (tmp_path / "site").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    make_distribution(
        tmp_path / "site",
        "ft-far",
        requires=["ft-host"],
        entry_points={
            "ft_host.backends": {"far": "fake_far.hooks"},
            "ft_host.configs": {"far": "fake_far.config:Config"},
        },
        modules={"fake_far.hooks": "raise RuntimeError", "fake_far.config": textwrap.dedent(source)},
    )
    registry.catalog.cache_clear()
    yield
    registry.catalog.cache_clear()
    for name in ("fake_far", "fake_far.config"):
        sys.modules.pop(name, None)


def generating(**fields: Any) -> SFTConfig:
    return SFTConfig(
        **({"model": "org/m", "dataset": "org/d", "eval_reward": ["json:loads"], "backend": "far"} | fields)
    )


def test_a_backend_has_fields_of_its_own(far):
    info, made = registry.backend_of(generating(backend_config={"port": 8, "modes": []}))
    assert (info.name, made.port, made.modes) == ("far", 8, [])
    assert registry.backend_of(generating())[1].port is None
    assert registry.backend_of(generating(eval_reward=[])) == (None, None)
    info, made = registry.backend_of(generating(backend="transformers"))
    assert info.name == "transformers" and made is None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"backend_config": {"prot": 8}}, "backend_config: unknown field prot; did you mean port?"),
        (
            {"backend_config": {"port": "8"}},
            "backend_config: port: found the text '8', expected a whole number above 0",
        ),
        ({"backend_config": {"modes": ["fats"]}}, "backend_config: modes: .*did you mean fast?"),
        (
            {"backend_config": {"port": 0, "mode": []}},
            "2 problems:\n  backend_config: port: .*\n  backend_config: unknown",
        ),
        ({"backend_config": {"port": 1, "modes": ["slow"]}}, "backend_config.port: has no effect with modes"),
        (
            {"backend_config": {"port": 1}, "backend": "transformers"},
            "the backend transformers has no fields of its own",
        ),
        (
            {"backend_config": {"port": 1}, "eval_reward": []},
            "backend_config: has no effect on a run that generates nothing",
        ),
    ],
)
def test_fields_of_a_backend_are_checked_as_those_of_a_run(far, fields, said):
    with pytest.raises(ConfigError, match=said):
        registry.backend_of(generating(**fields))


# ---------------------------------------------------------------- a method's config


def test_a_method_may_have_fields_of_other_types():
    @dataclass(kw_only=True)
    class Config(RunConfig):
        betas: list[float] = option([0.1], "Some numbers.", ge=0)
        limit: int | float = option(1, "Either.")
        weights: dict[str, float] = option({}, "By name.")
        names: list[str] | None = option(None, "Or none.")

    config = resolve(["--betas", "1", "0.5", "--limit", "2.5", "--weights", "{a: 1}"], config_class=Config).config
    assert (config.betas, config.limit, config.weights, config.names) == ([1.0, 0.5], 2.5, {"a": 1.0}, None)
    assert resolve(["--limit", "2"], config_class=Config).config.limit == 2
    assert resolve(["--names", "a"], config_class=Config).config.names == ["a"]
    assert "--betas: found the number -1.0" in refusal(["--betas", "-1"], config_class=Config)
    assert "no such flag; here it is --learning-rate" in refusal(["--lr", "1"], config_class=Config)


def test_a_field_that_cannot_be_read_is_the_package_s_fault():
    @dataclass(kw_only=True)
    class Plain(RunConfig):
        beta: float = 0.1

    @dataclass(kw_only=True)
    class Typed(RunConfig):
        path: Path = option(None, "A path.")

    @dataclass(kw_only=True)
    class Taken(RunConfig):
        other: str = option("", "A text.", aliases=("model",))

    for config_class, said in (
        (Plain, "Plain.beta isn't declared with ft_host.config.option"),
        (Typed, "Typed.path: its type Path can't be read from a file"),
        (Taken, "Taken.other: the name model is already taken by model"),
    ):
        with pytest.raises(PluginBroken, match=said):
            fields_of(config_class)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"lora_r": 8}, "lora_r: has no effect without use_peft"),
        ({"merge_adapter": True}, "merge_adapter: has no effect without use_peft"),
        ({"packing_strategy": "wrapped"}, "packing_strategy: has no effect without packing"),
        ({"use_bnb_nested_quant": True}, "use_bnb_nested_quant: has no effect without load_in_4bit"),
        ({"packing": True, "train_sampling_strategy": "group_by_length"}, "set one of them"),
    ],
)
def test_a_field_that_would_be_ignored_is_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        SFTConfig(model="org/m", dataset="org/d", **fields).check()
    SFTConfig(model="org/m", dataset="org/d", use_peft=True, lora_r=8, packing=True, packing_strategy="wrapped").check()
