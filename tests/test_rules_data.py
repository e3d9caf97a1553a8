"""Rules about rows and tokens: each on a run that has the trouble and on one that hasn't."""

from __future__ import annotations

import pytest
from ft_kto.config import KTOConfig

from ft_host.config import RunConfig
from ft_host.diagnostics.rules import data, data_rewards, data_set, data_templates
from ft_host.testing.rules import Told, codes, findings

RULES = [*data.RULES, *data_rewards.RULES, *data_set.RULES, *data_templates.RULES]

# As measured on the arithmetic example
HEALTHY = {
    "data/rows": 10_000,
    "data/measured": 256,
    "data/dropped_rows": 0.0,
    "data/unsupervised_rows": 0.0,
    "data/supervised_fraction": 0.751,
    "data/length_p50": 37,
    "data/length_p95": 46,
    "data/length_max": 51,
    "data/truncated_rows": 0.0,
    "data/truncated_tokens": 0.0,
    "data/unknown_tokens": 0.0,
    "data/eos_rows": 1.0,
    "data/empty_completions": 0.0,
    "data/double_bos_rows": 0.0,
    "data/prompt_mismatch_rows": 0.0,
    "data/duplicate_rows": 0.0,
    "data/compared": 10_000,
    "data/eval_overlap_rows": 0.0,
    "data/identical_pairs": 0.0,
    "data/length_ratio": 1.1,
    "data/chosen_longer": 0.5,
    "data/padding_share": 0.2,
    "plan/kernel": "sdpa",
}
REWARD = {"failed": 0.0, "not_finite": 0.0, "whole": True, "spread": 1.0, "value": 1.0}


def facts(**changed):
    return HEALTHY | {f"data/{name}": value for name, value in changed.items()}


def reward(**changed):
    return HEALTHY | {f"data/reward/exact/{name}": value for name, value in (REWARD | changed).items()}


CASES = {
    "DATA001": (Told(facts=facts(unsupervised_rows=0.3)), Told(facts=HEALTHY)),
    "DATA002": (Told(facts=facts(prompt_mismatch_rows=1.0)), Told(facts=facts(prompt_mismatch_rows=0.02))),
    "DATA003": (Told(facts=facts(eos_rows=0.0)), Told(facts=facts(eos_rows=0.97))),
    "DATA004": (Told(facts=facts(double_bos_rows=1.0)), Told(facts=HEALTHY)),
    "DATA005": (
        Told(config={"max_length": 32}, facts=facts(truncated_rows=0.7, truncated_tokens=0.2)),
        Told(facts=facts(truncated_rows=0.03, truncated_tokens=0.01)),
    ),
    "DATA006": (
        Told(config={"segment_attention": "none"}, facts=facts(padding_share=0.6) | {"plan/kernel": "none"}),
        Told(facts=facts(padding_share=0.6)),  # laid out without padding
    ),
    "DATA007": (Told(facts=facts(eval_overlap_rows=0.5)), Told(facts=facts(duplicate_rows=0.02))),
    "DATA008": (Told(facts=facts(length_ratio=2.4, chosen_longer=0.99)), Told(facts=facts(length_ratio=1.6))),
    "DATA009": (
        Told(facts=facts(desirable=20, undesirable=236)),
        Told(config={"desirable_weight": 3.0}, facts=facts(desirable=64, undesirable=192)),
    ),
    "DATA010": (Told(facts=reward(spread=0.0)), Told(facts=reward(whole=False, spread=0.0))),
    "DATA011": (
        Told(config={"packing": True, "packing_strategy": "wrapped"}, facts=HEALTHY),
        Told(config={"packing": True}, facts=HEALTHY),
    ),
    "DATA012": (Told(facts=facts(unknown_tokens=0.4)), Told(facts=facts(unknown_tokens=0.001))),
    "DATA014": (Told(facts=facts(empty_completions=0.1)), Told(facts=facts(empty_completions=0.01))),
    "DATA013": (Told(facts=facts(**{"left_out/thoughts": 0.4})), Told(facts=HEALTHY)),
}


def test_every_rule_has_its_cases():
    assert CASES.keys() == {rule.code for rule in RULES}


@pytest.mark.parametrize("code", CASES)
def test_a_rule_finds_its_trouble_and_nothing_else(code):
    faulty, healthy = CASES[code]
    kind = KTOConfig if code == "DATA009" else RunConfig
    assert codes(RULES, faulty, kind) == {code}
    assert codes(RULES, healthy, kind) == set()


def test_a_rule_about_starred_facts_is_one_for_each_of_them():
    told = reward(spread=0.0) | {"data/reward/format/failed": 1.0, "data/reward/lines/failed": 0.0}
    found = findings(RULES, Told(facts=told))
    assert [each.fingerprint for each in found] == ["DATA010:exact", "DATA010:format"]


def test_max_length_is_raised_to_what_fits():
    (found,) = findings(RULES, Told(config={"max_length": 32}, facts=facts(truncated_rows=0.7)))
    assert found.remedies[0].patch == {"max_length": 64}
