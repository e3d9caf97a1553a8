"""Two steps of a migrated run and of the same run by the installed TRL, side by side: `ft-host migrate --check`.

A process of its own, since TRL changes the one it is in: `python -m ft_host.testing.beside_trl FILE`, a JSON file of
`method`, `values` (what was migrated) and `given` (what TRL was given). Both get the same tiny model, or that of a
folder, the same rows in their order, in float32, and, where something is sampled, the same completions and rewards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import json
import logging
import sys
import tempfile
import typing
import warnings
from pathlib import Path
from typing import Any

from ft_host import registry
from ft_host.config import RunConfig
from ft_host.config.fields import fields_of
from ft_host.errors import FtHostError, UsageError
from ft_host.testing.backends import fixed_completion
from ft_host.testing.fixed import fixed_where_sampled
from ft_host.testing.invariants import lines, run_in
from ft_host.testing.moved import NAMES, is_folder, materials_in, small
from ft_host.testing.parity import Line, relative, trl_model, trl_rows, trl_trajectory

DIFFERENT = 7  # the exit code where the two aren't the same
FIRST, LATER = 1e-4, 1e-3  # how far losses and norms of the first and of later steps may be apart
CLASSES = {
    "sft": "trl:SFT",
    "dpo": "trl:DPO",
    "kto": "trl:KTO",
    "reward": "trl:Reward",
    "grpo": "trl:GRPO",
    "rloo": "trl:RLOO",
    "distill": "trl:Distillation",
    "gkd": "trl.experimental.gkd:GKD",
    "gold": "trl.experimental.gold:GOLD",
    "orpo": "trl.experimental.orpo:ORPO",
    "simpo": "trl.experimental.cpo:CPO",
}
SAMPLED = ("grpo", "rloo", "distill")
# Why the two may differ, by method, where it isn't the migration.
KNOWN = {
    "gkd": "temperature is in the loss here, and in TRL it isn't: with temperature: 1 they are the same. ",
    "gold": "TRL's merging of tokens (observed) reads logits one place late, its eos is a template's last token. ",
    "kto": "With several micro-batches a step KL is of each of them there, and of the step here (kl_scope). ",
    "grpo": "entropy_coef and cispo without epsilon_high are otherwise (docs/grpo.md). ",
}
# What a check sets otherwise on both sides, where it is set at all: chance, and lengths that say another thing there.
WITHOUT_CHANCE: dict[str, Any] = {"neftune_noise_alpha": None, "lmbda": 0.0, "seq_kd": False}
# Names of TRL that a check doesn't pass on: machines, files, logs, evaluation.
UNTOLD = (
    "output_dir max_steps num_train_epochs report_to run_name seed data_seed bf16 fp16 tf32 use_cpu "
    "gradient_checkpointing gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode "
    "deepspeed fsdp fsdp_config "
    "model_init_kwargs teacher_model_init_kwargs teacher_model_name_or_path teacher_model_revision trust_remote_code "
    "teacher_tokenizer_name_or_path resume_from_checkpoint remove_unused_columns load_best_model_at_end "
    "metric_for_best_model greater_is_better padding_free pad_to_multiple_of pad_token eos_token chat_template_path "
    "do_train do_eval do_predict disable_tqdm use_liger_kernel activation_offloading auto_find_batch_size optim "
    "ddp_timeout local_rank generation_batch_size steps_per_generation max_length use_vllm cache_implementation "
    "use_transformers_paged use_transformers_continuous_batching num_completions_to_print shuffle_dataset "
    "train_sampling_strategy router_aux_loss_coef warmup_ratio average_tokens_across_devices push_to_hub dataset_kwargs"
).split()
BEGINNINGS = ("eval_", "save_", "logging_", "hub_", "dataloader_", "vllm_", "log_", "dataset_", "trackio_", "include_")
SHRUNK = {
    "per_device_train_batch_size": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "num_generations": "num_generations",
    "num_iterations": "num_iterations",
    "max_completion_length": "max_completion_length",
    "max_new_tokens": "max_completion_length",
}


def compared(method: str, values: dict[str, Any], given: dict[str, Any], folder: Path) -> tuple[list[Line], list[Line]]:
    """Train both for two steps. Gives the lines of ours and of TRL's. Raises UsageError for a method that this TRL
    doesn't have, ConfigError where ours can't be trained, and what TRL raises."""
    if method not in CLASSES:
        import trl

        raise UsageError(f"--check: TRL {trl.__version__} has no {method}; with it are {', '.join(CLASSES)}")
    config = beside_each_other(method, values, folder)
    with fixed_where_sampled(config, folder) as backend:
        ours = lines(run_in(config, "ours", **backend))
    try:
        theirs = trl_trajectory(trainer_of(method, config, given, folder))
    except Exception as error:  # whatever it is, it is TRL's answer
        raise UsageError(f"--check: TRL can't train it: {type(error).__name__}: {error}") from error
    return ours, theirs


def beside_each_other(method: str, values: dict[str, Any], folder: Path) -> RunConfig:
    """The run made small, and without chance."""
    config_class = registry.config_class(method)
    fields = fields_of(config_class)
    if values.get("assistant_only_loss"):
        marked(materials_in(folder)["model"])
    changes = {name: value for name, value in WITHOUT_CHANCE.items() if values.get(name) is not None or name == "lmbda"}
    changes = {name: value for name, value in changes.items() if name in fields}
    if "lmbda" in fields:  # max_length is of prompt and answer there
        changes |= {"max_length": None, "max_completion_length": 200}
    if method == "reward":
        changes["model"] = scorer(values.get("model", ""), folder)
    plain = {name: value for name, value in values.items() if not name.startswith(("lora_", "use_dora", "use_rslora"))}
    config, _ = small(config_class, plain | {"use_peft": False}, folder, **changes)
    if values.get("use_peft"):
        adapter = adapted(config.model, values, "SEQ_CLS" if method == "reward" else "CAUSAL_LM", folder / "adapter")
        config = dataclasses.replace(config, model=adapter, use_peft=True)
    return config


def marked(model: str) -> None:
    """Give the tiny model a template that says what an assistant generates, which TRL asks for."""
    said = "<|{{ message.role }}|>{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|end|>"
    said += "{% endgeneration %}{% else %}{{ message.content }}<|end|>{% endif %}"
    template = f"{{% for message in messages %}}{said}{{% endfor %}}"
    template += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    (Path(model) / "chat_template.jinja").write_text(template, encoding="utf-8")


def scorer(model: str, folder: Path) -> str:
    """A reward model with a head that both begin from: tiny, or of the model in a folder."""
    if not is_folder(model):
        return materials_in(folder)["scorer"]
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    place = folder / "scorer"
    AutoModelForSequenceClassification.from_pretrained(model, num_labels=1).save_pretrained(place)
    AutoTokenizer.from_pretrained(model).save_pretrained(place)
    return str(place)


def adapted(model: str, values: dict[str, Any], task: str, place: Path) -> str:
    """A new adapter of the model, which both go on with: each would draw another. Dropout is left out."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    from ft_host.testing.models import auto_class

    base = auto_class(task).from_pretrained(model)
    names = [name.rpartition(".")[2] for name, _ in base.named_modules()]
    targets = [name for name in values.get("lora_target_modules", []) if name in names]
    torch.manual_seed(0)
    settings = LoraConfig(
        r=values.get("lora_r", 16),
        lora_alpha=values.get("lora_alpha", 32),
        target_modules=targets or "all-linear",
        modules_to_save=[name for name in values.get("lora_modules_to_save", []) if name in names] or None,
        use_rslora=values.get("use_rslora", False),
        use_dora=values.get("use_dora", False),
        task_type=task,
    )
    get_peft_model(base, settings).save_pretrained(place)
    AutoTokenizer.from_pretrained(model).save_pretrained(place)
    return str(place)


