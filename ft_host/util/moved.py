"""The modules, names, keywords and attributes of 0.4 and what they are now. Methods written for 0.4 can still use them,
with a warning that names the new place. They go in 2.0; old names of fields are in `ft_host.config.deprecated`.
"""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")

MODULES = {
    "ft_host.annotate": "ft_host.models.annotate",
    "ft_host.checkpoint": "ft_host.training.checkpoint",
    "ft_host.data.looks": "ft_host.data.preference_errors",
    "ft_host.data.opening": "ft_host.data.load",
    "ft_host.diagnostics.autopilot": "ft_host.autopilot.attempts",
    "ft_host.diagnostics.measure": "ft_host.monitor.data_stats",
    "ft_host.diagnostics.memory": "ft_host.diagnostics.memory_remedies",
    "ft_host.diagnostics.preferences": "ft_host.diagnostics.shared.preferences",
    "ft_host.diagnostics.check_rewards": "ft_host.monitor.reward_check",
    "ft_host.diagnostics.rollouts": "ft_host.diagnostics.shared",
    "ft_host.diagnostics.rollouts.completions": "ft_host.diagnostics.shared.completions",
    "ft_host.diagnostics.rollouts.judge": "ft_host.diagnostics.shared.helpers",
    "ft_host.diagnostics.rollouts.policy": "ft_host.diagnostics.shared.policy",
    "ft_host.diagnostics.rollouts.rewards": "ft_host.diagnostics.shared.rewards",
    "ft_host.diagnostics.rollouts.signal": "ft_host.diagnostics.shared.signal",
    "ft_host.diagnostics.rollouts.taught": "ft_host.diagnostics.shared.distillation",
    "ft_host.diagnostics.rollouts.watched": "ft_host.diagnostics.shared.monitored_reward",
    "ft_host.diagnostics.stall": "ft_host.monitor.stall",
    "ft_host.diagnostics.watch": "ft_host.monitor.watch",
    "ft_host.evaluate": "ft_host.training.evaluate",
    "ft_host.exhausted": "ft_host.util.memory",
    "ft_host.folder": "ft_host.rundir.folder",
    "ft_host.footprint": "ft_host.monitor.memory_estimate",
    "ft_host.gauges": "ft_host.monitor.gradients",
    "ft_host.generation.buffer": "ft_host.rollouts.buffer",
    "ft_host.generation.calling": "ft_host.rollouts.tool_executor",
    "ft_host.generation.config": "ft_host.config.rollout",
    "ft_host.generation.online": "ft_host.rollouts.session",
    "ft_host.generation.parsing": "ft_host.rollouts.parsing",
    "ft_host.generation.picking": "ft_host.generation.sampling",
    "ft_host.generation.probe": "ft_host.rollouts.probe",
    "ft_host.generation.rollout": "ft_host.rollouts.rollout",
    "ft_host.generation.rows": "ft_host.rollouts.rows",
    "ft_host.generation.seams": "ft_host.rollouts.turn_boundary",
    "ft_host.generation.tools": "ft_host.rollouts.tools",
    "ft_host.generation.turns": "ft_host.rollouts.turns",
    "ft_host.imports": "ft_host.util.imports",
    "ft_host.launch": "ft_host.training.launch",
    "ft_host.loop": "ft_host.training.loop",
    "ft_host.manifest": "ft_host.rundir.manifest",
    "ft_host.models.against": "ft_host.models.tiled_divergence",
    "ft_host.models.companions": "ft_host.models.aux_models",
    "ft_host.optim": "ft_host.training.optim",
    "ft_host.processes": "ft_host.distributed.processes",
    "ft_host.progress": "ft_host.training.progress",
    "ft_host.report.flight": "ft_host.autopilot.page",
    "ft_host.report.format": "ft_host.rundir.format",
    "ft_host.report.record": "ft_host.rundir.record",
    "ft_host.report.series": "ft_host.rundir.series",
    "ft_host.rewards.builtin": "ft_host.config.builtin_rewards",
    "ft_host.settings": "ft_host.config.resolve",
    "ft_host.settings.backend": "ft_host.registry.backend",
    "ft_host.settings.fields": "ft_host.config.fields",
    "ft_host.settings.files": "ft_host.config.files",
    "ft_host.settings.flags": "ft_host.config.flags",
    "ft_host.settings.help": "ft_host.config.help",
    "ft_host.settings.paths": "ft_host.config.paths",
    "ft_host.settings.plan": "ft_host.config.plan",
    "ft_host.settings.renamed": "ft_host.config.renamed",
    "ft_host.settings.resolve": "ft_host.config.resolve",
    "ft_host.settings.schema": "ft_host.config.schema",
    "ft_host.settings.starter": "ft_host.config.starter",
    "ft_host.settings.text": "ft_host.config.text",
    "ft_host.spawn": "ft_host.distributed.spawn",
    "ft_host.store": "ft_host.models.store",
    "ft_host.usage": "ft_host.monitor.memory_usage",
}
# Names that a module once had, each with the one that it is now; keywords of classes; attributes of classes.
NAMES = {
    "ft_host.batch": {"forest": "ft_host.batch:flat_batch"},
    "ft_host.config.rollout": {"grouped_plan": "ft_host.config.grouped:grouped_plan"},
    "ft_host.data": {"given_row": "ft_host.data:row_from_tokens"},
    "ft_host.models.annotate": {"evaluate_rows": "ft_host.models.annotate:policy_values"},
    "ft_host.models.tiled_divergence": {  # which 0.4 knew as ft_host.models.against
        "Against": "ft_host.models.tiled_divergence:TiledDivergence",
        "loss_against": "ft_host.models.tiled_divergence:tiled_divergence",
    },
    "ft_host.rollouts.rows": {name: f"ft_host.batch:{name}" for name in ("by_row", "sum_by_row")},
    "ft_host.run": {name: f"ft_host.types:{name}" for name in ("Drop", "FinishedRun", "LossOutput", "ModelSpec")},
}
KEYWORDS = {
    "ft_host.batch.Batch": {"beside": "linked"},
    "ft_host.types.ModelSpec": {
        "ahead": "precompute",
        "live": "current_policy",
        "own_tokens": "own_tokenizer",
        "padded": "allow_padded_vocab",
        "otherwise": "hint",
    },
}
ATTRIBUTES = {"ft_host.run.Run": {"learn": "record_facts", "took": "add_time"}}


