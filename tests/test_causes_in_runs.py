"""Which finding speaks where one fault shows in many ways: runs with the rules of their method and of the host, all of
them. Each names what is open; everything else that is found is muted, and no advice is contrary."""

from __future__ import annotations

import itertools
from dataclasses import asdict

import pytest
from evidence_grid import config_class, rules_of

from ft_host.diagnostics import Finding
from ft_host.diagnostics.muting import contrary
from ft_host.testing.rollout_rules import WELL
from ft_host.testing.rules import Told, evals, findings, in_order, steps

MODEL = {"model/parameters": 600_000, "model/vocab_size": 16, "plan/total_steps": 120}


def noise(step: int, size: float = 1.0) -> float:
    """The same for the same step, of mean 0, between -size and size."""
    return size * ((step * 7919) % 13 - 6) / 6


def found(method: str, lines: list[dict], facts: dict | None = None, **config) -> dict[str, Finding]:
    """What is found in a run; that no two findings ask for contrary changes is part of it."""
    told = Told(config=config, facts=MODEL | (facts or {}), lines=lines)
    all_of = findings(rules_of(method), told, config_class(method))
    values = asdict(config_class(method)(**config))
    for one, other in itertools.combinations(all_of, 2):
        for first, second in itertools.product(one.remedies, other.remedies):
            assert not contrary(first, second, values), f"{one.code}: {first.why}; {other.code}: {second.why}"
    return {each.code: each for each in all_of}


def speaks(all_of: dict[str, Finding]) -> set[str]:
    return {code for code, each in all_of.items() if each.state == "open" and each.severity != "info"}


# ---------------------------------------------------------------- preferences


def pairs(count: int = 120, rate: float = 1e-6, ratio: float = 1e-5, moves: float = 1e-4, **more) -> list[dict]:
    """Steps of a run that has learnt no preference: margins go up and down by `moves`."""
    values = {
        "loss": lambda step: 0.6931 - noise(step, moves / 2),
        "grad_norm": 1.0,
        "learning_rate": rate,
        "update_ratio": ratio,
        "rewards__margins": lambda step: noise(step, moves),
        "rewards__chosen": lambda step: noise(step, moves / 2),
        "rewards__rejected": lambda step: -noise(step, moves / 2),
        "rewards__accuracies": lambda step: 0.5 + noise(step, 0.1),
        "logps__chosen": -20.0,
        "logps__rejected": -20.0,
    }
    return steps(count, **(values | more))


COIN = {"data/identical_pairs": 0.5, "data/rows": 200}


def test_pairs_that_are_equal_speak_before_any_rate():
    """A coin toss, and updates that are too small on top: the rate is no remedy, tenfold or not."""
    run = found("dpo", pairs(), COIN, learning_rate=1e-6)
    assert {"DATA008", "DPO003", "OPT007", "OPT005"} <= run.keys() and speaks(run) == {"DATA008"}
    assert run["DPO003"].muted_by == "DATA008"
    few = found("dpo", pairs(), COIN | {"data/identical_pairs": 0.05}, learning_rate=1e-6)
    assert "DATA008" in speaks(few) and speaks(few) & {"DPO003", "OPT007"}, "a few equal pairs explain nothing"


def flat(count: int = 60, **more) -> list[dict]:
    """Steps whose loss stays, at updates that seem small."""
    values = {"grad_norm": 1.0, "learning_rate": 1e-5, "update_ratio": 5e-4}
    return steps(count, **({"loss": lambda step: 0.6931 - noise(step, 1e-4)} | values | more))


@pytest.mark.parametrize(("method", "least"), [("dpo", 1e-6), ("kto", 1e-6)])
def test_a_loss_that_a_tiny_beta_flattens_asks_for_beta(method, least):
    usual = found(method, flat(), learning_rate=1e-5)
    assert "OPT005" in speaks(usual) and "beta" not in usual["OPT005"].remedies[0].patch
    tiny = found(method, flat(), learning_rate=1e-5, beta=least)
    assert tiny["OPT005"].remedies[0].patch == {"beta": 0.1} and "beta is 1e-6" in tiny["OPT005"].message


