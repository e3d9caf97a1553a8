"""Which way a metric is better: as its method declares it, else as its name tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from ft_host import registry
from ft_host.config import RunConfig
from ft_host.config.declared import declared_facts
from ft_host.errors import PluginBroken
from ft_host.report.parts import headline_metrics
from ft_host.rundir.format import better
from ft_host.rundir.record import read_run
from ft_host.util.jsonl import json_line


@dataclass(kw_only=True)
class Ascending(RunConfig):
    metric_directions: ClassVar[dict[str, str]] = {"regret": "lower", "margin": "higher", "rewards/rejected": "neither"}


@dataclass(kw_only=True)
class Sideways(RunConfig):
    metric_directions: ClassVar[dict[str, str]] = {"regret": "down"}


def test_a_declared_direction_comes_before_the_name():
    declared = Ascending.metric_directions
    told = {name: better(name, declared) for name in ("eval_regret", "regret", "eval_margin", "eval_loss", "kl")}
    assert told == {"eval_regret": -1, "regret": -1, "eval_margin": 1, "eval_loss": -1, "kl": 0}
    assert better("eval_rewards/rejected") == 1 and better("eval_rewards/rejected", declared) == 0
    assert better("eval_math_regret", declared) == -1, "of one of several evaluation sets"
    assert better("eval_math_reward", declared) == 1


def test_a_direction_that_is_none_is_refused():
    with pytest.raises(PluginBroken, match="metric_directions: regret: found 'down', expected lower, higher, neither"):
        declared_facts(Sideways)


def test_facts_of_a_method_without_rollouts_hold_its_directions():
    assert declared_facts(RunConfig) == {}
    assert declared_facts(Ascending) == {"plan/metric_directions": Ascending.metric_directions}


def test_a_report_goes_by_what_the_run_recorded(tmp_path):
    run = {
        "format": 1,
        "method": "own",
        "status": "finished",
        "created": "2026-01-01T00:00:00+00:00",
        "config": {},
        "facts": declared_facts(Ascending),
    }
    (tmp_path / "run.json").write_text(json_line(run))
    told = {"eval_regret": 1.0, "eval_rewards/rejected": 0.5, "eval_margin": 0.1, "eval_x": 1.0}
    lines = [{"kind": "eval", "step": step, **told} for step in (0, 10)]
    (tmp_path / "metrics.jsonl").write_text("".join(json_line(line) + "\n" for line in lines))
    assert set(headline_metrics(read_run(tmp_path))) == {"eval_regret", "eval_margin"}


@pytest.mark.parametrize(
    ("method", "metric", "way"),
    [
        ("dpo", "eval_rewards/rejected", 0),
        ("dpo", "eval_rewards/accuracies", 1),
        ("kto", "eval_rewards/chosen", 0),
        ("kto", "eval_rewards/margins", 1),
        ("reward", "eval_mean_reward", 0),
        ("reward", "eval_accuracy", 1),
        ("gkd", "eval_distillation/divergence", -1),
        ("gold", "eval_distillation/teacher_agreement", 1),
    ],
)
def test_directions_of_the_methods(method, metric, way):
    declared = registry.config_class(registry.find("method", method)).metric_directions
    assert better(metric, declared) == way
