"""Names and values that other tools have: each has its answer, and no guess gets in its way."""

from __future__ import annotations

import dataclasses
import importlib
import json
import warnings
from pathlib import Path

import pytest
from ft_dpo.config import DPOConfig
from ft_gold.config import GOLDConfig
from ft_grpo.config import GRPOConfig
from ft_sft.config import SFTConfig

from ft_host import registry
from ft_host.config import resolve
from ft_host.config.answers import answer, near_name
from ft_host.config.fields import current_names, fields_of, names_of
from ft_host.config.old_names import RenamedField
from ft_host.config.options import OPTIMIZERS, SCHEDULES, TRACKERS
from ft_host.config.renamed import ALREADY, RENAMED, hint
from ft_host.config.values import PATHS, optimizer_hint, value_hint
from ft_host.errors import ConfigError

EXPERIMENTAL = (("gkd", "GKDConfig"), ("gold", "GOLDConfig"), ("sdft", "SDFTConfig"), ("sdpo", "SDPOConfig"))
EXPERIMENTAL += (("orpo", "ORPOConfig"), ("cpo", "CPOConfig"), ("online_dpo", "OnlineDPOConfig"))
ROOMS = {"simpo": "cpo", "online-dpo": "online_dpo"}  # what TRL calls a method, where that is another name
# Arguments of vLLM that its users set; it isn't installed beside the trainer.
OF_VLLM = (
    "gpu_memory_utilization tensor_parallel_size max_model_len enforce_eager max_num_seqs max_num_batched_tokens "
    "swap_space enable_prefix_caching kv_cache_dtype quantization pipeline_parallel_size data_parallel_size "
    "load_format download_dir max_lora_rank enable_lora enable_chunked_prefill cpu_offload_gb enable_sleep_mode "
    "speculative_config compilation_config hf_overrides limit_mm_per_prompt served_model_name "
    "distributed_executor_backend"
).split()
# PPO's config left TRL with 1.0; its users have run files.
OF_PPO = (
    "num_ppo_epochs num_mini_batches kl_coef kl_estimator vf_coef cliprange cliprange_value gamma lam whiten_rewards "
    "missing_eos_penalty stop_token stop_token_id response_length total_episodes reward_model_path sft_model_path "
    "local_rollout_forward_batch_size num_sample_generations exp_name"
).split()


@pytest.fixture(scope="module")
def theirs() -> set[str]:
    """Every field of the configs of the TRL and the transformers that are installed, and of vLLM's that are set."""
    import transformers
    import trl

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classes = [transformers.TrainingArguments, trl.ModelConfig, trl.ScriptArguments]
        classes += [trl.SFTConfig, trl.DPOConfig, trl.KTOConfig, trl.RewardConfig, trl.GRPOConfig, trl.RLOOConfig]
        classes += [getattr(importlib.import_module(f"trl.experimental.{room}"), name) for room, name in EXPERIMENTAL]
    return {field.name for each in classes for field in dataclasses.fields(each)} | {*OF_VLLM, *OF_PPO}


def methods() -> list[str]:
    return [info.name for info in registry.catalog() if info.kind == "method" and info.name != "tests"]


@pytest.mark.parametrize(
    "method", "sft dpo kto reward grpo rloo ppo distill gkd gold sdft sdpo orpo simpo online-dpo".split()
)
def test_every_field_of_other_tools_has_an_answer(method, theirs):
    fields = fields_of(registry.config_class(registry.find("method", method)))
    known = names_of(fields)
    without = sorted(name for name in theirs if name not in known and hint(name, fields, fields.elsewhere) is None)
    assert not without, "write them into ft_host/config/renamed.py or absent.py, or into `elsewhere` of the method"


def test_no_table_answers_for_a_field_that_all_methods_have():
    for name in RENAMED:
        assert any(
            name not in names_of(fields_of(registry.config_class(registry.find("method", method))))
            for method in ("sft", "grpo", "ppo")
        ), name


# Each was answered with a field that has nothing to do with it.
MISLED = {
    "shuffle_dataset": "train_sampling_strategy",
    "generation_kwargs": "temperature, top_p",
    "cache_implementation": "the backend has a key-value cache",
    "optim_target_modules": "an optimizer of your own",
    "eval_delay": "eval_on_start",
    "auto_find_batch_size": "max_tokens_per_micro_batch",
    "dataset_kwargs": "rows are prepared as they are met",
    "model_init_kwargs": "dtype, attn_implementation",
    "vllm_gpu_memory_utilization": "gpu_memory_utilization in backend_config",
    "load_best_model_at_end": "metrics.jsonl says which was best",
}


