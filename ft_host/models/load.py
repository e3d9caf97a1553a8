"""From a config to a policy: weights and layout."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from ft_host.distributed.processes import precision
from ft_host.errors import ConfigError
from ft_host.models.checkpointing import recompute
from ft_host.models.folder import adapter_of, base_of, find_config, is_classifier
from ft_host.models.grouped import join_autocast
from ft_host.models.held import keep_wide, keeps_wide, maths
from ft_host.models.kernels import choose_layout
from ft_host.models.lean import make_lean
from ft_host.models.liger import apply_liger
from ft_host.models.neftune import EmbeddingNoise
from ft_host.models.policy import Policy
from ft_host.models.positions import check_lengths, table_of
from ft_host.models.shards import is_cut
from ft_host.models.special_tokens import agree, ids_of
from ft_host.models.unreached import freeze_unreached
from ft_host.models.value_head import ValueHead
from ft_host.models.vocabulary import size_of
from ft_host.models.weights import load_model, load_weights
from ft_host.util import devices

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ft_host.config import RunConfig
    from ft_host.types import ModelSpec


def _tells_routing(policy: Policy) -> bool:
    """Return whether the model can return router logits, as models with a load-balancing loss can."""
    balances = "load_balancing_loss_func" in vars(sys.modules[type(policy.causal_lm).__module__])
    return policy.head is None and balances and "output_router_logits" in policy.config.to_dict()


def _router_coefficient(policy: Policy, config: RunConfig) -> float:
    fields = policy.config.to_dict()
    coefficient = config.router_aux_loss_coef
    if policy.head is not None:
        if coefficient:
            raise ConfigError("router_aux_loss_coef: a reward model is trained without the load-balancing loss")
        return 0.0
    if not _tells_routing(policy):
        if coefficient:
            raise ConfigError(f"router_aux_loss_coef: {type(policy.causal_lm).__name__} has no load-balancing loss")
        return 0.0
    return fields.get("router_aux_loss_coef") or 0.0 if coefficient is None else coefficient


def _dropouts(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """(module, attribute) of layers of dropout and of modules' rates of it, but for an adapter's (`lora_dropout`)."""
    for name, module in model.named_modules():
        if "lora_dropout" in name:
            continue
        if isinstance(module, nn.Dropout):
            yield module, "p"
        yield from ((module, key) for key, value in vars(module).items() if "dropout" in key and type(value) is float)


def without_dropout(model: nn.Module) -> None:
    """Set every dropout of a model to 0. The model's config, and so what is saved, doesn't change."""
    for module, rate in list(_dropouts(model)):
        setattr(module, rate, 0.0)


def dropout_of(model: nn.Module) -> float:
    """Return the largest share that a model's own dropout leaves out in training."""
    return max((vars(module)[rate] for module, rate in _dropouts(model)), default=0.0)


def _placed(model: nn.Module, config: RunConfig, device: torch.device, head: str | None) -> Policy:
    """Return a policy of a transformers model, on its device, with its layout chosen once its weights can be used."""
    join_autocast()
    if config.disable_dropout:
        without_dropout(model)
    policy = Policy(model, head=head)
    most = table_of(policy.causal_lm)
    if most is not None:
        name = policy.causal_lm.name_or_path or type(policy.causal_lm).__name__
        policy.register_forward_pre_hook(lambda _, given: check_lengths(given[0], most, name))
    if not (config.load_in_4bit or config.load_in_8bit):
        policy.to(device)
    _when_usable(policy, partial(_choose_layout, policy, config, device))
    return policy


def _choose_layout(policy: Policy, config: RunConfig, device: torch.device) -> None:
    with maths(config, device):
        choose_layout(policy, config)
    if not config.use_liger_kernel:  # which has layers of its own
        fuse = not config.torch_compile  # which compiles whole layers
        policy.lean = make_lean(policy.model, policy.device, precision(config, device), fuse)


def _when_usable(policy: Policy, work: Callable[[], None]) -> None:
    """Do it now, or once the policy is sharded if its weights were cut when they were loaded."""
    if is_cut(policy):
        policy.waiting.append(work)
    else:
        work()


def load_policy(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    head: str | None = None,
    router: bool = True,
    sharded: bool = False,
) -> Policy:
    """Return the policy of a run, on its device, in training mode.

    `head`: None for a language model, "reward" for one score per row. `router`: whether router_aux_loss_coef applies to
    it. `sharded`: it will be sharded over the ranks, so each keeps only its own rows of the weights; it can't be called
    before `shard`. Raises ConfigError, which names the field, for what can't work.
    """
    tokens = size_of(tokenizer) if config.resize_token_embeddings else 0
    model, notes = load_model(config, head, tokens, device if sharded else None)
    if head is not None:
        model.config.get_text_config().pad_token_id = score_pad(tokenizer)
    else:
        notes += _agree_on_tokens(model, tokenizer, config)
    policy = _placed(model, config, device, head)
    _when_usable(policy, partial(_prepare, policy, config, device, notes, router))
    return policy


