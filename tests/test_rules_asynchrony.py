"""The rules of rollouts that don't wait for training, and what the others say in such runs."""

import pytest
from ft_grpo.config import GRPOConfig

from ft_host.diagnostics.rules import RULES as ALL
from ft_host.diagnostics.rules import asynchrony, engines, machine, rollout_failures
from ft_host.testing.rules import Told, codes, findings, steps

RULES = [*asynchrony.RULES, *rollout_failures.RULES]
# A run of which both sides are busy: samples are 0.8 updates old, and the sample size is nearly whole.
HEALTHY = {
    "rollouts__ess": 0.93,
    "rollouts__staleness_mean": 0.8,
    "rollouts__staleness_max": 1,
    "rollouts__late_share": 0.1,
    "rollouts__late_length": 110.0,
    "rollouts__on_time_length": 100.0,
    "rollouts__mismatch_mean": 0.012,
    "rollouts__mismatch_max": 0.2,
    "rollouts__logp_difference": 0.01,
    "rollouts__set_aside": 0,
    "rollouts__failed_engine": 0,
    "rollouts__server_0__tokens_per_second": 900.0,
    "rollouts__server_1__tokens_per_second": 1000.0,
    "rollouts__server_2__tokens_per_second": 950.0,
    "perf__rollout_wait_time": 0.2,
    "perf__rollout_idle_share": 0.05,
    "perf__rollout_scoring_share": 0.02,
    "perf__step_time": 2.0,
    "perf__rollout_time": 0.3,
}
PLAN = {"plan/updates": 1, "plan/prompts": 16}
ENDED = {
    "watch/failed_hook": "",
    "watch/failed_step": 12,
    "watch/failed_text": "no completion has got any further for 60 seconds (rollout_timeout): 3 prompts are under way",
}


def told(config: dict | None = None, facts: dict | None = None, count: int = 60, **values) -> Told:
    config = {"rollouts": "async", "max_staleness": 2} | (config or {})
    return Told(config=config, facts=PLAN | (facts or {}), lines=steps(count, **(HEALTHY | values)))


CASES = {
    "ASY001": told(rollouts__ess=0.2),
    "ASY002": told(perf__rollout_wait_time=1.2),
    "ASY003": told(perf__rollout_idle_share=0.6),
    "ASY004": told(
        {"max_staleness": 4}, rollouts__staleness_mean=3.9, perf__rollout_idle_share=0.4, perf__rollout_wait_time=0.01
    ),
    "ASY005": told(rollouts__server_1__tokens_per_second=300.0),
    "ASY006": told(rollouts__late_length=260.0),
    "ASY007": told(rollouts__mismatch_mean=0.3),
    "ASY008": told(facts={"watch/rollout_restarts": 2, "watch/rollout_restart_cause": "killed by signal 9"}),
    "ASY009": told(facts={"watch/set_aside": "prompt 3 (data.jsonl, line 4; reward): nan", "watch/set_aside_count": 1}),
    "ASY010": told(rollouts__failed_engine=3),
    "ASY011": told(facts=ENDED | {"watch/failed": "rollouts", "watch/failed_place": "rollout_timeout"}),
}


@pytest.mark.parametrize(("apart", "found"), [(0.03, False), (0.06, True)])
def test_small_differences_of_all_tokens_are_found_where_the_effective_sample_size_of_tokens_is_high(apart, found):
    assert ("ASY001" in codes(RULES, told(rollouts__ess=0.92, rollouts__logp_difference=apart), GRPOConfig)) is found


def test_each_rule_has_a_case():
    assert CASES.keys() == {rule.code for rule in RULES}


@pytest.mark.parametrize("code", CASES)
def test_it_is_found_where_it_is(code):
    assert code in codes(RULES, CASES[code], GRPOConfig)


@pytest.mark.parametrize(
    "healthy",
    [
        told(),
        told(
            {"rollouts": "overlap"}, perf__rollout_wait_time=1.5, perf__rollout_idle_share=0.5
        ),  # it samples meanwhile
        told(
            {"max_staleness": 1},
            rollouts__staleness_mean=1.0,
            perf__rollout_idle_share=0.2,
            perf__rollout_wait_time=0.0,
        ),
        told(perf__rollout_wait_time=lambda step: 90.0 if step == 1 else 0.1),  # the rollout process starts
        told(perf__rollout_idle_share=0.5, perf__rollout_scoring_share=0.45),  # rewards are slow, not the trainer
        told({"top_p": 0.5}, rollouts__ess=0.2),  # another distribution at any age: ENG003
        told(rollouts__late_share=0.01, rollouts__late_length=400.0),  # a single straggler
        told(facts=ENDED | {"watch/failed": "disk", "watch/failed_place": "/runs"}),
        told(facts={"watch/rollout_restarts": 0}),
        told(rollouts__failed_engine=lambda step: int(step % 40 == 0)),  # one in a thousand
    ],
    ids=[
        "usual",
        "overlap",
        "bound of one rollout",
        "start",
        "rewards",
        "top_p",
        "a straggler",
        "a full disk",
        "no restart",
        "rare",
    ],
)
def test_a_healthy_run_says_nothing(healthy):
    assert codes(RULES, healthy, GRPOConfig) == set()


