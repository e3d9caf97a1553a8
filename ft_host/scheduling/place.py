"""What a rollout process has: plugins, tokenizer, rewards and tools, and with the built-in backend the model.

It is made of what the trainer sends (`Opening`), in the way that the trainer makes its own, so that the same weights
give the same completions.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ft_host import registry
from ft_host.config.rollout import RolloutConfig
from ft_host.contract.names import Named
from ft_host.contract.rows import models_of
from ft_host.data.tokenizer import load_tokenizer
from ft_host.distributed.processes import start_processes
from ft_host.errors import ConfigError, FtHostError
from ft_host.models import load_policy
from ft_host.models.aux_models import AuxModel, keep_adapter
from ft_host.models.beside import tell_of
from ft_host.models.published import Published, trained_tensors
from ft_host.rewards import RewardPool
from ft_host.rollouts.session import RolloutSession
from ft_host.rollouts.tools import load_tools
from ft_host.run import EnginePlace, Run
from ft_host.rundir.folder import RunFolder
from ft_host.scheduling.unit import Event, Said
from ft_host.types import Engine, ModelSpec
from ft_host.util.memory import LOADING, oom_context
from ft_host.util.seeds import seed_all

if TYPE_CHECKING:
    from pluggy import PluginManager
    from transformers import PreTrainedTokenizerBase

KINDS = ("method", "backend", "diagnostics")


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What a rollout process needs to begin. `plugins`: (kind, reference) of each of the run's. `serves`: the weights
    are in servers, and no model is loaded."""

    config: RolloutConfig
    plugins: list[tuple[str, str]]
    backend_config: Any
    diagnostics_config: dict[str, Any]
    folder: str  # of the run
    positions: int | None  # the most tokens of a prompt with its completion
    threads: int  # of torch, as the trainer has
    serves: bool
    beats: float = 1.0  # seconds between two signs of life
    scratch: str | None = None  # a folder to be deleted if the trainer is killed


def plugins_of(manager: PluginManager) -> list[tuple[str, str]]:
    """Return the kinds and references of the plugins of a run, by which another process finds them."""
    named = [name.partition(" ") for name, _ in manager.list_name_plugin()]
    return [(kind, reference) for kind, _, reference in named if kind in KINDS]


@dataclass(kw_only=True)
class ProcessRun(Run):
    """The run in a rollout process: its messages go to the trainer, and it writes no file."""

    emit: Callable[[Event], None]

    def say(self, text: str, level: str = "info") -> None:
        self.emit(Said(text=text, level=level))


class Roles(Named[Any]):
    """The models of other roles, each loaded when it is first asked for."""

    def __init__(self, run: Run, specs: dict[str, ModelSpec], loading: Callable[[], AbstractContextManager[None]]):
        super().__init__("run.models", dict.fromkeys(role for role, spec in specs.items() if not spec.trained))
        self.run, self.specs, self.loading = run, specs, loading

    def __getitem__(self, role: str) -> AuxModel:
        """Raises ConfigError for a model that follows the policy, UnknownName for a role that there isn't."""
        model = super().__getitem__(role)
        if model is not None:
            return model
        spec = self.specs[role]
        if spec.sync_steps is not None:
            raise ConfigError(
                f"rollouts: async: the model of the role {role!r} follows the policy (sync_steps) and generates, but "
                "is in the trainer's process; set rollouts: overlap or sync"
            )
        with self.loading():
            keep_adapter(self.run.policy, {role: spec}, self.run.config)
            self[role] = model = AuxModel(spec, self.run)
        if model.held is not None:
            tell_of(self.run, role, model.held)
        return model


@dataclass(kw_only=True)
class Place:
    """The parts of a rollout process. `run` is None where the weights are in servers."""

    opening: Opening
    plugins: PluginManager
    tokenizer: PreTrainedTokenizerBase
    session: RolloutSession
    emit: Callable[[Event], None]
    run: ProcessRun | None = None
    named: dict[str, torch.Tensor] = field(default_factory=dict)  # the policy's weights that are published

    @classmethod
    def open(
        cls, opening: Opening, emit: Callable[[Event], None], loading: Callable[[], AbstractContextManager[None]]
    ) -> Place:
        """Import the plugins; load tokenizer, rewards, tools, and the model. Raises what a run raises for them.
        `loading` is entered where a further model is loaded, which takes its time."""
        torch.set_num_threads(opening.threads)
        config = opening.config
        seed_all(config.seed)  # as the trainer does before it imports plugins
        infos = [registry.find(kind, reference) for kind, reference in opening.plugins]
        method = next(info for info in infos if info.kind == "method")
        backend = next(info for info in infos if info.kind == "backend")
        plugins = registry.session(method, backend, [info for info in infos if info.kind == "diagnostics"])
        tokenizer = load_tokenizer(config)
        accelerator = start_processes(replace(config, report_to=[]))
        session = RolloutSession(
            config=config,
            pool=RewardPool(config.reward, config),
            toolbox=load_tools(config),
            positions=opening.positions,
        )
        place = cls(opening=opening, plugins=plugins, tokenizer=tokenizer, session=session, emit=emit)
        if opening.serves:
            return place
        specs = models_of(plugins, config)
        head = specs.pop("policy", ModelSpec()).head
        seed_all(config.seed)  # a new adapter is the trainer's
        with oom_context(LOADING):
            # Nothing is trained here: there are no activations to save.
            unsaved = replace(config, gradient_checkpointing=False, report_to=[])
            policy = load_policy(unsaved, tokenizer, accelerator.device, head=head)
        place.run = ProcessRun(
            config=config,
            folder=RunFolder(Path(opening.folder)),
            tokenizer=tokenizer,
            plugins=plugins,
            accelerator=accelerator,
            policy=policy,
            model=policy,
            backend_config=opening.backend_config,
            diagnostics_config=opening.diagnostics_config,
            emit=emit,
        )
        place.run.models = Roles(place.run, specs, loading)
        place.named = dict(trained_tensors(policy))
        return place

    def engine(self, connection: Any) -> Engine:
        """Return the backend's engine; `connection` is what `ft_connect` returned, where the weights are in servers."""
        opening = self.opening
        engine = self.plugins.hook.ft_engine(
            place=EnginePlace(
                config=opening.config,
                tokenizer=self.tokenizer,
                backend_config=opening.backend_config,
                say=lambda text, level="info": self.emit(Said(text=text, level=level)),
                run=self.run,
                connection=connection if opening.serves else None,
            )
        )
        if engine is None:
            raise FtHostError(f"backend: {opening.config.backend} gave no engine for the rollout process")
        return engine

    def apply(self, published: Published) -> None:
        """Copy published weights into the policy."""
        assert self.run is not None, "a model is here"
        published.apply(self.named.items())
        self.run.step = published.version

    def close(self) -> None:
        self.session.close()
