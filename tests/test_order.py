"""No two findings of one run ask for contrary changes of a field, whatever rules they are from; and a cause is what
speaks. Over all pairs of rules with made-up evidence (evidence_grid), and on runs as they are."""

from __future__ import annotations

import functools
import itertools
import random
from dataclasses import asdict, replace

import pytest
from evidence_grid import beside, config_class, hits, of_rollouts, rules_of, with_rollouts

from ft_host.config import RunConfig
from ft_host.diagnostics import Engine, Finding, Remedy, Rule
from ft_host.diagnostics.muting import Muting, contrary
from ft_host.diagnostics.order import PLACES
from ft_host.diagnostics.remedies import usable
from ft_host.testing.rules import Told, findings, steps

RATE = {"learning_rate": 1e-4}  # what the runs here have


def rule(code: str, metric: str = "loss", **fields) -> Rule:
    given = {"title": "t", "stage": "train", "needs": (metric,), "window": 1, "least": 1, "share": 1.0}
    given |= {"test": lambda view: view[metric] > 1, "message": lambda view: "It is."}
    return Rule(code=code, **(given | dict.fromkeys(("when", "why", "remedy", "source"), "w") | fields))


def asks(*patches: dict) -> dict:
    """Remedies that set fields, the first of them first."""
    return {"remedies": lambda view: [Remedy(why=f"Set {patch}", patch=patch) for patch in patches]}


LOWER, RAISE = {"learning_rate": 1e-5}, {"learning_rate": 1e-3}


def after(rules: list[Rule], lines: list[dict], **config) -> dict[str, Finding]:
    told = Told(config=RATE | config, lines=lines)
    return {each.code: each for each in findings(rules, told)}


def patches(finding: Finding) -> list[dict]:
    return [each.patch for each in finding.remedies]


def contrary_advice(found: list[Finding], config: dict) -> list[str]:
    """Pairs of findings that ask for contrary changes, whatever their state."""
    return [
        f"{one.fingerprint} ({first.why}) and {other.fingerprint} ({second.why})"
        for one, other in itertools.combinations(found, 2)
        for first in one.remedies
        for second in other.remedies
        if contrary(first, second, config)
    ]


# ---------------------------------------------------------------- what is contrary


@pytest.mark.parametrize(
    ("field", "now", "one", "other", "apart"),
    [
        ("learning_rate", 1e-4, 1e-5, 1e-3, True),
        ("learning_rate", 1e-4, 1e-5, 2e-5, False),  # by more, or less
        ("max_length", 64, 128, 96, False),
        ("loss_type", ["sigmoid"], ["ipo"], ["sigmoid", "sft"], True),
        ("router_aux_loss_coef", None, 0.1, 0.001, True),  # which way it goes isn't known
        ("router_aux_loss_coef", None, 0.1, 0.1, False),
        ("packing", False, True, True, False),
        ("steps_per_generation", 4, None, 2, True),
        ("beta", 0.1, 0.1, 0.2, False),  # of a patch of several fields, one that stays
    ],
)
def test_contrary_is_up_and_down_or_to_different_values(field, now, one, other, apart):
    both = Remedy(why="a", patch={field: one}), Remedy(why="b", patch={field: other})
    assert contrary(*both, {field: now}) is apart and contrary(*reversed(both), {field: now}) is apart


# ---------------------------------------------------------------- which of two gives way


@pytest.mark.parametrize("first", ["TST001", "TST002"])
def test_the_later_in_order_gives_way_whichever_was_found_first(first):
    """A loss that rises, and nothing that is learnt."""
    cause = rule("TST001", "a", level="loss", **asks(LOWER))
    effect = rule("TST002", "b", level="standstill", **asks(RAISE, {"warmup_steps": 0.1}))
    at = {first: 1, ({"TST001", "TST002"} - {first}).pop(): 3}
    lines = steps(5, a=lambda step: 2.0 * (step >= at["TST001"]), b=lambda step: 2.0 * (step >= at["TST002"]))
    found = after([cause, effect], lines)
    assert found["TST001"].state == "open" and patches(found["TST001"]) == [LOWER]
    assert (found["TST002"].state, found["TST002"].muted_by) == ("muted", "TST001")
    assert patches(found["TST002"]) == [{"warmup_steps": 0.1}]