def test_an_evaluation_of_before_does_not_say_that_a_loss_stays():
    """Rows are learnt from the 30th step on; the only evaluation so far is of the tenth."""
    lines = flat(39, loss=lambda step: 0.503 + noise(step, 0.06) - 0.05 * (step > 30), update_ratio=3e-4)
    early = evals((0, 10), loss=lambda step: 0.5 + 0.00005 * step)
    assert "OPT005" not in found("kto", in_order(lines, early), learning_rate=1e-5)
    late = evals((0, 10, 30), loss=lambda step: 0.5 + 0.00005 * step)
    assert "OPT005" in found("kto", in_order(lines, late), learning_rate=1e-5)


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({"data/contradicted/label": 0.49, "data/contradicted_by/label": "the row's answer contradicts it"}, "DATA021"),
        ({"data/both_ways": 0.4}, "DATA022"),
    ],
)
def test_labels_that_are_a_coin_toss_speak_before_a_loss_that_stays(facts, code):
    run = found("kto", flat(), facts, learning_rate=1e-5)
    assert "OPT005" in run and speaks(run) == {code}
    few = {name: 0.21 if isinstance(value, float) else value for name, value in facts.items()}
    assert "OPT005" in speaks(found("kto", flat(), few, learning_rate=1e-5)), "one label in five leaves a lot to learn"


def test_labels_that_do_not_balance_speak_before_likelihoods_that_fall():
    counts = {"data/desirable": 26, "data/undesirable": 230, "plan/scored_rows": 200}
    lines = pairs(
        ratio=1e-3,
        rewards__chosen=lambda step: -0.1 * step,
        rewards__margins=lambda step: 0.05 * step,
        logps__chosen=-3.0,
    )
    worse = [line | {"eval_reward_std": 0.5} for line in evals((0, 60, 120), reward=lambda step: 0.6 - 0.003 * step)]
    run = found("kto", in_order(lines, worse), counts, learning_rate=1e-4)
    assert {"DATA009", "KTO005", "OPT014"} <= run.keys() and speaks(run) == {"DATA009"}
    even = found("kto", in_order(lines, worse), counts | {"data/desirable": 230}, learning_rate=1e-4)
    assert "KTO005" in speaks(even)


def test_labels_that_are_drawn_speak_before_updates_that_seem_small():
    """Margins go to and fro: updates are large enough to move them."""
    run = found("dpo", pairs(moves=0.2, ratio=1e-4), learning_rate=1e-6)
    assert speaks(run) == {"DPO003"} and all("learning_rate" not in each.patch for each in run["DPO003"].remedies)


def test_a_rate_that_is_too_low_is_what_speaks_where_nothing_else_does():
    run = found("dpo", pairs(), learning_rate=1e-9)
    assert len(speaks(run)) == 1 and speaks(run) <= {"OPT007", "DPO003"}
    (head,) = (run[code] for code in speaks(run))
    assert head.remedies[0].patch["learning_rate"] > 1e-9


def test_an_estimate_of_a_policy_that_has_not_moved_is_no_cause():
    """KTO at a rate of next to nothing, four rows a step: the estimate is 0 as policy and reference are the same."""
    run = found("kto", pairs(kl=0.0), learning_rate=1e-9, per_device_train_batch_size=4)
    assert "KTO001" not in run and speaks(run) <= {"OPT007", "KTO006"} and speaks(run)
    moved = found("kto", pairs(kl=0.0, moves=0.3, ratio=1e-3), learning_rate=1e-6, per_device_train_batch_size=4)
    assert "KTO001" in moved