@pytest.mark.parametrize(("name", "said"), MISLED.items())
@pytest.mark.parametrize("config_class", [SFTConfig, GRPOConfig])
def test_the_answer_wins_over_a_guess_in_files_flags_and_python(name, said, config_class, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(f"model: org/m\ndataset: org/d\n{name}: 3\n", encoding="utf-8")
    flag = "--" + name.replace("_", "-")
    with pytest.raises(ConfigError) as of_file:
        resolve.resolve(config_class, file)
    with pytest.raises(ConfigError) as of_flag:
        resolve.resolve(config_class, None, [flag, "3"])
    with pytest.raises(ConfigError) as of_python:
        resolve.resolve(config_class, None, {name: 3})
    with pytest.raises(TypeError) as of_call:
        config_class(**{name: 3})
    for raised in (of_file, of_flag, of_python, of_call):
        text = str(raised.value).replace("--train-sampling-strategy", "train_sampling_strategy")
        text = text.replace("--max-tokens-per-micro-batch", "max_tokens_per_micro_batch")
        assert name in text.replace("-", "_") and said in text and "did you mean" not in text, text


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("lerning_rate", "learning_rate"),
        ("learningrate", "learning_rate"),
        ("gradient_acumulation_step", "gradient_accumulation_steps"),
        ("learning", "learning_rate"),
        ("num_train_epoch", "num_train_epochs"),
        ("LORA_R", "lora_r"),
        ("evaluate_dataset", None),
        ("eval_batches", None),
        ("dataset_shuffling", None),
        ("warmup_lr", None),
        ("model_parallel", None),
        ("use_lora_plus", None),
    ],
)
def test_a_guess_is_made_where_a_name_is_really_near(name, near):
    assert near_name(name, current_names(fields_of(SFTConfig))) == near


def test_a_name_of_the_tables_is_found_however_it_is_written():
    fields = fields_of(SFTConfig)
    for written in ("max_seq_length", "max-seq-length", "maxSeqLength", "MAX_SEQ_LENGTH"):
        assert hint(written, fields) == "here it is max_length"


def test_a_field_of_other_methods_is_said_to_be_one():
    said = answer("num_generations", fields_of(SFTConfig))
    assert said.startswith("other methods have it, and this one doesn't")
    assert answer("clip_eps", fields_of(SFTConfig)) == "elsewhere it is what epsilon is here, and this method has none"
    assert answer("clip_eps", fields_of(GRPOConfig)) == "here it is epsilon"


def test_methods_answer_for_themselves():
    assert answer("num_generations", fields_of(GOLDConfig)) == GOLDConfig.elsewhere["num_generations"]


# ---------------------------------------------------------------- what is taken


def test_what_is_done_here_anyway_is_taken(tmp_path):
    """A line of TRL's run file that asks for what happens in any case is no reason to refuse it."""
    file = tmp_path / "run.yaml"
    lines = [f"{name}: {json.dumps(values[-1])}" for name, values in ALREADY.items()]
    nothing = ["hub_model_id:", "neftune_noise_alpha:", "deepspeed: null", "rpo_alpha: null", "fsdp: null"]
    file.write_text("\n".join(["model: org/m", "dataset: org/d", *lines, *nothing]), encoding="utf-8")
    assert resolve.resolve(SFTConfig, file).config == SFTConfig(model="org/m", dataset="org/d")
    flags = ["--model", "org/m", "--dataset", "org/d", "--push-to-hub", "false", "--padding-free"]
    assert resolve.resolve(SFTConfig, None, flags).config == SFTConfig(model="org/m", dataset="org/d")
    assert SFTConfig(padding_free=True, load_best_model_at_end=False) == SFTConfig()
    file.write_text("model: org/m\ndataset: org/d\npush_to_hub: true\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"run.yaml:3: unknown field push_to_hub; not offered; `hf upload`"):
        resolve.resolve(SFTConfig, file)


def read(config_class, tmp_path, name, value):
    """The field from a file, a flag and a call; they must agree. And the warnings."""
    file = tmp_path / "run.yaml"
    file.write_text(f"model: org/m\ndataset: org/d\n{name}: {str(value).lower()}\n", encoding="utf-8")
    flag = "--" + name.replace("_", "-")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RenamedField)
        given = {"reward": ["json:loads"]} if config_class is GRPOConfig else {}
        of_file = resolve.resolve(config_class, file, given).config
        more = ["--reward", "json:loads"] if given else []
        base = ["--model", "org/m", "--dataset", "org/d", flag, str(value).lower(), *more]
        of_flag = resolve.resolve(config_class, None, base).config
        called = config_class(model="org/m", dataset="org/d", **given, **{name: value})
        resolve.check(called)
    assert of_file == of_flag == called
    return called, [str(each.message) for each in caught if each.category is RenamedField]


