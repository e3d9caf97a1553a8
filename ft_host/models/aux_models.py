"""Models beside the policy: frozen, called as the policy is, and no copy where one can be saved.

    what the companion is                          what is held for it
    the initial policy, LoRA                       nothing: the policy with its adapter off
    the initial policy, started from an adapter    a frozen copy of that adapter
    what follows the policy, LoRA                  a copy of its adapter
    the policy as it is (`live`)                   nothing
    the initial policy, values made ahead          nothing: before the first step the policy is the initial one
    the initial policy otherwise, or another       a frozen model, sharded as the policy is

A run that resumes finds the initial policy where it began, in `config.model`, not in its checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ft_host.distributed.processes import is_sharded
from ft_host.errors import ConfigError
from ft_host.models.folder import adapter_of
from ft_host.models.load import add_reference_adapter, copy_adapter, load_frozen
from ft_host.models.sharding import reshard, shard
from ft_host.types import ModelSpec

if TYPE_CHECKING:
    from ft_host.batch import Batch
    from ft_host.config import RunConfig
    from ft_host.models.policy import Policy
    from ft_host.models.tiled_divergence import Head
    from ft_host.run import Run

REFERENCE = "reference"  # what add_reference_adapter calls it


@contextlib.contextmanager
def frozen_eval(policy: Policy) -> Iterator[None]:
    """No gradient, no dropout; afterwards the policy trains again if it did, and whole weights of shards are let go."""
    training = policy.training
    policy.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        policy.train(training)
        reshard(policy)


def starts_from_adapter(config: RunConfig) -> bool:
    return adapter_of(config.model) is not None


def keep_adapter(policy: Policy, specs: dict[str, ModelSpec], config: RunConfig) -> None:
    """Give the policy the frozen copy of its adapter that a companion is to be, where that began with one or follows
    the policy. Comes before the policy is sharded or wrapped."""
    initial = [spec for spec in specs.values() if spec.source is None and not spec.trained and not spec.current_policy]
    if not config.use_peft or not initial:
        return
    if starts_from_adapter(config):
        add_reference_adapter(policy, config.model)
    elif any(spec.sync_steps is not None for spec in initial):
        copy_adapter(policy)


def twin_of(name: str) -> str:
    """The frozen parameter that belongs to one of the adapter that is trained."""
    return name.replace(".default.", f".{REFERENCE}.")


class AuxModel:
    """`companion(batch, want)` gives what `Policy` does, without gradient. All ranks must call it at once where the
    policy is sharded."""

    def __init__(self, spec: ModelSpec, run: Run):
        self.spec = spec
        self._run = run
        # the policy itself, as it is, or with another adapter or none
        self._of_policy = spec.current_policy or (run.config.use_peft and spec.source is None)
        self._held: Policy | None = None
        if not self._of_policy and spec.precompute is None:
            self._held = self._load()

    @property
    def adapted(self) -> bool:
        """Whether it is an adapter of the policy that follows it."""
        return self._of_policy and self.spec.sync_steps is not None

    @property
    def held(self) -> Policy | None:
        """The model that is in memory for this companion alone."""
        return self._held

    def __call__(
        self, batch: Batch, want: tuple[str, ...] = ("logp",), temperature: float = 1.0
    ) -> dict[str, torch.Tensor]:
        policy = self._policy()
        with frozen_eval(policy), self._adapter(policy):
            return policy(batch, want, temperature=temperature)

    def logits_head(self, temperature: float = 1.0) -> Head:
        """What makes logits of its hidden states (`want=("hidden",)`), without gradient. All ranks must call it."""
        policy = self._policy()
        with torch.no_grad(), self._adapter(policy):
            found = policy.logits_head(temperature)
        if found.module is not None and self._of_policy:
            raise ConfigError(
                "lora_target_modules, lora_modules_to_save: the head is trained, so that the same model without its"
                " adapter can't be held against it; leave the head out"
            )
        return found if found.matrix is None else replace(found, matrix=found.matrix.detach())

    def _policy(self) -> Policy:
        run = self._run
        if self._of_policy or (self._held is None and self.spec.source is None and run.step == 0):
            return run.policy
        if self._held is None:  # its values were to be made ahead, and one is missing
            self._held = self._load()
        return self._held

    def _load(self) -> Policy:
        run, config = self._run, self._run.config
        devices = [run.device] if run.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # when it is loaded must not change the run's numbers
            policy = load_frozen(
                config,
                self.spec.source or config.model,
                run.device,
                head=self.spec.head,
                field=self.spec.field or "ref_model",
                revision=self.spec.revision,
            )
        if is_sharded(config, run.world_size):
            shard(policy, config)
        return policy

    @contextlib.contextmanager
    def answering(self) -> Iterator[Policy]:
        """The model itself, with the adapter that makes it this companion: for generation. All ranks must enter it."""
        policy = self._policy()
        with frozen_eval(policy), self._adapter(policy):
            yield policy

    @contextlib.contextmanager
    def _adapter(self, policy: Policy) -> Iterator[None]:
        if not self._of_policy or self.spec.current_policy:
            yield
        elif REFERENCE in policy.model.peft_config:
            policy.model.set_adapter(REFERENCE, inference_mode=True)
            try:
                yield
            finally:
                policy.model.set_adapter("default")
        else:
            with policy.model.disable_adapter():
                yield

    def release(self) -> None:
        """Let go of a model that was only needed to make values ahead."""
        if self.spec.precompute is not None:
            self._held = None

    def follow(self) -> None:
        """Mix the policy in, where this step is one for it (TR-DPO, arXiv 2404.09656, eq. 4: soft update; alpha 1 is
        the hard one)."""
        spec, run = self.spec, self._run
        if spec.sync_steps is None or run.step % spec.sync_steps:
            return
        with torch.no_grad():
            for ours, theirs in self._pairs():
                ours.mul_(1 - spec.sync_alpha).add_(theirs, alpha=spec.sync_alpha)

    def _pairs(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Each of its weights, and the policy's."""
        policy = self._run.policy
        if not self._of_policy:
            return list(zip(self._held.parameters(), policy.parameters(), strict=True))
        every = dict(policy.model.named_parameters())
        return [(every[twin_of(name)], theirs) for name, theirs in every.items() if ".default." in name]

    def following(self) -> dict[str, torch.Tensor]:
        """The weights of an adapter that follows the policy, by name: what a checkpoint keeps of it."""
        return {
            name: parameter for name, parameter in self._run.policy.model.named_parameters() if f".{REFERENCE}." in name
        }