def thrown(step: int) -> float:
    return 0.69 if step < 40 else 4.0 + noise(step, 0.3)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_rate_that_ruins_a_policy_is_one_finding(method):
    lines = pairs(
        rate=1e-2,
        ratio=0.2,
        loss=thrown,
        kl=2.0,
        rewards__chosen=lambda step: -0.5 * step,
        rewards__rejected=lambda step: -0.8 * step,
        rewards__margins=lambda step: 0.3 * step,
        rewards__accuracies=1.0,
    )
    held_out = evals(range(0, 121, 20), loss=lambda step: 0.69 + 0.05 * step, reward=lambda step: 0.8 - 0.006 * step)
    held_out = [line | {"eval_reward_std": 0.3} for line in held_out]
    run = found(method, in_order(lines, held_out), {"plan/scored_rows": 200}, learning_rate=1e-2)
    letters = method.upper()
    assert {"OPT007", "OPT003", "OPT014", f"{letters}00{1 if method == 'dpo' else 5}"} <= run.keys()
    assert speaks(run) == {"OPT007"} and run["OPT007"].severity == "error", "as grave as what comes of it"


def test_lengths_that_ld_alpha_weighs_against_are_told_no_more():
    facts = {"data/identical_pairs": 0.0, "data/length_ratio": 2.4, "data/chosen_longer": 0.99, "data/rows": 200}
    told = found("dpo", pairs(), facts, learning_rate=1e-6)["DATA008"]
    assert told.remedies[0].patch == {"ld_alpha": 0.5}
    assert "DATA008" not in found("dpo", pairs(), facts, learning_rate=1e-6, ld_alpha=0.5)
    shorter = facts | {"data/length_ratio": 0.4, "data/chosen_longer": 0.01}
    assert "DATA008" in found("dpo", pairs(), shorter, learning_rate=1e-6, ld_alpha=0.5), (
        "it weighs against longer ones"
    )


def test_a_reference_that_is_another_speaks_before_what_is_measured_from_it():
    facts = {
        "model/reference": "other",
        "start/loss": 1.4,
        "start/rewards/chosen": -3.0,
        "start/rewards/rejected": -2.0,
    }
    lines = pairs(rewards__margins=lambda step: -1.0 + noise(step, 0.2), rewards__accuracies=0.3, ratio=1e-3, loss=1.4)
    run = found("dpo", lines, facts, learning_rate=1e-6, ref_model="other")
    assert "DPO007" in run and speaks(run) - {"OPT005"} == {"PRB001"}
    worse = [line | {"eval_reward_std": 0.5} for line in evals((0, 60, 120), reward=lambda step: 0.6 - 0.003 * step)]
    run = found("dpo", in_order(lines, worse), facts | {"plan/scored_rows": 200}, learning_rate=1e-6, ref_model="other")
    assert "OPT014" in run and speaks(run) - {"OPT005"} == {"PRB001"}


def test_rows_that_begin_twice_speak_before_held_out_rows_that_are_lost():
    """Held-out rows begin once: what is learnt of the others doesn't hold there."""
    lines = pairs(loss=lambda step: 3.2 - 0.008 * step, ratio=1e-3)
    held_out = evals(range(0, 121, 20), loss=lambda step: 3.2 + 0.01 * step if step else 4.3)
    for share, expected in ((1.0, {"DATA004"}), (0.01, {"DATA004", "OPT009"})):
        run = found("sft", in_order(lines, held_out), {"data/double_bos_rows": share}, learning_rate=1e-4)
        assert "OPT009" in run and speaks(run) == expected


def test_an_adapter_on_attention_that_does_not_move_gets_a_rate_and_all_layers():
    lora = {"use_peft": True, "learning_rate": 1e-6, "max_steps": 120}
    lines = flat(120, loss=lambda step: 0.46 + noise(step, 0.01), learning_rate=1e-6, update_ratio=6.5e-6)
    few = found("sft", lines, lora_target_modules=["q_proj", "v_proj"], **lora)["OPT007"].remedies
    assert few[0].patch == {"learning_rate": 7.7e-3, "lora_target_modules": ["all-linear"]}
    assert "set lora_target_modules to all-linear, from q_proj, v_proj" in few[0].why
    assert found("sft", lines, **lora)["OPT007"].remedies[0].patch == {"learning_rate": 7.7e-3}