@pytest.mark.parametrize(
    ("config_class", "name", "value", "field", "ours", "said"),
    [
        (GRPOConfig, "scale_rewards", False, "scale_rewards", "none", "scale_rewards: false is none here"),
        (GRPOConfig, "scale_rewards", True, "scale_rewards", "group", "scale_rewards: true is group here"),
        (SFTConfig, "loss_type", "chunked_nll", "loss_type", "nll", "loss_type: chunked_nll is nll here"),
        (SFTConfig, "torch_dtype", "torch.bfloat16", "dtype", "bfloat16", "dtype: torch.bfloat16 is bfloat16 here"),
        (SFTConfig, "report_to", "none", "report_to", [], None),
        (SFTConfig, "report_to", "wandb", "report_to", ["wandb"], None),
        (SFTConfig, "report_to", "all", "report_to", ["all"], None),
        (DPOConfig, "loss_type", "ipo", "loss_type", ["ipo"], None),
    ],
)
def test_values_of_other_tools_are_taken_where_they_have_a_counterpart(
    config_class, name, value, field, ours, said, tmp_path
):
    config, warned = read(config_class, tmp_path, name, value)
    assert getattr(config, field) == ours
    assert (said is None and not warned) or (len(warned) == 3 and all(said in text for text in warned))


def test_an_attention_that_is_not_installed_is_not_needed():
    with pytest.raises(ConfigError, match="attn_implementation: flash_attention_2 isn't installed, and isn't needed"):
        resolve.resolve(SFTConfig, None, {"model": "a/b", "dataset": "c/d", "attn_implementation": "flash_attention_2"})


def test_nothing_is_an_empty_list_or_mapping(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model: org/m\ndataset: org/d\nreport_to:\noptim_args: null\noutput_dir: null\n", encoding="utf-8")
    assert resolve.resolve(SFTConfig, file).config == SFTConfig(model="org/m", dataset="org/d")


def test_every_optimizer_of_transformers_is_ours_or_has_an_answer():
    from transformers.training_args import OptimizerNames

    ours = {*OPTIMIZERS, *PATHS}
    without = [name.value for name in OptimizerNames if name.value not in ours and not optimizer_hint(name.value)]
    assert not without


def test_an_optimizer_of_another_package_is_taken_by_its_name_in_transformers():
    config = resolve.resolve(SFTConfig, None, {"model": "org/m", "dataset": "org/d", "optim": "lion_8bit"}).config
    assert config.optim == "lion_8bit" and optimizer_hint("lion_8bit") is None
    assert "LoRA" in optimizer_hint("galore_adamw_8bit_layerwise")


def test_every_schedule_and_tracker_of_transformers_is_ours_or_has_an_answer():
    from transformers import SchedulerType
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for kind in SchedulerType:
        assert kind.value in SCHEDULES or value_hint("lr_scheduler_type", kind.value), kind
    for name in INTEGRATION_TO_CALLBACK:
        assert name in TRACKERS or value_hint("report_to", name), name
    with pytest.raises(ConfigError, match="lr_scheduler_type: .*; it follows a metric"):
        resolve.resolve(SFTConfig, None, {"lr_scheduler_type": "reduce_lr_on_plateau"})


# ---------------------------------------------------------------- defaults


SAME = {"optim", "bf16", "gradient_checkpointing", "eval_on_start", "save_total_limit", "precompute_ref_log_probs"}


def of_table() -> dict[tuple[str, str], str]:
    """(method, field): what docs/from-trl.md says is the default here."""
    text = (Path(__file__).parents[1] / "docs" / "from-trl.md").read_text(encoding="utf-8")
    found = {}
    for line in text.partition("## Defaults that change a run")[2].partition("## Same")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            for name in cells[0].replace("`", "").split(", "):
                for method in cells[1].split(", "):
                    found[method, name] = cells[3].strip("`")
    return found


def shown(value) -> str:
    return "not set" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize("method", "sft dpo kto reward grpo rloo gkd gold sdft sdpo orpo simpo online-dpo".split())
def test_each_default_that_differs_from_trl_is_in_the_table(method, tmp_path):
    import trl

    fields = fields_of(registry.config_class(registry.find("method", method)))
    known = names_of(fields)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        room = ROOMS.get(method, method)
        if room in dict(EXPERIMENTAL):
            theirs = getattr(importlib.import_module(f"trl.experimental.{room}"), dict(EXPERIMENTAL)[room])
        else:
            name = {"reward": "Reward"}.get(method, method.upper())
            theirs = getattr(trl, f"{name}Config")
    table = of_table()
    for field in dataclasses.fields(theirs):
        if field.name not in known or known[field.name] in SAME | {"output_dir", "use_cpu", "generation_batch_size"}:
            continue
        theirs_is, ours = field.default, fields[known[field.name]].default
        if theirs_is is dataclasses.MISSING or theirs_is == ours or theirs_is == "none":
            continue
        if theirs_is is None and (ours in ([], {}, "", None) or None in fields[known[field.name]].also):
            continue
        said = table.get((method, field.name), table.get((method, known[field.name])))
        assert said == shown(ours), (field.name, theirs_is, ours)


def test_the_table_says_what_is_true():
    for (method, name), said in of_table().items():
        if not method.startswith("all"):
            fields = fields_of(registry.config_class(registry.find("method", method)))
            assert shown(fields[names_of(fields)[name]].default) == said, (method, name)
