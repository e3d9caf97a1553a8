"""Checks about rows: each catches a method that is wrong in this way, and a right one passes."""

from __future__ import annotations

import pytest
from conformance.wrong import Wrong, assert_caught, failures

from ft_host.testing.conformance.checks import data

PREPARE = "    tokens = tokenize_row(row, tokenizer, config, completion_only=None, assistant_only=False)\n"
PAIR = "    return pair_row(row, tokenizer, config)\n"
WRONG = [
    Wrong(
        name="a format is named that isn't read",
        file="config.py",
        old='("language modeling", "prompt-completion")',
        new='("language modeling", "prompt-completion", "preference")',
        fails="data-formats",
        also=("data-conversations",),
    ),
    Wrong(
        name="messages are read as text",
        old=PREPARE,
        new='    if "messages" in row or isinstance(row.get("prompt"), list):\n'
        '        row = {"text": row["text"]}\n'
        f"{PREPARE}",
        fails="data-conversations",
        also=("data-wrong-type",),
    ),
    Wrong(
        name="a prompt is taken for granted",
        old=PREPARE,
        new=f'{PREPARE}    if "completion" in row:\n        tokens["first"] = row["prompt"][0]\n',
        fails="data-no-prompt",
        also=("data-empty", "data-wrong-type"),
    ),
    Wrong(
        name="the first word of a text is kept",
        old=PREPARE,
        new=f'{PREPARE}    if "text" in row:\n        tokens["first"] = row["text"].split()[0]\n',
        fails="data-empty",
        also=("data-wrong-type",),
    ),
    Wrong(
        name="the place where two completions part",
        kind="pairs",
        old=PAIR,
        new='    if all(isinstance(row.get(name), str) for name in ("chosen", "rejected")):\n'
        '        next(i for i, (c, r) in enumerate(zip(row["chosen"], row["rejected"])) if c != r)\n'
        f"{PAIR}",
        fails="data-identical",
        also=("data-empty",),
    ),
    Wrong(
        name="max_length is not heeded",
        old=PREPARE,
        new=f"    from dataclasses import replace\n\n    config = replace(config, max_length=None)\n{PREPARE}",
        fails="data-over-long",
    ),
    Wrong(
        name="a text is cut before it is looked at",
        old=PREPARE,
        new='    row = {name: value.removesuffix("\\n") for name, value in row.items() if name != "messages"} or row\n'
        "    row = {name: value for name, value in row.items()}\n"
        f"{PREPARE}",
        fails="data-wrong-type",
        also=("data-conversations",),
    ),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_it_is_caught(wrong, tmp_path):
    assert_caught(data.CHECKS, wrong, tmp_path)


@pytest.mark.parametrize("kind", ["offline", "pairs", "rollouts"])
def test_a_right_one_passes(kind, tmp_path):
    assert failures(data.CHECKS, None, kind, tmp_path) == []


def test_every_check_has_a_wrong_method():
    assert {check.id for check in data.CHECKS} == {wrong.fails for wrong in WRONG}
