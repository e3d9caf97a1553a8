"""The engine: windows and shares, hysteresis, stars, muting, and that a folder gives what the run gave."""

from __future__ import annotations

import json
import math

import pytest

from ft_host.config import RunConfig
from ft_host.diagnostics import Engine, Remedy, Rule
from ft_host.diagnostics.collect import check_codes, selected
from ft_host.diagnostics.replay import feed
from ft_host.errors import ConfigError
from ft_host.testing.rules import Told, evals, findings, in_order, steps


def rule(code: str = "TST001", **fields) -> Rule:
    given = {
        "title": "Too high",
        "stage": "train",
        "needs": ("loss",),
        "test": lambda view: view["loss"] > 1,
        "message": lambda view: f"It was too high {view.often}.",
        "when": "w",
        "why": "y",
        "remedy": "r",
        "source": "own",
    }
    return Rule(code=code, **(given | fields))


def engine(*rules: Rule, **config) -> Engine:
    from dataclasses import asdict

    return Engine([(each, "test 0") for each in rules], asdict(RunConfig(**config)))


def high(*bad: int):
    return lambda step: 2.0 if step in bad else 0.5


# ---------------------------------------------------------------- windows


def test_a_finding_opens_once_enough_of_the_window_is_bad():
    made = engine(rule(window=10, share=0.3, least=5))
    opened = [line["step"] for line in steps(14, loss=high(7, 9, 11)) if made.add_metrics(line)]
    assert opened == [11]  # 3 of the last 10
    (found,) = made.findings.values()
    assert (found.first_step, found.last_step, found.count, found.window) == (7, 11, 3, 10)
    assert found.message == "It was too high in 30 % of the last 10 steps."


def test_it_waits_for_the_least_number_of_answers():
    made = engine(rule(window=10, share=0.3, least=5))
    assert [line["step"] for line in steps(8, loss=2.0) if made.add_metrics(line)] == [5]


def test_a_test_that_cannot_tell_yet_is_no_answer():
    made = engine(rule(window=4, share=0.5, least=2, test=lambda view: None if view.step < 6 else True))
    assert [line["step"] for line in steps(8, loss=2.0) if made.add_metrics(line)] == [7]


def test_it_is_cleared_below_half_of_the_share_and_not_told_again_too_soon():
    made = engine(rule(window=10, share=0.4, least=5))
    told = {}
    for line in steps(300, loss=lambda step: 2.0 if step <= 10 or 40 <= step <= 60 or step >= 200 else 0.5):
        for found in made.add_metrics(line):
            told[line["step"]] = found.state
    assert told[5] == "open"
    assert told[19] == "cleared"  # 1 of 10 is below 0.2
    assert 43 not in told  # open again within the cooldown, without a word
    assert told[69] == "cleared"
    assert told[203] == "open"
    (found,) = made.findings.values()
    assert found.state == "open" and found.first_step == 1


def test_a_finding_between_half_and_the_whole_share_stays_open():
    made = engine(rule(window=10, share=0.4, least=5))
    for line in steps(40, loss=lambda step: 2.0 if step <= 10 or step % 4 == 0 else 0.5):
        made.add_metrics(line)
    assert [found.state for found in made.findings.values()] == ["open"]


def test_a_warning_becomes_an_error_and_keeps_where_it_began():
    grave = rule(window=10, share=0.3, least=3, severe=lambda view: view.share > 0.8)
    made = engine(grave)
    told = [
        (line["step"], found.severity)
        for line in steps(20, loss=lambda step: 2.0 if step > 10 else 0.5)
        for found in made.add_metrics(line)
    ]
    assert told == [(13, "warning"), (19, "error")]
    (found,) = made.findings.values()
    assert found.first_step == 11 and found.opened == 13 and found.count == 10


# ---------------------------------------------------------------- what is asked, and when


def test_a_star_makes_a_finding_for_each_metric():
    starred = rule(
        needs=("rewards/*/std",),
        window=5,
        share=0.5,
        least=3,
        test=lambda view: view["rewards/*/std"] == 0,
        message=lambda view: f"{view.cause} is constant",
    )
    told = Told(lines=steps(5, rewards__a__std=0.0, rewards__b__std=1.0, rewards__c__std=0.0))
    found = findings([starred], told)
    assert {each.fingerprint: each.message for each in found} == {
        "TST001:a": "a is constant",
        "TST001:c": "c is constant",
    }
    assert found[0].evidence[0]["metric"] == "rewards/a/std"


