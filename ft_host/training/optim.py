"""Optimizers by name and by import path, and schedules from transformers."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from ft_host.config.options import OPTIMIZERS
from ft_host.config.values import PATHS
from ft_host.errors import ConfigError
from ft_host.util.memory import ran_out
from ft_host.util.text import nearest

if TYPE_CHECKING:
    from accelerate.optimizer import AcceleratedOptimizer

    from ft_host.config import RunConfig

Groups = list[dict[str, Any]]


def _adamw(groups: Groups, config: RunConfig) -> torch.optim.Optimizer:
    # The fused kernel updates a tensor in one pass over memory; it has no half-precision path on CPUs.
    fused = all(p.dtype == torch.float32 or p.device.type != "cpu" for group in groups for p in group["params"])
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=fused,
        **config.optim_args,
    )


def _sgd(groups: Groups, config: RunConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=config.learning_rate, **config.optim_args)


def _adafactor(groups: Groups, config: RunConfig) -> torch.optim.Optimizer:
    """The algorithm that transformers' Trainer has under this name: learning_rate is the size of a step, as Adam's is.
    torch's own (torch_adafactor) multiplies it by the size of the weights."""
    from transformers.optimization import Adafactor

    fixed = {"scale_parameter": False, "relative_step": False}
    return Adafactor(groups, lr=config.learning_rate, **{**fixed, **config.optim_args})


MADE_BY = {"adamw": _adamw, "sgd": _sgd, "adafactor": _adafactor}


# ---------------------------------------------------------------- of other packages


def optimizer_class(config: RunConfig) -> type[torch.optim.Optimizer]:
    """Import the class that `config.optim` names: an import path, or transformers' name for one. Raises ConfigError."""
    name = config.optim
    path = PATHS.get(name, name)
    if ":" not in path:
        raise ConfigError(
            f"optim: {name!r} is none of {', '.join(OPTIMIZERS)}, nor an import path package.module:Class"
        )
    said = name if path == name else f"{name} is {path}, and"
    module_name, _, attribute = path.partition(":")
    try:
        cls = vars(importlib.import_module(module_name))[attribute]
    except ModuleNotFoundError as error:
        package = module_name.partition(".")[0]
        if error.name != package:
            raise ConfigError(f"optim: {said} {module_name!r} can't be imported: {error}") from error
        raise ConfigError(f"optim: {said} the package {package} is not installed (pip install {package})") from error
    except KeyError:
        raise ConfigError(f"optim: module {module_name!r} has no {attribute!r}") from None
    except Exception as error:  # a package that doesn't fit this machine fails in its own way
        raise ConfigError(
            f"optim: {said} {module_name!r} can't be imported: {type(error).__name__}: {error}"
        ) from error
    if not (inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer)):
        raise ConfigError(f"optim: {name} is not a torch.optim.Optimizer class")
    return cls


def arguments_of(cls: type[torch.optim.Optimizer], config: RunConfig) -> dict[str, Any]:
    """Return the arguments of an optimizer of another package. Raises ConfigError for one that it doesn't take, and for
    an Adam field without effect.

    transformers' names have Adam's fields, as they have there; a class by its path has its own defaults, unless a field
    was set.
    """
    takes = inspect.signature(cls).parameters
    given: dict[str, Any] = {"lr": config.learning_rate}
    default = type(config)()
    for fields, argument in ((("adam_beta1", "adam_beta2"), "betas"), (("adam_epsilon",), "eps")):
        values = [getattr(config, name) for name in fields]
        changed = [name for name in fields if getattr(config, name) != getattr(default, name)]
        # Adafactor's eps, for instance, are two of another kind
        alike = argument in takes and (argument == "betas" or isinstance(takes[argument].default, float))
        if alike and (changed or config.optim in PATHS):
            given[argument] = values[0] if argument == "eps" else _betas(takes[argument].default, values)
        elif changed:
            raise ConfigError(f"{changed[0]}: has no effect: {config.optim} takes no {argument}")
    given |= config.optim_args
    anything = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in takes.values())
    for name in config.optim_args:
        if name not in takes and not anything:
            names = [each for each in takes if each not in ("params", "lr")]
            raise ConfigError(
                f"optim_args: {config.optim} does not take {name}{nearest(name, names)}; it takes {', '.join(names)}"
            )
    if "lr" not in takes and not anything:
        raise ConfigError(f"optim: {config.optim} takes no lr, so that learning_rate and its schedule had no effect")
    return given


def _betas(usual: Any, values: list[float]) -> tuple[float, ...]:
    """Return Adam's betas in place of the first two of a class that may have more (AdEMAMix has three)."""
    return (*values, *(usual[2:] if isinstance(usual, (tuple, list)) else ()))