def test_a_second_remedy_is_lost_and_its_finding_speaks_on():
    cause = rule("TST001", level="loss", **asks(LOWER))
    effect = rule("TST002", level="policy", **asks({"max_grad_norm": 0.5}, RAISE))
    found = after([cause, effect], steps(2, loss=2.0))
    assert found["TST002"].state == "open" and patches(found["TST002"]) == [{"max_grad_norm": 0.5}]


@pytest.mark.parametrize(("level", "kept"), [("updates", False), ("policy", False), ("standstill", True)])
def test_what_is_asked_first_outweighs_what_is_asked_besides_unless_it_is_that_nothing_is_learnt(level, kept):
    """Memory ran out, and among what helps is LoRA with a higher rate; the updates were too large anyway."""
    besides = rule("TST001", level="machine", severity="error", **asks({"max_length": 512}, RAISE))
    first = rule("TST002", level=level, **asks(LOWER))
    found = after([besides, first], steps(2, loss=2.0))
    assert patches(found["TST001"]) == [{"max_length": 512}, *([RAISE] if kept else [])]
    assert (found["TST002"].state, patches(found["TST002"])) == (("muted", []) if kept else ("open", [LOWER]))


def test_a_remark_on_settings_gives_way_to_what_the_run_shows():
    """A rate that is low for what is trained, and a loss that diverges all the same."""
    remark = rule("TST001", level="settings", severity="info", **asks(RAISE))
    shown = rule("TST002", level="loss", **asks(LOWER))
    found = after([remark, shown], steps(2, loss=2.0))
    assert (found["TST001"].state, found["TST001"].muted_by) == ("muted", "TST002") and patches(found["TST001"]) == []
    assert found["TST002"].state == "open" and patches(found["TST002"]) == [LOWER]
    third = rule("TST003", level="standstill", **asks(RAISE))
    assert after([remark, shown, third], steps(2, loss=2.0))["TST003"].muted_by == "TST002"
    warned = after([replace(remark, severity="warning"), shown], steps(2, loss=2.0))
    assert warned["TST002"].muted_by == "TST001", "a setting that is a warning is the cause"


def test_an_error_loses_the_remedy_but_is_never_silenced_by_advice():
    cause = rule("TST001", level="rows", **asks({"max_length": 2048}))
    ended = rule("TST002", level="machine", severity="error", **asks({"max_length": 512}))
    found = after([cause, ended], steps(2, loss=2.0), max_length=1024)
    assert found["TST002"].state == "open" and patches(found["TST002"]) == []
    assert found["TST001"].state == "open"


def test_advice_about_a_locked_field_is_advice():
    cause, effect = rule("TST001", level="loss", **asks(LOWER)), rule("TST002", level="standstill", **asks(RAISE))
    found = after([cause, effect], steps(2, loss=2.0), locked_fields=["learning_rate"])
    assert [each.why for each in found["TST001"].remedies] == [f"Set {LOWER} (learning_rate is locked)"]
    assert found["TST002"].state == "muted" and found["TST002"].remedies == []


def test_what_has_passed_doesnt_contradict_what_is_there():
    """The listing of a run shows both."""
    early = rule("TST001", "a", level="updates", **asks(RAISE))
    late = rule("TST002", "b", level="standstill", **asks(LOWER))
    lines = steps(6, a=lambda step: 2.0 * (step < 3), b=lambda step: 2.0 * (step > 3))
    found = after([early, late], lines)
    assert (found["TST001"].state, patches(found["TST001"])) == ("cleared", [])
    assert (found["TST002"].state, patches(found["TST002"])) == ("open", [LOWER])


def test_rules_of_strangers_are_under_it_without_a_level():
    one = rule("XYZ001", "a", **asks(LOWER))
    other = rule("ABC001", "b", **asks(RAISE))
    found = after([one, other], steps(3, a=2.0, b=lambda step: 2.0 * (step > 1)))
    assert {code: each.state for code, each in found.items()} == {"XYZ001": "open", "ABC001": "muted"}
    assert contrary_advice(list(found.values()), RATE) == []


# ---------------------------------------------------------------- causes


