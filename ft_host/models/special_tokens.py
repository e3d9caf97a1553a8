"""The tokens that begin, end and pad a text, the same in a model's config, its generation config and the tokenizer.

What is saved must stop where the run's own evaluation stops: transformers and inference servers go by
generation_config.json, and don't ask the tokenizer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ft_host.data.templates import added_ends
from ft_host.models.folder import base_of, find_config

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from ft_host.config import RunConfig


def ids_of(told: int | list[int] | None) -> list[int]:
    """Return the end tokens of a config, which may be one, several or none."""
    return [] if told is None else list(told) if isinstance(told, (list, tuple)) else [told]


def ends_of_run(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens at which generation of a run stops, before its model is loaded: the tokenizer's EOS, the
    marks that the host adds to the ends of conversations, and those of the model's generation config, which is made of
    its config where it has no file."""
    from transformers import GenerationConfig

    base = base_of(config.model, config.lora_base_model)
    revision = config.model_revision
    try:
        told = GenerationConfig.from_pretrained(base, revision=revision)
    except OSError:  # there is none, or it can't be read: transformers makes it of the config
        told = find_config(base, "model", revision, config.trust_remote_code).get_text_config()
    return {*ids_of(vars(told).get("eos_token_id")), tokenizer.eos_token_id, *added_ends(tokenizer)} - {None}


def agree(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Set the model's special tokens to the tokenizer's, where it has them, and mend what couldn't be saved. Returns
    sentences on what was changed that isn't a token.

    End tokens that the model had stay beside the tokenizer's. A padding token that also ends texts isn't named in the
    model's config: it would become the index of an embedding that gets no gradient when the folder is trained further.
    """
    notes: list[str] = []
    generation = model.generation_config
    size = model.get_input_embeddings().weight.shape[0]
    bos, eos, pad = (
        token if token is not None and token < size else None
        for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    )
    added = sorted(token for token in added_ends(tokenizer) if token < size)
    ends = list(dict.fromkeys([*([eos] if eos is not None else []), *ids_of(generation.eos_token_id), *added]))
    if ends:
        generation.eos_token_id = ends[0] if len(ends) == 1 else ends
    if bos is not None:
        generation.bos_token_id = bos
    if pad is not None:
        generation.pad_token_id = pad
    for config in {id(each): each for each in (model.config, model.config.get_text_config())}.values():
        fields = config.to_dict()
        before = ids_of(fields.get("eos_token_id"))
        if eos is not None and eos not in before:
            config.eos_token_id = [eos, *before] if len(before) > 1 else eos
        if bos is not None and fields.get("bos_token_id") != bos:
            config.bos_token_id = bos
        if pad is not None and pad not in ends and fields.get("pad_token_id") != pad:
            config.pad_token_id = pad
    valid, dropped = _valid(generation)
    if dropped:
        model.generation_config = valid
        notes.append(
            f"the model's generation_config.json has {', '.join(dropped)} without effect, which transformers doesn't "
            "save; what is saved leaves it out"
        )
    return notes


def _valid(generation: GenerationConfig) -> tuple[GenerationConfig, list[str]]:
    """Return the config without the fields that transformers refuses to save, and their names."""
    from transformers import GenerationConfig

    if _is_valid(generation):
        return generation, []
    told: dict[str, Any] = generation.to_diff_dict()
    first = [name for name in ("do_sample", "num_beams") if name in told]  # others depend on them
    kept: dict[str, Any] = {}
    for name in [*first, *(name for name in told if name not in first)]:
        if _is_valid(GenerationConfig(**kept, **{name: told[name]})):
            kept[name] = told[name]
    return GenerationConfig(**kept), [name for name in told if name not in kept]


def _is_valid(generation: GenerationConfig) -> bool:
    try:
        generation.validate(strict=True)
    except ValueError:
        return False
    return True
