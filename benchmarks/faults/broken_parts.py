"""Parts that are broken on purpose, as context managers that a run is made in. What they replace is put back
afterwards."""

from __future__ import annotations

import contextlib
import mmap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import MethodType
from typing import Any
from unittest.mock import patch

import torch

from ft_host.data import sources
from ft_host.generation import transformers as backend
from ft_host.training import build, checkpoint, loop, step


@contextlib.contextmanager
def _policy(change: Callable[[Any], None]) -> Iterator[None]:
    """The policy is changed once it is loaded."""
    load = build.load_policy

    def changed(*args: Any, **fields: Any) -> Any:
        policy = load(*args, **fields)
        change(policy)
        return policy

    with patch.object(build, "load_policy", changed):
        yield


def _layers(policy: Any) -> Any:
    return policy.causal_lm.base_model.layers


def _mapped(output: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


@contextlib.contextmanager
def _step(change: Callable[..., None]) -> Iterator[None]:
    """Something is done before each optimizer step, within its time."""
    train_step = loop.train_step

    def changed(run: Any, *rest: Any) -> Any:
        change(run)
        return train_step(run, *rest)

    with patch.object(loop, "train_step", changed):
        yield


# ---------------------------------------------------------------- model and optimizer


def nan_layer(after: int) -> contextlib.AbstractContextManager:
    """A kernel that breaks: the last layer gives NaN from the forward of step `after` + 1 on."""
    done = 0

    def hook(module: Any, args: Any, output: Any) -> Any:
        nonlocal done
        if not (module.training and torch.is_grad_enabled()):
            return output
        done += 1
        return _mapped(output, lambda hidden: hidden * float("nan")) if done > after else output

    return _policy(lambda policy: _layers(policy)[-1].register_forward_hook(hook))


def detached() -> contextlib.AbstractContextManager:
    """Somebody's `.detach()`: no gradient reaches what is before the last layer."""

    def hook(module: Any, args: Any, output: Any) -> Any:
        return _mapped(output, lambda hidden: hidden.detach().requires_grad_())

    return _policy(lambda policy: _layers(policy)[-2].register_forward_hook(hook))


@contextlib.contextmanager
def no_updates() -> Iterator[None]:
    """The optimizer's step does nothing, as one over copies of the parameters would."""
    make = build.make_optimizer

    def idle(*args: Any) -> Any:
        optimizer = make(*args)
        optimizer.step = MethodType(lambda self, closure=None: None, optimizer)
        return optimizer

    with patch.object(build, "make_optimizer", idle):
        yield


@contextlib.contextmanager
def small_gradients(by: float) -> Iterator[None]:
    """The loss that gradients are of is divided once too often."""
    loss_of = step.loss_of

    def divided(*args: Any) -> Any:
        return loss_of(*args) / by

    with patch.object(step, "loss_of", divided):
        yield


# ---------------------------------------------------------------- time and memory


@contextlib.contextmanager
def slow_rows(seconds: float) -> Iterator[None]:
    """A slow disk, or tokens made by something slow."""
    read = sources.Source.read

    def slowly(source: Any, index: int) -> Any:
        time.sleep(seconds)
        return read(source, index)

    with patch.object(sources.Source, "read", slowly):
        yield


@contextlib.contextmanager
def slow_saving(seconds: float) -> Iterator[None]:
    save = checkpoint.save

    def slowly(*args: Any) -> Any:
        time.sleep(seconds)
        return save(*args)

    with patch.object(checkpoint, "save", slowly):
        yield


def slow_steps(after: int, seconds: float) -> contextlib.AbstractContextManager:
    """Another job on the machine, or a processor that gets hot."""
    return _step(lambda run: time.sleep(seconds if run.step >= after else 0))


def hoarding(megabytes: int) -> contextlib.AbstractContextManager:
    """Memory of each step is kept, as in a list of losses that were never detached. Pages of its own: what malloc gives
    may be what the case before has left in this process, and the process would not grow."""
    kept: list[mmap.mmap] = []

    def keep(run: Any) -> None:
        pages = mmap.mmap(-1, megabytes * 2**20)
        pages.write(b"1" * len(pages))
        kept.append(pages)

    return _step(keep)


# ---------------------------------------------------------------- sampler


@contextlib.contextmanager
def stale_sampler(after: int) -> Iterator[None]:
    """What samples has the weights of step `after` for ever, as an engine whose updates get lost."""
    generating = backend.generating
    kept: dict[str, torch.Tensor] = {}

    @contextlib.contextmanager
    def stale(run: Any, model: Any) -> Iterator[None]:
        if run.step < after:
            with generating(run, model):
                yield
            return
        now = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if not kept:
            kept.update(now)
        model.load_state_dict(kept)
        try:
            with generating(run, model):
                yield
        finally:
            model.load_state_dict(now)

    with patch.object(backend, "generating", stale):
        yield


@contextlib.contextmanager
def other_temperature(factor: float) -> Iterator[None]:
    """What samples has a temperature of its own."""
    decode = backend.decode

    def hotter(model: Any, jobs: Any, sampling: Any, *rest: Any) -> Any:
        return decode(model, jobs, replace(sampling, temperature=sampling.temperature * factor), *rest)

    with patch.object(backend, "decode", hotter):
        yield


@contextlib.contextmanager
def wrong_values() -> Iterator[None]:
    """The value loss has the sign of what it aims at wrong."""
    from ft_ppo import method

    losses = method.value_losses

    def wrong(values: Any, old_values: Any, returns: Any, *rest: Any) -> Any:
        return losses(values, old_values, -returns, *rest)

    with patch.object(method, "value_losses", wrong):
        yield


# ---------------------------------------------------------------- weights that stay


def frozen(keep: str) -> contextlib.AbstractContextManager:
    """Somebody's loop over the parameters: all but those with `keep` in their name are no longer trained."""

    def freeze(policy: Any) -> None:
        for name, parameter in policy.named_parameters():
            if keep not in name:
                parameter.requires_grad_(False)

    return _policy(freeze)
