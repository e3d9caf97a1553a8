"""Rules about loss, gradients and updates: each on a run that has the trouble and on one that hasn't."""

from __future__ import annotations

import math
import random
from dataclasses import asdict

import pytest

from ft_host.config import RolloutConfig, RunConfig
from ft_host.config.declared import declared_facts
from ft_host.diagnostics import Engine
from ft_host.diagnostics.rules import gradients, held_out, losses, numbers, optimisation
from ft_host.testing.rules import Told, codes, evals, findings, in_order, steps

ROLLOUTS = declared_facts(RolloutConfig)
RULES = [*numbers.RULES, *losses.RULES, *gradients.RULES, *optimisation.RULES, *held_out.RULES]

# Losses of a small model on sums, by step: learning_rate 3e-3, and 0.3
WELL = [
    2.865,
    2.848,
    2.742,
    2.65,
    2.561,
    2.496,
    2.415,
    2.312,
    2.277,
    2.2,
    2.145,
    2.088,
    2.007,
    1.944,
    1.877,
    1.819,
    1.715,
    1.651,
    1.554,
    1.511,
    1.443,
    1.462,
    1.419,
    1.439,
    1.389,
    1.395,
    1.354,
    1.353,
    1.27,
    1.304,
    1.243,
    1.266,
    1.223,
    1.198,
    1.162,
    1.165,
    1.116,
    1.108,
    1.06,
    1.058,
    1.026,
    1.008,
    1.05,
    1.021,
    0.976,
    0.974,
    0.934,
    0.928,
    0.897,
    0.903,
    0.89,
    0.87,
    0.851,
    0.825,
    0.845,
    0.82,
    0.789,
    0.781,
    0.766,
    0.765,
]
THROWN = [
    2.865,
    2.848,
    2.601,
    2.892,
    3.717,
    3.608,
    3.838,
    5.013,
    4.876,
    6.073,
    6.973,
    6.101,
    6.155,
    4.993,
    3.637,
    3.026,
    2.789,
    2.811,
    2.883,
    2.596,
    2.77,
    2.806,
    2.601,
    2.949,
    2.879,
    2.885,
    2.623,
    2.994,
    2.774,
    3.104,
    3.077,
    2.891,
    2.787,
    2.706,
    2.54,
    2.616,
    2.612,
    2.588,
    2.61,
    2.576,
]


def of(values: list[float]):
    return lambda step: values[min(step, len(values)) - 1]


def noisy(value: float, share: float = 0.15):
    """The same noise at each call."""
    return lambda step: value * (1 + share * random.Random(step).uniform(-1, 1))


def falling(start: float, rate: float, share: float = 0.05):
    return lambda step: start * math.exp(-rate * step) * noisy(1, share)(step)


def norms(count: int = 60, loss=2.0, norm=1.0, **more):
    return steps(count, loss=loss, grad_norm=norm, learning_rate=more.pop("learning_rate", 1e-4), **more)


def every_tenth(lines, ratio):
    """Lines with `update_ratio` at every tenth step."""
    told = [line | ({"update_ratio": ratio(line["step"])} if line["step"] % 10 == 0 else {}) for line in lines]
    return told


HEALTHY = Told(
    config={"max_steps": 400, "warmup_steps": 20, "learning_rate": 3e-3, "eval_steps": 20, "eval_dataset": "e"},
    facts={"plan/total_steps": 400},
    lines=in_order(
        every_tenth(
            norms(
                60,
                of(WELL),
                noisy(1.6, 0.6),
                epoch=lambda step: step / 156,
                learning_rate=3e-3,
                mean_token_accuracy=0.5,
            ),
            lambda step: 0.03,
        ),
        evals([0, 20, 40, 60], loss=lambda step: {0: 2.862, 20: 1.463, 40: 1.05, 60: 0.755}[step]),
    ),
)

FELL = [2.86, 1.48, 1.09, 1.11, 1.37, 1.52]  # of held-out rows, every 20 steps: 128 rows learnt by heart