class _Alias(Loader):
    """A module without contents of its own: names are looked up in the new one."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        new = importlib.import_module(MODULES[old])
        warnings.warn(f"{old} is {MODULES[old]} since ft-host 0.5; plugins import from ft_host.api", FutureWarning, 2)
        module.__dict__["__getattr__"] = lambda name: getattr(new, name)


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, _Alias(), is_package=True) if name in MODULES else None


def install() -> None:
    """Install a finder for the modules above, after all other finders."""
    sys.meta_path.append(_Finder())


def names_of(module: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of a module for the names that it once had (`NAMES`)."""
    names = NAMES[module]

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home, _, new = names[name].partition(":")
        warnings.warn(
            f"{module}.{name} is {home}.{new} since ft-host 0.5; plugins import from ft_host.api", FutureWarning, 2
        )
        return getattr(importlib.import_module(home), new)

    return get


def old_keywords(cls: type[T]) -> type[T]:
    """Decorate a dataclass of `KEYWORDS`: fields keep their old names, as keywords and as attributes."""
    names = KEYWORDS[f"{cls.__module__}.{cls.__qualname__}"]
    original = cls.__init__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **keywords: Any) -> None:
        for old in names.keys() & keywords.keys():
            warnings.warn(f"{cls.__name__}: {old} is {names[old]} since ft-host 0.5", FutureWarning, 2)
            keywords[names[old]] = keywords.pop(old)
        original(self, *args, **keywords)

    cls.__init__ = init  # type: ignore[method-assign]
    for old, new in names.items():
        setattr(cls, old, _attribute(cls, old, new))
    return cls


def old_attributes(cls: type[T]) -> type[T]:
    """Decorate a class of `ATTRIBUTES`: methods and attributes keep their old names."""
    for old, new in ATTRIBUTES[f"{cls.__module__}.{cls.__qualname__}"].items():
        setattr(cls, old, _attribute(cls, old, new))
    return cls


def _attribute(cls: type, old: str, new: str) -> property:
    def get(self: Any) -> Any:
        warnings.warn(f"{cls.__name__}.{old} is {new} since ft-host 0.5", FutureWarning, 2)
        return getattr(self, new)

    return property(get, doc=f"{new}, by the name that it had before 0.5")
