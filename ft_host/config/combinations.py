"""Combinations of the common fields that can't work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ft_host.errors import ConfigError
from ft_host.util.text import nearest

if TYPE_CHECKING:
    from ft_host.config.run import RunConfig

# Fields without effect unless another one is set: a user who sets one expects something that won't happen.
ONLY_WITH = {
    "use_peft": (
        "lora_r",
        "lora_alpha",
        "lora_dropout",
        "lora_target_modules",
        "lora_modules_to_save",
        "use_rslora",
        "use_dora",
        "lora_target_parameters",
        "lora_base_model",
        "merge_adapter",
    ),
    "load_in_4bit": ("bnb_4bit_quant_type", "use_bnb_nested_quant"),
    "packing": ("packing_strategy",),
}

CUT = {"language modeling", "prompt-completion"}  # formats whose rows are one text, which may end anywhere


def check_combinations(config: RunConfig) -> None:
    """Refuse the first combination that can't work. Raises ConfigError, which names the fields."""
    if config.max_steps == 0:
        raise ConfigError("max_steps: found 0, which trains nothing; -1, the default, trains for num_train_epochs")
    if config.resize_token_embeddings:
        if config.backend != "transformers":
            raise ConfigError(
                f"resize_token_embeddings: the backend {config.backend} loads the model as its folder has it, without "
                "the new embeddings; resize it and save it before"
            )
        if config.use_peft and config.distributed_strategy == "fsdp2":
            raise ConfigError("resize_token_embeddings: tokens of an adapter can't be sharded by fsdp2; use ddp")
    if config.dataset_streaming and config.max_steps < 1:
        raise ConfigError("dataset_streaming: the length of a stream is unknown, so max_steps must be set")
    if config.load_in_4bit and config.load_in_8bit:
        raise ConfigError("load_in_4bit and load_in_8bit can't both be set")
    if (config.load_in_4bit or config.load_in_8bit) and not config.use_peft:
        raise ConfigError("load_in_4bit, load_in_8bit: quantised weights can't be trained; set use_peft as well")
    if config.bf16 and config.fp16:
        raise ConfigError("bf16 and fp16 can't both be set")
    unknown = [name for name in config.locked_fields if name not in vars(config)]
    if unknown:
        near = nearest(unknown[0], vars(config))
        raise ConfigError(f"locked_fields: there is no field {unknown[0]}; expected names of config fields{near}")
    if config.packing and config.max_length is None:
        raise ConfigError("packing: blocks need a size; set max_length")
    if config.packing and config.packing_strategy != "bfd" and config.formats and not CUT & set(config.formats):
        raise ConfigError(
            f"packing_strategy: {config.packing_strategy} cuts rows anywhere, but rows of {' or '.join(config.formats)}"
            " must stay whole; use bfd"
        )
    if config.packing and config.train_sampling_strategy == "group_by_length":
        raise ConfigError("packing and group_by_length both decide which rows stand together; set one of them")
    default = type(config)()
    for switch, fields in ONLY_WITH.items():
        for name in fields:
            if not getattr(config, switch) and getattr(config, name) != getattr(default, name):
                raise ConfigError(f"{name}: has no effect without {switch}; set it, or leave {name} out")
    if config.eval_dataset is None and config.dataset_test_split is None:
        if config.eval_reward:
            raise ConfigError("eval_reward: nothing to evaluate on; set eval_dataset or dataset_test_split")
        if config.eval_steps is not None:
            raise ConfigError("eval_steps: nothing to evaluate on; set eval_dataset or dataset_test_split")
