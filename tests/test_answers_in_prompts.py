"""An answer at the end of its prompt: a leak behind a question, the task itself behind a sign or an instruction."""

from __future__ import annotations

import string

import pytest

from ft_host.monitor.rows.across import asks

LETTERS = [string.ascii_lowercase[at : at + 5] for at in range(20)]


def found(make):
    return [(make(number, text), text, None) for number, text in enumerate(LETTERS)]


@pytest.mark.parametrize("before", [">", "Write in capitals: "])
def test_material_that_is_to_be_said_in_another_way_is_no_leak(before):
    assert not asks(found(lambda number, text: f"{before if number % 2 else before[0]}{text}"))


def test_an_answer_behind_questions_that_differ_is_one():
    assert asks(found(lambda number, text: f"What has the number {number}? {text}"))
