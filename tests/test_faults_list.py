"""The benchmark of faults: its list is well formed, its table counts as it says, and cases run through its harness."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks" / "faults"
METHODS = {"sft", "dpo", "kto", "reward", "grpo", "rloo", "ppo"}


@pytest.fixture(scope="module")
def bench():
    """Its modules, by name."""
    sys.path.insert(0, str(FOLDER))
    try:
        import broken_data
        import broken_parts
        import case
        import cases
        import material
        import rewards
        import run
        import score

        found = (broken_data, broken_parts, case, cases, material, rewards, run, score)
        yield {module.__name__: module for module in found}
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("broken_data", "broken_parts", "case", "cases", "material", "rewards", "run", "score"):
            sys.modules.pop(name, None)


def test_there_are_enough_of_both_kinds_over_all_methods(bench):
    cases = bench["cases"]
    assert len(cases.FAULTS) >= 42 and len(cases.HEALTHY) >= 22
    assert {case.method for case in cases.FAULTS} == {case.method for case in cases.HEALTHY} == METHODS
    assert len(cases.CASES) == len(cases.FAULTS) + len(cases.HEALTHY), "two cases have one name"
    assert all(case.expected for case in cases.FAULTS) and not any(case.expected for case in cases.HEALTHY)
    assert not any(case.beside for case in cases.HEALTHY)


def test_what_cases_name_is_there(bench):
    from ft_host import registry

    for case in bench["cases"].CASES.values():
        for fault in (case.train, case.held_out):
            assert fault is None or callable(vars(bench["broken_data"])[fault]), case.name
        assert case.patch is None or callable(vars(bench["broken_parts"])[case.patch[0]]), case.name
        config = registry.config_class(registry.find("method", case.method))
        fields = {field.name for field in dataclasses.fields(config)}
        assert bench["cases"].BASE[case.method].keys() | case.config.keys() <= fields, case.name
        for reward in case.config.get("reward", []):
            kind, _, name = reward[1:].partition(":")
            assert kind == "arithmetic" or callable(vars(bench["rewards"])[name]), case.name


def test_each_fault_expects_a_code_that_a_rule_has(bench):
    from ft_host import registry
    from ft_host.diagnostics.collect import all_rules, diagnostics_of

    codes, lacking = {}, []
    for name in METHODS:
        method = registry.find("method", name)
        diagnostics = diagnostics_of(method, registry.config_class(method)())
        plugins = registry.session(method, None, diagnostics)
        codes[name] = [rule.code for rule, _ in all_rules(plugins, [method, *diagnostics])]
    for case in bench["cases"].FAULTS:
        lacking += [
            f"{case.name}: {code}"
            for code in case.expected
            if not any(each.startswith(code) for each in codes[case.method])
        ]
    assert not lacking


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
