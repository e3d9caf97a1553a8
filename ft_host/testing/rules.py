"""Tests rules on a run described in a few words: its config, facts, and lines of metrics. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ft_host.config import RunConfig
from ft_host.config.declared import declared_facts
from ft_host.diagnostics import Engine, Finding, Rule
from ft_host.diagnostics.collect import suspects_of
from ft_host.diagnostics.suspects import Function


@dataclass(kw_only=True)
class Told:
    """What a run tells. `lines`: of metrics.jsonl, as `steps` and `evals` make them."""

    config: dict[str, Any] = field(default_factory=dict)  # fields that differ from the defaults
    facts: dict[str, Any] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)


def steps(count: int, first: int = 1, **metrics: float | Callable[[int], float]) -> list[dict[str, Any]]:
    """Lines of optimizer steps. A metric is a number, or a function of the step; a double underscore in its name is a
    slash: `rewards__chosen=lambda step: 0.1 * step`."""
    return [_line("train", step, metrics) for step in range(first, first + count)]


def evals(at: Iterable[int], **metrics: float | Callable[[int], float]) -> list[dict[str, Any]]:
    """Lines of evaluations, in the same way; names get their `eval_`."""
    return [_line("eval", step, {f"eval_{name}": value for name, value in metrics.items()}) for step in at]


def in_order(*lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines merged by step, a step before its evaluation."""
    return sorted((line for each in lines for line in each), key=lambda line: (line["step"], line["kind"] == "eval"))


def _line(kind: str, step: int, metrics: dict[str, Any]) -> dict[str, Any]:
    values = {name.replace("__", "/"): value(step) if callable(value) else value for name, value in metrics.items()}
    return {"kind": kind, "step": step, **values}


def findings(
    rules: Sequence[Rule], told: Told, config_class: type[RunConfig] = RunConfig, suspects: Sequence[Function] = ()
) -> list[Finding]:
    """What `rules` find in a run, as it stands at its end; muted ones too. `suspects`: the method's `SUSPECTS`, beside
    those of the host."""
    return list(heard(rules, told, config_class, suspects).findings.values())


def heard(
    rules: Sequence[Rule], told: Told, config_class: type[RunConfig] = RunConfig, suspects: Sequence[Function] = ()
) -> Engine:
    """The engine that has heard all that a run tells; what a rule raises, it raises."""
    config = asdict(config_class(**told.config))
    of_run = [*suspects_of(config_class, [], "transformers"), *suspects]
    engine = Engine([(rule, "test 0") for rule in rules], config, strict=True, suspects=of_run)
    engine.record_facts(declared_facts(config_class) | told.facts)
    for line in told.lines:
        engine.add_metrics(line)
    engine.finish()
    return engine


def codes(rules: Sequence[Rule], told: Told, config_class: type[RunConfig] = RunConfig) -> set[str]:
    """The codes of what is found."""
    return {finding.code for finding in findings(rules, told, config_class)}
