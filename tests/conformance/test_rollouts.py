"""Checks about rollouts: each catches a method that is wrong in this way, and a right one passes."""

from __future__ import annotations

import pytest
from conformance.wrong import Wrong, assert_caught, failures

from ft_host.testing.conformance.checks.rollouts import CHECKS

HEAD = "@hookimpl\ndef ft_rollout("
FOUND = '{"advantage": found[i]}'
WRONG = [
    Wrong(
        name="noise that no seed makes",
        kind="rollouts",
        old=FOUND,
        new='{"advantage": found[i] + os.urandom(1)[0] / 255}',
        more=((HEAD, f"import os\n\n\n{HEAD}"),),
        fails="rollouts-seed",
        also=("rollouts-overlap", "rollouts-groups"),
    ),
    Wrong(
        name="a tuple in a row",
        kind="rollouts",
        old=FOUND,
        new='{"advantage": found[i], "place": (i // size, i % size)}',
        fails="rollouts-rows",
    ),
    Wrong(
        name="rows that don't say what they share",
        kind="rollouts",
        old=FOUND,
        new='{"advantage": found[i], "shared": None}',
        fails="rollouts-rows",
    ),
    Wrong(
        name="a loss that compares the rows of its micro-batch",
        kind="rollouts",
        old='weights = batch.columns["advantage"][batch.rows]',
        new='weights = (batch.columns["advantage"] - batch.columns["advantage"].max())[batch.rows]',
        fails="rollouts-groups",
    ),
    Wrong(
        name="nothing said of whole groups",
        kind="rollouts",
        file="config.py",
        old="whole_groups: ClassVar[bool | None] = False",
        new="whole_groups: ClassVar[bool | None] = None",
        fails="rollouts-groups",
    ),
    Wrong(
        name="log-probs at temperature 1",
        kind="rollouts",
        old=", temperature=run.config.temperature)",
        new=")",
        fails="rollouts-logprobs",
    ),
    Wrong(
        name="what the last run has left in the module",
        kind="rollouts",
        old=FOUND,
        new='{"advantage": found[i] * len(LOSSES)}',
        more=(
            (HEAD, f"LOSSES = [1]\n\n\n{HEAD}"),
            ("    weights = batch", "    LOSSES.append(1)\n    weights = batch"),
        ),
        fails="rollouts-overlap",
    ),
    Wrong(
        name="a mean over the other prompts",
        kind="rollouts",
        old=FOUND,
        new='{"advantage": found[i] / (len(rows) - 1)}',
        fails="rollouts-ahead",
    ),
    Wrong(
        name="what the loss leaves in the module",
        kind="rollouts",
        old=FOUND,
        new='{"advantage": found[i] * (1 + STEP.get("now", 0))}',
        more=(
            (HEAD, f"STEP = {{}}\n\n\n{HEAD}"),
            ("    weights = batch", '    STEP["now"] = run.step + 1\n    weights = batch'),
        ),
        fails="rollouts-apart",
    ),
]
BY_ID = {check.id: check for check in CHECKS}
QUICK = [check for check in CHECKS if check.tier == "experimental"]
IN_PROCESS = [wrong for wrong in WRONG if BY_ID[wrong.fails] in QUICK]
LONGER = [wrong for wrong in WRONG if wrong not in IN_PROCESS]


@pytest.mark.parametrize("wrong", IN_PROCESS, ids=lambda wrong: wrong.name)
def test_it_is_caught(wrong, tmp_path):
    assert_caught([BY_ID[wrong.fails]], wrong, tmp_path)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("wrong", IN_PROCESS, ids=lambda wrong: wrong.name)
def test_no_other_check_is_told_of_it(wrong, tmp_path):
    assert_caught(QUICK, wrong, tmp_path)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("wrong", LONGER, ids=lambda wrong: wrong.name)
def test_it_is_caught_by_longer_checks(wrong, tmp_path):
    assert_caught([BY_ID[wrong.fails]], wrong, tmp_path)


def test_a_right_one_passes(tmp_path):
    assert failures(QUICK, None, "rollouts", tmp_path) == []


@pytest.mark.slow
@pytest.mark.nightly
def test_a_right_one_passes_the_longer_ones(tmp_path):
    assert failures([check for check in CHECKS if check not in QUICK], None, "rollouts", tmp_path) == []


def test_every_check_has_a_wrong_method():
    assert set(BY_ID) == {wrong.fails for wrong in WRONG}
