"""The half of a run that needs no model: its plugins, tokenizer, rows and rewards, and all that can be refused."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ft_host import data, registry
from ft_host.config.rollout import RolloutConfig
from ft_host.contract.rows import collate, models_of
from ft_host.data.prepare import PrepareRow
from ft_host.diagnostics.collect import diagnostics_of
from ft_host.distributed.trackers import check_trackers
from ft_host.models import check_vocabulary
from ft_host.models.folder import check_folder, check_weights
from ft_host.models.positions import beyond_training, fit_rows, scoring_limits
from ft_host.models.unusual import own_settings
from ft_host.models.vocabulary import lacking
from ft_host.monitor.data_stats import data_facts, further_facts
from ft_host.monitor.reward_check import check_rewards
from ft_host.registry.backend import backend_of
from ft_host.rewards import RewardFunction, check_columns, load_rewards
from ft_host.rollouts.session import RolloutSession, check_online
from ft_host.rundir.depends import dependencies
from ft_host.rundir.recorded import check_replay
from ft_host.training.optim import optimizer_factory
from ft_host.types import ModelSpec, Row

if TYPE_CHECKING:
    from pluggy import PluginManager
    from transformers import PreTrainedTokenizerBase

    from ft_host.batch import Batch
    from ft_host.config import RunConfig
    from ft_host.monitor.watch import Monitor
    from ft_host.registry import PluginInfo


@dataclass(kw_only=True)
class Chosen:
    """The plugins of a run and the models that its method needs. Nothing is opened yet."""

    config: RunConfig
    infos: list[PluginInfo]  # the method, the backend if one is named, the diagnostics
    plugins: PluginManager
    backend_config: Any
    diagnostics_config: dict[str, Any]
    specs: dict[str, ModelSpec]  # the auxiliary models by role
    head: str | None  # of the policy
    embeddings: int | None = None  # of the policy, where its tokenizer has more tokens

    @property
    def method(self) -> PluginInfo:
        return self.infos[0]

    def prepare_with(self, tokenizer: PreTrainedTokenizerBase, **changes: Any) -> PrepareRow:
        """`ft_prepare` in whatever process, with some fields of the config changed."""
        names = [registry.reference(info) for info in self.infos if info.kind != "backend"]
        return PrepareRow(tuple(names), tokenizer, dataclasses.replace(self.config, **changes), self.embeddings)

    def fit_positions(self) -> tuple[list[str], dict[str, int]]:
        """Limit `max_length` to the models' positions. Returns sentences on it, and facts. Raises ConfigError for
        fields that go beyond, and for what is no model."""
        check_folder(self.config.model, weights=False)
        for role, spec in self.specs.items():
            if spec.source is not None:
                check_folder(spec.source, spec.field or role)
        notes, facts = fit_rows(self.config, self.specs)
        return [*notes, *scoring_limits(self.config)], facts

    def fit_embeddings(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Let rows be refused that hold a token without an embedding. Returns sentences on it."""
        self.embeddings, said = lacking(self.config, tokenizer)
        return said


@dataclass(kw_only=True)
class Preflight:
    """What a run has before it has a model. `close` ends what it has started."""

    chosen: Chosen
    watch: Monitor
    tokenizer: PreTrainedTokenizerBase
    prepare: PrepareRow
    train_source: Any
    eval_source: Any  # None without evaluation data
    rewards: list[RewardFunction]  # of the evaluation
    online: RolloutSession | None  # of a method with rollouts
    notes: list[str]  # what is said once before the first step: what the data leaves out, what the model can't read

    def inputs(self) -> dict[str, Any]:
        """Return what the run reads, as run.json records it: data with its content, and fingerprints of all else."""
        chosen, sources = self.chosen, {"train": self.train_source, "eval": self.eval_source}
        described = {
            part: {**source.describe(), "content": data.content_of(source)} if source is not None else None
            for part, source in sources.items()
        }
        depends_on = dependencies(
            chosen.config, chosen.backend_config, chosen.diagnostics_config, chosen.infos, chosen.specs
        )
        return {"data": described, "depends_on": depends_on}

    def close(self) -> None:
        if self.online is not None:
            self.online.close()


