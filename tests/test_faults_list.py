"""The benchmark of faults: its list is well formed, its table counts as it says, and cases run through its harness."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import re
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
    with modules((*LISTED, "cure", "one", "score")) as found:
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
    letters, lookup, gsm8k, dates = (families[name] for name in ("transduction", "lookup", "gsm8k", "dates"))
    assert letters.row_of("<", "bca") == {"prompt": "<bca\n", "completion": "ACB", "answer": "ACB"}
    assert letters.row_of(">", "bca")["completion"] == "BCA"
    train, test = letters.make_rows(0)
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
    looked_up = [lookup.row_of(rng) for _ in range(50)]
    for row in looked_up:
        text, _, asked = row["prompt"].partition(": ")
        assert len(set(text)) == len(text) and row["completion"].lower() == text[text.index(asked) :]
    solution = {"prompt": "", "completion": "2+3 = <<2+3=5>>5 in all.\n#### 5", "answer": "5"}
    days = [dates.row_of(rng) for _ in range(50)]
    for row in days:
        year, month, day = row["completion"].split("-")
        assert {year, str(int(day))} <= set(re.findall(r"\d+", row["prompt"]))
        assert dates.MONTHS[int(month) - 1] in row["prompt"]
    tasks = [(letters, test), (lookup, looked_up), (dates, days)]
    for row, wrong in [(row, task.wrong) for task, rows in tasks for row in rows]:
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
    assert [family.missing() for family in families.values()] == [None] * len(families)


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


def run_of(
    case: str,
    *findings: tuple,
    kind: str = "run",
    last: float | None = None,
    first: float = 0.0,
    metric: tuple[str, str] = ("eval_reward", "higher"),
) -> dict:
    """A line of the file: each finding with code, severity, step and patches."""
    told = [
        {"code": code, "severity": severity, "opened": step, "message": "…", "patches": list(patches), "state": "open"}
        for code, severity, step, *patches in findings
    ]
    figure = {} if last is None else {"metric": metric[0], "way": metric[1], "first": first, "last": last}
    return {
        "kind": kind, "case": case, "seed": 0, "fields": {}, "findings": told, "steps": 100, "planned": 100,
        "held_out": figure, "error": None,
    }  # fmt: skip


def by_key(*runs: dict) -> dict:
    return {(run["kind"], run["case"], run["seed"]): run for run in runs}


def test_a_fault_is_named_by_its_code_in_time_or_by_a_first_patch_of_its_field(bench):
    score, case = bench["score"], bench["case"].Case
    fault = case(
        name="f", family="lookup", method="grpo", what="", cause=("GRPO001",), partly=("DATA010",),
        beside=("GRPO003",), at_fault=("temperature",), visible=10,
    )  # fmt: skip

    def told(*findings: tuple) -> tuple[bool, bool, int]:
        run = run_of("lookup/f", *findings)
        return score.named(fault, run), score.partly(fault, run), len(score.misleading(fault, run))

    assert told(("GRPO001", "warning", 40)) == (True, False, 0)
    assert told(("GRPO001", "warning", 61)) == (False, True, 0), "too late"
    assert told(("GRPO001", "warning", 3)) == (False, False, 1), "before the fault was there"
    assert told(("GRPO001", "info", 40)) == (False, True, 0), "a note"
    assert told(("GRPO005", "warning", 40, {"temperature": 1.0})) == (True, False, 0)
    assert told(("GRPO005", "warning", 40, {"learning_rate": 1.0}, {"temperature": 1.0})) == (False, True, 1)
    assert told(("DATA010", "warning", 10)) == (False, True, 0)
    assert told(("GRPO003", "warning", 40)) == (False, False, 0), "a consequence without a remedy"
    assert told(("GRPO003", "warning", 40, {"learning_rate": 1.0})) == (False, False, 1), "it sends elsewhere"
    healthy = case(name="h", family="lookup", method="grpo", what="")
    assert len(score.misleading(healthy, run_of("lookup/h", ("OPT006", "warning", 7), ("OPT008", "info", 7)))) == 1


def test_a_cure_wins_back_half_of_what_the_fault_cost(bench):
    cure = bench["cure"]
    healthy = run_of("lookup/f", kind="reference", first=0.4, last=0.8)
    bad = run_of("lookup/f", ("GRPO001", "warning", 9), last=0.3)

    def judged(last: float | None, run: dict = bad, *findings: tuple) -> tuple[bool, bool]:
        made = run_of("lookup/f", *findings, kind="cure", last=last)
        return cure.cured(run, healthy, made), cure.worse(run, healthy, made)

    assert judged(0.8) == (True, False) and judged(0.56) == (True, False)
    assert judged(0.5) == (False, False) and judged(0.2) == (False, True)
    assert judged(None) == (False, False), "it was refused: the weights are those of the start"
    assert judged(float("nan"), run_of("lookup/f", last=0.6)) == (False, True)
    free = run_of("lookup/f", ("PERF009", "warning", 9), last=0.79)  # a fault that costs time alone
    assert judged(0.79, free) == (True, False)
    assert judged(0.79, free, ("PERF009", "warning", 9)) == (False, False)
    flattered = run_of("lookup/f", ("PRB001", "warning", 1), last=1.0)  # its figure means something else
    assert judged(0.8, flattered) == (True, False) and judged(0.7, flattered) == (False, True)


def test_of_a_loss_what_would_have_been_learnt_is_to_be_won_back(bench):
    cure, loss = bench["cure"], ("eval_loss", "lower")
    healthy = run_of("lookup/f", kind="reference", first=4.0, last=2.0, metric=loss)
    thrown = run_of("lookup/f", ("OPT007", "warning", 9), first=4.0, last=90.0, metric=loss)
    cures = [run_of("lookup/f", kind="cure", first=4.0, last=last, metric=loss) for last in (2.5, 5.0)]
    shares = [cure.won_back(thrown, healthy, each) for each in cures]
    assert shares == [0.75, -0.5], "90 to 5 is nothing learnt"


def test_only_faulty_runs_that_a_field_can_mend_are_cured_and_flown(bench):
    cure, cases = bench["cure"], bench["cases"].CASES
    runs = [
        run_of("lookup/grpo-cold", ("GRPO012", "warning", 5, {"temperature": 1.0}), ("OPT001", "error", 9)),
        run_of("lookup/grpo-too-hard", ("GRPO001", "warning", 5)),
        run_of("lookup/healthy-sft", ("OPT006", "warning", 7, {"learning_rate": 1.0})),
        run_of("lookup/sft-nan-layer", ("NUM001", "error", 5, {"learning_rate": 1.0})),
    ]
    names = [run["case"] for run in runs]
    assert cases["lookup/sft-nan-layer"].at_fault == ("code",)
    assert cure.jobs(runs, names, [0], True, False) == [], "of the first, the gravest has no patch"
    del runs[0]["findings"][1]
    wanted = [("reference", "lookup/grpo-cold", 0, {}), ("cure", "lookup/grpo-cold", 0, {"temperature": 1.0})]
    assert cure.jobs(runs, names, [0], True, False) == wanted
    assert ("autopilot", "lookup/grpo-cold", 0, {}) in cure.jobs(runs, names, [0], False, True)
    given = ["lookup/distill-untrained-teacher", "lookup/sft-other-tokenizer", "lookup/dpo-swapped"]
    assert not any(cure.for_autopilot(cases[each]) for each in given), "those are the user's"
    assert cure.for_autopilot(cases["lookup/sft-dead-experts"]), "a field mends it, too"


def test_the_table_counts_by_family(bench):
    runs = by_key(
        run_of("lookup/grpo-cold", ("CFG010", "warning", 0, {"temperature": 1.0}), last=0.1),
        run_of("lookup/grpo-cold", kind="reference", last=0.9),
        run_of("lookup/grpo-cold", kind="cure", last=0.9),
        run_of("lookup/healthy-sft", ("OPT006", "warning", 70)),
        run_of("arithmetic/healthy-sft"),
        run_of("lookup/healthy-grpo", ("GRPO003", "warning", 50), first=0.4, last=0.3),
    )
    rows = {line.split(" | ")[0]: line for line in bench["score"].table(runs) if line.startswith("|")}
    assert rows["|"] == "| | arithmetic (tuned on) | lookup (held out) | all |"
    assert rows["| **named**"] == "| **named** | – | 1 of 1 (100.0 %) | 1 of 1 (100.0 %) |"
    assert "| 0 of 1 (0.0 %) | 1 of 1 (100.0 %) | 1 of 2 (50.0 %) |" in rows["| **healthy runs with a warning**"]
    assert "| – | 1 of 1 (100.0 %) |" in rows["| runs made to be healthy that learnt nothing, with a warning"]
    assert "| – | 1 of 1 (100.0 %) |" in rows["| **first patches that cure**"]


@pytest.mark.parametrize("name", ["arithmetic", "dates", "lookup", "transduction"])
def test_a_family_is_made(bench, tmp_path, name):
    """All models and rows that its cases name are there."""
    family = bench["families"].FAMILIES[name]
    folder = bench["one"].seed_folder(tmp_path, name, 0)
    family.make(folder, 0, quick=True)
    used = str([family.BASE, [case.config for case in bench["cases"].CASES.values() if case.family == name]])
    models, rows = (set(re.findall(rf"@{kind}/(\w+)", used)) for kind in ("model", "data"))
    assert models <= {each.name for each in (folder / "model").iterdir()}
    assert rows <= {each.stem for each in (folder / "data").iterdir()}


def test_cases_run_through_the_harness(bench, tmp_path):
    """One that is refused before there is a folder, and one that is broken by a patch."""
    one, family = bench["one"], bench["families"].FAMILIES["transduction"]
    family.make(one.seed_folder(tmp_path, "transduction", 0), 0, quick=True)
    quick = {"max_steps": 6, "eval_steps": None, "warmup_steps": 1}
    made = one.run_case("transduction/sft-nan-layer", tmp_path, 0, fields=quick | {"eval_on_start": False})
    assert made["error"] is None and made["steps"] == 6 and made["held_out"]["metric"] == "eval_loss"
    refused = one.run_case("transduction/sft-all-masked", tmp_path, 0, fields=quick)
    assert refused["steps"] == 0 and "no supervised token" in refused["error"]
    with bench["broken_parts"].nan_layer(after=2):
        stopped = one.run_case("transduction/healthy-sft", tmp_path, 0, fields=quick)
    assert stopped["steps"] == 2 and "NUM001" in {each["code"] for each in stopped["findings"]}
    assert {each["opened"] for each in stopped["findings"] if each["code"] == "NUM001"} == {2}
    reference = one.without_fault(bench["cases"].CASES["lookup/grpo-cold"])
    assert "temperature" not in reference.config and reference.patch is None and reference.train is None
