"""Decoding looks at the device when it reads what was sampled, and at no other time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from counted_waits import Waits

from ft_host.generation import decode, looks
from ft_host.generation.prompts import prompts_of
from ft_host.models import attention
from ft_host.testing import models
from ft_host.testing.generation import generating_run
from ft_host.types import Request, Sampling


def made(name: str, **overrides):
    return models.FAMILIES[name](tie_word_embeddings=False, **overrides).eval()


def asked(*lengths: int, limit: int = 20, times: int = 1) -> list[Request]:
    rng = np.random.default_rng(0)
    texts = [rng.integers(10, 250, length).tolist() for length in lengths]
    return [Request(prompt_ids=text, max_new_tokens=limit) for text in texts for _ in range(times)]


def endless(model):
    """A run whose completions all have the length that is asked for."""
    tokenizer = models.tiny_tokenizer()
    tokenizer.eos_token = model.generation_config.eos_token_id = None
    return generating_run(model, tokenizer, decode_batch_size=6)


@pytest.fixture
def reads(monkeypatch) -> list[int]:
    """Steps of each reading; the CPU is taken for a device on which it waits."""
    found: list[int] = []
    read = looks.read
    monkeypatch.setattr(decode, "STRETCH", {})
    monkeypatch.setattr(decode, "read", lambda steps: (found.append(len(steps)), read(steps))[1])
    return found


@pytest.mark.parametrize(
    ("name", "implementation"),
    [("qwen", "sdpa"), ("qwen", "eager"), ("mistral", "sdpa"), ("gemma", "eager"), ("gpt2", "sdpa")],
)
@pytest.mark.parametrize("installed", [False, True])
def test_no_step_and_no_prompt_waits_for_the_device(name, implementation, installed, reads):
    model, sampling = made(name), Sampling(max_new_tokens=20, seed=0, repetition_penalty=1.1)
    model.set_attn_implementation(implementation)
    if installed:
        attention.install(model)
    expected = endless(model).generate(asked(3, 9, 9, 5), sampling)
    with Waits() as waits:
        found = endless(model).generate(asked(3, 9, 9, 5), sampling)
    assert found == expected
    assert not waits.count and reads


def test_one_look_for_all_prompts_that_are_prefilled_together_and_one_for_eight_tokens(reads):
    endless(made("qwen")).generate(asked(3, 9, 9, 5, limit=20), Sampling(max_new_tokens=20, seed=0))
    assert reads == [1, 8, 8, 3]
    reads.clear()
    endless(made("qwen")).generate(asked(4, 7, limit=18, times=5), Sampling(max_new_tokens=18, seed=0))
    assert reads == [1, 8, 8, 1, 1, 8, 8, 1]  # six, then the other four


def test_a_token_that_ends_a_row_as_its_first_leaves_a_place(reads):
    model = made("qwen")
    run, requests = endless(model), asked(*range(2, 14), limit=6)
    alone = run.generate(requests, Sampling(max_new_tokens=6, seed=0))
    first = [completion.token_ids[0] for completion in alone]
    model.generation_config.eos_token_id = first[::2]
    ended = run.generate(requests, Sampling(max_new_tokens=6, seed=0))
    for before, after in zip(alone, ended, strict=True):
        ends = [place for place, token in enumerate(before.token_ids) if token in first[::2]]
        assert after.token_ids == (before.token_ids[: ends[0] + 1] if ends else before.token_ids)


def test_tokens_and_log_probs_are_read_exactly():
    tokens, logps = torch.tensor([0, 151_935, 2**24 - 1]), torch.tensor([-0.1, -1e-7, -103.25])
    assert looks.read([(tokens, logps), (tokens.flip(0), logps)]) == [
        ([0, 2**24 - 1], [logps[0].item()] * 2),
        ([151_935, 151_935], [logps[1].item()] * 2),
        ([2**24 - 1, 0], [logps[2].item()] * 2),
    ]


# ---------------------------------------------------------------- mixtures of experts


@pytest.mark.parametrize("way", ["loop", "generate"])
def test_experts_whose_config_asks_for_router_logits_generate(way, monkeypatch):
    if way == "generate":
        monkeypatch.setattr("ft_host.generation.transformers.can_decode", lambda model: False)
    model, requests = made("moe"), asked(3, 9, 5)
    expected = endless(model).generate(requests, Sampling(max_new_tokens=8, seed=0))
    model.config.output_router_logits = True
    assert endless(model).generate(requests, Sampling(max_new_tokens=8, seed=0)) == expected
    assert model.config.output_router_logits


def test_a_prompt_that_is_prefilled_has_its_tokens_on_the_device():
    from ft_host.generation.jobs import Job
    from ft_host.generation.prompts import prefill

    model = made("qwen")
    waiting = prompts_of([Job(0, [4, 5, 6, 7], 0, 3), Job(1, [9, 8], 1, 3)])
    with torch.no_grad():
        prefill(model, list(waiting))
    assert [prompt.tokens.tolist() for prompt in waiting] == [[4, 5, 6, 7], [9, 8]]
    for prompt in waiting:
        with torch.no_grad():
            torch.testing.assert_close(
                prompt.logits, model(input_ids=torch.tensor([prompt.ids])).logits[0, -1], atol=1e-5, rtol=1e-5
            )
