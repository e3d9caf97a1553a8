"""Run files of TRL and of older releases, as files of this one."""

from __future__ import annotations

import dataclasses
import importlib
import warnings

import pytest
import yaml

from ft_host import registry
from ft_host.cli import main
from ft_host.config import RunConfig
from ft_host.config.fields import fields_of, names_of, vars_of
from ft_host.config.files import read_file
from ft_host.config.old_names import old_names
from ft_host.config.resolve import read_values, resolve
from ft_host.errors import UsageError
from ft_host.migrate import current_text, read_trl, translate

BASE = "--model_name_or_path org/model --dataset_name org/rows"


def migrated(capsys, *words: str) -> tuple[dict, str]:
    """The values of the file that the command prints, and its text."""
    assert main(["migrate", "--from", "trl", *words]) == 0
    text = capsys.readouterr().out
    return yaml.safe_load(text), text


def test_a_command_line(capsys):
    values, text = migrated(
        capsys,
        *f"trl dpo {BASE} --beta 0.05 --warmup_ratio 0.1 --no_remove_unused_columns --loss_type sigmoid sft".split(),
    )
    assert values == {
        "method": "dpo",
        "model": "org/model",
        "dataset": "org/rows",
        "beta": 0.05,
        "warmup_steps": 0.1,
        "loss_type": ["sigmoid", "sft"],
    }
    assert "warmup_steps: 0.1  # warmup_ratio there" in text and "# Done here anyway: remove_unused_columns" in text


def test_a_launcher_and_a_script_of_trl(capsys):
    values, _ = migrated(
        capsys, *f"accelerate launch --num_processes 8 trl/scripts/gkd.py {BASE} --max_new_tokens=64".split()
    )
    assert values["method"] == "gkd" and values["max_completion_length"] == 64 and "num_processes" not in values
    assert values["temperature"] == 0.9  # TRL's default, which is another here


def test_a_yaml_file_and_flags_that_override_it(capsys, tmp_path):
    (tmp_path / "dpo.yaml").write_text(
        "model_name_or_path: org/model\nbeta: 0.5\nuse_peft: true\nhub_strategy: every_save\n"
    )
    values, text = migrated(capsys, "trl", "dpo", "--config", str(tmp_path / "dpo.yaml"), "--beta", "0.2")
    assert values["beta"] == 0.2 and values["lora_dropout"] == 0.05
    assert "#   hub_strategy: every_save  (not offered; `hf upload` takes the run's model folder)" in text
    assert main(["migrate", "--from", "trl", str(tmp_path / "dpo.yaml")]) == 2
    assert "give --method" in capsys.readouterr().err


SCRIPT = """
import os
from datasets import load_dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

open("ran", "w").write("a script is never run")
rate = 1e-5
rows = load_dataset("org/prompts", split="train[:10%]")
args = GRPOConfig(output_dir="out", use_vllm=True, vllm_mode="colocate", vllm_gpu_memory_utilization=0.3,
                  learning_rate=rate * 2, scale_rewards=False, num_generations=4)
trainer = GRPOTrainer(model="org/model", reward_funcs=os.getcwd, args=args, train_dataset=rows,
                      peft_config=LoraConfig(r=16, target_modules="all-linear"))
trainer.train()
"""


def test_a_script_is_read_and_not_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(SCRIPT)
    values, text = migrated(capsys, "train.py")
    assert values["method"] == "grpo" and values["model"] == "org/model" and values["dataset"] == "org/prompts"
    assert values["dataset_train_split"] == "train[:10%]" and values["scale_rewards"] == "none"
    assert values["backend"] == "vllm"
    assert values["backend_config"] == {"mode": "inprocess", "gpu_memory_utilization": 0.3}
    assert (values["lora_r"], values["lora_alpha"], values["lora_dropout"]) == (16, 8, 0.0)  # peft's defaults
    assert values["disable_dropout"] is False
    assert "#   learning_rate: rate * 2  (train.py:10)" in text and "reward_funcs: os.getcwd" in text
    assert not (tmp_path / "ran").exists()


