"""Checks about rules: each catches one that is wrong in this way, and those of a new package pass."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from conformance.wrong import Wrong, assert_caught, failures, installed

from ft_host.config import RunConfig
from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.scaffold import new_package
from ft_host.testing.conformance.check import NotMet
from ft_host.testing.conformance.checks import diagnostics
from ft_host.testing.conformance.checks.diagnostics import proposed
from ft_host.testing.conformance.ruled import Ruled, odd
from ft_host.testing.conformance.run import Suite
from ft_host.testing.rules import Told, evals, in_order, steps


def wrong(name: str, old: str, new: str, fails: str, *also: str, file: str = "rules.py") -> Wrong:
    return Wrong(name=name, kind="diagnostics", file=file, old=old, new=new, fails=fails, also=also)


WRONG = [
    wrong(
        "a rule that looks the other way", "return view[LENGTH] > GROWTH", "return view[LENGTH] < GROWTH", "rule-cases"
    ),
    wrong(
        "a healthy run that tells nothing",
        "completions__mean_length=longer, reward=lambda",
        "reward=lambda",
        "rule-cases",
        file="cases.py",
    ),
    wrong(
        "a division by what may be 0",
        "view[LENGTH] > GROWTH * view.first(LENGTH, 1)",
        "view[LENGTH] / view.first(LENGTH, 1) > GROWTH",
        "rule-odd-evidence",
    ),
    Wrong(
        name="a metric by another name than it is logged",
        kind="pairs",
        file="rules.py",
        old='needs=("rewards/accuracies",)',
        new='needs=("rewards/accuracy",)',
        fails="rule-needs",
        also=("rule-cases",),
    ),
    wrong("the mean of nothing", "{short(view[REWARD])}, where", "{view.mean('loss')}, where", "rule-messages"),
    wrong("a patch of no field", '{"learning_rate": lower}', '{"learning_rates": lower}', "rule-remedies"),
    wrong("a patch that changes nothing", "rounded(now / 3)", "now", "rule-remedies"),
    wrong("the letters of the host's rules", 'code="SLIP', 'code="OPT', "rule-codes", "rule-cases"),
    wrong("rules that import torch", "\nfrom ft_host.api", "\nimport torch\nfrom ft_host.api", "rule-imports"),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_it_is_caught(wrong, tmp_path):
    assert_caught(diagnostics.CHECKS, wrong, tmp_path)


@pytest.mark.parametrize("kind", ["offline", "pairs", "rollouts", "diagnostics"])
def test_those_of_a_new_package_pass(kind, tmp_path):
    assert failures(diagnostics.CHECKS, None, kind, tmp_path) == []


def test_every_check_has_a_wrong_package():
    assert {check.id for check in diagnostics.CHECKS} == {wrong.fails for wrong in WRONG}


# ---------------------------------------------------------------- in parts

RULE = Rule(
    code="MINE001",
    title="Too high",
    stage="train",
    needs=("loss", "data/share"),
    test=lambda view: view["loss"] > 1,
    message=lambda view: "It is high.",
    window=1,
    least=1,
    **dict.fromkeys(("when", "why", "remedy", "source"), "x"),
)
TOLD = Told(
    facts={"data/share": 0.5, "data/rows": 4}, lines=in_order(steps(4, loss=2.0, grad_norm=1.0), evals([2], x=1))
)


def of(rule: Rule, told: Told = TOLD) -> Ruled:
    return Ruled(diagnostics, [rule], {rule.code: (told, told)}, (RunConfig,))


def test_odd_evidence_is_one_change_at_a_time_of_what_the_rule_needs():
    found = dict(odd(TOLD, RULE))
    train = {name: [line.get("loss") for line in told.lines if line["kind"] == "train"] for name, told in found.items()}
    # of the five lines, the evaluation is the third
    assert train["loss is told at every second step"] == [2.0, None, None, 2.0]
    assert train["loss is told in the first half"] == [2.0, 2.0, None, None]
    assert train["loss is 0 from the middle on"] == [2.0, 2.0, 0.0, 0.0]
    assert train["loss is never told"] == [None] * 4 and found["loss is never told"].lines[0]["grad_norm"] == 1.0
    assert all(math.isnan(value) for value in train["all metrics are NaN"])
    assert "grad_norm" not in found["only what it needs is told"].lines[0]
    assert math.isnan(found["data/share is NaN"].facts["data/share"]) and "data/rows is NaN" not in found
    assert found["data/rows isn't known"].facts == {"data/share": 0.5}
    assert TOLD.lines[3]["loss"] == 2.0  # the run itself stays as it is


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ({"learning_rat": 1e-5}, "it patches 'learning_rat', which is no field; did you mean learning_rate?"),
        ({"max_steps": "many"}, "it sets max_steps to 'many'"),
        ({"learning_rate": 5e-5}, "leaves the run as it is"),
        ({"lora_r": 64}, "leaves the run as it is"),  # without LoRA
        ({"learning_rate": 1e-5}, None),
        ({}, None),
    ],
)
def test_what_is_wrong_with_a_patch(patch, said):
    rule = replace(RULE, remedies=lambda view: [Remedy(why="Do something", patch=patch)])
    told = replace(TOLD, config={"learning_rate": 5e-5})
    [(_, faults)] = proposed(of(rule, told), rule, told)
    assert (said is None and faults == []) or said in faults[0]


def test_fields_of_a_case_must_be_those_of_some_config():
    with pytest.raises(NotMet, match="MINE001: no config has the fields .*'RunConfig': .'num_generations'"):
        of(RULE).config_class(replace(RULE, fields=("num_generations",)), TOLD)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path, text: None if path.endswith("/cases.py") else text, r"there is no module ft_slip_\d+\.cases"),
        (
            lambda path, text: text.replace("CASES = {", "CASES = list({").replace("\n}", "\n})"),
            r"ft_slip_\d+\.cases: CASES is .* expected .code: \(faulty, healthy\)",
        ),
    ],
    ids=["no module", "lists"],
)
def test_cases_that_are_none_are_told_from_a_rule_that_is_wrong(change, said, tmp_path):
    def changed(files: dict[str, str]) -> dict[str, str]:
        found = {path: change(path, text) for path, text in files.items()}
        return {path: text for path, text in found.items() if text is not None}

    with installed("diagnostics", tmp_path, changed) as name:
        [found] = Suite(name, tmp_path / "suite").run(diagnostics.CHECKS[:1])
    assert found.result == "failed" and re.search(said, found.said), found.said


def test_a_module_in_no_package_has_its_cases_itself(install_plugin, tmp_path):
    made = new_package("house", "diagnostics", tmp_path)
    rules, cases = ((made / "ft_house" / name).read_text(encoding="utf-8") for name in ("rules.py", "cases.py"))
    both = rules + cases.replace("from __future__ import annotations\n", "")
    install_plugin(
        "ft-alone",
        entry_points={"ft_host.diagnostics": {"alone": "rules_of_the_house"}},
        modules={"rules_of_the_house": both},
        requires=["ft-host"],
    )
    found = Suite("ft-alone", tmp_path / "suite").run(diagnostics.CHECKS)
    assert {each.check.id for each in found if each.result != "passed"} == {"rule-needs"}, [each.said for each in found]
    assert "of no method" in next(each.said for each in found if each.check.id == "rule-needs")
