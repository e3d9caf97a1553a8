"""The rules of the sampler beside the trainer, and of the reference at the start."""

import pytest
from ft_dpo.config import DPOConfig
from ft_grpo.config import GRPOConfig

from ft_host.diagnostics.rules import engine_times, engines, references
from ft_host.testing.rules import Told, codes, findings, steps

APART = "sampling__sampling_logp_difference__mean"
TIMES = {"perf__train_time": 1.3, "perf__step_time": 2.1, "perf__reward_time": 0.01, "perf__generation_time": 0.7}


def told(config: dict | None = None, facts: dict | None = None, **values) -> Told:
    return Told(config=config or {}, facts=facts or {}, lines=steps(60, **(TIMES | values)))


# The differences of a float32 sampler are 1e-7, of bfloat16 ones about 0.01.
RULES = [*engines.RULES, *engine_times.RULES]
CASES = {
    "PRB002": (told(clip_ratio__region_mean=0.03), told(clip_ratio__region_mean=0.0)),
    "PRB003": (
        told(facts={"probe/sampler_difference": 0.4, "probe/sampler_difference_max": 2.1}),
        told(facts={"probe/sampler_difference": 0.02, "probe/sampler_difference_max": 0.3}),
    ),
    "ENG001": (told(**{APART: lambda step: 2e-7 if step < 20 else 0.03}), told({"backend": "vllm"}, **{APART: 0.012})),
    "ENG002": (told(sampling__effective_sample_size=0.1), told(sampling__effective_sample_size=0.97)),
    "ENG003": (
        told({"top_p": 0.5}, **{APART: 0.05}),
        told(
            {"importance_sampling_correction": "token_truncate"},
            **{APART: 0.05, "sampling__effective_sample_size": 0.9},
        ),
    ),
    "ENG004": (
        told(facts={"probe/sampler_difference": 1.8e-7, "probe/sampler_difference_after_update": 0.02}),
        told(facts={"probe/sampler_difference": 0.012, "probe/sampler_difference_after_update": 0.014}),
    ),
    "ENG005": (told(perf__generation_time=9.0), told()),
    "ENG007": (told(perf__weight_sync_time=1.0), told(perf__weight_sync_time=0.1)),
    "ENG010": (told(perf__reward_time=3.5), told()),
}


def test_each_rule_has_a_case():
    assert CASES.keys() == {rule.code for rule in RULES}


@pytest.mark.parametrize("code", CASES)
def test_it_is_found_where_it_is_and_not_elsewhere(code):
    faulty, healthy = CASES[code]
    assert code in codes(RULES, faulty, GRPOConfig)
    assert code not in codes(RULES, healthy, GRPOConfig)


def test_a_large_difference_is_an_error():
    facts = {"probe/sampler_difference": 1.4, "probe/sampler_difference_max": 9.0}
    (finding,) = findings(RULES, Told(config={"backend": "vllm"}, facts=facts), GRPOConfig)
    assert finding.severity == "error" and "1.4 nats a token" in finding.message
    assert finding.remedies[0].patch == {"backend": "transformers", "backend_config": {}}


def first(loss: float, chosen: float = 0.0, rejected: float = 0.0) -> list:
    return steps(1, loss=loss, rewards__chosen=chosen, rewards__rejected=rejected)


@pytest.mark.parametrize(
    ("config", "lines", "raised"),
    [
        ({}, first(0.6931), False),
        ({}, first(0.7120), True),  # dropout
        ({}, first(0.6931, -0.4, -0.38), True),
        ({"loss_type": "hinge"}, first(1.0), False),
        ({"loss_type": "ipo"}, first(25.0), False),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]}, first(0.8419), False),
        ({"loss_type": ["sigmoid", "bco_pair"], "loss_weights": [0.8, 0.2]}, first(0.8318), False),
        ({"ref_model": "other"}, first(0.75, -3.0, -2.0), True),
    ],
)
def test_the_reference_is_the_policy_at_first(config, lines, raised):
    told = Told(config=config, facts={"model/reference": "the policy as the run found it"}, lines=lines)
    assert ("PRB001" in codes(references.RULES, told, DPOConfig)) is raised


@pytest.mark.parametrize("config", [{}, {"reference_free": True}, {"beta": 2.0}])
def test_rewards_without_a_reference_may_begin_anywhere(config):
    """SimPO and ORPO log rewards/chosen as TRL names it, and have no reference that they could differ from."""
    lines = first(1.3, -0.11, -1.63)
    assert codes(references.RULES, Told(config=config, lines=lines), DPOConfig) == set()


@pytest.mark.parametrize(
    ("config", "dropout", "first"),
    [
        ({"disable_dropout": False}, 0.3, {"disable_dropout": True}),
        ({"disable_dropout": False}, 0.0, {}),
        ({}, 0.3, {}),
    ],
)
def test_dropout_is_the_first_suspect_where_the_model_has_some(config, dropout, first):
    run = told(config, {"model/dropout": dropout}, **{APART: 2.0})
    [found] = [each for each in findings(RULES, run, GRPOConfig) if each.code == "ENG001"]
    assert dict(found.remedies[0].patch) == first