def optimizer_factory(config: RunConfig) -> Callable[[Groups, RunConfig], torch.optim.Optimizer]:
    """Return what makes the optimizer that `config.optim` names. What its class shows to be wrong is refused here,
    before a model is loaded: a name, an argument, one that needs a closure, one that doesn't take vectors. Raises
    ConfigError, which names optimizer, path and arguments."""
    if PATHS.get(config.optim, config.optim) in OPTIMIZERS:
        make = MADE_BY[OPTIMIZERS[PATHS.get(config.optim, config.optim)]]
    else:
        cls = optimizer_class(config)
        closure = inspect.signature(cls.step).parameters.get("closure")
        if closure is None or closure.default is inspect.Parameter.empty:
            what = "has a step without closure" if closure is None else "computes the loss again within its step"
            raise ConfigError(
                f"optim: {config.optim} {what}, which a step of several micro-batches can't give it; expected an "
                "optimizer whose step can be called with closure=None, such as adamw"
            )
        arguments = arguments_of(cls, config)

        def make(groups: Groups, config: RunConfig) -> torch.optim.Optimizer:
            return cls(groups, **arguments)

    with refused(config):
        make(groups_of(stand_ins(config, torch.device("cpu")), config), config)
    return make


def stand_ins(config: RunConfig, device: torch.device) -> list[torch.nn.Parameter]:
    """Return a matrix, large enough to be held in 8 bits, and a vector; where all that is trained are the matrices of
    an adapter, only the first."""
    matrices = config.use_peft and not (config.use_dora or config.lora_modules_to_save)
    shapes = [(64, 64)] if matrices else [(64, 64), (64,)]
    return [torch.nn.Parameter(torch.zeros(shape, device=device)) for shape in shapes]


@contextlib.contextmanager
def refused(config: RunConfig) -> Iterator[None]:
    """Turn what an optimizer raises into ConfigError that names it."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # any kind: they are other packages'
        if ran_out(error):
            raise
        path = PATHS.get(config.optim, config.optim)
        named = config.optim if path == config.optim else f"{config.optim} ({path})"
        fields = "optim, optim_args" if config.optim_args else "optim"
        if config.optim_args:
            named += f" with {', '.join(f'{key}={value!r}' for key, value in config.optim_args.items())}"
        hint = ""
        if "2D" in str(error) and not config.use_peft:
            hint = ". A model has vectors too (norms, biases); an adapter is of matrices alone (use_peft)"
        raise ConfigError(f"{fields}: {named} can't be used: {type(error).__name__}: {error}{hint}") from error


def try_optimizer(config: RunConfig, device: torch.device) -> None:
    """Take two steps of another package's optimizer on the run's device, before a model is loaded. Raises ConfigError,
    which names it, for one that doesn't run there."""
    if PATHS.get(config.optim, config.optim) in OPTIMIZERS:
        return
    parameters = stand_ins(config, device)
    with refused(config):
        optimizer = optimizer_factory(config)(groups_of(parameters, config), config)
        for rate in (0.0, config.learning_rate):
            for parameter in parameters:
                parameter.grad = torch.full_like(parameter, 1e-3)
            if "train" in dir(type(optimizer)):  # schedule-free ones take steps in that mode only
                optimizer.train()
            set_rate(optimizer, [rate] * len(optimizer.param_groups))
            optimizer.step(closure=None)
            optimizer.state_dict()


def groups_of(parameters: list[torch.nn.Parameter], config: RunConfig) -> Groups:
    """Return the parameters in groups: only matrices decay, not norms and biases."""
    decayed = [parameter for parameter in parameters if parameter.dim() > 1]
    others = [parameter for parameter in parameters if parameter.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(model: torch.nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """Return the optimizer over the trained parameters."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with refused(config):
        return optimizer_factory(config)(groups_of(trained, config), config)


@contextlib.contextmanager
def averaged(optimizer: AcceleratedOptimizer) -> Iterator[None]:
    """Within this block the weights are those to evaluate and save: a schedule-free optimizer trains on others. Does
    nothing to any other optimizer."""
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()


def set_rate(optimizer: torch.optim.Optimizer, rates: list[float]) -> None:
    """Set the learning rate of each group. One that is a tensor is filled: compiled steps hold it."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


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

    def facts(self) -> dict[str, float]:
        """Return what the rate comes to over the run, as shares of learning_rate: the most, and the share of the steps
        in which it is below a hundredth of that. Of a thousand steps at most."""
        every = max(1, self.total // 1000)
        rates = [float(self.factors[0](step)) for step in range(0, self.total, every)] or [1.0]
        idle = sum(rate <= 0.01 * max(rates) for rate in rates) / len(rates)
        return {"plan/rate_most": max(rates), "plan/rate_idle_share": idle}

    def set(self, position: float) -> float:
        """Set the learning rate of every group for the step at `position`; returns that of the first group."""
        set_rate(self.optimizer, [self.base * factor(position) for factor in self.factors])
        return float(self.optimizer.param_groups[0]["lr"])
