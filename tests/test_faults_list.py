"""The benchmark of faults: its list is well formed, its table counts as it says, and cases run through its harness."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks" / "faults"
METHODS = {"sft", "dpo", "kto", "reward", "grpo", "rloo", "ppo", "distill", "gkd", "gold", "sdft", "sdpo"}
PLACES = {"data", "reward", "model", "code", "machine"}
LISTED = ("broken_data", "broken_parts", "case", "cases", "families", "material", "rewards", "row_texts")


@contextlib.contextmanager
def modules(names: tuple[str, ...]) -> Iterator[dict[str, ModuleType]]:
    """Modules of the benchmark, which are gone again afterwards."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(FOLDER))
        for name in set(sys.modules) - before:
            if str(FOLDER) in str(vars(sys.modules[name]).get("__file__")):
                del sys.modules[name]


@pytest.fixture(scope="module")
def listed():
    """What the list is made of, by name."""
    with modules(LISTED) as found:
        yield found


@pytest.fixture(scope="module")
def bench():
    """The harness too, by name."""
    with modules((*LISTED, "run", "score")) as found:
        yield found


def test_there_are_enough_of_both_kinds_over_all_methods_and_families(listed):
    cases, families = listed["cases"], listed["families"].FAMILIES
    assert len({case.name for case in cases.FAULTS}) >= 40 and len(cases.HEALTHY) >= 60
    assert {case.method for case in cases.FAULTS} == {case.method for case in cases.HEALTHY} == METHODS
    assert len(families) >= 4 and sum(family.TUNED for family in families.values()) == 2
    for name in families:
        assert {case.method for case in cases.HEALTHY if case.family == name} == set(families[name].BASE)
    assert len(cases.CASES) == len(cases.FAULTS) + len(cases.HEALTHY), "two cases have one name"
    assert not any(case.healthy for case in cases.FAULTS) and all(case.healthy for case in cases.HEALTHY)
    assert not any(case.beside or case.partly or case.at_fault for case in cases.HEALTHY)


def test_what_cases_name_is_there(listed):
    from ft_host import registry

    for case in listed["cases"].CASES.values():
        family = listed["families"].FAMILIES[case.family]
        for fault in (case.train, case.held_out):
            assert fault is None or callable(vars(listed["broken_data"])[fault]), case.id
        assert case.patch is None or callable(vars(listed["broken_parts"])[case.patch[0]]), case.id
        config = registry.config_class(registry.find("method", case.method))
        fields = {field.name for field in dataclasses.fields(config)}
        values = family.BASE[case.method] | case.config
        assert values.keys() <= fields, case.id
        assert set(case.at_fault) - PLACES <= fields, case.id
        for reward in [*values.get("reward", []), *values.get("eval_reward", [])]:
            assert callable(vars(listed["rewards"])[reward.removeprefix("@rewards:")]), case.id


def test_each_fault_names_what_is_at_fault_and_a_code_that_a_rule_has(listed):
    from ft_host import registry
    from ft_host.diagnostics.collect import all_rules, diagnostics_of

    codes, lacking = {}, []
    for name in METHODS:
        method = registry.find("method", name)
        diagnostics = diagnostics_of(method, registry.config_class(method)())
        plugins = registry.session(method, None, diagnostics)
        codes[name] = [rule.code for rule, _ in all_rules(plugins, [method, *diagnostics])]
    for case in listed["cases"].FAULTS:
        assert case.at_fault, case.id
        lacking += [
            f"{case.id}: {code}"
            for code in (*case.cause, *case.partly)
            if not any(each.startswith(code) for each in codes[case.method])
        ]
    assert not lacking


def test_a_fault_is_in_the_run_and_a_cure_can_be_told_by_what_is_held_out(listed):
    """A case whose fields are those of the family's own run would be a healthy one."""
    for case in listed["cases"].FAULTS:
        base = listed["families"].FAMILIES[case.family].BASE[case.method]
        differs = any(base.get(name) != value for name, value in case.config.items())
        assert differs or case.train or case.held_out or case.patch, case.id
        metric, better = case.held_out_metric
        assert metric.startswith("eval_") and better in ("higher", "lower"), case.id


def test_times_are_of_the_familys_own_values(listed):
    cases, families = listed["cases"].CASES, listed["families"].FAMILIES
    for name, family in families.items():
        assert cases[f"{name}/sft-rate-1000th"].config["learning_rate"] == family.BASE["sft"]["learning_rate"] / 1000
        assert cases[f"{name}/grpo-too-hard"].config["reward"] == [family.RIGHT]


def test_rows_of_conversations_get_the_same_faults_as_texts(listed):
    data, texts = listed["broken_data"], listed["row_texts"]
    row = {"prompt": [{"role": "user", "content": "ask"}], "completion": [{"role": "assistant", "content": "told"}]}
    (turned,) = data.exchanged([row], None, None)
    assert texts.said(turned["prompt"]) == "told" and texts.said(turned["completion"]) == "ask"
    assert [turned[name][0]["role"] for name in ("prompt", "completion")] == ["user", "assistant"]
    assert texts.said(row["prompt"]) == "ask", "the row itself has changed"
    assert data.exchanged([{"prompt": "ask", "completion": "told"}], None, None) == [
        {"prompt": "told", "completion": "ask"}
    ]