def _prepare(policy: Policy, config: RunConfig, device: torch.device, notes: list[str], router: bool) -> None:
    """Make a policy ready to be trained: what is left once its layout is chosen."""
    head = policy.head
    policy.notes += [*notes, *policy.lean.notes()]
    with maths(config, device):
        freeze_unreached(policy, config)
    if head is not None:
        settings = find_config(
            base_of(config.model, config.lora_base_model), "model", config.model_revision, config.trust_remote_code
        )
        if not is_classifier(settings):
            policy.notes.append("the score layer is new: before training, scores are random")
    policy.router_aux_loss_coef = _router_coefficient(policy, config) if router else 0.0
    # Hooks would break up a compiled layer
    policy.counts_routing = router and _tells_routing(policy) and not config.torch_compile
    if policy.router_aux_loss_coef:
        policy.notes.append(
            "the load-balancing loss is over full sequences: a prompt that rows share is computed for each of them"
        )
    if config.use_liger_kernel:
        apply_liger(policy, device)
    recompute(policy, config)
    if config.neftune_noise_alpha is not None:
        policy.noise = EmbeddingNoise(policy.causal_lm.get_input_embeddings(), config.neftune_noise_alpha)
    if config.torch_compile:
        for layer in decoder_layers(policy):
            layer.compile(dynamic=True)
    policy.train()


def _agree_on_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> list[str]:
    """Make the special tokens of what will be saved the tokenizer's. Returns what the plan must say of it."""
    causal_lm = model.get_base_model() if config.use_peft else model
    before = set(ids_of(causal_lm.generation_config.eos_token_id))
    notes = agree(causal_lm, tokenizer)
    if (
        config.use_peft
        and not config.merge_adapter
        and not before.issuperset(ids_of(causal_lm.generation_config.eos_token_id))
    ):
        notes.append(
            f"texts end in {tokenizer.eos_token!r}, which the adapter's base doesn't stop at: generation_config.json "
            "beside the adapter names it (GenerationConfig.from_pretrained of that folder); merge_adapter writes a "
            "whole model that stops there by itself"
        )
    return notes


def load_frozen(
    config: RunConfig,
    source: str,
    device: torch.device,
    *,
    head: str | None = None,
    adapter: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    field: str = "ref_model",
    revision: str | None = None,
    moves: bool = False,
    sharded: bool = False,
) -> Policy:
    """Load the model of a folder or hub id as an auxiliary model: on the run's device, in evaluation mode, frozen.

    `adapter`: the folder of an adapter to add to it. `tokenizer`: a reward model's score skips its padding. `moves`: it
    follows the policy, and is held in its type. `sharded`: as in `load_policy`. Types, attention and quantisation are
    the run's. Raises ConfigError, which names `field`, for what can't work.
    """
    shards = device if sharded else None
    model = load_weights(config, source, field=field, head=head, revision=revision, moves=moves, shards=shards)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    if head is not None:
        text = model.config.get_text_config()
        if tokenizer is not None:
            text.pad_token_id = score_pad(tokenizer)
        elif text.to_dict().get("pad_token_id") is None:
            raise ConfigError(f"{field}: {source} doesn't say which token is padding (pad_token_id of its config.json)")
    if not sharded:  # FSDP2 computes all of a model in one type
        if head is not None and config.dtype is None:
            model.score.float()  # one row, of which a score of two digits would be left
        if not moves and keeps_wide(config, device):
            keep_wide(model)
    model.requires_grad_(False)
    return _placed(model, config, device, head).eval()


def attach_value(
    policy: Policy,
    spec: ModelSpec,
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    sharded: bool = False,
) -> None:
    """Give the policy the auxiliary model of head "value", which is trained with it.

    It is a layer on the policy's states, or a model with its own layer (with LoRA, also an adapter). Comes before the
    policy is sharded or wrapped; `sharded` as in `load_policy`. Raises ConfigError, which names the spec's field, where
    the model is an adapter of another model.
    """
    if spec.shares_policy:
        with devices.forked_random(device):  # from `seed` alone, as other new heads are
            torch.manual_seed(config.seed)
            policy.companions["value"] = ValueHead(policy.config.hidden_size).to(device)
        return
    source = spec.source or config.model
    if adapter_of(source):
        raise ConfigError(
            f"{spec.field}: {source} is an adapter; a value model needs a whole model. Set "
            f"{spec.field} to one (merge_adapter writes it), or compute values from the policy's states"
        )
    value = policy.companions["value"] = load_policy(
        dataclasses.replace(config, model=source), tokenizer, device, head="reward", router=False, sharded=sharded
    )
    _when_usable(value, lambda: setattr(value, "head", "value"))  # up to here it was tried as what its class is


def score_pad(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the padding token: transformers' classifiers read the score at the last other token."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def decoder_layers(policy: Policy) -> list[nn.Module]:
    """Return the blocks that the model says must not be split, in order. Raises ConfigError for a model that names
    none.
    """
    names = set(policy.causal_lm._no_split_modules or ())  # fully_shard makes a class of each, FSDP before its name
    layers = [module for module in policy.model.modules() if type(module).__name__.removeprefix("FSDP") in names]
    if not layers:
        raise ConfigError(f"model: {type(policy.causal_lm).__name__} doesn't say which modules are its layers")
    return layers
