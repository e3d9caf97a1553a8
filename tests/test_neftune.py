"""Noise on embeddings: as large as transformers', by the length of a row, in training alone, the same if resumed."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from ft_grpo.config import GRPOConfig
from ft_sft.config import SFTConfig
from torch import nn

from ft_host.batch import Segment, flat_batch
from ft_host.errors import ConfigError
from ft_host.models.neftune import EmbeddingNoise, noisy, row_lengths
from ft_host.testing import invariants, lines, ready_run, run_in, tiny_run, write_rows

ALPHA, WIDTH = 5.0, 16


def test_one_row_is_that_of_transformers():
    """With the same random numbers; of more rows transformers goes by the padded batch."""
    from transformers.integrations.neftune import neftune_post_forward_hook

    ids = torch.arange(7)[None]
    theirs, ours = nn.Embedding(10, WIDTH), nn.Embedding(10, WIDTH)
    ours.load_state_dict(theirs.state_dict())
    theirs.neftune_noise_alpha = ALPHA
    theirs.register_forward_hook(neftune_post_forward_hook)
    noise = EmbeddingNoise(ours, ALPHA)
    torch.manual_seed(3)
    expected = theirs(ids)
    torch.manual_seed(3)
    with noise.over(torch.full((1, 7), 7)):
        found = ours(ids)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert not torch.equal(found, ours(ids)), "outside there is none"


def test_each_row_has_the_bound_of_its_own_length():
    """Rows of 4 and 400 tokens in one flat batch; a shared prompt of 3 with completions of 1 and 97."""
    torch.manual_seed(0)
    rows = [Segment(input_ids=[1] * size, labels=[1] * size, row=index) for index, size in enumerate((4, 400))]
    batch = flat_batch(rows, num_rows=2)
    embedding = nn.Embedding(2, WIDTH)
    noise = EmbeddingNoise(embedding, ALPHA)
    with noise.over(row_lengths(batch)):
        added = (embedding(batch.input_ids[None]) - embedding.weight[1]).abs()[0]
    for part, size in ((added[:4], 4), (added[4:], 400)):
        bound = ALPHA / math.sqrt(size * WIDTH)
        assert 0.9 * bound < part.max() <= bound * (1 + 1e-5)
    shared = [Segment(input_ids=[1] * 3, labels=[-100] * 3, row=0)]
    shared += [Segment(input_ids=[1] * size, labels=[1] * size, row=0, parent=0) for size in (1, 97)]
    assert row_lengths(flat_batch(shared, num_rows=1))[0].tolist() == [3] * 3 + [4] + [100] * 97


def test_it_is_off_where_nothing_is_learnt():
    noise = EmbeddingNoise(nn.Embedding(2, WIDTH), ALPHA)

    def unasked() -> torch.Tensor:
        raise AssertionError("lengths were made that nobody needs")

    with noisy(noise, False, unasked), noisy(None, True, unasked):
        assert noise.lengths is None
    with noisy(noise, True, lambda: torch.ones(1, 1)):
        assert noise.lengths is not None


@pytest.fixture
def config(llama, tmp_path) -> SFTConfig:
    rows = [{"input_ids": [5 + index, 9, 40 + index, 77, 8]} for index in range(24)]
    held_out = write_rows(tmp_path / "held_out.jsonl", rows[:4])
    return tiny_run(SFTConfig, llama, tmp_path, rows, eval_dataset=str(held_out), eval_on_start=True)


@pytest.mark.parametrize("attention", ["auto", "none"])
def test_training_is_noisy_and_evaluation_is_not(config, attention):
    config = dataclasses.replace(config, segment_attention=attention, learning_rate=1e-9)
    plain, noisy_run = run_in(config, "plain"), run_in(config, "noisy", neftune_noise_alpha=10.0)
    for one, other in zip(lines(plain), lines(noisy_run), strict=True):
        assert abs(one["loss"] - other["loss"]) > 1e-4
    assert lines(plain, "eval")[0]["eval_loss"] == lines(noisy_run, "eval")[0]["eval_loss"]
    assert lines(noisy_run) == lines(run_in(config, "again", neftune_noise_alpha=10.0)), "the seed decides"


@pytest.mark.slow
def test_a_resumed_run_has_the_same_noise(config):
    invariants.resume(dataclasses.replace(config, neftune_noise_alpha=5.0, max_steps=12, save_steps=5))


def test_the_policy_has_it_and_an_auxiliary_pass_does_not(config):
    run = ready_run(dataclasses.replace(config, neftune_noise_alpha=5.0))
    batch = run.collate([{"input_ids": [5, 9, 40], "labels": [5, 9, 40], "length": 3}])
    first, second = (run.model(batch, want=("logp",))["logp"] for _ in range(2))
    assert not torch.equal(first, second)
    with torch.no_grad():
        first, second = (run.model(batch, want=("logp",))["logp"] for _ in range(2))
    assert torch.equal(first, second)


def test_it_is_refused_where_the_policy_samples():
    config = GRPOConfig(model="m", dataset="d", reward=["a.py:b"], neftune_noise_alpha=5.0)
    with pytest.raises(ConfigError, match="neftune_noise_alpha: the policy that learns would be another"):
        config.check()
