"""Checks about the fields of a config: each catches a package that is wrong in this way, and a right one passes."""

from __future__ import annotations

import pytest
from conformance.wrong import Wrong, assert_caught, failures

from ft_host.testing.conformance.checks import fields

CONFIG, README = {"file": "config.py"}, {"file": "README.md"}
FIELDS_END = "        le=1,\n    )\n"
WRONG = [
    Wrong(
        **CONFIG, name="a default beyond its bound", old="        1.0,\n", new="        1.5,\n", fails="fields-declared"
    ),
    Wrong(
        **CONFIG,
        name="a field of the host of another type",
        old="    length_power",
        new='    model: int = option(1, "Which model.")\n    length_power',
        fails="fields-declared",
        also=("fields-of-readme",),
    ),
    Wrong(
        **CONFIG,
        name="a field without a text",
        old="    length_power",
        new="    other: int = 1\n    length_power",
        fails="fields-declared",
        also=("fields-of-readme",),
    ),
    Wrong(
        **CONFIG,
        name="a check that calls no other",
        old=FIELDS_END,
        new=f"{FIELDS_END}\n    def check(self):\n        pass\n",
        fails="fields-refused",
    ),
    Wrong(
        **CONFIG,
        kind="rollouts",
        name="a check that leaves out the one of rollouts",
        old="        super().check()\n",
        new="        from ft_host.api import RunConfig\n\n        RunConfig.check(self)\n",
        fails="fields-refused",
    ),
    Wrong(
        **README,
        name="a flag that isn't there",
        old="--dataset rows.jsonl",
        new="--data-file rows.jsonl",
        fails="fields-of-readme",
    ),
    Wrong(
        **README,
        name="a value that doesn't fit",
        old="--max-steps 100",
        new="--max-steps few",
        fails="fields-of-readme",
    ),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_it_is_caught(wrong, tmp_path):
    assert_caught(fields.CHECKS, wrong, tmp_path)


@pytest.mark.parametrize("kind", ["offline", "pairs", "rollouts", "backend", "diagnostics"])
def test_a_right_one_passes(kind, tmp_path):
    assert failures(fields.CHECKS, None, kind, tmp_path) == []


def test_every_check_has_a_wrong_package():
    assert {check.id for check in fields.CHECKS} == {wrong.fails for wrong in WRONG}