# ---------------------------------------------------------------- TRL's side


def arguments(theirs: type, config: RunConfig, given: dict[str, Any]) -> dict[str, Any]:
    """What TRL's config is given: what the source has, and the sizes of the small run."""
    hints, names = typing.get_type_hints(theirs), {field.name for field in dataclasses.fields(theirs)}
    told = {
        name: [value] if isinstance(value, str) and "list[str]" in str(hints[name]) else value
        for name, value in given.items()
        if name in names and name not in UNTOLD and not name.startswith(BEGINNINGS)
    }
    if given.get("warmup_ratio") and not told.get("warmup_steps"):
        told["warmup_steps"] = given["warmup_ratio"]
    ours = dataclasses.asdict(config)
    told |= {name: ours[ours_is] for name, ours_is in SHRUNK.items() if name in names and ours_is in ours}
    if "max_length" in names:
        told["max_length"] = config.max_length
    told |= {name: value for name, value in WITHOUT_CHANCE.items() if name in names}
    fixed = {
        "output_dir": str(Path(config.output_dir) / "trl"),
        "max_steps": config.max_steps,
        "seed": config.seed,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "logging_strategy": "steps",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
        "shuffle_dataset": False,
    }
    return told | {name: value for name, value in fixed.items() if name in names}


def trainer_of(method: str, config: RunConfig, given: dict[str, Any], folder: Path) -> Any:
    """TRL's trainer of the run."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    module, _, name = CLASSES[method].partition(":")
    room = importlib.import_module(module)
    made = getattr(room, f"{name}Config")
    trainer = getattr(room, f"{name}Trainer")
    ours = dataclasses.asdict(config)
    side = {"padding_side": "left"} if method in SAMPLED or "lmbda" in ours else {}
    more: dict[str, Any] = {}
    if method in SAMPLED:
        trainer = answering(trainer, config)
    if method == "gold":
        trainer = in_order(trainer)
    if method in ("grpo", "rloo"):
        more["reward_funcs"] = rewards(folder / "rewards.py", len(ours["reward"]))
    if ours.get("teacher_model_name_or_path"):
        more["teacher_model"] = AutoModelForCausalLM.from_pretrained(ours["teacher_model_name_or_path"])
    if method == "dpo" and ours["ref_model"]:
        more["ref_model"] = AutoModelForCausalLM.from_pretrained(ours["ref_model"])
    tokenizer = AutoTokenizer.from_pretrained(config.model, **side)
    if method in ("orpo", "simpo"):
        tokenizer.bos_token = None  # TRL puts it before prompts that the tokenizer itself doesn't begin with it
    told = arguments(made, config, given)
    if "teacher_tokenizer_name_or_path" in {field.name for field in dataclasses.fields(made)}:
        told["teacher_tokenizer_name_or_path"] = ours["teacher_model_name_or_path"]
    return trainer(
        model=trl_model(config, "SEQ_CLS" if method == "reward" else "CAUSAL_LM"),
        args=made(**told),
        train_dataset=trl_rows(str(config.dataset)),
        processing_class=tokenizer,
        **more,
    )


def answering(trainer: type, config: RunConfig) -> type:
    """TRL's trainer with the completions that ours gets (`ft_host.testing.fixed`)."""

    class Answering(trainer):  # type: ignore[misc, valid-type]
        def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
            tokenizer = self.processing_class
            found = [
                fixed_completion(tokenizer.decode(ids), place % 6, tokenizer.eos_token_id)
                for place, ids in enumerate(prompt_ids)
            ]
            found = [ids[: config.max_completion_length] for ids in found]
            return (found, None) if trainer.__name__ == "GRPOTrainer" else found

    return Answering


