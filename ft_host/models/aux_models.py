"""Auxiliary models: frozen, called like the policy, and without a copy of weights where possible.

    the model                                          what it keeps in memory
    the initial policy, LoRA                           nothing: the policy with its adapter off
    the initial policy, started from an adapter        a frozen copy of that adapter
    a model that follows the policy, LoRA              a copy of its adapter
    the current policy (`current_policy`)              nothing
    the initial policy, precomputed values             nothing: before the first step the policy is the initial one
    the initial policy in other cases, other models    a frozen model, sharded like the policy

A resumed run loads the initial policy from `config.model`, not from its checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ft_host.errors import ConfigError
from ft_host.models.adapter_folder import add_reference_adapter, copy_adapter
from ft_host.models.beside import tell_of
from ft_host.models.folder import adapter_of
from ft_host.models.load import load_frozen
from ft_host.models.sharding import shard
from ft_host.models.shards import reshard
from ft_host.types import ModelSpec
from ft_host.util import devices

if TYPE_CHECKING:
    from ft_host.batch import Batch
    from ft_host.config import RunConfig
    from ft_host.models.policy import Policy
    from ft_host.models.tiled_divergence import Head
    from ft_host.run import Run

REFERENCE = "reference"  # its name in add_reference_adapter


@contextlib.contextmanager
def frozen_eval(policy: Policy) -> Iterator[None]:
    """Evaluation mode without gradient or dropout; afterwards train mode is restored, and gathered shards are freed."""
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
    """Give the policy the frozen copy of its adapter for an auxiliary model that started from it or follows
    the policy.

    Comes before the policy is sharded or wrapped.
    """
    initial = [spec for spec in specs.values() if spec.source is None and not spec.trained and not spec.current_policy]
    if not config.use_peft or not initial:
        return
    if starts_from_adapter(config):
        add_reference_adapter(policy, config.model)
    elif any(spec.sync_steps is not None for spec in initial):
        copy_adapter(policy)


def twin_of(name: str) -> str:
    """Return the name of the frozen parameter that belongs to a trained one of the adapter."""
    return name.replace(".default.", f".{REFERENCE}.")


class AuxModel:
    """`aux_model(batch, want)` returns what `Policy` returns, without gradient.

    All ranks must call it at once where the policy is sharded.
    """

    def __init__(self, spec: ModelSpec, run: Run):
        self.spec = spec
        self._run = run
        # the policy itself, unchanged, or with another adapter or none
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
        """The model in memory for this auxiliary model alone."""
        return self._held

    def __call__(
        self, batch: Batch, want: tuple[str, ...] = ("logp",), temperature: float = 1.0
    ) -> dict[str, torch.Tensor]:
        policy = self._policy()
        with frozen_eval(policy), self._adapter(policy):
            return policy(batch, want, temperature=temperature)

    def logits_head(self, temperature: float = 1.0) -> Head:
        """Return the head that maps its hidden states (`want=("hidden",)`) to logits, without gradient. All ranks must
        call it.
        """
        policy = self._policy()
        with torch.no_grad(), self._adapter(policy):
            head = policy.logits_head(temperature)
        if head.module is not None and self._of_policy:
            raise ConfigError(
                "lora_target_modules, lora_modules_to_save: the head is trained, so the same model without its "
                "adapter can't be compared with it; leave the head out"
            )
        return head if head.matrix is None else replace(head, matrix=head.matrix.detach())

    def _policy(self) -> Policy:
        run = self._run
        if self._of_policy or (self._held is None and self.spec.source is None and run.step == 0):
            return run.policy
        if self._held is None:  # a precomputed value is missing
            self._held = self._load()
            tell_of(run, next(role for role, model in run.models.items() if model is self), self._held)
        return self._held

    def _load(self) -> Policy:
        run, config = self._run, self._run.config
        with devices.forked_random(run.device):  # loading must not change the run's random state
            policy = load_frozen(
                config,
                self.spec.source or config.model,
                run.device,
                head=self.spec.head,
                field=self.spec.field or "ref_model",
                revision=self.spec.revision,
                moves=self.spec.sync_steps is not None,
                sharded=run.is_sharded,
            )
        if run.is_sharded:
            shard(policy, config)
        return policy

    @contextlib.contextmanager
    def answering(self) -> Iterator[Policy]:
        """Give the model itself, with its adapter, for generation. All ranks must enter it."""
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
        """Free a model that was only needed to precompute values."""
        if self.spec.precompute is not None:
            self._held = None

    def follow(self) -> None:
        """Mix in the policy's weights, on the steps for it (TR-DPO, arXiv 2404.09656, eq. 4: soft update; alpha 1 is
        the hard one).
        """
        spec, run = self.spec, self._run
        if spec.sync_steps is None or run.step % spec.sync_steps:
            return
        with torch.no_grad():
            for ours, theirs in self._pairs():
                ours.mul_(1 - spec.sync_alpha).add_(theirs, alpha=spec.sync_alpha)

    def _pairs(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return each of its weights with the policy's."""
        policy = self._run.policy
        if not self._of_policy:
            return list(zip(self._held.parameters(), policy.parameters(), strict=True))
        every = dict(policy.model.named_parameters())
        return [(every[twin_of(name)], theirs) for name, theirs in every.items() if ".default." in name]

    def following(self) -> dict[str, torch.Tensor]:
        """Return the weights of an adapter that follows the policy, by name, for checkpoints."""
        return {
            name: parameter for name, parameter in self._run.policy.model.named_parameters() if f".{REFERENCE}." in name
        }