def test_pairs_that_no_reward_model_can_tell_apart_are_no_matter_of_steps():
    """Some of the training pairs are learnt, by heart; held-out ones stay at chance, and updates seem small."""
    lines = steps(
        120,
        loss=lambda step: 0.69 + noise(step, 0.001),
        grad_norm=1.0,
        learning_rate=1e-4,
        update_ratio=1e-5,
        accuracy=0.65,
        margin=0.02,
        mean_reward=0.0,
    )
    held_out = evals(range(0, 121, 20), loss=0.69, accuracy=0.5)
    run = found("reward", in_order(lines, held_out), learning_rate=1e-4)
    assert {"RM004", "OPT005", "OPT007"} <= run.keys() and speaks(run) == {"RM004"}
    assert all("learning_rate" not in each.patch for each in run["RM004"].remedies)


@pytest.mark.parametrize(("method", "letters"), [("distill", "DIS"), ("gold", "GOLD")])
def test_a_teacher_that_is_wrong_speaks_before_what_its_student_does(method, letters):
    """The student comes nearer to it, and doesn't end its completions any more."""
    lines = rollouts(
        method,
        reward=broken,
        entropy=lambda step: 0.07 if step < 15 else 0.4,
        completions__clipped_ratio=lambda step: 0.0 if step < 15 else 0.9,
        distillation__divergence=lambda step: 0.5 * 0.97**step,
    )
    held_out = [line | {"eval_reward_std": 0.3} for line in evals(range(0, 121, 20), reward=lambda step: broken(step))]
    run = found(method, in_order(lines, held_out), {"plan/scored_rows": 200})
    large = [line | {"update_ratio": 0.2 if line["step"] > 10 else 1e-4} for line in lines]
    assert speaks(found(method, in_order(large, held_out), {"plan/scored_rows": 200})) == {"OPT007"}, "as large as that"
    assert {f"{letters}105", f"{letters}108", f"{letters}115", f"{letters}117", "OPT014"} <= run.keys()
    assert speaks(run) == {f"{letters}117"}


# ---------------------------------------------------------------- rewards

NAMES = {
    "grpo": ("reward", "entropy", "kl", "clip_ratio/region_mean", 0),
    "rloo": ("reward", "entropy", "kl", "clip_ratio/region_mean", 0),
    "sdpo": ("reward", "entropy", "kl", "clip_ratio/region_mean", 100),
    "ppo": ("objective/scores", "policy/entropy_avg", "objective/kl", "policy/clipfrac_avg", 100),
    "sdft": ("reward", "entropy", "kl", "clip_ratio/region_mean", 100),
    "distill": ("reward", "entropy", "kl", "clip_ratio/region_mean", 100),
    "gold": ("reward", "entropy", "kl", "clip_ratio/region_mean", 100),
}


def rollouts(method: str, count: int = 120, **values) -> list[dict]:
    reward, entropy, kl, clip, _ = NAMES[method]
    names = {"reward": reward, "entropy": entropy, "kl": kl, "clip": clip}
    plain = {"reward": lambda step: 1.0 + noise(step, 0.05), "entropy": 0.07, "kl": 0.01, "clip": 0.0}
    plain |= {"frac_reward_zero_std": 0.3, "reward_std": 0.75, "loss": lambda step: noise(step, 0.01), "grad_norm": 0.5}
    plain |= {"learning_rate": 1e-5, "update_ratio": 5e-4}
    return steps(count, **(WELL | {names.get(name, name): value for name, value in (plain | values).items()}))


def test_rewards_that_cancel_speak_before_an_optimizer_that_seems_to_hold_nothing():
    lines = rollouts(
        "grpo", reward=0.0, reward_std=0.0, frac_reward_zero_std=1.0, loss=0.0, grad_norm=0.0, update_ratio=0.0
    )
    run = found("grpo", lines, num_generations=8, learning_rate=1e-5)
    assert {"GRPO002", "GRPO001", "OPT007"} <= run.keys() and speaks(run) == {"GRPO002"}


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_groups_without_a_signal_speak_before_updates_that_are_small(method):
    lines = rollouts(method, reward=0.0, reward_std=0.0, frac_reward_zero_std=1.0, grad_norm=0.0, update_ratio=0.0)
    lines = [line | {"rewards/exact_match/std": 0.0, "rewards/right_lines/std": 0.0} for line in lines]
    run = found(method, lines, num_generations=8)
    assert speaks(run) == {f"{method.upper()}001"} and run["OPT007"].muted_by == f"{method.upper()}001"


