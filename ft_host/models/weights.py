"""From a folder or hub id to a transformers model, with its adapter. Errors name the field."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ft_host.data.tokenizer import load_tokenizer
from ft_host.errors import ConfigError
from ft_host.models.adapter_folder import load_adapter, reads_base
from ft_host.models.adapters import attach, plan_adapter
from ft_host.models.folder import (
    adapter_of,
    auto_class,
    base_of,
    check_folder,
    check_weights,
    find_config,
    is_classifier,
)
from ft_host.models.held import frozen_dtype, hold_trained_in_float32, trained_dtype
from ft_host.models.quantised import quantisation
from ft_host.models.shards import cut_when_loaded
from ft_host.models.softcap import keep_soft_cap
from ft_host.models.vocabulary import resize, rows_of_adapter, size_of, trained_tokens
from ft_host.util import devices

if TYPE_CHECKING:
    from ft_host.config import RunConfig


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress transformers' report on loading: problems in it raise an error that names them."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def load_base(
    config: RunConfig,
    name: str,
    *,
    dtype: torch.dtype | str,
    field: str = "model",
    head: str | None = None,
    revision: str | None = None,
    shards: torch.device | None = None,
) -> nn.Module:
    """Load the transformers model of a folder or hub id, with its weights in `dtype`, "auto" for that of its files.

    It is a causal language model, or with head "reward" a sequence classifier of one label, whose head is new and
    random where the weights are a language model's: drawn from `seed` alone, so that an adapter beside it, or a model
    loaded before it, doesn't change it. `shards`: each rank keeps its own rows of what it reads, on that device (see
    `ft_host.models.shards`). Raises ConfigError, which names `field`, for anything else.
    """
    from safetensors import SafetensorError

    settings = find_config(name, field, revision, config.trust_remote_code)
    if settings.is_encoder_decoder:
        raise ConfigError(
            f"{field}: {name} is an encoder-decoder ({settings.model_type}); expected a causal language model"
        )
    auto, labels, quantised = auto_class(settings, head), {}, quantisation(config, devices.chosen(config.use_cpu))
    if head is not None:
        labels = {"num_labels": 1}
        if is_classifier(settings) and settings.num_labels != 1:
            raise ConfigError(
                f"{field}: {name} is a sequence classifier with {settings.num_labels} labels; a reward model has one "
                "(num_labels: 1)"
            )
    try:
        with contextlib.ExitStack() as around:
            if head is not None:
                around.enter_context(quiet())  # it would warn of the new head
                around.enter_context(devices.forked_random(devices.chosen(config.use_cpu)))
                torch.manual_seed(config.seed)
            if shards is not None:
                around.enter_context(cut_when_loaded(shards))
            model, report = auto.from_pretrained(
                name,
                dtype=dtype,
                attn_implementation=config.attn_implementation,
                quantization_config=quantised,
                device_map={"": str(devices.chosen(config.use_cpu))} if quantised else None,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # the report has them; they raise below, by name
                revision=revision,
                trust_remote_code=config.trust_remote_code,
                **labels,
            )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ConfigError(f"{field}: {name} can't be loaded: {str(error).splitlines()[0]}") from error
    for key, found_shape, expected_shape in sorted(report["mismatched_keys"]):
        raise ConfigError(
            f"{field}: {name} holds {key} of shape {tuple(found_shape)}; its config.json makes it "
            f"{tuple(expected_shape)}"
        )
    beyond = layers_beyond(model, report["unexpected_keys"])
    if beyond:
        raise ConfigError(
            f"{field}: {name} holds weights of layers that its config.json has no place for, for instance {beyond[0]} "
            f"({len(beyond)} tensors in all); they would be left out. Is num_hidden_layers the model's own?"
        )
    missing = set(report["missing_keys"])
    if head is not None:
        if "score" not in dict(model.named_children()):
            raise ConfigError(
                f"{field}: {type(model).__name__} has no module `score`: a reward is read from a decoder's last token"
            )
        if not is_classifier(settings):
            missing -= {f"score.{key}" for key in model.score.state_dict()}
    missing = sorted(missing)
    if missing:
        raise ConfigError(
            f"{field}: {name} has no weights for {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}: they "
            "would be random"
        )
    keep_soft_cap(model, config.attn_implementation, field)
    return model


def layers_beyond(model: nn.Module, unexpected: set[str]) -> list[str]:
    """Return the names of weights that belong to a layer after the last of a list of layers that the model has."""
    lists = {name: len(module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    found = []
    for key in sorted(unexpected):
        match = re.match(r"(.*?)\.(\d+)\.", key)
        if match and any(name == match[1] or name.endswith(f".{match[1]}") for name in lists):
            size = max(size for name, size in lists.items() if name == match[1] or name.endswith(f".{match[1]}"))
            found += [key] if int(match[2]) >= size else []
    return found


def load_model(
    config: RunConfig, head: str | None = None, tokens: int = 0, shards: torch.device | None = None
) -> tuple[nn.Module, list[str]]:
    """Load the model to train: a base model, with a new adapter, or an adapter's folder with its base. Returns it with
    what the plan must say of it. `tokens`: embeddings that it must have; those that are added are trained. `shards`: as
    in `load_base`."""
    check_folder(config.model)
    check_weights(config.model, "model")
    if adapter_of(config.model):
        if not config.use_peft:
            raise ConfigError(f"model: {config.model} is an adapter; set use_peft to train it further")
        made = reads_base(Path(config.model)) if shards is not None else None
        said = f"every rank loads the whole base before it is sharded: {config.model} is made off its weights ({made})"
        model = load_weights(config, config.model, field="model", head=head, trained=True, shards=shards)
        return model, [said] if made else []
    if not config.use_peft:
        dtype, name, revision = trained_dtype(config), config.model, config.model_revision
        model = load_base(config, name, dtype=dtype, head=head, revision=revision, shards=shards)
        resize(model, config, tokens)
        return model, []
    settings, notes = plan_adapter(config, head)
    dtype, name, revision = frozen_dtype(config, devices.chosen(config.use_cpu)), config.model, config.model_revision
    model = load_base(config, name, dtype=dtype, head=head, revision=revision, shards=shards)
    settings.trainable_token_indices = trained_tokens(model, resize(model, config, tokens))
    return _adapted(attach(model, settings), config), notes


def _adapted(model: nn.Module, config: RunConfig) -> nn.Module:
    """A model with an adapter to train, whose trained weights are in their type."""
    if config.dtype is None:
        hold_trained_in_float32(model)
    return model


def load_weights(
    config: RunConfig,
    name: str,
    *,
    field: str,
    head: str | None = None,
    trained: bool = False,
    moves: bool = False,
    revision: str | None = None,
    shards: torch.device | None = None,
) -> nn.Module:
    """Load the model of a folder or hub id; for an adapter's folder, its base with the adapter, trainable
    if requested.

    `config` sets types, attention and quantisation. Its revision applies to its own model only; `revision` is for
    another. `moves`: the whole model follows one that is trained, in steps as small, so it is held in its type.
    `shards`: as in `load_base`.
    """
    check_folder(name, field)
    check_weights(name, field)
    revision = revision or (config.model_revision if name == config.model else None)
    base = base_of(name, config.lora_base_model if name == config.model else None, field)
    dtype = trained_dtype(config) if moves else frozen_dtype(config, devices.chosen(config.use_cpu))
    if base == name:
        model = load_base(config, base, dtype=dtype, field=field, head=head, revision=revision, shards=shards)
        if name == config.model and config.resize_token_embeddings:  # the policy as it was before training
            resize(model, config, size_of(load_tokenizer(config)))
        return model
    named = f"{field}: the base of the adapter {name}"
    check_folder(base, named)
    check_weights(base, named)
    if reads_base(Path(name)):
        shards = None
    model = load_base(config, base, dtype=dtype, field=named, head=head, revision=revision, shards=shards)
    resize(model, config, rows_of_adapter(name))
    return _adapted(load_adapter(model, Path(name), base, field=field, trained=trained), config)
