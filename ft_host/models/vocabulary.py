"""A tokenizer with more tokens than the model has embeddings: rows with such a token are refused, or embeddings are
added for them. Models with other tokens than the policy's are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ft_host.errors import ConfigError
from ft_host.models.folder import adapter_of, base_of, check_folder, find_config
from ft_host.models.shards import make_whole
from ft_host.types import ModelSpec
from ft_host.util.adapters import settings_of, tokenizer_place

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ft_host.config import RunConfig

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")  # in an adapter's file
NAMED = 3  # tokens that a sentence names


def rows_of(config: RunConfig) -> int:
    """Return the rows of the embedding matrix of `config.model`, by its config.json."""
    base = base_of(config.model, config.lora_base_model)
    found = find_config(base, "model", config.model_revision, config.trust_remote_code)
    return max(found.get_text_config().vocab_size, rows_of_adapter(config.model))


def rows_of_adapter(name: str) -> int:
    """Return the embeddings that an adapter's base must have for it: those that it trains tokens of, or holds. 0 for
    one that leaves them alone, and for what is no adapter."""
    from safetensors import safe_open

    folder = adapter_of(name)
    if folder is None:
        return 0
    indices = settings_of(folder, "model").get("trainable_token_indices") or []
    lists = indices.values() if isinstance(indices, dict) else [indices]
    rows = [index + 1 for each in lists for index in each]
    weights = folder / "adapter_model.safetensors"
    if weights.is_file():
        with safe_open(weights, "pt") as tensors:
            rows += [tensors.get_slice(key).get_shape()[0] for key in tensors.keys() if key.endswith(EMBEDDINGS)]
    return max(rows, default=0)


def size_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the embeddings that a tokenizer needs: one more than its largest id."""
    return max(tokenizer.get_vocab().values()) + 1


def lacking(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, list[str]]:
    """Return the number of embeddings where the tokenizer has more tokens and none are added, else None; and what is
    said of it before the first step.

    Raises ConfigError where embeddings are to be added to a model that has enough, or pads with a token without one.
    """
    rows, tokens = rows_of(config), size_of(tokenizer)
    vocabulary = tokenizer.get_vocab()
    without = sorted((id, token) for token, id in vocabulary.items() if id >= rows)
    if not without:
        return None, []
    named = ", ".join(f"{token!r} ({id})" for id, token in without[:NAMED]) + (" …" if len(without) > NAMED else "")
    if config.resize_token_embeddings:
        if adapter_of(config.model):
            raise ConfigError(
                f"resize_token_embeddings: {config.model} is an adapter, which is trained with the embeddings that it "
                f"has ({rows}); merge it into its base (merge_adapter) and train that"
            )
        return None, [f"{config.model} gets embeddings for {len(without)} tokens that it had none for: {named}"]
    pad = tokenizer.pad_token_id
    if pad is not None and pad >= rows:
        raise ConfigError(
            f"model: the tokenizer of {config.model} pads with {tokenizer.pad_token!r} ({pad}), and the model has "
            f"embeddings for {rows} tokens; set resize_token_embeddings, or give the tokenizer another pad_token"
        )
    return rows, [
        f"the tokenizer of {config.model} has {tokens} tokens and the model embeddings for {rows}: rows with {named} "
        "are refused; resize_token_embeddings adds embeddings for them"
    ]


def resize(model: nn.Module, config: RunConfig, tokens: int) -> list[int]:
    """Add embeddings (and rows of the head) for ids up to `tokens`, and return the new ids, none where there are
    enough.

    They are drawn from the distribution of the old ones (transformers' `mean_resizing`), from `seed` alone: a frozen
    copy of the model gets the same, and the run's random state doesn't change.
    """
    before = model.get_input_embeddings().weight.shape[0]
    if tokens <= before:
        return []
    make_whole(module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model.resize_token_embeddings(tokens)
    return list(range(before, tokens))


def trained_tokens(model: nn.Module, ids: list[int]) -> dict[str, list[int]] | None:
    """Return peft's `trainable_token_indices` for new tokens: an adapter trains their embeddings, and their rows of the
    head where that has weights of its own, and saves them. None without new tokens."""
    if not ids:
        return None
    modules = {id(module): name for name, module in model.named_modules()}
    words, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = [modules[id(words)]]
    if head is not None and head.weight is not words.weight:
        names.append(modules[id(head)])
    return {name: ids for name in names}


def check_vocabulary(
    config: RunConfig,
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    field: str = "ref_model",
    spec: ModelSpec | None = None,
) -> None:
    """Refuse a model with other tokens than the policy's, before its weights are loaded.

    Compares the sizes in the two configs, and the run's tokenizer with that of `source` where it has one. `spec` may
    allow different sizes, as long as all tokens are within the smaller one, or say that there is nothing to compare
    except that it is a model. Raises ConfigError, which names `field`, the sizes and the first tokens that differ.
    """
    from transformers import AutoTokenizer

    spec = spec or ModelSpec()
    instead = f"; {spec.hint}" if spec.hint else ""
    sizes: list[int] = []
    for name, named, own in ((config.model, "model", config.model_revision), (source, field, spec.revision)):
        check_folder(name, named)
        base = base_of(name, config.lora_base_model if name == config.model else None, named)
        revision = own or (config.model_revision if name == config.model else None)
        sizes.append(find_config(base, named, revision, config.trust_remote_code).get_text_config().vocab_size)
    if config.resize_token_embeddings:
        sizes[0] = max(sizes[0], size_of(tokenizer))
    if spec.own_tokenizer:
        return
    source = tokenizer_place(source, config.lora_base_model if source == config.model else None, field)
    place = Path(source)
    bare = place.is_dir() and not any(place.glob("tokenizer*"))
    padding = (
        spec.allow_padded_vocab and not bare and max(tokenizer.get_vocab().values()) < min(sizes)
    )  # the rest is padding
    if sizes[0] != sizes[1] and not padding:
        raise ConfigError(
            f"{field}: {source} has a vocabulary of {sizes[1]} tokens, {config.model} one of {sizes[0]}; both must "
            f"read the same tokens{instead}"
        )
    if bare:
        return
    try:
        other = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{field}: the tokenizer of {source} can't be loaded: {str(error).splitlines()[0]}"
        ) from error
    ours, theirs = tokenizer.get_vocab(), other.get_vocab()
    differing = sorted(
        (token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)),
        key=lambda token: (ours.get(token, theirs.get(token)), token),
    )
    if differing:
        shown = "; ".join(
            f"{token!r} is {ours.get(token)} here and {theirs.get(token)} there" for token in differing[:3]
        )
        raise ConfigError(
            f"{field}: {source} has another vocabulary than this run's tokenizer ({len(theirs)} and {len(ours)} "
            f"tokens): {shown}{' …' if len(differing) > 3 else ''}{instead}"
        )
