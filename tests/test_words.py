"""What rules say follows from what they have seen: messages and remedies of every rule, over made-up evidence."""

from __future__ import annotations

import evidence_grid as grid
import pytest

RULES = list(grid.every_rule())


@pytest.mark.parametrize("method, rule", RULES, ids=lambda each: getattr(each, "code", each))
def test_the_grid_reaches_every_rule_and_it_has_words_for_what_it_finds(method, rule):
    found = grid.hits(method, rule)
    assert found, f"no case of the grid makes {rule.code} True: give it a hint in tests/evidence_grid.py"
    for case in found:
        assert rule.message(case.view).strip()
        assert all(remedy.why.strip() for remedy in rule.remedies(case.view))
