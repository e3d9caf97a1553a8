"""Who sees whom in a flat batch, told by numbers a token and by blocks, against the table of all tokens by all."""

from __future__ import annotations

import random

import pytest
import torch

from ft_host.models.flex import LEAST, block_mask
from ft_host.models.layout import Intervals, Layout, blocks, intervals, table

CPU = torch.device("cpu")
FORESTS = {
    "one row": ([37], [-1]),
    "rows": ([5, 16, 16, 1, 27], [-1] * 5),
    "a prompt that rows share": ([20, 3, 9, 40], [-1, 0, 0, 0]),
    "children that come after another row": ([7, 6, 30, 5, 9], [-1, 0, -1, 0, 3]),
    "a chain": ([4, 4, 4, 4, 4, 12], [-1, 0, 1, 2, 3, 4]),
    "whole blocks": ([16, 32, 16], [-1, 0, 0]),
}
WINDOWS = (None, 1, 3, 8, 20, 1000)


def all_pairs(lengths: list[int], parents: list[int], window: int | None) -> torch.Tensor:
    """(T, T): whether a query, by row, sees a key, token by token from the definition."""
    ancestors: list[set[int]] = []
    before = []
    for index, parent in enumerate(parents):
        ancestors.append({index} | (ancestors[parent] if parent >= 0 else set()))
        before.append(before[parent] + lengths[parent] if parent >= 0 else 0)
    tokens = [(index, before[index] + at) for index, length in enumerate(lengths) for at in range(length)]
    seen = [
        [
            other in ancestors[own] and 0 <= here - there and (window is None or here - there < window)
            for other, there in tokens
        ]
        for own, here in tokens
    ]
    return torch.tensor(seen)


def by_intervals(tokens: Intervals, window: int | None) -> torch.Tensor:
    order, leave, position = tokens.order, tokens.leave, tokens.position
    seen = (order[None] <= order[:, None]) & (order[:, None] < leave[None])
    return seen if window is None else seen & (position[:, None] - position[None] < window)


def by_blocks(pairs: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    count = -(-len(pairs) // size)
    whole = torch.zeros(count * size, count * size, dtype=torch.bool)
    whole[: len(pairs), : len(pairs)] = pairs
    tiles = whole.view(count, size, count, size)
    every = tiles.all(3).all(1)
    return tiles.any(3).any(1) & ~every, every


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("forest", FORESTS)
def test_intervals_and_blocks_are_those_of_all_pairs(forest, window):
    lengths, parents = FORESTS[forest]
    pairs = all_pairs(lengths, parents, window)
    assert torch.equal(by_intervals(intervals(lengths, parents), window), pairs)
    partly, wholly = blocks(lengths, parents, window, 8)
    expected = by_blocks(pairs, 8)
    assert torch.equal(partly, expected[0]) and torch.equal(wholly, expected[1])


def test_random_forests():
    draw = random.Random(0)
    for _ in range(60):
        lengths = [draw.choice([1, 2, 5, 8, 16, 30]) for _ in range(draw.randint(1, 8))]
        parents = [draw.choice([-1, *range(index)]) for index in range(len(lengths))]
        window, size = draw.choice(WINDOWS), draw.choice([4, 8, 16])
        pairs = all_pairs(lengths, parents, window)
        assert torch.equal(by_intervals(intervals(lengths, parents), window), pairs), (lengths, parents, window)
        found, expected = blocks(lengths, parents, window, size), by_blocks(pairs, size)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1]), (lengths, parents, window)


def test_a_table_lists_the_columns_of_each_row():
    counts, listed = table(torch.tensor([[False, True, False, True], [False] * 4, [True] * 4]))
    assert counts.tolist() == [2, 0, 4] and counts.dtype == listed.dtype == torch.int32
    assert listed.tolist() == [[1, 3, 0, 0], [0, 0, 0, 0], [0, 1, 2, 3]]


@pytest.mark.parametrize("total", [1, 90, 256, 257, 700])
def test_there_are_always_two_blocks(total):
    """torch makes other kernels for one block, and for decoding, which many models' heads don't fit."""
    mask = block_mask(Layout([total], [-1], CPU, "flex"), None)
    assert mask.seq_lengths == (max(total, LEAST),) * 2 and mask.kv_num_blocks.shape[-1] >= 2


@pytest.mark.parametrize(
    ("tokens", "rows", "most"), [(8 << 10, 4, 0.25), (32 << 10, 16, 1.6), (128 << 10, 64, 18.1)], ids=str
)
def test_the_bytes_of_a_mask_are_of_blocks_and_tokens(tokens, rows, most):
    """MiB in tensors that are made for it: 16 bytes a pair of blocks, 16 a token and a few a block. All pairs of tokens
    would take 64 MiB, 1 GiB and 16 GiB as bools alone."""
    layout = Layout([tokens // rows] * rows, [-1] * rows, CPU, "flex")
    mask = block_mask(layout, 4096)
    tables = [each for each in mask.as_tuple() if isinstance(each, torch.Tensor)]
    captured = [cell.cell_contents for cell in mask.mask_mod.__closure__]
    assert all(each.numel() == tokens for each in captured) and len(captured) == 4
    taken = sum(each.numel() * each.element_size() for each in [*tables, *captured])
    count = tokens // 128
    assert taken == 16 * count**2 + 16 * count + 16 * tokens
    assert taken <= most * 2**20


def test_a_mask_is_made_once_for_a_window():
    layout = Layout([300, 20], [-1, 0], CPU, "flex")
    assert block_mask(layout, 8) is block_mask(layout, 8) is not block_mask(layout, None)
