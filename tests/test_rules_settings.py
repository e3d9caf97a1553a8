"""Rules about the config: each on a run that has the trouble and on one that hasn't."""

from __future__ import annotations

import pytest
from ft_dpo.config import DPOConfig
from ft_grpo.config import GRPOConfig

from ft_host.config import RunConfig
from ft_host.diagnostics.rules import settings
from ft_host.testing.rules import Told, codes, findings

LARGE, SMALL = {"model/parameters": 600_000_000}, {"model/parameters": 593_000}
LONG = {"plan/total_steps": 2000}
FEW = {"plan/rows_per_step": 4, "data/rows": 10_000}

CASES = {
    "CFG001": (
        Told(config={"learning_rate": 2e-3, "warmup_steps": 10}, facts=LARGE),
        Told(config={"learning_rate": 3e-3}, facts=SMALL),
    ),
    "CFG002": (
        Told(config={"learning_rate": 1e-5, "use_peft": True}, facts=LARGE),
        Told(config={"learning_rate": 2e-4, "use_peft": True}, facts=LARGE),
    ),
    "CFG003": (
        Told(config={"learning_rate": 1e-4}, facts=LARGE),
        Told(config={"learning_rate": 1e-4, "warmup_steps": 0.05}, facts=LARGE),
    ),
    "CFG004": (Told(facts=FEW), Told(facts=FEW | {"plan/rows_per_step": 32})),
    "CFG005": (Told(config={"num_generations": 2}, facts={"plan/generations": 2}), Told(facts={"plan/generations": 8})),
    "CFG006": (
        Told(config={"eval_dataset": "e"}, facts=LONG),
        Told(config={"eval_dataset": "e", "eval_steps": 100}, facts=LONG),
    ),
    "CFG007": (
        Told(config={"save_steps": 0}, facts=LONG),
        Told(config={"save_steps": 0}, facts={"plan/total_steps": 300}),
    ),
    "OPT011": (
        Told(
            config={"use_peft": True, "lora_target_modules": ["q_proj", "v_proj"], "learning_rate": 2e-4}, facts=LARGE
        ),
        Told(config={"use_peft": True, "learning_rate": 2e-4}, facts=LARGE),
    ),
    "OPT013": (
        Told(config={"dtype": "bfloat16", "learning_rate": 1e-6}, facts=LARGE),
        Told(config={"dtype": "float32", "learning_rate": 1e-6}, facts=LARGE),
    ),
}
CLASSES = {"CFG004": DPOConfig, "CFG005": GRPOConfig}


def test_every_rule_has_its_cases():
    assert CASES.keys() == {rule.code for rule in settings.RULES}


@pytest.mark.parametrize("code", CASES)
def test_a_rule_finds_its_trouble_and_nothing_else(code):
    faulty, healthy = CASES[code]
    kind = CLASSES.get(code, RunConfig)
    assert codes(settings.RULES, faulty, kind) == {code}
    assert codes(settings.RULES, healthy, kind) == set()
    for finding in findings(settings.RULES, faulty, kind):
        assert finding.remedies and finding.remedies[0].patch
        assert not finding.remedies[0].why.endswith(".")


def test_two_completions_that_are_one_row_are_no_small_group():
    """Of a pair, or the best of several, nothing is held against a mean of the group."""
    for rows, found in ((1, set()), (2, {"CFG005"})):
        facts = {"plan/generations": 2, "plan/rows_per_prompt": rows}
        assert codes(settings.RULES, Told(config={"num_generations": 2}, facts=facts), GRPOConfig) == found