@pytest.mark.parametrize("method", ["grpo", "ppo", "sdpo"])
def test_weights_that_are_frozen_speak_before_a_reward_that_stays(method):
    facts = {"probe/zero_grad_parameters": 0.97, "probe/trainable_share": 1.0, "probe/trainable": 600_000}
    lines = rollouts(method, grad_norm=0.0, update_ratio=0.0)
    run = found(method, lines, facts)
    assert speaks(run) == {"PRB006"} and {"OPT002", "OPT007"} <= run.keys()
    partly = found(method, rollouts(method, update_ratio=1e-7), facts | {"probe/zero_grad_parameters": 0.03})
    assert "OPT007" in speaks(partly), "a few frozen weights explain nothing"


def broken(step: int) -> float:
    return 1.0 + noise(step, 0.05) if step < 15 else 0.1 + noise(step, 0.05)


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("ratio", [0.2, 1e-3])
def test_a_policy_that_a_rate_ruins_is_one_finding(method, ratio):
    """Clipping, KL, entropy, completions that don't end and are the same, rewards that fall, held out and not. Where
    the size of updates doesn't show it, what comes first in the order does."""
    scale = 26.5 if method == "ppo" else 1.0
    lines = rollouts(
        method,
        reward=broken,
        entropy=lambda step: 0.07 if step < 15 else 0.4,
        kl=lambda step: scale * 0.1 * step,
        clip=lambda step: 0.0 if step % 4 == 1 else 0.7,
        update_ratio=lambda step: ratio if step > 10 else 1e-4,
        completions__clipped_ratio=lambda step: 0.0 if step < 15 else 0.9,
        completions__unique_share=lambda step: 0.8 if step < 15 else 0.13,
        frac_reward_zero_std=lambda step: 0.3 if step < 15 else 0.95,
        self_distillation__reprompt_sample_fraction=lambda step: 0.8 if step < 15 else 0.0,
        self_distillation__teacher_logp_difference=lambda step: 0.1 if step < 30 else 2.0,
        distillation__divergence=lambda step: 0.5 if step < 15 else 2.0,
    )
    held_out = [
        line | {"eval_reward_std": 0.3} for line in evals(range(0, 121, 20), reward=lambda step: 0.8 - 0.006 * step)
    ]
    run = found(method, in_order(lines, held_out), {"plan/scored_rows": 200}, learning_rate=1e-2)
    base, letters = NAMES[method][4], {"distill": "DIS"}.get(method, method.upper())
    assert {"OPT014", f"{letters}{base + 15:03d}"} <= run.keys()
    assert len(run) > 4 and len(speaks(run)) == 1, {code: (each.state, each.muted_by) for code, each in run.items()}
    (head,) = speaks(run)
    if ratio == 0.2:
        assert head == "OPT007"
    first = next(each.patch for each in run[head].remedies if each.patch)
    assert first["learning_rate"] < 1e-2


def test_completions_of_another_model_speak_before_held_out_rewards_that_fall():
    """The sampler's weights are no longer the trainer's from step 20 on; the rate is as it should be."""
    lines = rollouts("grpo", sampling__sampling_logp_difference__mean=lambda step: 2e-7 if step < 20 else 0.05)
    held_out = [line | {"eval_reward_std": 0.3} for line in evals(range(0, 121, 20), reward=lambda step: broken(step))]
    run = found("grpo", in_order(lines, held_out), {"plan/scored_rows": 200}, learning_rate=1e-5)
    assert "ENG001" in speaks(run) and run["OPT014"].muted_by == "ENG001"


