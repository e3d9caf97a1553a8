"""Remedies: each makes another run than the one that it is for, of a size that follows from what was measured; and what
was tried before without success isn't proposed again."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
from evidence_grid import config_class, every_rule, hits

from ft_host.config import RunConfig
from ft_host.diagnostics import Engine, Remedy, Rule, View, fewer_steps, lower_rate, more_generations, raise_rate
from ft_host.diagnostics.ancestry import FACT, ancestors
from ft_host.diagnostics.remedies import calm, larger_step, usable, warm_up
from ft_host.diagnostics.resolved import acceptance, effective
from ft_host.diagnostics.sizes import enough_generations, length_for, more_per_prompt, share_that_differs
from ft_host.rundir.compared import judged_by, plain
from ft_host.rundir.series import Series
from ft_host.testing.runs import make_run

GRPO = "grpo"


def view_of(facts: dict | None = None, series: dict | None = None, kind: type[RunConfig] = RunConfig, **fields) -> View:
    view = View(asdict(kind(**fields)))
    view.facts |= facts or {}
    for name, values in (series or {}).items():
        pairs = values.items() if isinstance(values, dict) else enumerate(values, 1)
        for step, value in pairs:
            view.series.setdefault(name, Series()).put(step, value)
            view.step = max(view.step, step)
    return view


def is_left(patch: dict, view: View) -> bool:
    """Whether a remedy with this patch is proposed."""
    return bool(usable([Remedy(why="x", patch=patch)], vars(view.config), view))


# ---------------------------------------------------------------- a patch makes another run

# Rules that may name a field whose value does nothing in some runs: the engine leaves the remedy out there.
LEFT_TO_THE_ENGINE = {
    "CFG010": "a field without an effect in this run",
    "ENG005": "as many completions at a time as a rollout has",
    "OPT003": "a limit of norms that none has reached",
    "OPT008": "three times the median norm may be the limit itself",
    "OPT001": "clipping of gradients that are all below 1",
    "PPO004": "dropout of a model without any",
    "PRB002": "dropout of a model without any",
    "PRB004": "rows are padded already",
    "PRB006": "adapters are on all layers already",
    "PRB007": "adapters are on all layers already",
    "RM001": "the best evaluation was the last",
    "SYS003": "without checkpoints but the last",
    "SYS004": "a limit of lengths that none has reached",
    "rollouts-08": "the longest completion ended before the limit",
}


def test_no_remedy_of_any_rule_leaves_the_resolved_run_as_it_is():
    """Of every rule, over the grid of evidence: what is proposed is taken by the config, and makes another run."""
    proposed, without = 0, set()
    for method, rule in every_rule():
        for case in hits(method, rule):
            accepts = acceptance(config_class(method)(**case.config))
            remedies = [each for each in rule.remedies(case.view) if each.patch]
            left = usable(remedies, case.config, case.view, accepts)
            for remedy in left:
                assert any(case.config[name] != value for name, value in remedy.patch.items()), (rule.code, remedy)
                assert accepts(remedy.patch), (rule.code, remedy)
            proposed += len(left)
            without |= {
                rule.family if rule.family in LEFT_TO_THE_ENGINE else rule.code
                for remedy in remedies
                if effective(case.config | remedy.patch, case.view) == effective(case.config, case.view)
            }
    assert proposed > 500
    assert without <= set(LEFT_TO_THE_ENGINE)


@pytest.mark.parametrize(
    ("fields", "facts", "series", "nothing", "something"),
    [
        ({}, {"model/router_aux_loss_coef": 0.01}, {}, {"router_aux_loss_coef": 0.01}, {"router_aux_loss_coef": 0.1}),
        ({}, {"plan/total_steps": 40}, {}, {"warmup_steps": 0}, {"warmup_steps": 0.05}),
        ({"warmup_steps": 2}, {"plan/total_steps": 40}, {}, {"warmup_steps": 0.05}, {"warmup_steps": 0.1}),
        ({"max_steps": 40}, {}, {}, {"num_train_epochs": 1.0}, {"max_steps": 20}),
        ({}, {}, {}, {"lora_r": 8}, {"use_peft": True}),
        ({"max_grad_norm": 0.0}, {}, {"grad_norm": [0.5] * 20}, {"max_grad_norm": 1.0}, {"max_grad_norm": 0.3}),
        ({}, {"data/length_max": 300, "data/truncated_rows": 0.0}, {}, {"max_length": 512}, {"max_length": 200}),
        ({}, {}, {"completions/max_length": [90, 120]}, {"max_completion_length": 128}, {"max_completion_length": 64}),
        ({}, {"plan/prompts": 2, "plan/generations": 8}, {}, {"decode_batch_size": 32}, {"decode_batch_size": 8}),
        ({"save_steps": 0}, {}, {}, {"save_total_limit": 1}, {"save_steps": 10}),
        ({}, {"model/dropout": 0.0}, {}, {"disable_dropout": True}, {"seed": 1}),
        ({}, {"plan/mixed_precision": "bf16"}, {}, {"bf16": True}, {"bf16": False}),
        ({}, {}, {}, {"learning_rate": 5e-5}, {"learning_rate": 4e-5}),
        ({}, {}, {}, {"beta": 0.1}, {"seed": 1}),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) and value else "",
)
def test_a_patch_that_does_nothing_is_no_remedy(fields, facts, series, nothing, something):
    view = view_of(facts, series, **fields)
    assert not is_left(nothing, view)
    assert is_left(something, view)


@pytest.mark.parametrize(
    ("fields", "nothing", "something"),
    [
        ({}, {"epsilon_high": 0.2}, {"epsilon_high": 0.28}),
        ({"gradient_accumulation_steps": 4}, {"steps_per_generation": 4}, {"steps_per_generation": 8}),
        ({"generation_batch_size": 64}, {"generation_batch_size": None, "steps_per_generation": 8}, {"seed": 1}),
    ],
)
def test_a_field_that_is_not_set_stands_for_another_one(fields, nothing, something):
    view = view_of(kind=config_class(GRPO), **fields)
    assert not is_left(nothing, view) and is_left(something, view)


def test_a_patch_that_the_config_refuses_is_no_remedy():
    config = config_class(GRPO)(model="m", dataset="d", reward=["r"], per_device_train_batch_size=16)
    view, accepts = View(asdict(config)), acceptance(config)
    remedies = [Remedy(why="", patch={"num_generations": number}) for number in (16, 6, 1, "many")]
    left = usable(remedies, asdict(config), view, accepts)
    assert [remedy.patch["num_generations"] for remedy in left] == [16]  # 6 don't come out even, 1 compares nothing
    assert usable([Remedy(why="", patch={"max_steps": "many"})], asdict(config), view, accepts) == []


def test_a_config_of_elsewhere_that_is_refused_here_keeps_its_remedies():
    config = config_class(GRPO)(per_device_train_batch_size=5)  # no rollout can be made of this one anyway
    assert acceptance(config)({"learning_rate": 1e-5})


# ---------------------------------------------------------------- sizes


def ratios(ratio: float, rate: float = 1e-3, now: float | None = None) -> dict:
    """Updates of this size at every tenth step, at a rate that is half of learning_rate by then."""
    at = {step: (rate if now is None else now) for step in range(1, 31)}
    return {"update_ratio": {10: ratio, 20: ratio, 30: ratio}, "learning_rate": at}


@pytest.mark.parametrize(
    ("ratio", "rate"),
    [(None, 2e-4), (1e-4, 2e-4), (0.004, 2e-4), (0.1, 1e-5), (50.0, 1e-6)],
    ids=["unknown", "small", "large by less", "a hundred times the usual", "a thousand times at most"],
)
def test_a_rate_is_lowered_by_as_much_as_updates_are_too_large(ratio, rate):
    view = view_of(series={} if ratio is None else ratios(ratio), learning_rate=1e-3)
    remedy = lower_rate(view, 5)
    assert remedy.patch == {"learning_rate": pytest.approx(rate)}
    assert remedy.measured == (rate < 2e-4)


@pytest.mark.parametrize(
    ("ratio", "rate"), [(None, 1e-4), (1e-6, 1e-2), (1e-4, 1e-4), (0.01, 2e-5), (1e-9, 1e-1)], ids=str
)
def test_a_rate_is_raised_by_as_much_as_updates_are_too_small(ratio, rate):
    view = view_of(series={} if ratio is None else ratios(ratio, 1e-5), learning_rate=1e-5)
    assert raise_rate(view, 10).patch == {"learning_rate": pytest.approx(rate)}


@pytest.mark.parametrize(
    ("config", "facts", "times"),
    [
        ({"max_steps": 600}, {}, 1),
        ({"max_steps": 200}, {}, 3),
        ({"max_steps": 30}, {}, 5),
        ({"max_steps": 30, "use_peft": True}, {}, 50),  # an adapter's updates are ten times as large
        ({"max_steps": 30}, {"model/reference": "base"}, 1),
    ],
    ids=["long", "short", "five times at most", "an adapter", "preferences"],
)
def test_a_short_run_on_rows_to_be_learnt_goes_further_in_each_step(config, facts, times):
    view = view_of(facts, ratios(1e-5, 1e-5), learning_rate=1e-5, **config)
    assert raise_rate(view, 10).patch == {"learning_rate": pytest.approx(1e-3 * times)}


def test_new_weights_grow_under_updates_that_are_too_large():
    """Of a run that began at the loss of guessing: 20 % look like ten times the usual 2 %, and are forty times it."""
    facts = {"start/mean_token_accuracy": 0.0, "start/loss": math.log(512), "model/vocab_size": 512}
    view = view_of(facts, ratios(0.2, 0.3), learning_rate=0.3)
    assert lower_rate(view, 10).patch == {"learning_rate": pytest.approx(0.0075)}
    assert raise_rate(view, 10).patch == {"learning_rate": pytest.approx(0.6)}


def test_an_update_is_judged_at_the_full_rate():
    """Half of the rate is there by then: the update would be twice as large."""
    view = view_of(series=ratios(0.05, now=5e-4), learning_rate=1e-3)
    assert lower_rate(view, 2).patch == {"learning_rate": pytest.approx(1e-5)}


@pytest.mark.parametrize(("rate", "expected"), [(0.5, 5), (0.05, 45), (0.95, 45), (0.2, 11), (0.001, 64)])
def test_generations_by_the_rate_of_success(rate, expected):
    enough = enough_generations(rate)
    assert enough == expected
    if enough < 64:
        assert share_that_differs(rate, enough) >= 0.9 > share_that_differs(rate, enough - 1)


def test_generations_stay_divisors_of_a_rollout_or_it_grows():
    kind = config_class(GRPO)
    for fields, least, expected in [
        ({"per_device_train_batch_size": 128, "num_generations": 2}, 11, {"num_generations": 16}),
        (
            {"per_device_train_batch_size": 8, "num_generations": 2},
            11,
            {"num_generations": 12, "gradient_accumulation_steps": 6},
        ),
        (
            {"per_device_train_batch_size": 8, "num_generations": 4, "steps_per_generation": 2},
            8,
            {"num_generations": 8, "steps_per_generation": 4},
        ),
        ({"per_device_train_batch_size": 8, "num_generations": 8}, 8, None),
    ]:
        config = kind(model="m", dataset="d", reward=["r"], **fields)
        patch = more_per_prompt(config, least)
        assert patch == expected
        assert patch is None or acceptance(config)(patch)


def test_the_sentence_of_generations_says_how_many_groups_differ():
    view = view_of(kind=config_class(GRPO), per_device_train_batch_size=256, num_generations=4)
    (remedy,) = more_generations(view, 0.05)
    assert remedy.patch == {"num_generations": 64}
    assert remedy.why == (
        "Raise num_generations from 4 to 64: where 5 % of completions earn, 96 % of groups of 64 differ within, 19 % of"
        " groups of 4"
    )
    assert more_generations(view_of(), 0.05) == []  # a method without groups


@pytest.mark.parametrize(
    ("cut", "expected"), [(0.3, 640), (0.9, 1024), (1.0, 1024), (0.1, 384)], ids=["third", "most", "all", "few"]
)
def test_the_length_of_completions_by_the_share_that_is_cut(cut, expected):
    assert length_for(256, cut, None) == expected
    assert length_for(256, cut, 300) == 300  # what the model can read


def test_a_run_ends_where_held_out_rows_were_predicted_best():
    best = (30.0, 1.2)
    assert fewer_steps(view_of(max_steps=100), best, "x")[0].patch == {"max_steps": 30}
    (remedy,) = fewer_steps(view_of({"plan/total_steps": 90}), best, "x")
    assert remedy.patch == {"num_train_epochs": 1.0}
    assert fewer_steps(view_of(max_steps=100), (0.0, 1.2), "x") == []  # no step was better than none


def test_a_step_grows_to_what_is_needed_and_a_rollout_with_it():
    view = view_of(kind=config_class(GRPO), gradient_accumulation_steps=2, steps_per_generation=4)
    assert larger_step(view, 16, 64)[0].patch == {"gradient_accumulation_steps": 8, "steps_per_generation": 16}
    assert larger_step(view, 64, 64) == []


def test_clipping_is_above_what_is_usual_and_a_short_run_warms_up_for_longer():
    view = view_of({"plan/total_steps": 60}, {"grad_norm": [3.0] * 40 + [90.0]}, max_grad_norm=0.0)
    assert [remedy.patch for remedy in calm(view)] == [
        {"max_grad_norm": 6.0},
        {"learning_rate": 1e-5},
        {"warmup_steps": 0.1},
        {},
    ]
    assert warm_up(view_of({"plan/total_steps": 5000}))[0].patch == {"warmup_steps": 0.05}


# ---------------------------------------------------------------- what was tried before

RULE = Rule(
    code="HOUSE001",
    title="No better",
    stage="train",
    needs=("loss",),
    test=lambda view: view.step > 8,
    message=lambda view: "It is no better.",
    remedies=lambda view: [
        lower_rate(view, 5),
        Remedy(why="Warm up", patch={"warmup_steps": 0.1}),
        Remedy(why="Look at it"),
    ],
    window=1,
    least=1,
    share=1.0,
    **dict.fromkeys(("when", "why", "remedy", "source"), "x"),
)


def proposed(facts: dict, losses=(3.0,) * 10, rule: Rule = RULE, **fields) -> tuple[list[dict], str]:
    engine = Engine([(rule, "test 0")], asdict(RunConfig(**fields)), strict=True)
    engine.record_facts(facts)
    for step, loss in enumerate(losses, 1):
        engine.add_metrics({"kind": "train", "step": step, "loss": loss})
    (finding,) = engine.finish()
    return [remedy.patch for remedy in finding.remedies], finding.message


def line(*changes: dict, found=("HOUSE001",), loss: float = 3.0) -> dict:
    """The fact of ancestors, each with what was changed after it."""
    curve = [[step, loss] for step in range(1, 11)]
    return {
        FACT: [
            {"run": f"runs/{at}", "changed": changed, "found": list(found), "curves": {"loss": curve}}
            for at, changed in enumerate(changes)
        ]
    }


RATE = {"learning_rate": [1e-3, 2e-4]}


def test_a_remedy_that_was_tried_without_success_makes_room_for_the_next():
    patches, message = proposed(line(RATE), learning_rate=2e-4)
    assert patches == [{"warmup_steps": 0.1}, {}]
    assert message.endswith("Tried before, and no better: learning_rate from 0.001 to 0.0002 (after 0).")
    assert proposed({}, learning_rate=2e-4)[0][0] == {"learning_rate": pytest.approx(4e-5)}


@pytest.mark.parametrize(
    ("facts", "losses"),
    [
        (line(RATE), [3.0 - 0.1 * step for step in range(10)]),
        (line(RATE, found=("OPT005",)), [3.0] * 10),
        (line({"learning_rate": [4e-5, 2e-4]}), [3.0] * 10),
        (line({"weight_decay": [0.1, 0.0]}), [3.0] * 10),
    ],
    ids=["it helped", "for another finding", "the other way", "another field"],
)
def test_what_helped_or_was_something_else_may_come_again(facts, losses):
    patches, message = proposed(facts, losses, learning_rate=2e-4)
    assert "learning_rate" in patches[0]
    assert "Tried" not in message


def test_a_number_does_not_go_back_to_where_it_came_from():
    """From 1e-3, where it was too high, to 1e-5, where it is too low: half way, in ratio."""
    low = Rule(**{**vars(RULE), "remedies": lambda view: [raise_rate(view, 300)]})
    facts = line({"learning_rate": [1e-3, 1e-5]}, found=("OPT004",))
    patches, _ = proposed(facts, rule=low, learning_rate=1e-5)
    assert patches == [{"learning_rate": 1e-4}]
    near = line({"learning_rate": [1.2e-5, 1e-5]}, found=("OPT004",))
    assert proposed(near, rule=low, learning_rate=1e-5)[0] == []


def test_a_measured_size_may_go_further():
    def measured(view: View) -> list[Remedy]:
        return [Remedy(why="x", patch={"learning_rate": 1e-6}, measured=True)]

    rule = Rule(**{**vars(RULE), "remedies": measured})
    assert proposed(line(RATE), rule=rule, learning_rate=2e-4)[0] == [{"learning_rate": 1e-6}]
    same = line({"learning_rate": [1e-4, 1.1e-6]})
    assert proposed(same, rule=rule, learning_rate=2e-4)[0] == []


def test_ancestors_are_read_from_their_folders(tmp_path):
    first = make_run(tmp_path / "first", steps=60)
    second = make_run(tmp_path / "second", steps=60)
    told = json.loads((second / "run.json").read_text())
    told["config"]["learning_rate"] = 2e-4
    (second / "run.json").write_text(json.dumps(told | {"parent": str(first)}))
    now = told["config"] | {"learning_rate": 4e-5, "output_dir": "elsewhere"}
    one, two = ancestors(str(second), now)[FACT]
    assert (one["run"], two["run"]) == (str(first), str(second))
    assert two["changed"] == {"learning_rate": [2e-4, 4e-5]}
    assert one["changed"]["learning_rate"][1] == 2e-4
    steps, values = zip(*one["curves"]["loss"], strict=True)
    assert len(steps) == 20 and steps[-1] == 60 and all(math.isfinite(value) for value in values)
    assert ancestors(None, now) == {} and ancestors(str(tmp_path / "gone"), now) == {}
    told["parent"] = str(second)  # its own parent, by some mistake
    (second / "run.json").write_text(json.dumps(told))
    assert len(ancestors(str(second), now)[FACT]) == 1


# ---------------------------------------------------------------- which figures compare


def test_a_loss_compares_only_where_it_means_the_same():
    names = ("eval_loss", "eval_rewards/margins", "eval_rewards/accuracies", "eval_rewards/chosen")
    evals = dict.fromkeys(names, Series())
    assert judged_by(evals, ["learning_rate"]) == ["eval_rewards/accuracies", "eval_rewards/margins", "eval_loss"]
    assert judged_by(evals, ["beta"]) == ["eval_rewards/accuracies", "eval_rewards/margins"]
    assert judged_by(evals, ["loss_type"]) == ["eval_rewards/accuracies"]
    assert judged_by(evals, ["max_length"]) == ["eval_rewards/accuracies"]
    declared = {"mean_reward": "neither"}
    assert judged_by({"eval_mean_reward": Series(), "eval_accuracy": Series()}, (), declared) == ["eval_accuracy"]
    assert plain("eval_rewards/margins", 5.0, {"beta": 100.0}) == 0.05 and plain("eval_loss", 5.0, {"beta": 2}) == 5.0
