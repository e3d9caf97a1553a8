"""Each rule on a run that has its trouble, and on one that hasn't."""

from __future__ import annotations

import pytest
from ft_sdft.cases import FAULTY, HEALTHY
from ft_sdft.config import SDFTConfig
from ft_sdft.rules import NOTHING, RULES

from ft_host.testing import Told, codes, evals, findings, in_order, steps


@pytest.mark.parametrize("code", FAULTY)
def test_faulty(code):
    [found] = [each for each in findings(RULES, FAULTY[code], SDFTConfig) if each.code == code]
    assert found.message and found.remedies
    assert codes(RULES, FAULTY[code], SDFTConfig) == {code}


def test_healthy():
    assert codes(RULES, HEALTHY, SDFTConfig) == set()


def test_each_rule_of_its_own_has_a_case():
    assert {rule.code for rule in RULES if rule.code < "SDFT100"} == set(FAULTY)


def test_completions_that_are_cut_short():
    told = Told(lines=steps(60, completions__clipped_ratio=0.9, completions__mean_length=500.0))
    assert codes(RULES, told, SDFTConfig) == {"SDFT108"}


@pytest.mark.parametrize(("share", "muted"), [(0.78, True), (0.4, False)])
def test_a_loss_that_begins_late_is_why_completions_go_on(share, muted):
    """Only what is longer than the skipped tokens is learnt from; of some completions, or of most."""
    values = {NOTHING.replace("/", "__"): share, "completions__mean_length": 30.0}
    values["completions__clipped_ratio"] = lambda step: 0.0 if step < 10 else 0.6
    told = Told(config={"num_loss_tokens_to_skip": 25, "max_completion_length": 32}, lines=steps(60, **values))
    found = {each.code: each for each in findings(RULES, told, SDFTConfig)}
    assert found["SDFT004"].state == "open"
    assert (found["SDFT108"].muted_by == "SDFT004") is muted


def test_a_teacher_that_doesnt_know_better():
    """The student says what its teacher says, and does worse."""
    rewards = {25: 0.6, 50: 0.5, 75: 0.28, 100: 0.25}
    lines = steps(100, self_distillation__teacher_logp_difference=0.1)
    told = Told(
        config={"teacher_model_kind": "live"}, lines=in_order(lines, evals(rewards, reward=lambda step: rewards[step]))
    )
    [found] = findings(RULES, told, SDFTConfig)
    assert (found.code, found.severity) == ("SDFT117", "error")
    assert found.remedies[0].patch == {"teacher_model_kind": "base"}
