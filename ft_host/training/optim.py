"""Optimizers by name and by import path, and schedules from transformers."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ft_host.config.options import OPTIMIZERS
from ft_host.errors import ConfigError

if TYPE_CHECKING:
    from ft_host.config import RunConfig


def _adamw(groups: list[dict[str, Any]], config: RunConfig) -> torch.optim.Optimizer:
    # The fused kernel updates a tensor in one pass over memory; it has no half-precision path on CPUs.
    fused = all(p.dtype == torch.float32 or p.is_cuda for group in groups for p in group["params"])
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=fused,
        **config.optim_args,
    )


def _sgd(groups: list[dict[str, Any]], config: RunConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=config.learning_rate, **config.optim_args)


def _adafactor(groups: list[dict[str, Any]], config: RunConfig) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(groups, lr=config.learning_rate, **config.optim_args)


MADE_BY = {"adamw": _adamw, "sgd": _sgd, "adafactor": _adafactor}


def optimizer_factory(config: RunConfig) -> Callable[[list[dict[str, Any]], RunConfig], torch.optim.Optimizer]:
    """Return what makes the optimizer that `config.optim` names. It is only imported, so that a wrong name is refused
    before a model is loaded. Raises ConfigError."""
    name = config.optim
    if name in OPTIMIZERS:
        return MADE_BY[OPTIMIZERS[name]]
    if ":" not in name:
        raise ConfigError(
            f"optim: {name!r} is none of {', '.join(OPTIMIZERS)}, nor an import path package.module:Class"
        )
    module_name, _, attribute = name.partition(":")
    try:
        cls = vars(importlib.import_module(module_name))[attribute]
    except ImportError as error:
        raise ConfigError(f"optim: {module_name!r} can't be imported: {error}") from error
    except KeyError:
        raise ConfigError(f"optim: module {module_name!r} has no {attribute!r}") from None
    if not (inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer)):
        raise ConfigError(f"optim: {name} is not a torch.optim.Optimizer class")
    return lambda groups, config: cls(groups, lr=config.learning_rate, **config.optim_args)


def make_optimizer(model: torch.nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """Return the optimizer over the trained parameters. Only matrices decay, not norms and biases."""
    decayed, others = [], []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if parameter.dim() > 1 else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    try:
        return optimizer_factory(config)(groups, config)
    except TypeError as error:
        raise ConfigError(f"optim_args: {config.optim} does not take them: {error}") from error


class Schedule:
    """The learning rate as a function of the run's position, so that resuming needs no state of its own.

    `position` counts optimizer steps of `total`. It may be fractional: with packing, the number of steps is an estimate
    and the position is the share of the rows that has been consumed.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: RunConfig, total: int):
        from transformers import get_scheduler

        for group in optimizer.param_groups:  # as in a run that never stopped; a resumed one holds its last step's rate
            group["initial_lr"] = config.learning_rate
        warmup = config.warmup_steps if config.warmup_steps >= 1 else math.ceil(config.warmup_steps * total)
        try:
            scheduler = get_scheduler(
                config.lr_scheduler_type,
                optimizer,
                num_warmup_steps=int(warmup),
                num_training_steps=total,
                scheduler_specific_kwargs=dict(config.lr_scheduler_kwargs),
            )
        except (ValueError, TypeError) as error:
            raise ConfigError(f"lr_scheduler_type {config.lr_scheduler_type!r}: {error}") from error
        if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
            raise ConfigError(
                f"lr_scheduler_type {config.lr_scheduler_type!r} depends on more than the step and can't be used here"
            )
        self.optimizer = optimizer
        self.total = total
        self.factors = scheduler.lr_lambdas
        self.base = config.learning_rate  # not the optimizer's: a resumed one holds the rate of its last step

    def set(self, position: float) -> float:
        """Set the learning rate of every group for the step at `position`; returns that of the first group."""
        for group, factor in zip(self.optimizer.param_groups, self.factors, strict=True):
            group["lr"] = self.base * factor(position)
        return self.optimizer.param_groups[0]["lr"]
