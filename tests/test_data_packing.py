"""Blocks: those of TRL's `pack_dataset`, window by window."""

import random

import pytest

from ft_host.data.packing import best_fit_decreasing, pack
from ft_host.errors import ConfigError


def make_rows(count, longest, seed=0):
    """Rows whose tokens tell which row and position they are."""
    noise = random.Random(seed)
    rows = []
    for number in range(count):
        size = noise.randint(0, longest)
        ids = [number * 1000 + at for at in range(size)]
        labels = [token if at % 3 else -100 for at, token in enumerate(ids)]
        rows.append({"input_ids": ids, "labels": labels, "length": size, "truncated": False})
    return rows


def flat(blocks, column):
    return [[value for row in block for value in row[column]] for block in blocks]


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
@pytest.mark.parametrize("size, longest", [(16, 16), (16, 60), (7, 5), (64, 40), (33, 33)])
def test_the_same_blocks_as_trl(strategy, size, longest):
    from datasets import Dataset
    from trl import pack_dataset

    rows = make_rows(2300, longest, seed=size)  # TRL packs batches of 1000 rows, without carrying over
    table = Dataset.from_list([{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows])
    theirs = pack_dataset(table, size, strategy)
    ours = []
    for start in range(0, len(rows), 1000):
        window = rows[start : start + 1000]
        if strategy == "bfd":  # the host packs rows that are cut already
            window = [
                {
                    "input_ids": row["input_ids"][:size],
                    "labels": row["labels"][:size],
                    "length": min(row["length"], size),
                }
                for row in window
            ]
        ours += pack(window, size, strategy)
    assert flat(ours, "input_ids") == theirs["input_ids"]
    assert flat(ours, "labels") == theirs["labels"]
    if strategy != "wrapped":
        assert [[row["length"] for row in block] for block in ours] == theirs["seq_lengths"]


def test_best_fit_by_hand():
    # 5 opens a block (room 1), 4 opens another (room 2), 2 fits best in the room of 2, 1 in the room of 1, 3 opens.
    assert best_fit_decreasing([1, 3, 5, 4, 2], 6) == [[2, 0], [3, 4], [1]]
    assert best_fit_decreasing([0, 9, 0, 6], 6) == [[1], [3]]
    assert best_fit_decreasing([], 6) == []


def test_wrapped_makes_one_row_of_a_block():
    blocks = pack(make_rows(20, 9), 16, "wrapped")
    assert all(len(block) == 1 for block in blocks)
    assert [block[0]["length"] for block in blocks[:-1]] == [16] * (len(blocks) - 1)


def test_only_tokens_and_labels_can_be_cut():
    rows = [{"chosen_ids": [1, 2], "rejected_ids": [3], "length": 3}]
    assert pack(rows, 4, "bfd") == [[rows[0]]]
    for strategy in ("bfd_split", "wrapped"):
        with pytest.raises(ConfigError, match="chosen_ids, rejected_ids.*Use bfd"):
            pack(rows, 4, strategy)
