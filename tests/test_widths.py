"""Short and long completions in buffers of their own: the same tokens and log-probs, and where rows are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ft_host.generation import widths
from ft_host.scheduling.ledger import Ledger
from ft_host.scheduling.unit import READY, Unit
from ft_host.testing import models
from ft_host.testing.generation import generating_run
from ft_host.types import Request, Sampling


def ask(split: int | None, monkeypatch, sampling: Sampling, name: str = "qwen"):
    """Twelve completions, five at a time, of 1 to 60 tokens."""
    monkeypatch.setitem(widths.SPLIT, "cpu", split)
    model = models.FAMILIES[name](tie_word_embeddings=False)
    model.generation_config.eos_token_id = list(range(20, 30))
    run = generating_run(model, decode_batch_size=5)
    rng = np.random.default_rng(0)
    requests = [
        Request(
            prompt_ids=rng.integers(40, 250, 2 + 3 * number % 17).tolist(),
            number=number,
            max_new_tokens=60 if number % 5 == 0 else 2 + number % 7,
        )
        for number in range(12)
    ]
    return run.generate(requests, sampling)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("name", ["qwen", "mistral"])  # mistral has a sliding window
def test_rows_that_move_get_the_tokens_that_they_would_have_got(monkeypatch, penalty, name):
    moved = []
    adopt = widths.Decoder.adopt
    monkeypatch.setattr(
        widths.Decoder, "adopt", lambda self, other, rows: (moved.append(len(rows)), adopt(self, other, rows))
    )
    sampling = Sampling(max_new_tokens=60, seed=3, temperature=1.2, repetition_penalty=penalty)
    together = ask(None, monkeypatch, sampling, name)
    assert not moved
    apart = ask(12, monkeypatch, sampling, name)
    assert len(moved) > 2
    for one, other in zip(together, apart, strict=True):
        assert one.token_ids == other.token_ids and one.finish_reason == other.finish_reason
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=2e-5)


class Row:
    def __init__(self, columns: int):
        self.job, self.tokens, self.ended = Request(prompt_ids=[1] * columns), [0], False


class Fake:
    """A decoder that only counts."""

    def __init__(self, *columns: int):
        self.rows = [Row(each) for each in columns]

    def adopt(self, other, indices):
        chosen = {id(other.rows[index]) for index in indices}
        self.rows += [row for row in other.rows if id(row) in chosen]
        other.rows = [row for row in other.rows if id(row) not in chosen]


def parted(short, long=(), split=1000):
    decoders = object.__new__(widths.Decoders)
    decoders.short, decoders.long = Fake(*short), Fake(*long)
    decoders._part(split)
    return [sorted(widths.columns_of(row) for row in each.rows) for each in (decoders.short, decoders.long)]


def test_long_rows_leave_where_that_saves_more_columns_than_a_pass_costs():
    assert parted([10] * 20 + [200, 210]) == [[10] * 20, [200, 210]]
    assert parted([10] * 3 + [200, 210]) == [[10] * 3 + [200, 210], []]  # 3 x 200 columns are less than a pass
    assert parted([10] * 20 + [40, 50]) == [[10] * 20 + [40, 50], []]


def test_once_there_is_a_second_pass_more_rows_join_it_sooner_and_few_come_back():
    assert parted([10] * 20 + [40], [200]) == [[10] * 20, [40, 200]]
    assert parted([10] * 2, [200]) == [[10, 10, 200], []]
    assert parted([], [200]) == [[], [200]]


def test_on_other_devices_all_rows_stay_together(monkeypatch):
    model = models.FAMILIES["qwen"]()
    assert widths.Decoders(model, Sampling(max_new_tokens=1), 1).split == widths.SPLIT["cpu"]
    monkeypatch.delitem(widths.SPLIT, "cpu")
    assert widths.Decoders(model, Sampling(max_new_tokens=1), 1).split is None
    assert torch.device("cuda").type not in widths.SPLIT


# ---------------------------------------------------------------- how much is begun ahead


def ledger_of(ready: int, **fields) -> Ledger:
    ledger = Ledger(quota=8, ahead=4, updates=1, adapts=True, **fields)
    for number in range(ready):
        ledger.add(Unit(number=number, rows=[], rollout=0, step=0, epoch=0.0, state=READY))
    return ledger


def test_the_bound_is_no_target():
    ledger = ledger_of(ready=0)
    assert ledger.room() == 16  # a rollout, and one ahead
    for _ in range(20):
        ledger.adapt(waited=5.0, seconds=10.0)
    assert ledger.room() == 40  # the trainer waits: up to the bound
    assert Ledger(quota=8, ahead=4, updates=1).room() == 40


def test_what_piles_up_is_not_begun_so_early():
    ledger = ledger_of(ready=4)
    ledger.depth = 32
    ledger.adapt(waited=0.0, seconds=10.0)
    assert ledger.depth == 30
    for _ in range(20):
        ledger.adapt(waited=0.0, seconds=10.0)
    assert ledger.depth == 8
    few = ledger_of(ready=3)
    few.depth = 32
    few.adapt(waited=0.0, seconds=10.0)
    assert few.depth == 32  # neither waits for the other
