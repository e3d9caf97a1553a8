"""The maths of KTO against numbers worked out by hand, and who is paired with whom."""

from __future__ import annotations

import math
import random

import pytest
import torch
from ft_kto.balance import balance
from ft_kto.config import KTOConfig
from ft_kto.method import LOSSES, digest, ft_step, mismatched, other_completions, rotation

from ft_host.api import Run


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@pytest.mark.parametrize("kl", [0.0, 1.5])
def test_kto(kl):
    ratios, labels = torch.tensor([2.0, 2.0, -1.0, -1.0]), torch.tensor([True, False, True, False])
    found = LOSSES["kto"](ratios, labels, torch.tensor(kl), 0.1)
    away = [0.1 * (2 - kl), 0.1 * (-1 - kl)]
    expected = [1 - sigmoid(away[0]), 1 - sigmoid(-away[0]), 1 - sigmoid(away[1]), 1 - sigmoid(-away[1])]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    each = LOSSES["kto"](ratios, labels, torch.full((4,), kl), 0.1)
    assert torch.equal(found, each)


def test_apo_zero_unpaired():
    ratios, labels = torch.tensor([2.0, 2.0, -1.0, -1.0]), torch.tensor([True, False, True, False])
    found = LOSSES["apo_zero_unpaired"](ratios, labels, torch.tensor(7.0), 0.5)
    expected = [1 - sigmoid(1), sigmoid(1), 1 - sigmoid(-0.5), sigmoid(-0.5)]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_fall_where_they_should(name):
    """Up for good completions, down for bad ones, and the KL moves neither."""
    ratios = torch.tensor([0.3, 0.3], requires_grad=True)
    kl = torch.tensor(0.2)
    LOSSES[name](ratios, torch.tensor([True, False]), kl, 0.1).sum().backward()
    good, bad = ratios.grad.tolist()
    assert good < 0 < bad


# ---------------------------------------------------------------- pairs


def rows_of(noise: random.Random, prompts: int, most: int) -> list[dict]:
    rows = [
        {"prompt_ids": [prompt, 1], "completion_ids": [prompt, 100 + at], "label": True}
        for prompt in range(prompts)
        for at in range(noise.randint(1, most))
    ]
    noise.shuffle(rows)
    return rows


def names(rows: list[dict]) -> list[tuple[bytes, bytes]]:
    return [(digest(row["prompt_ids"]), digest(row["completion_ids"])) for row in rows]


@pytest.mark.parametrize("seed", range(200))
def test_rotation(seed):
    """Random groups of rows with equal prompts: each completion once, an own one only where it can't be avoided, and
    the same pairs in whatever order the rows come."""
    noise = random.Random(seed)
    rows = rows_of(noise, noise.randint(1, 9), noise.choice([1, 2, 5, 12]))
    if len(rows) < 2:
        rows += [rows[0] | {"completion_ids": [9, 9]}]
    found = rotation(names(rows))
    assert sorted(found) == list(range(len(rows)))
    assert all(index != other for index, other in enumerate(found))
    own = sum(rows[index]["prompt_ids"] == rows[other]["prompt_ids"] for index, other in enumerate(found))
    largest = max(sum(each["prompt_ids"] == row["prompt_ids"] for each in rows) for row in rows)
    assert own == max(0, 2 * largest - len(rows))

    def pairs(rows, found):
        return {(*row["prompt_ids"], *rows[other]["completion_ids"]) for row, other in zip(rows, found, strict=True)}

    again = noise.sample(rows, len(rows))
    assert pairs(again, rotation(names(again))) == pairs(rows, found)


def test_one_prompt_turns_by_one():
    rows = [{"prompt_ids": [1], "completion_ids": [at]} for at in range(5)]
    assert all(index != other for index, other in enumerate(rotation(names(rows))))


class Ranks:
    """What `other_completions` asks of a run: `gather` over ranks that hold these rows."""

    def __init__(self, config, ranks, rank):
        self.config, self.rank, self.ranks = config, rank, ranks

    def gather(self, mine):
        gathered = [[(*name, row["completion_ids"]) for name, row in zip(names(rows), rows)] for rows in self.ranks]
        assert gathered[self.rank] == mine
        return gathered

    over_ranks = Run.over_ranks


def test_pairs_are_made_over_ranks():
    rows = rows_of(random.Random(3), 6, 2)
    config = KTOConfig()
    whole = other_completions(rows, Ranks(config, [rows], 0))
    shares = [rows[:2], [], rows[2:]]
    split = [other_completions(share, Ranks(config, shares, rank)) for rank, share in enumerate(shares)]
    assert sum(split, []) == whole
    assert all(other[0] != row["prompt_ids"][0] for row, other in zip(rows, whole, strict=True))


def test_a_step_of_one_row_has_no_pair():
    rows = [{"prompt_ids": [1], "completion_ids": [2]}]
    assert other_completions(rows, Ranks(KTOConfig(), [rows], 0)) == [None]


def test_micro_batches_turn_by_one():
    config = KTOConfig(kl_scope="micro_batch", per_device_train_batch_size=3)
    rows = [{"prompt_ids": [1], "completion_ids": [at]} for at in range(7)]
    assert other_completions(rows, Ranks(config, [rows], 0)) == [[2], [0], [1], [5], [3], [4], None]


