"""Rules about what must hold before the first update."""

from __future__ import annotations

import pytest

from ft_host.diagnostics.rules import probes
from ft_host.testing.rules import Told, codes, findings

RULES = probes.RULES


def first(loss: float, vocabulary: int = 151936, accuracy: float = 0.1) -> Told:
    return Told(facts={"start/loss": loss, "start/mean_token_accuracy": accuracy, "model/vocab_size": vocabulary})


def layout(difference: float, leak: float) -> Told:
    return Told(facts={"probe/packing_difference": difference, "probe/packing_leak": leak})


def kernel(name: str = "sdpa", refused: str | None = None) -> Told:
    facts = {"plan/kernel": name, "plan/rows_kernel": name, "plan/device": "cuda"}
    return Told(facts=facts | ({} if refused is None else {"plan/kernel_refused": refused}))


def kernel_beside(device: str = "cuda", **refused: str) -> Told:
    """The policy has flex, and models beside it haven't."""
    told = kernel("flex")
    return Told(facts=told.facts | {"plan/device": device, "plan/companions_refused": refused})


def weights(zero: float, share: float = 1.0, trainable: int = 592960, **config) -> Told:
    facts = {"probe/zero_grad_parameters": zero, "probe/trainable_share": share, "probe/trainable": trainable}
    return Told(config=config, facts=facts | ({"probe/zero_grad_example": "model.embed_tokens.weight"} if zero else {}))


CASES = {
    "PRB004": (layout(0.02, 3e-3), layout(0.06, 0.0)),  # bfloat16 rounds
    "PRB005": (first(12.1), first(2.3)),
    "PRB006": (weights(0.4), weights(0.0)),
    "PRB008": (kernel(refused="flex: there is no C compiler"), kernel("flex")),
    "PRB007": (Told(facts={"model/lora_missing": "c_attn"}), Told(facts={"model/experts": 0})),
}


@pytest.mark.parametrize(
    ("loss", "severity", "said"),
    [
        (10.4, "info", "usual for new weights"),
        (12.3, "warning", "sure of wrong tokens"),
        (14.0, "error", "sure of wrong"),
    ],
)
def test_a_first_loss_above_that_of_guessing_is_no_new_model(loss, severity, said):
    """Of 32,000 tokens: 10.37. Weights with another tokenizer, of a small vocabulary above all, are between."""
    (finding,) = findings(RULES, first(loss, 32000))
    assert finding.code == "PRB005" and finding.severity == severity and said in finding.message


def test_a_kernel_that_is_refused_beside_the_policy_is_told_by_its_model():
    (finding,) = findings(RULES, kernel_beside(teacher="flex: heads of 8", critic="flex: no compiler"))
    assert finding.code == "PRB008" and finding.severity == "warning"
    assert finding.message == (
        "Attention of teacher on cuda isn't flex, which is meant for this device: flex: heads of 8. "
        "Attention of critic on cuda isn't flex, which is meant for this device: flex: no compiler."
    )
    both = kernel(refused="flex: no compiler")
    both.facts["plan/companions_refused"] = {"teacher": "flex: heads of 8"}
    (finding,) = findings(RULES, both)
    assert "flex: no compiler. Attention of teacher" in finding.message


def test_a_device_that_flex_isnt_meant_for_may_have_any_kernel():
    assert codes(RULES, kernel_beside(device="cpu", teacher="sdpa: a convolution")) == set()
    padded = kernel("none", refused="sdpa: it has layers of type mamba")
    padded.facts["plan/device"] = "cpu"
    assert codes(RULES, padded) == set()


def test_every_rule_has_its_cases():
    assert CASES.keys() == {rule.code for rule in RULES}


@pytest.mark.parametrize("code", CASES)
def test_a_faulty_run_is_found_and_a_healthy_one_is_not(code):
    faulty, healthy = CASES[code]
    assert codes(RULES, faulty) == {code}
    assert codes(RULES, healthy) == set()


@pytest.mark.parametrize("loss, severity", [(2.865, "info"), (2.2, "info"), (6.8, "error")])
def test_new_weights_begin_at_the_loss_of_guessing_and_only_above_it_something_is_wrong(loss, severity):
    (finding,) = findings(RULES, first(loss, 16))
    assert finding.severity == severity


def test_a_loss_that_is_not_of_tokens_says_nothing():
    assert codes(RULES, Told(facts={"start/loss": 0.6931, "model/vocab_size": 2})) == set()


def test_an_adapter_trains_little_and_one_that_nothing_passes_is_found():
    assert codes(RULES, weights(0.0, 0.003, use_peft=True)) == set()
    (finding,) = findings(RULES, weights(1.0, 0.003, use_peft=True, lora_target_modules=["q_proj"]))
    assert finding.severity == "error" and finding.remedies[0].patch == {"lora_target_modules": ["all-linear"]}


def test_an_adapter_that_is_frozen_itself_is_found_and_no_other_module_is_named():
    """A share of all weights that is usual for LoRA, of an adapter half of which isn't trained."""
    told = weights(0.0, 0.003, use_peft=True)
    half = Told(config=told.config, facts=told.facts | {"probe/adapter_share": 0.5})
    (finding,) = findings(RULES, half)
    assert finding.message.startswith("50 % of the adapter's own weights are trained")
    assert not any(remedy.patch for remedy in finding.remedies)
    whole = Told(config=told.config, facts=told.facts | {"probe/adapter_share": 1.0})
    assert codes(RULES, whole) == set()


def test_frozen_weights_are_found():
    (finding,) = findings(RULES, weights(0.0, 0.12, 71000))
    assert (
        finding.severity == "warning"
        and finding.message == "71,000 weights are trained, 12 % of the model's; the others are frozen."
    )