def in_order(trainer: type) -> type:
    """TRL's trainer of GOLD with the rows in their order: it has no field for that."""
    from trl.trainer.utils import RepeatSampler

    class InOrder(trainer):  # type: ignore[misc, valid-type]
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            times = self.args.gradient_accumulation_steps
            size = self.args.per_device_train_batch_size * times
            return RepeatSampler(self.train_dataset, 1, batch_size=size, repeat_count=times, shuffle=False)

    return InOrder


def rewards(path: Path, count: int) -> list[Any]:
    spec = importlib.util.spec_from_file_location("rewards_of_the_check", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [getattr(module, name) for name in NAMES[:count]]


# ---------------------------------------------------------------- what is said


def table(ours: list[Line], theirs: list[Line]) -> tuple[str, bool]:
    """The two side by side, and whether they are the same."""
    said = [f"{'step':<6}{'':11}{'TRL':>14}{'ft-host':>14}{'apart':>10}"]
    same = len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=False):
        for name in ("loss", "grad_norm"):
            apart = relative(one[name], other[name])
            near = apart <= (FIRST if one["step"] == 1 else LATER) or abs(one[name] - other[name]) < 1e-6
            same = same and near
            said.append(f"{one['step']:<6}{name:<11}{other[name]:>14.7g}{one[name]:>14.7g}{apart:>10.1e}")
    return "\n".join(said), same


def main(path: str) -> int:
    wanted = json.loads(Path(path).read_text(encoding="utf-8"))
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    noise = io.StringIO()  # bars and lines of TRL's and of what it uses
    try:
        with tempfile.TemporaryDirectory(prefix="ft-host-migrate-") as folder:
            with contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
                found = compared(wanted["method"], wanted["values"], wanted["given"], Path(folder))
    except FtHostError as error:
        print(f"ft-host: error: {error}", file=sys.stderr)
        return error.exit_code
    text, same = table(*found)
    print(text)
    if same:
        print("the same to float32's rounding")
        return 0
    print(f"not the same. {KNOWN.get(wanted['method'], '')}docs/from-trl.md has what is otherwise on purpose")
    return DIFFERENT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