def of_matches(values, rows=200, config=None):
    """Evaluations of a reward that is 1 or 0, every 20 steps."""
    at = [20 * index for index in range(len(values))]
    told = dict(zip(at, values, strict=True))
    spread = lambda step: math.sqrt(told[step] * (1 - told[step]))  # noqa: E731
    lines = evals(at, reward=lambda step: told[step], reward_std=spread)
    return Told(config=config or {"learning_rate": 3e-4}, facts={"plan/scored_rows": rows}, lines=lines)


CASES = {
    "NUM001": (
        Told(facts={"watch/not_finite": "loss", "watch/not_finite_value": "nan", "watch/not_finite_step": 7}),
        HEALTHY,
    ),
    "NUM002": (
        Told(config={"fp16": True}, lines=steps(60, update_skipped=lambda step: float(step % 5 == 0))),
        Told(config={"fp16": True}, lines=steps(60, update_skipped=lambda step: float(step < 3))),
    ),
    "OPT001": (
        Told(lines=norms(norm=lambda step: 30.0 if step in (30, 34, 39, 41) else 1.5)),
        # most groups have equal rewards: a step with a signal is no spike
        Told(facts=ROLLOUTS, lines=norms(norm=lambda step: 0.5 if step % 9 == 0 or step < 30 else 1e-3, reward=1.0)),
    ),
    "OPT002": (
        Told(lines=norms(loss=0.0, norm=0.0)),
        Told(
            lines=norms(
                300, loss=lambda step: max(2 * math.exp(-step / 20), 1e-5), norm=lambda step: 2 * math.exp(-step / 15)
            )
        ),
    ),
    "OPT003": (
        Told(lines=norms(len(THROWN), of(THROWN))),
        Told(lines=norms(200, lambda step: 2.8 * math.exp(-step / 30) + 0.03 * (step % 9 == 0))),
    ),
    "OPT004": (Told(lines=norms(90, lambda step: 2.8 if step < 25 else 3.9)), HEALTHY),
    "OPT005": (
        Told(lines=in_order(norms(60, noisy(0.12, 0.25)), evals([0, 25, 50], loss=0.13))),
        Told(lines=in_order(norms(60, noisy(0.12, 0.25)), evals([0, 25, 50], loss=lambda step: 0.13 - step / 2000))),
    ),
    "OPT006": (
        Told(
            config={"warmup_steps": 10},
            lines=norms(60, lambda step: 2.8 - 0.02 * step if step < 10 else 2.6 + 0.02 * step),
        ),
        Told(
            config={"warmup_steps": 30}, lines=norms(28, lambda step: 2.8 + 0.05 * step)
        ),  # that is the warm-up's to mend
    ),
    "OPT007": (
        Told(
            config={"learning_rate": 3e-6},
            lines=every_tenth(norms(60, lambda step: 2.865 - 0.0015 * step, learning_rate=3e-6), lambda step: 1e-4),
        ),
        # a pretrained model of billions at 1e-5: small steps, and a loss that falls
        Told(
            config={"learning_rate": 1e-5},
            lines=every_tenth(
                norms(60, lambda step: 1.1 + 0.2 * math.exp(-step / 20), learning_rate=1e-5), lambda step: 1e-4
            ),
        ),
    ),
    "OPT008": (
        Told(config={"max_grad_norm": 1e-6}, lines=norms(loss=of(WELL), norm=noisy(3.0, 0.3))),
        # above a usual limit at every step, which Adam divides by
        Told(config={"max_grad_norm": 0.5}, lines=norms(loss=of(WELL), norm=noisy(30.0, 0.3))),
    ),
    "OPT009": (
        Told(
            config={"max_steps": 100, "eval_dataset": "e"},
            lines=in_order(
                norms(100, falling(2.86, 0.03)), evals(range(0, 101, 20), loss=lambda step: FELL[step // 20])
            ),
        ),
        # it loses more by the few that it gets wrong, and gets more of them right
        Told(
            lines=in_order(
                norms(100, falling(2.86, 0.03)),
                evals(range(0, 101, 20), loss=lambda step: FELL[step // 20], reward=lambda step: step / 120),
            )
        ),
    ),
    "OPT010": (
        Told(
            lines=in_order(
                norms(200, falling(2.8, 0.01)), evals(range(0, 201, 20), loss=lambda step: 1.0 + abs(step - 60) / 3000)
            )
        ),
        HEALTHY,
    ),
    "OPT014": (of_matches([0.615, 0.04, 0.055]), of_matches([0.615, 0.6, 0.62, 0.6, 0.64])),
    "OPT012": (
        Told(lines=norms(80, falling(2.8, 0.2), epoch=lambda step: step / 200, mean_token_accuracy=0.99)),
        # a task with a rule, which held-out rows follow too
        Told(
            lines=in_order(
                norms(80, falling(2.8, 0.2), epoch=lambda step: step / 200, mean_token_accuracy=0.99),
                evals([0, 30], loss=lambda step: 2.8 if not step else 0.01),
            )
        ),
    ),
}


def test_every_rule_has_its_cases():
    assert CASES.keys() == {rule.code for rule in RULES}


@pytest.mark.parametrize("code", CASES)
def test_a_faulty_run_is_found_and_a_healthy_one_is_not(code):
    faulty, healthy = CASES[code]
    assert code in codes(RULES, faulty)
    assert code not in codes(RULES, healthy)


def loud(told: Told) -> set[str]:
    return {finding.code for finding in findings(RULES, told) if finding.severity != "info"}


@pytest.mark.parametrize("code", CASES)
def test_healthy_runs_have_no_warning_at_all(code):
    assert loud(CASES[code][1]) == set() or code == "OPT006"


def test_a_healthy_run_says_nothing():
    assert loud(HEALTHY) == set()


def found(code: str, told: Told):
    return next(finding for finding in findings(RULES, told) if finding.code == code)


@pytest.mark.parametrize("code, within", [("OPT003", 12), ("OPT007", 40), ("OPT002", 20)])
def test_it_is_found_in_time(code, within):
    assert found(code, CASES[code][0]).opened <= within


def test_a_loss_that_is_thrown_up_and_comes_down_again_is_found_once():
    """learning_rate 0.3, real losses: OPT003, and what follows is muted."""
    told = {finding.code: finding.state for finding in findings(RULES, CASES["OPT003"][0])}
    assert "OPT003" in told and "OPT001" not in told


def test_updates_that_are_too_large():
    lines = every_tenth(norms(20, of(THROWN), learning_rate=lambda step: 0.3 * (step - 1) / 20), lambda step: 0.184)
    finding = found("OPT007", Told(config={"learning_rate": 0.3, "warmup_steps": 20}, lines=lines))
    assert finding.opened == 10 and "18 %" in finding.message
    assert finding.remedies[0].patch["learning_rate"] < 0.01
    adapter = Told(config={"learning_rate": 0.3, "warmup_steps": 20, "use_peft": True}, lines=lines)
    assert "OPT007" not in codes(RULES, adapter), "half of an adapter's weights begin at 0"


def test_a_rate_is_raised_to_updates_of_a_usual_size():
    faulty = CASES["OPT007"][0]
    assert found("OPT007", faulty).remedies[0].patch == {"learning_rate": 3e-5}
    facts = {"start/mean_token_accuracy": 0.02, "start/loss": 2.865, "model/vocab_size": 16}
    new = Told(config=faulty.config, facts=facts, lines=faulty.lines)
    assert found("OPT007", new).remedies[0].patch == {"learning_rate": 6e-4}, "new weights take larger steps"


def test_an_optimizer_that_changes_nothing_is_no_matter_of_the_rate():
    lines = every_tenth(norms(60, noisy(2.8, 0.02), learning_rate=3e-3), lambda step: 0.0)
    finding = found("OPT007", Told(config={"learning_rate": 3e-3}, lines=lines))
    assert not finding.remedies[0].patch and "optimizer" in finding.remedies[0].why


def test_new_weights_may_take_large_first_steps():
    """A healthy run at twice the rate that is right: 11 % at the tenth step, and less from there on."""
    facts = {"start/mean_token_accuracy": 0.002, "start/loss": 6.94, "model/vocab_size": 1024}
    for ratio, told in ((0.11, set()), (0.17, {"OPT007"})):
        lines = every_tenth(
            norms(60, lambda step: 4 + 3 * math.exp(-step / 10)), lambda step, ratio=ratio: ratio / step
        )
        lines = [line | ({"update_ratio": ratio} if line["step"] == 10 else {}) for line in lines]
        assert codes(RULES, Told(config={"learning_rate": 1e-4}, facts=facts, lines=lines)) & {"OPT007"} == told


def test_from_a_teacher_there_is_more_to_learn_than_updates_of_nothing_can():
    facts = ROLLOUTS | {"plan/total_steps": 60}
    for ratio, told in ((1e-5, {"OPT007"}), (1e-4, set())):
        lines = every_tenth(norms(60, noisy(0.12, 0.25)), lambda step, ratio=ratio: ratio)
        assert codes(RULES, Told(config={"learning_rate": 1e-6}, facts=facts, lines=lines)) & {"OPT007"} == told


def with_rewards(reward, ratio):
    return Told(
        config={"learning_rate": 1e-6},
        facts=ROLLOUTS,
        lines=every_tenth(norms(60, noisy(1e-4, 20), reward=reward, learning_rate=1e-6), lambda step: ratio),
    )


def test_of_rollouts_the_reward_is_asked_and_not_the_loss():
    assert codes(RULES, with_rewards(noisy(1.0, 0.1), 1e-6)) == {"OPT007"}
    assert codes(RULES, with_rewards(lambda step: noisy(1.0, 0.1)(step) + step / 60, 1e-6)) == set()
    assert codes(RULES, with_rewards(noisy(1.0, 0.1), 5e-5)) == set(), "slow, with steps of a usual size"


def test_a_gradient_of_groups_that_agree_says_nothing():
    lines = norms(norm=0.0, loss=0.0, reward=1.0, frac_reward_zero_std=1.0)
    assert codes(RULES, Told(facts=ROLLOUTS, lines=lines)) == set()
    other = norms(norm=0.0, loss=0.0, reward=1.0, flat_groups=1.0)
    assert codes(RULES, Told(facts=ROLLOUTS | {"plan/no_signal_metric": "flat_groups"}, lines=other)) == set()
    assert codes(RULES, Told(facts={"plan/reward_metric": "reward"}, lines=other)) == {"OPT002"}


@pytest.mark.parametrize(
    ("values", "rows", "raised"),
    [
        ([0.615, 0.04, 0.055], 200, True),  # SimPO without anything that holds it
        ([0.818, 0.79, 0.775, 0.755], 200, True),  # slowly: 1.5 standard errors in the end, at each evaluation less
        ([0.818, 0.80, 0.75, 0.75], 200, True),
        ([0.818, 0.755], 200, False),  # one look within two standard errors: too early to tell
        ([0.818, 0.79, 0.80, 0.775, 0.81], 200, False),  # chance
        ([0.6, 0.9, 0.85, 0.8, 0.75], 200, False),  # above where it began: another rule's
        ([0.5, 0.25], 10, False),
        ([1.0, 0.0], 4, False),
        ([0.0, 0.0, 0.0], 200, False),
        ([1.0, 0.9], 200, True),
    ],
)
def test_a_held_out_reward_that_falls_by_more_than_chance(values, rows, raised):
    assert ("OPT014" in codes(RULES, of_matches(values, rows))) is raised


def test_the_sentence_of_a_held_out_reward_and_what_helps():
    finding = found("OPT014", of_matches([0.615, 0.04, 0.055]))
    assert finding.severity == "error" and finding.opened == 20
    assert "Completions of 200 held-out prompts earned 0.615 at step 0 and earn 0.04 now" in finding.message
    assert finding.remedies[0].patch == {"learning_rate": 1e-4}


def test_a_held_out_reward_that_falls_has_one_finding_with_its_cause():
    lines = in_order(of_matches([0.6, 0.3, 0.1, 0.1]).lines, norms(60, of(THROWN), learning_rate=0.3))
    told = Told(config={"learning_rate": 0.3}, facts={"plan/scored_rows": 200}, lines=lines)
    (finding,) = [each for each in findings(RULES, told) if each.code == "OPT014"]
    assert finding.state == "muted" and finding.muted_by in ("OPT003", "OPT004", "OPT006")


def test_a_schedule_that_ends_at_nothing_is_no_trouble():
    rate = lambda step: 3e-3 * max(1 - step / 60, 0)  # noqa: E731
    lines = every_tenth(norms(60, of(WELL), learning_rate=rate), lambda step: 10 * rate(step))
    assert loud(Told(config={"learning_rate": 3e-3}, lines=lines)) == set()


def test_steps_are_taken_back_to_the_best_evaluation():
    finding = found("OPT009", CASES["OPT009"][0])
    assert finding.opened == 80 and finding.remedies[0].patch == {"max_steps": 40}
    told = CASES["OPT009"][0]
    by_epochs = Told(config={"num_train_epochs": 4.0}, facts={"plan/total_steps": 160}, lines=told.lines)
    assert found("OPT009", by_epochs).remedies[0].patch == {"num_train_epochs": 1.0}


def test_what_float16_overflows_names_bf16():
    told = Told(config={"fp16": True}, facts=CASES["NUM001"][0].facts)
    assert found("NUM001", told).remedies[0].patch == {"fp16": False, "bf16": True}


def of_a_broken_run(step: int, norm=None, **facts):
    """The finding of a run that ends so: its metrics come first, then the facts of its end."""
    ended = {"watch/not_finite": "loss", "watch/not_finite_value": "nan", "watch/not_finite_step": step}
    engine = Engine([(rule, "test 0") for rule in numbers.RULES], asdict(RunConfig(warmup_steps=5)), strict=True)
    for line in steps(step - 1, loss=2.0, grad_norm=norm) if norm is not None else []:
        engine.add_metrics(line)
    engine.record_facts(ended | facts)
    (finding,) = engine.finish()
    return finding


def test_what_breaks_before_the_first_update_is_not_the_learning_rate():
    finding = of_a_broken_run(1)
    assert "no update had been made yet" in finding.message
    assert not any("learning_rate" in remedy.patch for remedy in finding.remedies)


def test_a_gradient_that_had_grown_speaks_of_updates_and_a_usual_one_of_rows():
    grown = of_a_broken_run(30, norm=lambda step: 1.0 if step < 29 else 40.0)
    assert "the gradient norm had risen from 1 to 40" in grown.message
    assert "learning_rate" in grown.remedies[0].patch
    usual = of_a_broken_run(30, norm=1.0)
    assert "risen" not in usual.message and not usual.remedies[0].patch
    assert any("learning_rate" in remedy.patch for remedy in usual.remedies)


def test_the_tensor_that_is_broken_is_named():
    weight = {"watch/not_finite_of": "weight", "watch/not_finite_parameter": "layers.3.up.weight"}
    assert "numbers of layers.3.up.weight are NaN or infinite" in of_a_broken_run(30, **weight).message
    some = {"watch/not_finite_of": "gradient", "watch/not_finite_parameter": "layers.3.up.weight"}
    message = of_a_broken_run(30, **some, **{"watch/not_finite_share": 0.25}).message
    assert "25 % of the gradients aren't finite, of which layers.3.up.weight is the nearest to the loss" in message
    every = {"watch/not_finite_of": "gradient", "watch/not_finite_parameter": None, "watch/not_finite_share": 1.0}
    assert "none of the gradients is finite" in of_a_broken_run(30, **every).message


def test_a_loss_that_stays_on_rows_that_were_learnt_before_says_nothing_of_the_rate():
    lines = norms(60, noisy(0.12, 0.25))
    assert "OPT005" in codes(RULES, Told(lines=in_order(lines, evals([0, 25, 50], loss=0.13))))
    assert "OPT005" not in codes(RULES, Told(lines=in_order(lines, evals([0, 25, 50], loss=0.2))))
