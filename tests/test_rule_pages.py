"""docs/rules/ holds a page for each rule, and each is current; docs/metrics.md describes what rules read."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

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


def test_what_a_rule_mutes_is_of_a_family_that_is_there(rules):
    every = rules.owned()
    families = {rule.code.rstrip("0123456789") for rule, _ in every}
    for rule, _ in every:
        for muted in rule.mutes:
            assert muted == "ALL" or muted.rstrip("0123456789") in families, f"{rule.code} mutes {muted}, no such family"
