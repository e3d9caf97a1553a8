"""docs/checks/ holds a page for each check, and each is current."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from ft_host.testing.conformance.checks import CHECKS

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("generate_checks", ROOT / "docs" / "generate_checks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_check_has_its_page_and_the_pages_are_current(pages):
    texts = pages.generate()
    written = {file.name: file.read_text(encoding="utf-8") for file in pages.FOLDER.glob("*")}
    differing = sorted(name for name in written.keys() | texts.keys() if written.get(name) != texts.get(name))
    assert not differing, f"run: python docs/generate_checks.py; missing, stale or of no check: {', '.join(differing)}"


def test_each_check_has_caught_a_package_that_is_wrong(pages):
    caught = pages.wrong()
    assert sorted(set(CHECKS) - set(caught)) == [], "no package of tests/conformance fails them"
    assert sorted(set(caught) - set(CHECKS)) == [], "tests/conformance names checks that there aren't"
