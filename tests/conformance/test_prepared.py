"""Checks about preparing rows: each catches a method that is wrong in this way, and a right one passes."""

from __future__ import annotations

import pytest
from conformance.wrong import Wrong, assert_caught, failures

from ft_host.testing.conformance.checks import prepared

HERE = [check for check in prepared.CHECKS if check.tier == "experimental"]
HEAD = (
    '@hookimpl\ndef ft_prepare(row, tokenizer, config):\n    """A raw row to tokens, or a reason to leave it out."""\n'
)
TOKENS = "    return tokens if"
COLLATED = (
    'flat_batch(segments, num_rows=len(rows), columns=columns, counts={"rows": len(rows), "tokens": sum(sizes)})\n'
)
WRONG = [
    Wrong(
        name="rows are numbered as they come",
        old=HEAD,
        new=f'SEEN = []\n\n\n{HEAD}    SEEN.append(row)\n    row = row | {{"text": f"{{len(SEEN)}} {{row}}"}}\n',
        fails="data-pure",
        also=("data-shown",),
    ),
    Wrong(
        name="a column is taken out of the raw row", old=HEAD, new=f'{HEAD}    row["kept"] = True\n', fails="data-pure"
    ),
    Wrong(
        name="a few words are left out at random",
        old=HEAD,
        new=f"{HEAD}    import random\n\n    random.random()\n",
        fails="data-pure",
    ),
    Wrong(
        name="rows hold a function",
        old=TOKENS,
        new=f'    tokens["weight"] = lambda: 1.0\n{TOKENS}',
        fails="data-picklable",
        also=("data-pure",),  # another function at each call
    ),
    Wrong(
        name="what is learnt isn't the next token",
        old=f"    return {COLLATED}",
        new=f"    batch = {COLLATED}    batch.targets = (batch.targets + 1) % 50\n    return batch\n",
        fails="data-shown",
    ),
    Wrong(
        name="a row depends on what another hook has set",
        old=HEAD,
        new="SET = {}\n\n\n@hookimpl\ndef ft_models(config):\n    SET.update(weight=2)\n    return {}\n\n\n"
        f'{HEAD}    if "text" in row:\n        row = {{"text": row["text"] * SET.get("weight", 1)}}\n',
        fails="data-workers",
    ),
]


@pytest.mark.parametrize(
    "wrong", [each for each in WRONG if each.fails != "data-workers"], ids=lambda wrong: wrong.name
)
def test_it_is_caught(wrong, tmp_path):
    assert_caught(HERE, wrong, tmp_path)


@pytest.mark.parametrize("kind", ["offline", "pairs", "rollouts"])
def test_a_right_one_passes(kind, tmp_path):
    assert failures(HERE, None, kind, tmp_path) == []


@pytest.mark.slow
def test_what_only_another_process_shows_is_caught(tmp_path):
    [wrong] = [each for each in WRONG if each.fails == "data-workers"]
    assert_caught(prepared.CHECKS, wrong, tmp_path)


@pytest.mark.slow
def test_a_right_one_prepares_the_same_rows_in_another_process(tmp_path):
    assert failures(prepared.CHECKS, None, "offline", tmp_path) == []


def test_every_check_has_a_wrong_method():
    assert {check.id for check in prepared.CHECKS} == {wrong.fails for wrong in WRONG}