def test_a_synchronous_run_is_not_asked():
    """Its metrics lack what the rules need; a rule of the facts of its end says nothing either."""
    lines = steps(60, perf__rollout_time=1.0, perf__step_time=2.0)
    assert codes(RULES, Told(facts=PLAN, lines=lines), GRPOConfig) == set()


def test_the_collapse_is_an_error_and_its_remedies_are_patches():
    config = {"max_staleness": 4, "importance_sampling_correction": "none"}
    (finding,) = findings(RULES, told(config, rollouts__ess=0.05), GRPOConfig)
    assert finding.severity == "error" and "0.8 updates ago" in finding.message
    assert [remedy.patch for remedy in finding.remedies][:2] == [
        {"max_staleness": 2},
        {"importance_sampling_correction": "token_truncate"},
    ]


def test_a_bound_is_lowered_and_raised_in_whole_rollouts():
    plan = {"plan/updates": 4}
    (low,) = findings(RULES, told({"max_staleness": 12}, plan, rollouts__ess=0.2), GRPOConfig)
    assert low.remedies[0].patch == {"max_staleness": 4}
    (high,) = findings(
        RULES, told({"max_staleness": 4}, plan, perf__rollout_wait_time=3.0, perf__rollout_idle_share=0.25), GRPOConfig
    )
    assert high.code == "ASY002" and high.remedies[0].patch == {"max_staleness": 8}


def test_the_numbers_of_the_bottleneck_are_in_the_message():
    measured = {
        "watch/bottleneck": "rewards",
        "watch/bottleneck_step": 4.2,
        "watch/bottleneck_more_servers": 4.0,
        "watch/bottleneck_larger_bound": 4.1,
    }
    (finding,) = findings(RULES, told(facts=measured, perf__rollout_wait_time=1.2), GRPOConfig)
    assert (
        "A step takes 4.2 s; with generation twice as fast (twice the servers) it would take about 4 s"
        in finding.message
    )
    assert finding.remedies[0].patch == {"reward_workers": 2 * GRPOConfig().reward_workers}


def test_waiting_rollouts_of_a_waiting_trainer_want_a_larger_bound():
    both = told(perf__rollout_idle_share=0.6, perf__rollout_wait_time=1.2)
    found = {finding.code: finding for finding in findings(RULES, both, GRPOConfig)}
    assert found["ASY003"].remedies[0].patch == {"max_staleness": 3}
    (alone,) = findings(RULES, told(perf__rollout_idle_share=0.6), GRPOConfig)
    assert [remedy.patch for remedy in alone.remedies] == [{}]


def test_engines_that_disagree_explain_a_small_sample_size():
    found = {
        finding.code: finding.state
        for finding in findings(RULES, told(rollouts__mismatch_mean=0.4, rollouts__ess=0.1), GRPOConfig)
    }
    assert found == {"ASY007": "open", "ASY001": "muted"}


def test_a_deadline_is_said_once():
    ended = ENDED | {"watch/failed": "rollouts", "watch/failed_place": "rollout_timeout"}
    found = {
        finding.code: finding.state for finding in findings([*RULES, *machine.RULES], told(facts=ended), GRPOConfig)
    }
    assert found == {"ASY011": "open", "SYS005": "muted"}


@pytest.mark.parametrize("rollouts", ["overlap", "async"])
def test_a_difference_of_age_is_no_disagreement_of_engines(rollouts):
    old = {"sampling__sampling_logp_difference__mean": lambda step: 1e-7 if step < 3 else 0.2}
    old |= {"sampling__effective_sample_size": 0.2}
    lines = steps(60, **(HEALTHY | old))
    assert "ENG001" in codes(engines.RULES, Told(lines=lines), GRPOConfig)
    assert codes(engines.RULES, Told(config={"rollouts": rollouts}, facts=PLAN, lines=lines), GRPOConfig) == set()
    exact = {"rollouts": rollouts, "max_staleness": 0}
    assert "ENG001" in codes(engines.RULES, Told(config=exact, facts=PLAN, lines=lines), GRPOConfig)


def test_codes_stand_once_among_all():
    assert len({rule.code for rule in ALL}) == len(ALL)