NAMES = """
import trl
from datasets import load_dataset

MODEL: str = "org/m"
rows = load_dataset("org/d", "en", split="train")
rows = rows.map(clean).shuffle(seed=1)
if big:
    rate = 1e-5
else:
    rate = 1e-6

def start(beta, model=MODEL):
    epochs = 2; args = trl.DPOConfig(beta=beta, num_train_epochs=epochs, learning_rate=rate,
                                     model_init_kwargs={"torch_dtype": "bfloat16", "device_map": "auto"})
    trl.DPOTrainer(MODEL, ref_model=None, args=args, train_dataset=rows, callbacks=[Mine()])

beta = 0.3
"""


def test_names_of_a_script_are_followed_only_where_they_stand_for_one_value(capsys, tmp_path):
    (tmp_path / "train.py").write_text(NAMES)
    values, text = migrated(capsys, str(tmp_path / "train.py"))
    assert values == {
        "method": "dpo", "model": "org/m", "dataset": "org/d", "dataset_config": "en", "dataset_train_split": "train",
        "num_train_epochs": 2.0, "dtype": "bfloat16",
    }  # fmt: skip
    for said in (
        "dataset_name: rows changed by .map, .shuffle; write them to a file", "beta: beta", "learning_rate: rate",
        "callbacks: [Mine()]", "model_init_kwargs.device_map: auto  (not offered",
    ):  # fmt: skip
        assert f"#   {said}" in text


# What TRL does with fields that decide together, and what is taken of them.
TOGETHER = {
    "--eval_strategy steps": {"dataset_test_split": "test", "eval_steps": 10},
    "--eval_strategy steps --logging_steps 5": {"dataset_test_split": "test", "eval_steps": 5, "logging_steps": 5},
    "--eval_steps 50 --dataset_test_split held": {},  # it evaluates nothing
    "--eval_strategy epoch --eval_steps 50": {"dataset_test_split": "test"},
    "--save_strategy no --save_steps 100": {"save_steps": 0},
    "--save_strategy epoch --save_steps 100": {},
    "--warmup_steps 0 --warmup_ratio 0.1": {"warmup_steps": 0.1},
    "--warmup_steps 20 --warmup_ratio 0.1": {"warmup_steps": 20},
    "--lora_r 8": {},
    "--use_peft --bnb_4bit_quant_type fp4": {"use_peft": True},
    "--loss_type ipo --rpo_alpha 0.5": {"loss_type": ["ipo", "sft"], "loss_weights": [1.0, 0.5]},
    "--max_completion_length 64": {},  # it cut completions, which nothing does here
    "--optim adamw_torch_fused --attn_implementation flash_attention_2": {"optim": "adamw_torch_fused"},
    "--accelerate_config zero3 --num_processes 4": {"distributed_strategy": "fsdp2", "num_processes": 4},
}


@pytest.mark.parametrize("words", TOGETHER)
def test_fields_that_decide_together(words):
    made = translate(read_trl(f"trl dpo {BASE} {words}".split()), registry.config_class("dpo"))
    assert {name: value for name, (value, _) in made.taken.items() if name not in ("model", "dataset")} == (
        TOGETHER[words]
    )
    assert all(why for *_, why in made.left) and not made.missing


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        ("--total_episodes 1000", 4 * 125),  # rollouts of 8, four passes each
        ("--total_episodes 1000 --num_ppo_epochs 1 --num_mini_batches 2 --gradient_accumulation_steps 4", 2 * 16),
        ("--total_episodes 1000 --num_processes 5 --num_ppo_epochs 2", 2 * 25),
        ("--total_episodes 1000 --max_steps 7", 7),
    ],
)
def test_the_length_of_ppo_is_in_optimizer_steps(words, steps):
    found = translate(read_trl(f"trl ppo {BASE} --reward_model_path r {words}".split()), registry.config_class("ppo"))
    assert found.values["max_steps"] == steps and "total_episodes" not in found.taken