def test_a_consequence_mutes_no_cause_even_if_it_says_so():
    effect = rule("TST001", level="standstill", mutes=("TST002",))
    cause = rule("TST002", level="rewards")
    found = after([effect, cause], steps(2, loss=2.0))
    assert {each.state for each in found.values()} == {"open"}


def test_a_rule_may_name_a_level_and_one_that_has_two_stands_at_that_of_its_verdict():
    cause = rule("TST001", "a", level="rewards", mutes=("standstill",))
    either = rule("TST002", level="updates", later=("standstill", lambda view: view["loss"] < 3), mutes=("TST003",))
    broken = rule("TST003", level="policy")
    slight = after([cause, either, broken], steps(2, a=2.0, loss=2.0))
    assert {code: each.muted_by for code, each in slight.items()} == {
        "TST001": None,
        "TST002": "TST001",
        "TST003": None,
    }
    grave = after([cause, either, broken], steps(2, a=2.0, loss=4.0))
    assert {code: each.muted_by for code, each in grave.items()} == {"TST001": None, "TST002": None, "TST003": "TST002"}


def test_what_follows_from_what_follows_is_silent_too():
    rules = [rule("TST001", level="updates", mutes=("TST002",)), rule("TST002", level="loss", mutes=("TST003",))]
    found = after([*rules, rule("TST003", level="results")], steps(2, loss=2.0))
    assert [found[code].state for code in ("TST001", "TST002", "TST003")] == ["open", "muted", "muted"]


def test_of_two_that_name_each_other_one_speaks():
    one, other = rule("TST001", level="policy", mutes=("TST",)), rule("TST002", level="policy", mutes=("TST",))
    assert {each.state for each in after([one, other], steps(2, loss=2.0)).values()} == {"open", "muted"}


def test_a_cause_is_as_grave_as_what_follows_from_it():
    cause = rule("TST001", level="updates", mutes=("loss",))
    diverged = rule("TST002", "b", level="loss", severity="error")
    engine = Engine([(cause, "t 0"), (diverged, "t 0")], asdict(RunConfig()), strict=True)
    told = [
        [(each.code, each.state, each.severity) for each in engine.add_metrics(line)]
        for line in ({"kind": "train", "step": 1, "loss": 2.0}, {"kind": "train", "step": 2, "loss": 2.0, "b": 2.0})
    ]
    assert told[0] == [("TST001", "open", "warning")]
    assert told[1] == [("TST002", "muted", "error"), ("TST001", "open", "error")]


def test_a_cause_stays_while_what_follows_from_it_does():
    """The steps that threw the weights away are over; where they are thrown to is what the run goes on with."""
    cause = rule("TST001", "a", level="updates", mutes=("loss",))
    effect = rule("TST002", "b", level="loss")
    lines = steps(60, a=lambda step: 2.0 * (step < 10), b=2.0)
    found = after([cause, effect], lines)
    assert (found["TST001"].state, found["TST002"].state) == ("open", "muted")
    both = after([cause, effect], steps(60, a=lambda step: 2.0 * (step < 10), b=lambda step: 2.0 * (step < 20)))
    assert {each.state for each in both.values()} == {"cleared"}


def test_what_outlives_its_cause_by_far_speaks_again():
    cause = rule("TST001", "a", level="updates", mutes=("loss",))
    effect = rule("TST002", "b", level="loss", message=lambda view: f"It is {view['b']:.0f}.", **asks(LOWER))
    lines = steps(130, a=lambda step: 2.0 * (step < 10), b=lambda step: 2.0 + step)
    engine = Engine([(cause, "t 0"), (effect, "t 0")], asdict(RunConfig(**RATE)), strict=True)
    told = [(line["step"], each.code, each.state) for line in lines for each in engine.add_metrics(line)]
    assert told == [(1, "TST001", "open"), (1, "TST002", "muted"), (109, "TST001", "cleared"), (110, "TST002", "open")]
    assert engine.findings["TST002"].message == "It is 112." and engine.findings["TST002"].first_step == 1


def test_a_level_that_isnt_one_is_refused():
    with pytest.raises(ValueError, match="level 'lose' is none of settings, rows"):
        rule("TST001", level="lose")
    with pytest.raises(ValueError, match="level 'rows' of `later` comes before 'loss'"):
        rule("TST001", level="loss", later=("rows", lambda view: True))