def test_facts_are_asked_when_they_are_told_and_told_anew():
    made = engine(rule(stage="before", needs=("data/rows",), test=lambda view: view["data/rows"] < 10))
    assert made.record_facts({"other": 1}) == []
    assert [found.state for found in made.record_facts({"data/rows": 3})] == ["open"]
    assert made.record_facts({"plan/total_steps": 3}) == []  # not what it reads
    assert [found.state for found in made.record_facts({"data/rows": 30})] == ["cleared"]


def test_metrics_of_the_first_step_are_facts():
    made = engine(rule(stage="probe", needs=("start/loss",), test=lambda view: view["start/loss"] > 1))
    told = [found.code for line in steps(3, loss=lambda step: 3.0 / step) for found in made.add_metrics(line)]
    assert told == ["TST001"] and made.view.facts["start/loss"] == 3.0


def test_a_rule_of_evaluations_sees_training_metrics_too():
    both = rule(
        needs=("eval_loss", "loss"), window=3, share=0.5, least=2, test=lambda view: view["eval_loss"] > view["loss"]
    )
    lines = in_order(steps(30, loss=1.0), evals((10, 20, 30), loss=2.0))
    (found,) = findings([both], Told(lines=lines))
    assert (found.first_step, found.last_step) == (10, 30)


def test_a_rule_of_the_whole_run_is_asked_at_its_end():
    whole = rule(stage="after", test=lambda view: view.mean("loss", 100) > 1)
    made = engine(whole)
    assert not [found for line in steps(50, loss=2.0) for found in made.add_metrics(line)]
    assert [found.code for found in made.finish()] == ["TST001"]


def test_what_was_skipped_says_why():
    rules = [
        rule("TST001"),
        rule("TST002", needs=("nope", "loss")),
        rule("TST003", fields=("beta",)),
        rule("TST004", test=lambda view: None),
        rule("TST005", needs=("rewards/*/std",)),
    ]
    made = engine(*rules)
    for line in steps(3, loss=1.0):
        made.add_metrics(line)
    assert made.skipped() == {
        "TST002": "nope was not produced",
        "TST003": "about runs with beta",
        "TST004": "too little to judge yet",
        "TST005": "rewards/*/std was not produced",
    }


def test_a_number_that_is_none_is_seen_and_left_out_of_means():
    made = engine(rule(test=lambda view: not math.isfinite(view["loss"]), window=1, least=1))
    for line in steps(3, loss=lambda step: "nan" if step == 2 else 1.0):
        made.add_metrics(line)
    assert made.view.mean("loss") == 1.0 and "TST001" in made.findings


# ---------------------------------------------------------------- muting


def test_a_cause_mutes_what_follows_from_it_whichever_came_first():
    cause = rule("TST001", needs=("a",), test=lambda view: view["a"] > 1, mutes=("TST1",), window=5, least=5, share=1.0)
    follows = rule("TST100", window=2, least=2)
    other = rule("TST200", window=2, least=2)
    found = {each.code: each for each in findings([cause, follows, other], Told(lines=steps(9, a=2.0, loss=2.0)))}
    assert {code: each.state for code, each in found.items()} == {"TST001": "open", "TST100": "muted", "TST200": "open"}
    assert found["TST100"].muted_by == "TST001"


def test_a_rule_may_name_its_cause_itself():
    cause = rule("TST001", needs=("a",), test=lambda view: view["a"] > 1, window=5, least=5, share=1.0)
    effect = rule("OTH001", needs=("b",), test=lambda view: view["b"] > 1, follows_from=("TST",), window=5, least=3)
    made = engine(cause, effect)
    for line in steps(6, a=2.0, b=2.0):
        made.add_metrics(line)
    states = {each.code: (each.state, each.muted_by) for each in made.findings.values()}
    assert states == {"TST001": ("open", None), "OTH001": ("muted", "TST001")}


def test_what_mutes_all_leaves_what_came_before_it():
    end = rule("NUM001", needs=("watch/broken",), test=lambda view: True, mutes=("ALL",))
    made = engine(end, rule("TST001", window=2, least=2), rule("TST002", stage="after"))
    for line in steps(5, loss=2.0):
        made.add_metrics(line)
    made.record_facts({"watch/broken": "loss"})
    for line in steps(1, first=6, loss=2.0):
        made.add_metrics(line)
    states = {each.code: each.state for each in made.finish()}
    assert states == {"TST001": "open", "NUM001": "open", "TST002": "muted"}