def test_items_of_generation_kwargs_are_fields():
    found = translate(
        read_trl([f"trl grpo {BASE} --reward_funcs r --generation_kwargs '{{top_k: 20, num_beams: 2}}' --top_p 0.9"]),
        registry.config_class("grpo"),
    )
    assert found.values["top_k"] == 20 and [name for name, *_ in found.left] == ["generation_kwargs.num_beams"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("trl sft --config", "--config: found nothing, expected one YAML file"),
        ("trl sft --dataset_name d -x 3", "-x: expected --name"),
        ("trl sft --dataset_name 'd", "No closing quotation"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_refused(line, said):
    with pytest.raises(UsageError, match=said):
        read_trl([line])


def test_what_is_written_is_a_run_file(tmp_path):
    """It is taken as it stands."""
    found = translate(read_trl(f"trl kto {BASE} --desirable_weight 1.5".split()), registry.config_class("kto"))
    values = {name: value for name, (value, _) in (found.taken | found.defaults).items()}
    config = resolve(registry.config_class("kto"), flags=values).config
    assert config.desirable_weight == 1.5 and config.train_sampling_strategy == "sequential"


def test_a_value_that_does_not_fit_is_left_with_the_reason():
    found = translate(
        read_trl(f"trl dpo {BASE} --beta much --eval_strategy epoch".split()), registry.config_class("dpo")
    )
    assert [name for name, *_ in found.left] == ["beta", "eval_strategy"]
    assert "expected a number" in found.left[0][2] and "eval_steps" in found.left[1][2]


@pytest.mark.parametrize("words", [["python", "-c", "1"], ["beta=3"]])
def test_what_is_no_run_of_trl_is_refused(words):
    with pytest.raises(UsageError, match="expected a command line of TRL"):
        read_trl(words)


def test_an_older_file_keeps_its_text_but_for_names(capsys, tmp_path):
    (tmp_path / "old.yaml").write_text("# mine\nmethod: sft\nmodel: m  # a model\nselect: [OPT]\ntimeout: 60\n")
    assert main(["migrate", str(tmp_path / "old.yaml"), "--output", str(tmp_path / "new.yaml")]) == 0
    said = capsys.readouterr().err
    assert "select is rules_select" in said and "timeout is ddp_timeout" in said
    assert (tmp_path / "new.yaml").read_text() == (
        "# mine\nmethod: sft\nmodel: m  # a model\nrules_select: [OPT]\nddp_timeout: 60\n"
    )
    assert main(["migrate", "--output", str(tmp_path / "new.yaml"), str(tmp_path / "old.yaml")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_arguments_of_the_command_stand_anywhere(tmp_path, capsys):
    new = tmp_path / "new.yaml"
    assert main(["migrate", "trl", "dpo", *BASE.split(), "--beta", "0.2", f"--output={new}", "--from", "trl"]) == 0
    assert yaml.safe_load(new.read_text())["beta"] == 0.2 and "output" not in new.read_text()
    assert capsys.readouterr().out == ""


def test_a_check_needs_trl_and_a_run_of_it(monkeypatch, capsys):
    assert main(["migrate", "--check", "--from", "axolotl", "config.yml"]) == 2
    assert "needs --from trl" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    assert main(["migrate", "--check", "--from", "trl", "trl", "dpo", *BASE.split()]) == 2
    assert "TRL isn't installed here; pip install trl" in capsys.readouterr().err


OLD = {  # of 0.4, with a value
    "select": "[OPT]", "ignore": "[OPT008]", "locked": "[timeout, seed]", "parent": "runs/before", "window": 20,
    "timeout": 60, "temperature": 0.5, "top_p": 0.9, "top_k": 7,
}  # fmt: skip


@pytest.mark.parametrize("method", "sft dpo kto reward grpo rloo ppo distill gkd gold sdft sdpo".split())
def test_a_file_of_0_4_is_one_of_this_release(method, tmp_path):
    """Every name that has changed since: afterwards nothing warns, and the values are those of the file."""
    config_class = registry.config_class(method)
    names = {old: new for old, new in old_names(config_class).items() if old in OLD}
    assert len(names) >= 6  # with rollouts, temperature, top_p and top_k are names of today
    path = tmp_path / "old.yaml"
    path.write_text("model: org/m\ndataset: org/d\n" + "".join(f"{name}: {OLD[name]}\n" for name in names))
    text, changed = current_text(read_file(path), config_class)
    assert changed == names  # timeout among locked fields too
    path.write_text(text)
    fields = fields_of(config_class)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values, problems = read_values(read_file(path), fields)
    assert not problems and set(values) == {"model", "dataset", *names.values()}
    assert values["locked_fields"][0] == ["ddp_timeout", "seed"] and values["data_window"][0] == 20


def test_names_within_a_list_over_several_lines_and_in_toml(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text("locked:  # timeout stays here\n  - timeout  # of ranks\n  - seed\nmodel: timeout\n")
    text, changed = current_text(read_file(path), registry.config_class("sft"))
    assert text == "locked_fields:  # timeout stays here\n  - ddp_timeout  # of ranks\n  - seed\nmodel: timeout\n"
    assert changed == {"locked": "locked_fields", "timeout": "ddp_timeout"}
    path = tmp_path / "old.toml"
    path.write_text('model = "m"\ntimeout = 60\nlocked = ["timeout"]\n')
    text, _ = current_text(read_file(path), registry.config_class("sft"))
    assert text == 'model = "m"\nddp_timeout = 60\nlocked_fields = ["ddp_timeout"]\n'


# ---------------------------------------------------------------- TRL's own defaults

TRL = {
    "sft": "trl:SFTConfig",
    "dpo": "trl:DPOConfig",
    "reward": "trl:RewardConfig",
    "grpo": "trl:GRPOConfig",
    "rloo": "trl:RLOOConfig",
    "kto": "trl.experimental.kto:KTOConfig",
    "gkd": "trl.experimental.gkd:GKDConfig",
    "gold": "trl.experimental.gold:GOLDConfig",
    "sdft": "trl.experimental.sdft:SDFTConfig",
    "sdpo": "trl.experimental.sdpo:SDPOConfig",
    "orpo": "trl.experimental.orpo:ORPOConfig",
    "simpo": "trl.experimental.cpo:CPOConfig",
    "online-dpo": "trl.experimental.online_dpo:OnlineDPOConfig",
    "distill": "trl.experimental.distillation:DistillationConfig",
}
# Defaults that are written otherwise and mean the same, or change no number of a step (docs/from-trl.md).
ALIKE = {
    "output_dir", "optim", "gradient_checkpointing", "report_to", "eval_on_start", "save_total_limit",
    "precompute_ref_log_probs", "importance_sampling_correction",
}  # fmt: skip
OF_ENCODERS = {("orpo", "max_completion_length"), ("simpo", "max_completion_length")}  # TRL has it for such models


def empty(value: object) -> bool:
    return value is None or (not isinstance(value, bool) and value in ([], {}, "", 0.0))


@pytest.mark.parametrize("method", TRL)
def test_trls_defaults_that_are_others_here_are_declared(method):
    """Against the dataclass of the installed TRL, field by field."""
    module, _, name = TRL[method].partition(":")
    theirs = getattr(importlib.import_module(module), name)
    config_class: type[RunConfig] = registry.config_class(method)
    fields, names = fields_of(config_class), {}
    for written, field in names_of(fields).items():
        names[written] = field
    others = {}
    for field in dataclasses.fields(theirs):
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        target = names.get(field.name)
        if target is None or target in ALIKE or default is dataclasses.MISSING or (method, target) in OF_ENCODERS:
            continue
        if isinstance(default, list) and len(default) == 1 and not isinstance(fields[target].default, list):
            [default] = default  # one value for all epochs
        if default != fields[target].default and not (empty(default) and empty(fields[target].default)):
            others[target] = default
    declared = {name: said[0] for name, said in vars_of(config_class, "trl_defaults").items()}
    for name in ("lora_dropout", "lora_target_modules"):  # fields of TRL's ModelConfig
        declared.pop(name)
    if method in ("grpo", "rloo", "distill"):  # which have no such field there, and cut no prompt
        assert declared.pop("max_length") is None and "max_length" not in vars(theirs)
    assert declared == others


def test_trls_defaults_of_lora():
    """Where no modules are named, peft has a choice of its own."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as OF_PEFT
    from trl import ModelConfig

    assert ModelConfig().lora_dropout == RunConfig.trl_defaults["lora_dropout"][0]
    assert ModelConfig().lora_target_modules is None
    for family in ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text"):
        assert OF_PEFT[family] == RunConfig.trl_defaults["lora_target_modules"][0], family