# ---------------------------------------------------------------- all pairs of rules

HOSTS = {True: "grpo", False: "dpo"}  # methods that stand for the host's rules, with rollouts and without
OTHERS = (
    "sft",
    "kto",
    "reward",
    "rloo",
    "ppo",
    "distill",
    "gold",
    "sdft",
    "sdpo",
    "orpo",
    "simpo",
    "online-dpo",
    "bon",
)


def about(method: str) -> list[Rule]:
    """The rules that a run of it may meet."""
    return [each for each in rules_of(method) if with_rollouts(method) or not any(map(of_rollouts, each.needs))]


@functools.cache
def made(method: str) -> list[Finding]:
    """Findings of all rules of a method over the grid, one for each way in which its remedies move fields."""
    shared = {each.code for each in rules_of("grpo")} & {each.code for each in rules_of("dpo")}
    out: dict[tuple, Finding] = {}
    for each in about(method):
        for case in hits(method if each.code not in shared else HOSTS[with_rollouts(method)], each, 4):
            offered = usable(each.remedies(case.view), case.config, case.view)
            moves = tuple(
                (name, value > case.config[name] if isinstance(value, int | float) and case.config[name] else value)
                for remedy in offered
                for name, value in remedy.patch.items()
            )
            level, severity = each.level_of(case.view), each.severity_of(case.view)
            out.setdefault(
                (each.code, level, severity, str(moves)),
                Finding(
                    code=each.code,
                    title="t",
                    severity=severity,
                    stage=each.stage,
                    level=level,
                    message="m",
                    why="w",
                    remedies=offered,
                    evidence=[],
                    cause=None,
                    plugin="p",
                    opened=case.count,
                ),
            )
    return list(out.values())


@pytest.mark.parametrize("method", [*HOSTS.values(), *OTHERS])
def test_no_two_rules_ask_for_contrary_changes(method):
    config = asdict(config_class(method)())
    rules = {each.code: each for each in about(method)}
    every = made(method)
    assert len({each.code for each in every}) > 0.8 * len(rules)  # the others judge the loss, which rollouts don't have
    asked = 0
    moved = {id(each): {name for remedy in each.remedies for name in remedy.patch} for each in every}
    for one, other in itertools.combinations(every, 2):
        if one.code == other.code or moved[id(one)].isdisjoint(moved[id(other)]):
            continue
        if not contrary_advice([one, other], config):
            continue
        asked += 1
        pair = [replace(each, offered=list(each.remedies)) for each in (one, other)]
        Muting(rules, config, pair).settle(1)
        assert contrary_advice(pair, config) == []
        assert [each.state for each in pair].count("open") >= 1
        silent = [each for each in pair if each.state == "muted"]
        for each in silent:
            (head,) = [speaks for speaks in pair if speaks is not each]
            assert PLACES[head.level] <= PLACES[each.level] or each.severity == "info", (head.code, each.code)
    assert asked > 30


@pytest.mark.parametrize("method", [*HOSTS.values(), "ppo"])
def test_nor_do_many_at_once(method):
    config = asdict(config_class(method)())
    rules = {each.code: each for each in about(method)}
    every, of = made(method), random.Random(7)
    for _ in range(20):
        some = {each.code: replace(each, offered=list(each.remedies)) for each in of.sample(every, 25)}
        Muting(rules, config, some.values()).settle(1)
        assert contrary_advice(list(some.values()), config) == []
        assert any(each.state == "open" for each in some.values())


@pytest.mark.parametrize("method", HOSTS.values())
def test_nor_do_two_in_an_engine_and_when_a_folder_is_asked_again(method):
    of, both = random.Random(3), 0
    cases = [case for each in about(method) for case in hits(method, each, 4) if each.remedies(case.view)]
    for _ in range(30):
        one, other = of.sample(cases, 2)
        told = beside(one, other)
        found = findings(
            [one.rule, other.rule] if one.rule is not other.rule else [one.rule], told, config_class(method)
        )
        both += len({each.code for each in found}) == 2
        assert contrary_advice(found, asdict(config_class(method)(**told.config))) == []
    assert both > 4