@pytest.mark.parametrize("scope", ["step", "micro_batch"])
def test_the_uncut_completion_is_paired(scope):
    """A prompt of its own has cut it: beside another prompt more of it may fit."""
    config = KTOConfig(kl_scope=scope, per_device_train_batch_size=2)
    rows = [
        {"prompt_ids": [1, 2, 3], "completion_ids": [4], "uncut_ids": [4, 5, 6], "label": True},
        {"prompt_ids": [7], "completion_ids": [8, 9], "label": False},
    ]

    class Alone(Ranks):
        def gather(self, mine):
            return [mine]

    first, second = other_completions(rows, Alone(config, [rows], 0))
    assert (first, second) == ([8, 9], [4, 5, 6])
    assert mismatched(rows[1], second, 4)["completion_ids"] == [4, 5, 6], "where its own prompt left room for one token"
    assert mismatched(rows[0], first, 4)["completion_ids"] == [8]


def test_mismatched_pairs_keep_within_max_length():
    row = {"prompt_ids": [1, 2, 3], "completion_ids": [4], "label": False}
    assert mismatched(row, [5, 6, 7], 5) == {
        "prompt_ids": [1, 2, 3],
        "completion_ids": [5, 6],
        "label": False,
        "length": 5,
    }
    assert mismatched(row, [5, 6, 7], None)["completion_ids"] == [5, 6, 7]


class OtherRank:
    """What `ft_step` asks of a run in evaluation: a second rank has these (sum, count) of its micro-batches."""

    def __init__(self, config, apart):
        self.config, self.apart, self.model = config, apart, torch.nn.Identity().eval()

    def gather(self, mine):
        return [mine, self.apart]


@pytest.mark.parametrize(
    ("scope", "apart", "expected"),
    [
        # Three rows here with log-ratios 1, 2 and 6, in micro-batches of two.
        ("step", [(-1.0, 2)], [8 / 5] * 3),  # (1 + 2 + 6 - 1) / (3 + 2)
        ("step", [(-30.0, 2)], [0.0] * 3),
        ("micro_batch", [(3.0, 2), (-1.0, 1)], [6 / 4, 6 / 4, 5 / 2]),
        ("micro_batch", [(3.0, 2)], [6 / 4, 6 / 4, 6.0]),  # it has one micro-batch less
        ("micro_batch", [(-9.0, 2), (4.0, 1), (7.0, 1)], [0.0, 0.0, 5.0]),
    ],
)
def test_the_kl_is_a_mean_over_ranks(monkeypatch, scope, apart, expected):
    def asked(rows, run, values):
        return [row | {"logps": -5.0} for row in rows]

    monkeypatch.setattr("ft_kto.method.policy_values", asked)
    config = KTOConfig(kl_scope=scope, per_device_train_batch_size=2)
    rows = [{"label": True, "mismatched": {"ref_logps": -5.0 - ratio}} for ratio in (1, 2, 6)]
    assert [row["kl"] for row in ft_step(rows, OtherRank(config, apart))] == pytest.approx(expected)


def test_rows_without_a_pair_have_no_kl(monkeypatch):
    monkeypatch.setattr("ft_kto.method.policy_values", lambda rows, run, values: rows)
    assert ft_step([{"label": True}], OtherRank(KTOConfig(), [(0.0, 0)])) == [{"label": True, "kl": 0.0}]
    assert ft_step([], OtherRank(KTOConfig(), [(0.0, 0)])) == []


# ---------------------------------------------------------------- weights


def test_too_few_labels_say_nothing():
    assert balance(63, 0, KTOConfig()) is None
    assert balance(10, 53, KTOConfig()) is None


@pytest.mark.parametrize("counts", [(64, 0), (0, 64)])
def test_labels_of_one_kind_only(counts):
    said = balance(*counts, KTOConfig(desirable_weight=5.0))
    assert said.startswith("all of the first 64 completions are " + ("desirable" if counts[0] else "undesirable"))


def test_balanced_weights_say_nothing():
    assert balance(500, 500, KTOConfig()) is None
    assert balance(480, 520, KTOConfig()) is None  # might be chance
    assert balance(1000, 3000, KTOConfig(desirable_weight=3.5)) is None
    assert balance(28, 36, KTOConfig()) is None


def test_unbalanced_weights_name_both_remedies():
    """100 good, 900 bad: a weight of 9 to 12 for the good ones, or of 1/12 to 1/9 for the bad ones."""
    said = balance(100, 900, KTOConfig())
    assert "desirable_weight between 9 and 12, or undesirable_weight between 0.0833 and 0.111, not both" in said
    for changed in ({"desirable_weight": 10.5}, {"undesirable_weight": 0.1}):
        assert balance(100, 900, KTOConfig(**changed)) is None
    said = balance(800, 200, KTOConfig(desirable_weight=0.5))
    assert "weighed, 2.00 to 1" in said
    assert "desirable_weight between 0.25 and 0.333, or undesirable_weight between 1.5 and 2, not both" in said