def choose(config: RunConfig, method: PluginInfo) -> Chosen:
    """Import the plugins. Raises PluginBroken, PluginNotFound, HookError or ConfigError for ones that don't fit."""
    backend, backend_config = backend_of(config)
    diagnostics = diagnostics_of(method, config)
    diagnostics_config = registry.diagnostics_configs(config)
    plugins = registry.session(method, backend, diagnostics)
    check_online(method, plugins, config)
    specs = models_of(plugins, config)
    head = specs.pop("policy", ModelSpec()).head
    return Chosen(
        config=config,
        infos=[method, *([backend] if backend else []), *diagnostics],
        plugins=plugins,
        backend_config=backend_config,
        diagnostics_config=diagnostics_config,
        specs=specs,
        head=head,
    )


def preflight(chosen: Chosen, watch: Monitor) -> Preflight:
    """Open the data, try its first rows. Raises everything that can be refused without a model, and StoppedByFinding if
    `stop_on` asks for it."""
    config = chosen.config
    notes, limits = chosen.fit_positions()
    if isinstance(config, RolloutConfig) and config.replay is not None:
        processes = int(os.environ.get("WORLD_SIZE", config.num_processes))
        notes += check_replay(config, registry.reference(chosen.method), processes)
    optimizer_factory(config)
    check_trackers(config.report_to)
    rewards = load_rewards(config)
    tokenizer = data.load_tokenizer(config)
    notes += chosen.fit_embeddings(tokenizer)
    for role, spec in chosen.specs.items():
        if spec.source is not None:
            check_vocabulary(config, spec.source, tokenizer, spec.field or role, spec)
            check_weights(spec.source, spec.field or role)
    ready = Preflight(
        chosen=chosen,
        watch=watch,
        tokenizer=tokenizer,
        prepare=chosen.prepare_with(tokenizer),
        train_source=data.open_train(config),
        eval_source=data.open_eval(config),
        rewards=rewards,
        online=None,
        notes=notes,
    )
    ready.notes += data.notes_of(ready.train_source)
    for held_out in data.sets_of(ready.eval_source).values():
        ready.notes += data.notes_of(held_out)
    for held_out in data.sets_of(ready.eval_source).values():
        for reward in rewards:
            check_columns(reward, held_out.columns)
    if watch.main:
        watch.record_facts(limits | own_settings(config))
        facts = _facts_of_rows(ready)
        watch.record_facts(facts)
        ready.notes += beyond_training(config, limits | facts)
    data.check_first_rows(ready.train_source, ready.prepare, config)
    watch.check()
    if isinstance(config, RolloutConfig):
        ready.online = RolloutSession.open(config, ready.train_source.columns, tokenizer)
        try:
            if watch.main:
                read = {name for function in ready.online.pool.functions for name in function.takes}
                columns = read.intersection(ready.train_source.columns)
                watch.record_facts(further_facts(ready.train_source, ready.eval_source, tokenizer, config, columns))
                watch.record_facts(check_rewards(config, ready.train_source, ready.prepare))
            watch.check()
        except BaseException:
            ready.close()
            raise
    return ready


def _facts_of_rows(ready: Preflight) -> dict[str, Any]:
    def of_rows(rows: list[Row], tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> Batch:
        return collate(ready.chosen.plugins, rows, tokenizer, config)

    uncut = ready.chosen.prepare_with(ready.tokenizer, max_length=None, packing=False)
    config = ready.chosen.config
    columns = {name for reward in ready.rewards for name in reward.takes}
    if isinstance(config, RolloutConfig):
        columns.update(config.needs_columns, config.reads_columns)
    columns.intersection_update(ready.train_source.columns)
    return data_facts(
        ready.train_source, ready.eval_source, ready.prepare, uncut, of_rows, ready.tokenizer, config, columns
    )
