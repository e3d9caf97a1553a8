"""Writes what `from_pretrained` loads: a model, an adapter, or an adapter merged into its base."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ft_host.models.attention import original_of
from ft_host.models.folder import auto_class, base_of, find_config
from ft_host.models.held import trained_dtype
from ft_host.models.reach import text_part
from ft_host.models.special_tokens import agree
from ft_host.models.vocabulary import resize, rows_of_adapter

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ft_host.config import RunConfig
    from ft_host.models.policy import Policy

# What a model that is written holds, whole or as an adapter: names that others find it by.
LAYOUT = {
    "model": ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    "adapter": ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"),
}
# What prepares images, video and sound. The chat template is the tokenizer's.
PROCESSORS = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")


def save_model(policy: Policy, folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
    """Write the model, or with LoRA the adapter, as safetensors.

    `state`: the policy's whole weights by name, where its own are sharded.
    """
    from peft import PeftModel

    if state is not None:
        tied = {f"model.{name}" for name in policy.causal_lm.all_tied_weights_keys}  # one tensor under two names
        own = {name: tensor for name, tensor in state.items() if name.startswith("model.") and name not in tied}
        state = {name.removeprefix("model."): tensor for name, tensor in own.items()}
    config = text_part(policy.causal_lm).config
    ours, config._attn_implementation = config._attn_implementation, original_of(config)
    try:
        if isinstance(policy.model, PeftModel):
            # an adapter kept as a reference is on disk already
            # of added embeddings peft would save all; those that are trained are in the adapter
            whole: Any = False if policy.model.peft_config["default"].trainable_token_indices else "auto"
            with _sorted_sets(policy.model.peft_config["default"]):
                policy.model.save_pretrained(
                    folder, state_dict=state, selected_adapters=["default"], save_embedding_layers=whole
                )
        else:
            policy.model.save_pretrained(folder, state_dict=state)
    finally:
        config._attn_implementation = ours


@contextlib.contextmanager
def _sorted_sets(settings: PeftConfig) -> Iterator[None]:
    """Sort the sets of an adapter's settings while they are written: the order of a set of texts changes from process
    to process, and two runs with one seed must give the same files."""
    sets = {name: value for name, value in vars(settings).items() if isinstance(value, set)}
    vars(settings).update({name: sorted(value, key=str) for name, value in sets.items()})
    try:
        yield
    finally:
        vars(settings).update(sets)


def save_whole(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    config: RunConfig,
    folder: Path,
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write all that is needed to use the model elsewhere: `save_model`, the tokenizer, what prepares images and sound,
    and beside an adapter the generation config, since its base's may stop at other tokens."""
    from peft import PeftModel

    save_model(policy, folder, state)
    tokenizer.save_pretrained(folder)
    if isinstance(policy.model, PeftModel) and policy.head is None:
        policy.causal_lm.generation_config.save_pretrained(folder)
    copy_processor(config, policy.causal_lm, folder)


def copy_processor(config: RunConfig, model: PreTrainedModel, folder: Path) -> None:
    """Copy the settings of processors from where the model came from."""
    from transformers.utils import cached_file

    source = base_of(config.model, config.lora_base_model)
    place = Path(source)
    if not place.is_dir() and model.config.get_text_config() is model.config:
        return  # a hub model of text alone has none
    for name in PROCESSORS:
        found: Any = place / name
        if not place.is_dir():
            found = cached_file(
                source,
                name,
                revision=config.model_revision,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
        if found is not None and Path(found).is_file():
            shutil.copyfile(found, folder / name)


def merge_adapter(
    config: RunConfig, adapter: Path, folder: Path, tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """Write the base weights with the adapter merged in, with the tokenizer and its special tokens if there is one.

    Loads the base again, on the CPU and unquantised, so that the run's model doesn't change. The folder of a reward
    model's adapter must contain its tokenizer.
    """
    from peft import PeftConfig, PeftModel
    from transformers import AutoTokenizer

    from ft_host.models.load import score_pad

    settings = PeftConfig.from_pretrained(adapter)
    scores = settings.task_type == "SEQ_CLS"
    name = base_of(str(adapter))
    head, labels = ("reward", {"num_labels": 1}) if scores else (None, {})
    found = find_config(name, "model", config.model_revision, config.trust_remote_code)
    base = auto_class(found, head).from_pretrained(
        name,
        dtype=trained_dtype(config),
        revision=config.model_revision,
        trust_remote_code=config.trust_remote_code,
        use_safetensors=True,
        **labels,
    )
    resize(base, config, rows_of_adapter(str(adapter)))
    if scores:  # the head comes from the adapter; the tokenizer's padding tells where scores are read
        base.config.get_text_config().pad_token_id = score_pad(AutoTokenizer.from_pretrained(adapter))
    else:
        embeddings, output = base.get_input_embeddings(), base.get_output_embeddings()
        if output.weight is embeddings.weight and _changes(adapter, (embeddings, output), base):
            # tied weights are one tensor: merging the head's adapter into it would change the embeddings too
            output.weight = torch.nn.Parameter(output.weight.detach().clone())
            base.config.tie_word_embeddings = base.config.get_text_config().tie_word_embeddings = False
        if tokenizer is not None:
            agree(base, tokenizer)
    merged = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    merged.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    copy_processor(config, merged, folder)


def _changes(adapter: Path, modules: tuple[torch.nn.Module, ...], base: torch.nn.Module) -> bool:
    """Return whether an adapter's folder has weights for one of these modules of its base."""
    from safetensors import safe_open

    prefix = "base_model.model."
    names = [prefix + name + "." for name, module in base.named_modules() if module in modules]
    with safe_open(adapter / "adapter_model.safetensors", "pt") as tensors:
        # tokens trained by themselves are set in both of two tied matrices
        return any(key.startswith(tuple(names)) and "trainable_tokens" not in key for key in tensors.keys())
