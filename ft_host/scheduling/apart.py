"""A run with a rollout process: what is sent to it when it begins, its device, and how it gets the policy's weights."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ft_host.errors import ConfigError
from ft_host.models.published import Publisher, gathered_pieces, trained_tensors
from ft_host.models.weights_folder import WeightsFolder
from ft_host.rewards.model import RewardModel
from ft_host.scheduling.place import Opening, plugins_of
from ft_host.scheduling.remote import Limits, Remote
from ft_host.scheduling.weights import Weights
from ft_host.util import devices

if TYPE_CHECKING:
    from ft_host.config.rollout import RolloutConfig
    from ft_host.rollouts.session import RolloutSession
    from ft_host.run import Run
    from ft_host.scheduling.waiting import Post

SILENCE = 60.0  # seconds without a sign of life, at most
PATIENT = 4  # a process counts as hung after rollout_timeout / 4, so that another one can do better within it
ROOM = 3  # times the weights: a version, the next one, and one that is written whole for a new process


def remote_weights(session: RolloutSession, run: Run, post: Post) -> Weights:
    """Return how a rollout process gets the policy's weights, which the main process starts when it is first needed."""
    apart = Apart(session=session, run=run, post=post)
    main = run.accelerator.is_main_process
    return Weights(run=run, post=post, open_source=apart.open if main else None, publish=apart.publish)


@dataclass(kw_only=True)
class Apart:
    """`folder`: of the weights that are published, on the main process once it has started the rollout process. None
    where they are in servers."""

    session: RolloutSession
    run: Run
    post: Post
    folder: WeightsFolder | None = None

    def publish(self, version: int) -> Path | None:
        """Write the policy's weights for the rollout process. All ranks must call it. A backend that has servers has
        sent them there by itself."""
        run = self.run
        if self.serves:
            return None
        folder = self.folder or WeightsFolder(run.folder.path / "weights")  # which the main process alone writes into
        return Publisher(folder, run.accelerator, partial(gathered_pieces, run.policy)).publish(version)

    @property
    def serves(self) -> bool:
        return bool(self.run.plugins.hook.ft_connect.get_hookimpls())

    def open(self) -> Remote:
        """Start the rollout process."""
        session, run, config = self.session, self.run, self.session.config
        environment = environment_of(session, run, self.serves)
        if not self.serves:
            size = sum(weight.numel() * weight.element_size() for _, weight in trained_tensors(run.policy))
            self.folder = WeightsFolder.made(run.folder.path, ROOM * size)
        opening = Opening(
            config=config,
            plugins=plugins_of(run.plugins),
            backend_config=run.backend_config,
            diagnostics_config=run.diagnostics_config,
            folder=str(run.folder.path.resolve()),
            positions=session.positions,
            threads=torch.get_num_threads(),
            serves=self.serves,
            scratch=None if self.folder is None else str(self.folder.path.resolve()),
        )
        return Remote(opening, environment, self.post.ledger.again, limits_of(config), self.folder)


def limits_of(config: RolloutConfig) -> Limits:
    limit = config.rollout_timeout
    return Limits(
        silence=min(SILENCE, limit / PATIENT), stuck=limit / PATIENT, answer=limit, restarts=config.retries["engine"]
    )


def environment_of(session: RolloutSession, run: Run, serves: bool) -> dict[str, str]:
    """Return what the environment of the rollout process has beside the trainer's. Raises ConfigError for a
    `rollout_device` that there isn't."""
    scores = any(isinstance(function.call, RewardModel) for function in session.pool.functions)
    if serves and not scores:
        if session.config.rollout_device is not None:
            raise ConfigError(
                f"rollout_device: the weights of the backend {run.config.backend} are in servers, and no model is in "
                "the rollout process"
            )
        return visible(None)
    device = device_of(session.config.rollout_device, run.device)
    return visible(None if device.type == "cpu" else device)


def visible(device: torch.device | None) -> dict[str, str]:
    """Return the environment of a process that sees this device of ours alone. With None it sees no device of a kind
    that can be hidden."""
    if device is None:
        return dict.fromkeys(devices.VISIBLE.values(), "")
    if device.type not in devices.VISIBLE:  # a machine has one of the kind
        return {}
    variable = devices.VISIBLE[device.type]
    ours, index = os.environ.get(variable), device.index or 0
    return {variable: ours.split(",")[index].strip() if ours else str(index)}


def device_of(wanted: str | None, trainers: torch.device) -> torch.device:
    """Return the device of the rollout process: the one that is wanted, else a GPU that no trainer on this machine
    uses, else the trainer's. Raises ConfigError for one that there isn't."""
    kind = devices.chosen(False).type if trainers.type == "cpu" else trainers.type
    there = [] if kind == "cpu" else [f"{kind}:{index}" for index in range(devices.count_of(kind))]
    if wanted is None:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return torch.device(there[here]) if trainers.type == kind and here < len(there) else trainers
    known = ["cpu", *there]
    found = f"{kind}:0" if wanted == kind and there else wanted
    if found not in known:
        raise ConfigError(f"rollout_device: {wanted!r} is no device of this machine; expected {', '.join(known)}")
    if (found == "cpu") != (trainers.type == "cpu"):
        raise ConfigError(
            f"rollout_device: {wanted} beside a trainer on {trainers.type}: the same weights give other log-probs on "
            f"another kind of device; expected a {trainers.type} device"
        )
    return torch.device(found)
