"""The rules of a diagnostics plugin, and the runs by which it shows them. Imports no torch.

A package has the runs in `cases.py` beside the module of its rules; where that is in no package, it has them itself:

    CASES = {"MINE001": (Told(lines=steps(20, loss=9.0)), Told(lines=steps(20, loss=1.0)))}

the first run raises the rule, the second looks alike and doesn't.
"""

from __future__ import annotations

import fnmatch
import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import TYPE_CHECKING

from ft_host import registry
from ft_host.config import RunConfig
from ft_host.config.grouped import GroupedRolloutConfig
from ft_host.config.rollout import RolloutConfig
from ft_host.diagnostics.collect import given
from ft_host.diagnostics.rule import Rule, is_fact
from ft_host.diagnostics.suspects import Function
from ft_host.registry.session import alone
from ft_host.testing.conformance.check import NotMet
from ft_host.testing.rules import Told

if TYPE_CHECKING:
    from ft_host.testing.conformance.subject import Subject

Cases = dict[str, tuple[Told, Told]]
FAULTY, HEALTHY = "faulty", "healthy"


@dataclass(frozen=True)
class Ruled:
    """`rules`: the plugin's own. `configs`: classes of the runs that they may be about, the likeliest first."""

    module: ModuleType
    rules: list[Rule]
    cases: Cases
    configs: tuple[type[RunConfig], ...]
    of_method: bool = False  # whether a method of the package has them: its config is then the first

    @property
    def suspects(self) -> Sequence[Function]:
        return vars(self.module).get("SUSPECTS", ())

    def config_class(self, rule: Rule, told: Told) -> type[RunConfig]:
        """The first that has the fields of which the rule and the case speak. Raises NotMet where none has."""
        wanted = {*rule.fields, *told.config}
        lacking: dict[str, list[str]] = {}
        for each in self.configs:
            known = {field.name for field in fields(each)}
            if wanted <= known:
                return each
            lacking[each.__name__] = sorted(wanted - known)
        raise NotMet(f"{rule.code}: no config has the fields of the rule and its case: {lacking}")

    def each(self) -> Iterator[tuple[Rule, str, Told]]:
        """Each rule with its two runs, as far as there are any."""
        for rule in self.rules:
            for name, told in zip((FAULTY, HEALTHY), self.cases.get(rule.code, ()), strict=False):
                yield rule, name, told


def ruled(subject: Subject) -> Ruled:
    """Raises NotMet where the cases aren't there, or aren't pairs of runs."""
    info = subject.plugin
    module = registry.load(info)
    label = registry.label(info)
    rules = [rule for impl in alone(info).hook.ft_rules.get_hookimpls() for rule in given(impl.function, label)]
    method = next((each for each in subject.plugins if (each.kind, each.name) == ("method", info.name)), None)
    own = () if method is None else (registry.config_class(method),)
    return Ruled(
        module, rules, _cases(subject, module), (*own, RunConfig, RolloutConfig, GroupedRolloutConfig), bool(own)
    )


def _cases(subject: Subject, module: ModuleType) -> Cases:
    parent = subject.plugin.value.partition(":")[0].rpartition(".")[0]
    home = place = f"{parent}.cases"
    if not subject.distribution or not parent:
        home, found = subject.plugin.location, vars(module).get("CASES")
    elif importlib.util.find_spec(place) is None:
        raise NotMet(
            f"there is no module {place}, which holds CASES: a run that raises each rule, and one that doesn't"
        )
    else:
        found = vars(importlib.import_module(place)).get("CASES")
    pairs = isinstance(found, dict) and all(
        isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(told, Told) for told in pair)
        for pair in found.values()
    )
    if not pairs:
        raise NotMet(f"{home}: CASES is {found!r:.80}; expected {{code: (faulty, healthy)}}, of ft_host.testing.Told")
    return found


# ---------------------------------------------------------------- odd evidence

ODD: dict[str, float] = {"NaN": math.nan, "infinite": math.inf, "0": 0.0, "1e30": 1e30, "-1e30": -1e30}


def odd(told: Told, rule: Rule) -> Iterator[tuple[str, Told]]:
    """The run with one thing about it changed, and what: nothing but what the rule needs, metrics that aren't numbers,
    that end or are told seldom; facts that are missing."""
    names = sorted({name for line in told.lines for name in line} - {"kind", "step"})
    needed = [name for name in names if any(_matches(need, name) for need in rule.needs)]
    yield "nothing is told", replace(told, facts={}, lines=[])
    yield "there is one step", replace(told, lines=told.lines[:1])
    yield "only what it needs is told", _without(told, set(names) - set(needed))
    for value, number in ODD.items():
        yield f"all metrics are {value}", _with(told, names, number, 0)
    for name in needed:
        yield f"{name} is never told", _without(told, {name})
        yield f"{name} is told at every second step", _at(told, name, lambda index: index % 2 == 0)
        yield f"{name} is told in the first half", _at(told, name, lambda index: index < len(told.lines) / 2)
        for value, number in ODD.items():
            yield f"{name} is {value} from the middle on", _with(told, [name], number, len(told.lines) // 2)
    for name, fact in told.facts.items():
        yield f"{name} isn't known", replace(told, facts={key: each for key, each in told.facts.items() if key != name})
        if isinstance(fact, float):
            yield f"{name} is NaN", replace(told, facts=told.facts | {name: math.nan})


def _matches(need: str, name: str) -> bool:
    return not is_fact(need) and fnmatch.fnmatchcase(name, need)


def _with(told: Told, names: list[str], value: float, first: int) -> Told:
    lines = [
        line | {name: value for name in names if name in line} if index >= first else line
        for index, line in enumerate(told.lines)
    ]
    return replace(told, lines=lines)


def _at(told: Told, name: str, where: Callable[[int], bool]) -> Told:
    lines = [
        line if where(index) else {key: value for key, value in line.items() if key != name}
        for index, line in enumerate(told.lines)
    ]
    return replace(told, lines=lines)


def _without(told: Told, names: set[str]) -> Told:
    lines = [{key: value for key, value in line.items() if key not in names} for line in told.lines]
    return replace(told, lines=lines)
