"""An adapter from a folder: trained further, or kept beside the trained one as a reference."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.tensor.experimental import implicit_replication

from ft_host.config.adapters import ALL_LINEAR, own_fields, same, without_effect
from ft_host.errors import ConfigError
from ft_host.models.adapters import REFUSED, empty_model, first_line, plan_adapter
from ft_host.util.adapters import base_of, settings_of

if TYPE_CHECKING:
    from peft import PeftModel

    from ft_host.config import RunConfig
    from ft_host.models.policy import Policy


def check_same(config: RunConfig, folder: Path, head: str | None) -> None:
    """Refuse fields that an adapter's folder has decided otherwise. Raises ConfigError, which names the field."""
    from peft import get_peft_model

    for name, theirs in own_fields(folder).items():
        ours = getattr(config, name)
        if same(ours, theirs):
            continue
        if name == "lora_target_modules" and ours == ALL_LINEAR:
            base = dataclasses.replace(config, model=base_of(str(folder), config.lora_base_model))
            settings, _ = plan_adapter(base, head)
            new = get_peft_model(empty_model(base, base.model, head), settings).peft_config["default"].target_modules
            if set(new) == set(theirs):
                continue
        raise ConfigError(without_effect(name, ours, theirs, folder))


def load_adapter(model: nn.Module, folder: Path, base: str, *, field: str, trained: bool) -> PeftModel:
    """Return the model with the adapter of a folder. What is saved of it names `base`. Raises ConfigError, which names
    `field`, for an adapter of another architecture, or one that lacks weights."""
    from peft import PeftModel

    settings_of(folder, field)
    kind = type(model).__name__
    try:
        # it may hold whole modules, of which the base has some rows on this rank
        with implicit_replication(), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            adapted = PeftModel.from_pretrained(model, folder, is_trainable=trained)
    except (*REFUSED, OSError, KeyError) as error:
        raise ConfigError(
            f"{field}: the adapter {folder} doesn't fit its base {base}, a {kind}: {first_line(error)}"
        ) from error
    for warning in told:
        text = str(warning.message)
        if "missing adapter keys" in text:
            raise ConfigError(
                f"{field}: the adapter {folder} has no weights for some modules of its base {base}, a {kind}, that its "
                f"settings name: {text}"
            )
    adapted.peft_config["default"].base_model_name_or_path = base
    return adapted


def reads_base(folder: Path) -> str | None:
    """Return the way in which an adapter's weights are made off its base's, where peft does that again when it loads
    the adapter (PiSSA, OLoRA and others); None for one that leaves the base as it is."""
    made = settings_of(folder, "model").get("init_lora_weights", True)
    return None if str(made).lower() in ("true", "false", "gaussian", "eva") else str(made)


def frozen_twin(model: PeftModel, name: str) -> None:
    """Add a frozen adapter with the settings of "default" under another name, with weights still to come.

    Not initialised as "default" may have been: PiSSA, OLoRA and others take the new adapter's weights off the base,
    which they have done already.
    """
    settings = copy.deepcopy(model.peft_config["default"])
    settings.init_lora_weights = settings.inference_mode = True
    with implicit_replication():  # as in load_adapter
        model.add_adapter(name, settings)


def add_reference_adapter(policy: Policy, folder: str | Path) -> None:
    """Load the adapter that the policy started from a second time, frozen, under the name "reference".

    "default" stays active and trained; `save_model` saves only that one.
    """
    training, model = policy.training, policy.model
    frozen_twin(model, "reference")
    with implicit_replication():  # as in load_adapter
        model.load_adapter(str(folder), adapter_name="reference", is_trainable=False, torch_device=str(policy.device))
    model.set_adapter("default")
    policy.train(training)  # peft sets evaluation mode when it loads a frozen adapter


def copy_adapter(policy: Policy) -> None:
    """Add a frozen copy of the policy's current adapter under the name "reference"."""
    training, model = policy.training, policy.model
    frozen_twin(model, "reference")
    every = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in every.items():
            if ".default." in name:
                every[name.replace(".default.", ".reference.")].copy_(parameter)
    model.set_adapter("default")
    for name, parameter in every.items():
        if ".reference." in name:
            parameter.requires_grad_(False)
    policy.train(training)