# ---------------------------------------------------------------- remedies


def test_patches_that_a_run_cannot_take_are_left_out():
    remedies = [
        Remedy(why="a", patch={"learning_rate": 1e-6}),
        Remedy(why="b", patch={"beta": 0.1}),
        Remedy(why="c", patch={"learning_rate": 1e-5}),
        Remedy(why="d"),
        Remedy(why="e", patch={"max_grad_norm": 0.5}),
    ]
    made = engine(
        rule(window=1, least=1, remedies=lambda view: remedies), learning_rate=1e-5, locked_fields=["max_grad_norm"]
    )
    made.add_metrics(steps(1, loss=2.0)[0])
    (found,) = made.findings.values()
    assert [(each.why, each.applicability) for each in found.remedies] == [
        ("a", "unsafe"),
        ("d", "display"),
        ("e (max_grad_norm is locked)", "display"),
    ]
    assert found.line() == "Warning TST001: It was too high in 100 % of the last 1 steps. a."


# ---------------------------------------------------------------- select and ignore


def test_the_longer_of_two_that_name_a_rule_decides():
    owned = [(rule(code), "test 0") for code in ("GRPO001", "GRPO002", "NUM001")]

    def left(select=(), ignore=()) -> list[str]:
        return [each.code for each, _ in selected(owned, list(select), list(ignore))]

    assert left() == ["GRPO001", "GRPO002", "NUM001"]
    assert left(["GRPO"]) == ["GRPO001", "GRPO002"]
    assert left(["GRPO"], ["GRPO002"]) == ["GRPO001"]
    assert left(["GRPO001"], ["GRPO"]) == ["GRPO001"]
    assert left([], ["ALL"]) == []
    assert left(["NUM001"], ["ALL"]) == ["NUM001"]


@pytest.mark.parametrize("field", ["rules_select", "rules_ignore", "stop_on"])
def test_a_code_that_no_rule_has_is_refused_with_the_nearest(field):
    owned = [(rule(code), "test 0") for code in ("GRPO001", "NUM001")]
    with pytest.raises(
        ConfigError, match=rf"{field}: no rule has the code or the prefix 'NUM011'; did you mean NUM001\?"
    ):
        check_codes(owned, RunConfig(**{field: ["NUM011"]}))
    check_codes(owned, RunConfig(**{field: ["NUM", "ALL", "GRPO001", "DPO001"]}))  # DPO's rules are another method's


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"code": "grpo1"}, "isn't letters and three digits"),
        ({"stage": "during"}, "none of before, probe, train, after"),
        ({"needs": ()}, "it would never be tested"),
        ({"share": 0.0}, "don't go together"),
        ({"least": 60}, "don't go together"),
        ({"why": ""}, "why is empty"),
        ({"severity": "bad"}, "none of info, warning, error"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(fields, problem):
    with pytest.raises(ValueError, match=problem):
        rule(**fields)


# ---------------------------------------------------------------- a folder gives what the run gave


def test_a_replay_gives_what_the_run_gave():
    rules = [
        rule("TST001", window=10, least=5),
        rule("TST002", stage="probe", needs=("start/loss",), test=lambda view: view["start/loss"] > 1),
        rule("TST003", needs=("system/memory",), test=lambda view: view["system/memory"] > 3),
        rule("TST004", needs=("watch/broken",), test=lambda view: True, mutes=("ALL",)),
        rule("TST005", stage="before", needs=("data/rows",), test=lambda view: view["data/rows"] < 10),
        rule("TST006", stage="after", test=lambda view: True),
    ]
    lines = in_order(steps(60, loss=lambda step: 2.0 if step % 3 else 0.5), evals((0, 30), loss=1.0))
    live = engine(*rules)
    live.record_facts({"data/rows": 4})
    for line in lines:
        live.add_metrics(line)
        if line["step"] == 20 and line["kind"] == "train":
            live.record_facts({"system/memory": 4})
    live.record_facts({"watch/broken": "loss"})

    again = engine(*rules)
    kept = json.loads(json.dumps([live.view.facts, live.told]))
    feed(again, *kept, lines)
    config = live.config
    assert [each.as_dict(config) for each in again.finish()] == [each.as_dict(config) for each in live.finish()]
    assert again.skipped() == live.skipped() == {}
    assert {each.code: each.opened for each in again.findings.values()} == {
        "TST001": 5,
        "TST002": 1,
        "TST003": 20,
        "TST004": 60,
        "TST005": 0,
        "TST006": 60,
    }