def test_the_rows_of_each_task_are_right_and_what_is_rejected_is_not(listed):
    import random

    families, rng = listed["families"].FAMILIES, random.Random(0)
    letters, lookup, gsm8k = families["transduction"], families["lookup"], families["gsm8k"]
    assert letters.row_of("<", "bca") == {"prompt": "<bca\n", "completion": "ACB", "answer": "ACB"}
    assert letters.row_of(">", "bca")["completion"] == "BCA"
    train, test = letters.make_rows(0)
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
    looked_up = [lookup.row_of(rng) for _ in range(50)]
    for row in looked_up:
        *entries, asked = row["prompt"].split()
        assert row["completion"] in entries and row["completion"][0] == asked[0]
    solution = {"prompt": "", "completion": "2+3 = <<2+3=5>>5 in all.\n#### 5", "answer": "5"}
    for row, wrong in [(row, letters.wrong) for row in test] + [(row, lookup.wrong) for row in looked_up]:
        assert wrong(row, rng) != row["completion"]
    well_formed = listed["rewards"].well_formed
    assert well_formed([solution["completion"]]) == [1.0]
    assert well_formed([gsm8k.wrong(solution, rng) for _ in range(20)]) == [0.0] * 20


def test_a_family_whose_rows_are_elsewhere_says_what_is_missing(listed, monkeypatch, tmp_path):
    families = listed["families"].FAMILIES
    monkeypatch.delenv("FT_GSM8K", raising=False)
    assert "FT_GSM8K isn't set" in families["gsm8k"].missing()
    monkeypatch.setenv("FT_GSM8K", str(tmp_path))
    assert "has no sft.jsonl and no test_sft.jsonl" in families["gsm8k"].missing()
    for name in ("sft.jsonl", "test_sft.jsonl"):
        (tmp_path / name).touch()
    assert [family.missing() for family in families.values()] == [None] * 4


def test_rewards_read_texts_and_messages_alike(listed):
    rewards = listed["rewards"]
    asked = {"completion": ["ab", "ab", "ab"], "answer": ["ab", "ab", "ab"]}
    told = ["ab", "ax", ""]
    talk = [[{"role": "assistant", "content": text}] for text in told]
    for completions in (told, talk):
        assert rewards.exact(completions, **asked) == [1.0, 0.0, 0.0]
        assert rewards.near(completions, **asked) == [1.0, 0.5, 0.0]
        near, far = rewards.near(completions, **asked), rewards.far(completions, **asked)
        assert [one + other for one, other in zip(near, far, strict=True)] == [1.0] * 3


def run_of(case: str, *findings: tuple[str, str, int]) -> dict:
    told = [{"code": code, "severity": severity, "opened": step, "message": "…"} for code, severity, step in findings]
    return {"case": case, "seed": 0, "findings": told, "steps": 100, "planned": 100, "held_out": {}, "error": None}


def test_notes_are_no_findings_and_late_ones_don_t_count(bench):
    score = bench["score"]
    cases = bench["cases"].CASES
    drop = cases["sft-slows-down"]  # visible from step 61 on
    assert score.in_time(drop, run_of(drop.name, ("PERF006", "warning", 90)))
    assert not score.in_time(drop, run_of(drop.name, ("PERF006", "info", 90)))
    assert not score.in_time(drop, run_of(drop.name, ("PERF006", "warning", 112)))
    assert not score.in_time(drop, run_of(drop.name, ("PERF006", "warning", 40)))
    assert score.false(drop, run_of(drop.name, ("PERF006", "warning", 40)))
    assert not score.in_time(drop, run_of(drop.name, ("OPT006", "warning", 70)))
    assert [each["code"] for each in score.false(drop, run_of(drop.name, ("OPT006", "warning", 70)))] == ["OPT006"]
    healthy = cases["healthy-sft"]
    assert not score.false(healthy, run_of(healthy.name, ("OPT006", "info", 70)))
    assert score.false(healthy, run_of(healthy.name, ("OPT006", "warning", 70)))


def test_the_table_says_what_was_found(bench):
    runs = [run_of("sft-slows-down", ("PERF006", "warning", 90)), run_of("healthy-sft", ("OPT006", "warning", 70))]
    text = "\n".join(bench["score"].report(runs))
    assert "1 of 1 (100.0 %) were found" in text and "at the median 29 steps" in text
    assert "1 of 2 (50.0 %) of all warnings" in text and "0 of 1 (0.0 %)" in text
    assert "| healthy-sft | sft | from random weights | OPT006 |" in text


def test_cases_run_through_the_harness(bench, tmp_path):
    """One that is refused before there is a folder, and one that is broken by a patch."""
    run, material = bench["run"], bench["material"]
    material.make(tmp_path / "seed-0", 0, quick=True)
    quick = {"max_steps": 6, "eval_steps": None, "warmup_steps": 1}
    made = run.run_case("sft-nan-layer", tmp_path, 0, **quick | {"eval_on_start": False})
    assert made["error"] is None and made["steps"] == 6 and made["held_out"]["metric"] == "eval_loss"
    refused = run.run_case("sft-all-masked", tmp_path, 0, **quick)
    assert refused["steps"] == 0 and "no supervised token" in refused["error"]
    broken = bench["broken_parts"].nan_layer(after=2)
    with broken:
        stopped = run.run_case("healthy-sft", tmp_path, 0, **quick)
    assert stopped["steps"] == 2 and "NUM001" in {each["code"] for each in stopped["findings"]}
    assert {each["opened"] for each in stopped["findings"] if each["code"] == "NUM001"} == {2}
