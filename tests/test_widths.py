"""Short and long completions in one pass: bands of rows that attend together give the same tokens and log-probs."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
import torch

from ft_host.generation import decode
from ft_host.generation.jobs import Job
from ft_host.generation.prompts import Prompt, prefill
from ft_host.generation.widths import PRICE, bands_of, exchanges
from ft_host.models import attention
from ft_host.scheduling.ledger import Ledger
from ft_host.scheduling.unit import READY, Unit
from ft_host.testing import models
from ft_host.testing.generation import generating_run
from ft_host.types import Request, Sampling


def ask(price: int | None, monkeypatch, sampling: Sampling, name: str = "qwen"):
    """Twelve completions, five at a time, of 1 to 60 tokens."""
    monkeypatch.setattr(decode, "PRICE", {} if price is None else {"cpu": price})
    model = models.FAMILIES[name](tie_word_embeddings=False)
    model.generation_config.eos_token_id = list(range(20, 30))
    attention.install(model)
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
@pytest.mark.parametrize("name", ["qwen", "mistral", "gpt_oss", "gemma"])  # windows, sinks, soft caps
def test_rows_that_attend_in_bands_get_the_tokens_that_they_would_have_got(monkeypatch, penalty, name):
    calls = []
    by_bands = attention.by_bands
    monkeypatch.setattr(
        attention,
        "by_bands",
        lambda own, bands, *args, **kwargs: calls.append(bands) or by_bands(own, bands, *args, **kwargs),
    )
    sampling = Sampling(max_new_tokens=60, seed=3, temperature=1.2, repetition_penalty=penalty)
    together = ask(None, monkeypatch, sampling, name)
    assert not calls
    apart = ask(3, monkeypatch, sampling, name)
    assert len(calls) > 10 and max(len(bands) for bands in calls) > 2
    for one, other in zip(together, apart, strict=True):
        assert one.token_ids == other.token_ids and one.finish_reason == other.finish_reason
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=2e-5)


def test_a_model_with_an_attention_of_its_own_attends_over_all_columns(monkeypatch):
    monkeypatch.setattr(attention, "install", lambda model: None)
    sampling = Sampling(max_new_tokens=60, seed=3)
    own = ask(12, monkeypatch, sampling)
    monkeypatch.undo()
    for one, other in zip(own, ask(None, monkeypatch, sampling), strict=True):
        assert one.token_ids == other.token_ids


def bands(*columns: int, price: int = 100) -> list[list[int]]:
    """Of each band, how many columns its rows have."""
    return [list(columns[band.rows]) for band in bands_of(list(columns), price)[0]]


def test_rows_attend_apart_where_that_saves_more_columns_than_a_call_costs():
    assert bands(*[200, 210], *[10] * 20) == [[200, 210], [10] * 20]
    assert bands(200, 60, 60) == [[200], [60, 60]]
    assert bands(200, 160, 160) == [[200, 160, 160]]
    assert bands(350, 200, 190, 80, 80) == [[350], [200, 190], [80, 80]]
    assert bands(10, 10, 200) == [[10, 10, 200]]  # a band ends where no row behind it is longer


def test_a_band_sees_the_columns_of_its_longest_row_and_all_are_counted():
    found, read = bands_of([200, 210, 40, 50, 10, 10, 10], 20)
    assert [(band.rows, band.first) for band in found] == [(slice(0, 2), 0), (slice(2, 4), 160), (slice(4, 7), 200)]
    assert read == 2 * 210 + 2 * 50 + 3 * 10 + 2 * 20


def test_no_division_of_many_rows_reads_far_more_than_the_best():
    rng = np.random.default_rng(0)
    for _ in range(20):
        columns = sorted(rng.integers(1, 500, 40).tolist(), reverse=True)
        best = [0] * 41  # of the last rows, the fewest columns
        for start in reversed(range(40)):
            best[start] = min(
                (stop - start) * columns[start] + (128 + best[stop] if stop < 40 else 0)
                for stop in range(start + 1, 41)
            )
        assert best[0] <= bands_of(columns, 128)[1] <= 1.2 * best[0]


def decoder_of(monkeypatch, prompts: list[int], price: int = 20) -> decode.Decoder:
    monkeypatch.setattr(decode, "PRICE", {"cpu": price})
    model = models.FAMILIES["qwen"](tie_word_embeddings=False).eval()
    attention.install(model)
    decoder = decode.Decoder(model, Sampling(max_new_tokens=200, seed=1), len(prompts))
    for number, length in enumerate(prompts):
        prompt = Prompt(list(range(10, 10 + length)), deque([Job(number, list(range(10, 10 + length)), number, 200)]))
        prefill(model, [prompt])
        decoder.enter(prompt)
        decoder.leave()
    return decoder


def lengths(decoder: decode.Decoder) -> list[int]:
    return [row.columns for row in decoder.rows]


@torch.no_grad()
def test_the_last_row_takes_the_place_of_one_that_leaves(monkeypatch):
    decoder = decoder_of(monkeypatch, [90, 90, 90, 50, 50, 50, 10, 10, 10])
    decoder.advance()
    decoder.rows[0].ended = decoder.rows[4].ended = True
    gone = decoder.leave()
    assert [row.job.index for row in gone] == [0, 4]
    assert [row.job.index for row in decoder.rows] == [7, 1, 2, 3, 8, 5, 6]


@torch.no_grad()
def test_rows_change_places_once_where_they_are_has_cost_more(monkeypatch):
    decoder = decoder_of(monkeypatch, [10, 10, 10, 90])  # the last one came late
    decoder.advance()
    assert lengths(decoder) == [11, 11, 11, 91] and len(decoder.bands) == 1
    assert decoder.wasted == 4 * 91 - (91 + 20 + 3 * 11)
    for _ in range(8):
        decoder.advance()
    assert lengths(decoder)[-1] == 99  # nothing has come or gone
    decoder.rows[1].ended = True
    decoder.leave()
    decoder.advance()
    assert lengths(decoder) == [100, 20, 20] and [band.rows.stop for band in decoder.bands] == [1, 3]
    assert decoder.debt == 0


def test_rows_in_the_right_band_stay():
    assert exchanges([90, 50, 88, 10, 11, 12], 20)[:2] == ([2, 1], [1, 2])
    assert exchanges([90, 88, 50, 12, 10, 11], 20)[:2] == ([], [])


@torch.no_grad()
def test_sorting_changes_no_row(monkeypatch):
    sampled = []
    for price in (1, 10**6):
        decoder = decoder_of(monkeypatch, [3, 40, 7, 80, 2, 30], price)
        monkeypatch.setattr(decode, "moving", lambda columns, of, price: 0)
        orders = []
        for step in range(40):
            decoder.advance()
            if step % 5 == 4:
                decoder.rows[len(decoder.rows) // 2].ended = len(decoder.rows) > 2
                decoder.leave()
            orders.append([row.job.index for row in decoder.rows])
        rows = {row.job.index: row for row in decoder.rows}
        sampled.append(rows)
        assert (orders[-1] == sorted(orders[-1], key=lambda index: -rows[index].columns)) == (price == 1)
    common = set(sampled[0]) & set(sampled[1])
    assert common
    for index in common:
        assert sampled[0][index].tokens == sampled[1][index].tokens


def test_on_other_devices_all_rows_attend_together(monkeypatch):
    model = models.FAMILIES["qwen"]()
    assert decode.Decoder(model, Sampling(max_new_tokens=1), 1).price == PRICE["cpu"]
    monkeypatch.setattr(decode, "PRICE", {})
    assert decode.Decoder(model, Sampling(max_new_tokens=1), 1).price is None
    assert "cuda" not in PRICE


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
