"""Noise is no trend: runs made of dice, healthy ones of which nothing is said, and faulty ones that are named.

Seeds that thresholds were chosen with are others ("tune", "rate").
"""

from __future__ import annotations

import random

import pytest
from simulated_runs import FAULTY, HEALTHY, PAIRS, ROLLOUTS, tosses, unlearns

from ft_host import registry
from ft_host.diagnostics.collect import own_diagnostics, rules_of
from ft_host.diagnostics.rules import gradients, held_out, losses, numbers, optimisation
from ft_host.testing.rules import findings

RULES = [*numbers.RULES, *losses.RULES, *gradients.RULES, *optimisation.RULES, *held_out.RULES]
RUNS, OF_METHODS = 12, 6


def said(kind: str, make) -> list[list]:
    """Warnings and errors of runs of a kind, run by run; muted ones too."""
    made = (make(random.Random(f"test {kind} {number}")) for number in range(RUNS))
    return [[each for each in findings(RULES, told) if each.severity != "info"] for told in made]


def moves(found: list) -> set[str]:
    """Which way findings of a run want its learning rate (0.001) to go."""
    rates = {
        remedy.patch["learning_rate"] for each in found for remedy in each.remedies if "learning_rate" in remedy.patch
    }
    return {"up" if rate > 1e-3 else "down" for rate in rates}


@pytest.mark.parametrize("kind", HEALTHY)
def test_no_warning_in_runs_that_are_healthy(kind):
    told = [[each.line() for each in found] for found in said(kind, HEALTHY[kind])]
    assert not any(told)


NAMED = {"diverges": {"OPT003", "OPT004", "OPT006", "OPT007"}, "crawls": {"OPT007"}, "crawls_from_new": {"OPT007"}}


@pytest.mark.parametrize("kind", FAULTY)
def test_a_rate_that_is_wrong_is_named_and_never_turned_the_wrong_way(kind):
    runs = said(kind, FAULTY[kind])
    named = sum(bool({each.code for each in found} & NAMED[kind]) for found in runs)
    assert named >= 0.9 * RUNS
    wrong = "up" if kind == "diverges" else "down"
    assert not any(wrong in moves(found) for found in runs)


# ---------------------------------------------------------------- pairs and rollouts


def of_method(method: str, kind: str, make) -> list[list]:
    """The same of a method's rules and the host's."""
    known = registry.config_class(registry.find("method", method))
    rules = [rule for rule, _ in rules_of(own_diagnostics(registry.find("method", method)))[0]]
    made = (make(random.Random(f"test {kind} {number}")) for number in range(OF_METHODS))
    return [[each for each in findings(rules, told, known) if each.severity != "info"] for told in made]


@pytest.mark.parametrize("kind", PAIRS)
def test_no_warning_in_pairs_that_are_learnt(kind):
    assert not any([each.line() for each in found] for found in of_method("dpo", kind, PAIRS[kind]))


@pytest.mark.parametrize("kind", ROLLOUTS)
def test_no_warning_in_rollouts_that_earn_more_or_all(kind):
    assert not any([each.line() for each in found] for found in of_method("grpo", kind, ROLLOUTS[kind]))


def test_labels_that_are_tossed_are_named_and_no_rate_is_blamed():
    for found in of_method("dpo", "tosses", tosses):
        assert [each.code for each in found if each.state == "open"] == ["DPO003"]
        assert not any("learning_rate" in remedy.patch for each in found for remedy in each.remedies)


def test_a_policy_that_unlearns_is_named_and_its_rate_lowered():
    for found in of_method("grpo", "unlearns", unlearns):
        assert {each.code for each in found} & {"GRPO015", "GRPO007", "OPT014"}
        patches = [remedy.patch for each in found for remedy in each.remedies]
        rates = [patch["learning_rate"] for patch in patches if "learning_rate" in patch]
        assert rates and all(rate < 3e-4 for rate in rates)