def test_a_loss_that_begins_late_speaks_before_held_out_completions_that_earn_less():
    """Only the few completions that go on beyond the skipped tokens are learnt from."""
    held_out = [line | {"eval_reward_std": 0.3} for line in evals(range(0, 121, 20), reward=lambda step: broken(step))]
    for share in (0.78, 0.0):
        lines = rollouts("sdft", self_distillation__without_loss_fraction=share)
        run = found("sdft", in_order(lines, held_out), {"plan/scored_rows": 200}, num_loss_tokens_to_skip=25)
        assert ("SDFT004" in speaks(run)) is bool(share)
        assert (run["OPT014"].muted_by == "SDFT004") is bool(share)


def test_values_that_explain_nothing_follow_from_steps_that_go_too_far():
    values = {"val__explained_variance": -24.0, "update_ratio": lambda step: 0.2 if step > 10 else 1e-4}
    run = found("ppo", rollouts("ppo", **values), learning_rate=1e-2)
    assert "OPT007" in speaks(run) and run["PPO002"].muted_by == "OPT007"
    assert "PPO002" in speaks(found("ppo", rollouts("ppo", **values | {"update_ratio": 1e-3}), learning_rate=1e-5))


def test_groups_that_became_equal_as_the_policy_broke_are_its_consequence():
    """All completions earn nothing: since step 15, not from the start."""
    lines = rollouts(
        "grpo",
        reward=broken,
        frac_reward_zero_std=lambda step: 0.3 if step < 15 else 0.95,
        update_ratio=lambda step: 0.2 if step > 10 else 1e-4,
    )
    run = found("grpo", lines, num_generations=8)
    assert speaks(run) == {"OPT007"} and run["GRPO001"].state == "muted"


def test_completions_that_are_cut_from_the_start_are_why_nothing_is_earned():
    lines = rollouts(
        "grpo",
        reward=lambda step: 0.02 + noise(step, 0.02),
        frac_reward_zero_std=0.9,
        reward_std=0.1,
        completions__clipped_ratio=0.97,
    )
    run = found("grpo", lines, num_generations=8, max_completion_length=8)
    assert "GRPO001" in run and speaks(run) == {"GRPO008"}


def test_sampling_that_is_too_cold_is_why_groups_are_equal():
    lines = rollouts("grpo", frac_reward_zero_std=0.97, reward_std=0.1, completions__unique_share=0.13)
    run = found("grpo", lines, num_generations=8, temperature=0.01)
    assert {"GRPO012", "GRPO001"} <= run.keys() and "GRPO001" not in speaks(run)
    assert run["GRPO012"].state == "open" and run["GRPO012"].remedies[0].patch == {"temperature": 1.0}


def test_a_sampler_without_the_new_weights_speaks_before_what_the_policy_does():
    lines = rollouts(
        "grpo",
        reward=broken,
        entropy=lambda step: 0.07 if step < 15 else 0.4,
        kl=lambda step: 0.1 * step,
        sampling__sampling_logp_difference__mean=lambda step: 0.05 * step,
        sampling__effective_sample_size=0.1,
    )
    facts = {"probe/sampler_difference": 1e-6, "probe/sampler_difference_after_update": 0.5}
    run = found("grpo", lines, facts, num_generations=8)
    assert {"ENG001", "GRPO015"} <= run.keys() and speaks(run) == {"ENG004"}


# ---------------------------------------------------------------- of every method


def test_a_loss_that_is_no_number_speaks_for_all_that_comes_after_it():
    lines = steps(40, loss=lambda step: 3.0 + noise(step, 0.01), grad_norm=1.0, learning_rate=1e-7, update_ratio=1e-6)
    told = Told(config={"learning_rate": 1e-7}, facts=MODEL, lines=lines)
    before = {each.code for each in findings(rules_of("sft"), told, config_class("sft")) if each.state == "open"}
    assert "OPT007" in before
    ended = {"watch/not_finite": "loss", "watch/not_finite_value": "nan", "watch/not_finite_step": 41}
    failed = {f"watch/failed{each}": "x" for each in ("_place", "_hook", "_text")} | {"watch/failed": "run"}
    run = found("sft", lines, ended | failed | {"watch/failed_step": 41}, learning_rate=1e-7)
    assert speaks(run) == {"NUM001"}, "to raise the rate is no advice where it ends in NaN"


