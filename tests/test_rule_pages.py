"""docs/rules/ holds a page for each rule, and each is current; docs/metrics.md describes what rules read."""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import re
from pathlib import Path

import pytest

from ft_host.diagnostics.order import LEVELS
from ft_host.testing.runs import make_run

ROOT = Path(__file__).resolve().parent.parent


def generator():
    spec = importlib.util.spec_from_file_location("generate_rules", ROOT / "docs" / "generate_rules.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rules():
    return generator()


def test_each_rule_has_its_page_and_the_pages_are_current(rules):
    texts = rules.generate()
    written = {file.name: file.read_text(encoding="utf-8") for file in rules.FOLDER.glob("*")}
    differing = sorted(name for name in written.keys() | texts.keys() if written.get(name) != texts.get(name))
    assert not differing, f"run: python docs/generate_rules.py; missing, stale or of no rule: {', '.join(differing)}"


def test_rules_of_a_family_share_a_page_that_names_each_and_explain_prints_the_whole(rules, capsys):
    from ft_host.cli import main

    texts = rules.generate()
    by_page: dict[str, list[str]] = {}
    for rule, _ in rules.owned():
        assert Path(rule.page).name in texts, rule.code
        by_page.setdefault(Path(rule.page).name, []).append(rule.code)
    assert {"BON003", "GRPO003", "ODPO003", "PPO103", "RLOO003", "SDPO103"} == set(by_page["rollouts-03.md"])
    text = texts["rollouts-03.md"]
    assert text.startswith("# Reward doesn't rise\n") and text.count("## Why") == 1
    assert "| PPO103 | ft-ppo | metrics `objective/scores`, `completions/reward_max` |" in text
    assert "RLOO003.md" not in texts and "GRPO003.md" not in texts
    assert main(["explain", "RLOO003"]) == 0
    said = capsys.readouterr().out
    assert (
        said.startswith("RLOO003: Reward doesn't rise\n")
        and "WHAT MUTES IT\nOPT013, DATA001, NUM001, NUM002, OPT002, OPT007" in said
    )


def test_what_a_rule_mutes_is_of_a_family_that_is_there(rules):
    every = rules.owned()
    families = {rule.code.rstrip("0123456789") for rule, _ in every}
    for rule, _ in every:
        for muted in rule.mutes:
            assert muted in ("ALL", *LEVELS) or muted.rstrip("0123456789") in families, (
                f"{rule.code} mutes {muted}, no such family"
            )


def described() -> list[str]:
    """The names in the first column of the tables of docs/metrics.md; some have a star."""
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    found = []
    for cell in re.findall(r"^\| ([^|]*`[^|]*) \|", text, re.MULTILINE):
        names = re.findall(r"`([^`]+)`", cell)
        family = names[0].rpartition("/")[0]  # "`a/b_mean`, `b_max`" is of one family
        found += [name if "/" in name or not family else f"{family}/{name}" for name in names]
    return found


def is_described(name: str, names: list[str]) -> bool:
    bare = name.removeprefix("start/").removeprefix("eval_")
    return any(
        each in names or any(fnmatch.fnmatchcase(each, pattern) for pattern in names if "start/" not in pattern)
        for each in (name, bare)
    )


def test_the_names_that_rules_read_are_described(rules):
    names = described()
    lacking = {name: rule.code for rule, _ in rules.owned() for name in rule.needs if not is_described(name, names)}
    assert not lacking, f"docs/metrics.md lacks {lacking}"


@pytest.mark.parametrize("rollouts", [False, True])
def test_the_names_in_a_run_are_described(tmp_path, rollouts):
    folder = make_run(tmp_path / "run", steps=4, eval_steps=2, rollouts=rollouts)
    names = described()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    lacking = sorted({name for line in lines for name in line if not is_described(name, names)})
    assert not lacking, f"docs/metrics.md lacks {', '.join(lacking)}"
