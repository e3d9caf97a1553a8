"""Rules about a mixture of experts."""

from __future__ import annotations

import pytest

from ft_host.diagnostics.rules import experts
from ft_host.testing.rules import Told, codes, findings, steps

RULES = experts.RULES
FACTS = {"model/experts": 16, "model/experts_per_token": 2}


def told(facts=FACTS, config=None, **metrics) -> Told:
    made = {name.replace("__", "/"): value for name, value in metrics.items()}
    return Told(config=config or {}, facts=dict(facts), lines=steps(60, **{"loss": 1.2, **made}))


CASES = {
    "MOE001": (
        told(moe__max_violation=lambda step: min(0.7 + 0.1 * step, 5)),
        told(moe__max_violation=lambda step: 3.1 + 0.01 * step),  # as the pretrained model has it
    ),
    "MOE002": (told(moe__dead_experts=lambda step: min(0.01 * step, 0.2)), told(moe__dead_experts=0.08)),
    "MOE003": (
        told(moe__router_entropy=lambda step: 0.84 * 0.96**step),
        told(moe__router_entropy=lambda step: 0.84 - 0.002 * step),
    ),
    "MOE004": (
        told(moe__aux_share=0.4),
        told(moe__aux_share=lambda step: 0.3 if step > 30 else 0.005, loss=lambda step: 2.8 if step < 20 else 0.03),
    ),
}


def test_every_rule_has_its_cases():
    assert CASES.keys() == {rule.code for rule in RULES}


@pytest.mark.parametrize("code", CASES)
def test_a_faulty_run_is_found_and_a_healthy_one_is_not(code):
    faulty, healthy = CASES[code]
    assert codes(RULES, faulty) == {code}
    assert codes(RULES, healthy) == set()


def test_a_small_layer_can_be_uneven_too():
    four = {"model/experts": 4, "model/experts_per_token": 2}
    one_of_two = {"moe__max_violation": lambda step: 0.5 if step < 5 else 0.97}
    assert codes(RULES, told(four, **one_of_two, moe__dead_experts=0.1)) == {"MOE001"}
    # each token goes to half of the experts: the most there can be leaves others their share
    assert codes(RULES, told(four, **one_of_two, moe__dead_experts=0.0, moe__router_entropy=0.9)) == set()
    assert codes(RULES, told(four, moe__max_violation=0.75)) == set()


def test_experts_that_rest_while_routers_find_their_balance_are_not():
    """A healthy run from new weights: half of them had nothing from step 9 to 31."""
    assert codes(RULES, told(moe__dead_experts=lambda step: 0.4 if 8 < step < 32 else 0.0)) == set()


def test_experts_that_are_dead_from_the_start_are_found():
    (finding,) = findings(RULES, told(moe__dead_experts=lambda step: max(0.62 - 0.01 * step, 0.3)))
    assert finding.opened <= 20 and finding.remedies[0].patch == {"router_aux_loss_coef": 0.01}


def test_of_rollouts_the_share_of_the_balance_says_nothing():
    facts = {"plan/reward_metric": "reward"}
    assert codes(RULES, told(facts, moe__aux_share=0.9, loss=1e-4, reward=0.5)) == set()


@pytest.mark.parametrize(("own", "to"), [(0.001, 0.01), (0.01, 0.1), (0.0, 0.01), (0.02, 0.1)])
def test_the_remedy_starts_from_the_models_own_weight_of_the_balance(own, to):
    """0.01 where the model has 0.01 already would be no remedy."""
    facts = FACTS | {"model/router_aux_loss_coef": own}
    run = told(facts, moe__max_violation=lambda step: min(0.7 + 0.1 * step, 5))
    (finding,) = findings(RULES, run)
    (remedy,) = finding.remedies
    assert remedy.patch == {"router_aux_loss_coef": to}
    assert f"from {own:g}, the model's own value, to {to:g}" in remedy.why


def test_where_balance_is_asked_for_strongly_by_the_model_itself_no_number_is_raised():
    facts = FACTS | {"model/router_aux_loss_coef": 0.1}
    (finding,) = findings(RULES, told(facts, moe__max_violation=lambda step: min(0.7 + 0.1 * step, 5)))
    assert not finding.remedies[0].patch