def test_updates_that_seem_small_silence_no_loss_that_rises():
    """Of large weights: an update is a small part of them, and the loss goes up all the same."""
    lines = steps(120, loss=lambda step: 2.0 + 0.01 * step, grad_norm=1.0, learning_rate=1e-3, update_ratio=1e-4)
    run = found("sft", lines, learning_rate=1e-3)
    head = speaks(run)
    assert head and head <= {"OPT004", "OPT006"}
    assert all(run[code].remedies[0].patch["learning_rate"] < 1e-3 for code in head)


def test_rows_without_a_token_to_learn_speak_before_the_rate():
    facts = {"data/unsupervised_rows": 0.6, "data/supervised_fraction": 0.2}
    lines = steps(120, loss=lambda step: 3.0 + noise(step, 0.01), grad_norm=1.0, learning_rate=1e-6, update_ratio=1e-6)
    assert speaks(found("sft", lines, facts, learning_rate=1e-6)) == {"DATA001"}
    few = found("sft", lines, facts | {"data/unsupervised_rows": 0.02}, learning_rate=1e-6)
    assert speaks(few) == {"DATA001", "OPT007"}, "2 % of the rows explain nothing"


def test_rates_of_large_models_speak_before_what_they_do():
    lines = steps(
        120,
        loss=lambda step: 2.0 if step < 40 else 9.0 + noise(step),
        grad_norm=1.0,
        learning_rate=0.1,
        update_ratio=0.3,
    )
    run = found("sft", lines, {"model/parameters": 600_000_000, "model/vocab_size": 50_000}, learning_rate=0.1)
    assert {"OPT003", "OPT006", "OPT007"} <= run.keys()
    assert speaks(run) == {"CFG001"}


@pytest.mark.parametrize(
    ("method", "field", "value", "new"),
    [("sft", "neftune_noise_alpha", 800.0, 5.0), ("reward", "center_rewards_coefficient", 1000.0, 0.01)],
)
def test_what_held_out_rows_are_without_is_suspected_where_they_get_worse(method, field, value, new):
    lines = steps(100, loss=lambda step: 4.5 - 0.03 * step, grad_norm=1.0, learning_rate=1e-4, update_ratio=2e-3)
    worse = evals((0, 20, 40, 60, 80, 100), loss=lambda step: 3.0 + 0.02 * abs(step - 40))
    plain = found(method, in_order(lines, worse), learning_rate=1e-4)
    assert field not in plain["OPT009"].remedies[0].patch
    far = found(method, in_order(lines, worse), learning_rate=1e-4, **{field: value})
    assert far["OPT009"].remedies[0].patch == {field: new}


def test_a_wrong_value_model_speaks_before_completions_that_become_short():
    lines = steps(
        60,
        objective__scores=lambda step: 1.7 - 0.002 * step,
        reward_std=0.3,
        val__explained_variance=-0.6,
        completions__mean_length=lambda step: 50.0 if step < 20 else 11.0,
        completions__clipped_ratio=0.0,
        completions__reward_min=0.0,
        completions__reward_max=2.0,
        completions__reward_length_correlation=-0.7,
    )
    run = found("ppo", lines, reward=["judge"], learning_rate=1e-5)
    assert {"PPO002", "PPO110"} <= run.keys() and "PPO110" not in speaks(run) and "PPO002" in speaks(run)


def test_a_rate_is_lowered_by_as_much_as_the_policy_is_too_far():
    lines = steps(
        20, reward=lambda step: 0.6 - 0.02 * step, kl=1.0, reward_std=0.3, frac_reward_zero_std=0.1,
        completions__reward_min=0.0, completions__reward_max=1.0,
    )  # fmt: skip
    run = found("grpo", lines, reward=["judge"], learning_rate=4e-3, beta=1e-4)
    assert run["GRPO007"].remedies[0].patch == {"learning_rate": 1e-3}, "a quarter: 1 nat a token where 0.25 is near"


def test_a_policy_that_its_first_steps_ruin_lacks_no_signal():
    """What it earned is gone by the second step, and updates are small again by the time that groups are alike."""
    lines = steps(
        60,
        reward=lambda step: 0.5 if step == 1 else 0.22,
        reward_std=0.1,
        frac_reward_zero_std=lambda step: 0.0 if step < 10 else 0.9,
        learning_rate=1e-2,
        update_ratio=lambda step: 0.05 if step < 20 else 0.003,
        completions__reward_min=0.0,
        completions__reward_max=2.0,
        completions__unique_share=0.4,
    )
    run = found("grpo", lines, reward=["judge"], learning_rate=1e-2, warmup_steps=0)
    assert {"OPT007", "GRPO001"} <= run.keys() and speaks(run) == {"OPT007"}


def test_a_reward_that_pays_for_being_wrong_speaks_before_what_comes_of_it():
    lines = steps(60, reward=lambda step: -0.6 + 0.01 * step, reward_std=0.3, frac_reward_zero_std=0.1)
    lines = [line | {"completions/reward_min": -1.0, "completions/reward_max": 0.0} for line in lines]
    worse = [line | {"eval_reward_std": 0.5} for line in evals((0, 20, 40, 60), reward=lambda step: 0.7 - 0.01 * step)]
    turned = {f"data/reward/judge/{name}": value for name, value in (("turned", 1.0), ("place", 0), ("reads", True))}
    facts = {"plan/scored_rows": 48, "data/reward/judge/failed": 0.0}
    run = found("grpo", in_order(lines, worse), facts | turned, reward=["judge"])
    assert "GRPO011" in run and speaks(run) == {"DATA010"}
    assert "GRPO011" in speaks(found("grpo", in_order(lines, worse), facts, reward=["judge"]))


def test_completions_that_are_alike_explain_no_reward_that_gives_the_same_to_all():
    """It did so before training, to right answers and to rubbish."""
    alike = {"completions__unique_share": 0.13, "completions__reward_min": 0.3, "completions__reward_max": 0.3}
    lines = steps(60, reward=0.3, reward_std=0.0, frac_reward_zero_std=1.0, **alike)
    assert "GRPO012" in found("grpo", lines, {"data/reward/judge/spread": 1.0}, reward=["judge"])
    run = found("grpo", lines, {"data/reward/judge/spread": 0.0}, reward=["judge"])
    assert "GRPO012" not in run and "GRPO001" in speaks(run)
    assert "the reward tells nothing apart" in run["GRPO001"].message


def test_a_loss_that_begins_where_completions_have_ended_speaks_before_what_comes_of_it():
    lines = steps(
        60,
        self_distillation__teacher_logp_difference=lambda step: 0.001 if step < 20 else 0.8,
        self_distillation__without_loss_fraction=0.95,
    )
    run = found("sdft", lines, num_loss_tokens_to_skip=8, max_completion_length=12)
    assert {"SDFT003", "SDFT004"} <= run.keys() and speaks(run) == {"SDFT004"}


@pytest.mark.parametrize("facts, speaks_first", [({"data/reward/judge/noise": 0.9}, "DATA039"), ({}, "GRPO012")])
def test_a_reward_that_is_chance_is_mended_before_completions_that_are_alike(facts, speaks_first):
    alike = {"completions__unique_share": 0.13, "completions__reward_min": 0.0, "completions__reward_max": 1.0}
    lines = steps(60, reward=lambda step: 0.5 + noise(step, 0.1), reward_std=0.3, frac_reward_zero_std=0.1, **alike)
    run = found("grpo", lines, facts, reward=["judge"])
    assert {"GRPO012", speaks_first} <= run.keys() and speaks_first in speaks(run)
    assert ("GRPO012" in speaks(run)) == (speaks_first == "GRPO012")
