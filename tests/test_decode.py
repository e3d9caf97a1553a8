"""The decoding loop: rows that come and go get what each would get alone, and no prompt is run twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from ft_host.generation import Completion, Request, Sampling, decode, loop
from ft_host.generation import prompts as prefilling
from ft_host.generation import transformers as backend
from ft_host.generation.jobs import Job, Terms, jobs_of
from ft_host.models import attention
from ft_host.testing import models
from ft_host.testing.generation import generating_run

LENGTHS = (3, 11, 1, 7, 7, 20, 14, 2)
FAMILIES = ["llama", "qwen", "mistral", "gemma", "gpt2", "moe", "gpt_oss"]


def prompts(*lengths: int, seed: int = 0) -> list[Request]:
    rng = np.random.default_rng(seed)
    return [Request(prompt_ids=rng.integers(10, 250, length).tolist()) for length in lengths]


def made(name: str, **overrides):
    """Weights of the head are apart: tied ones, at random, repeat the last token."""
    return models.FAMILIES[name](tie_word_embeddings=False, **overrides).eval()


def close(some: list[Completion], others: list[Completion]) -> None:
    """The same tokens and ends, and log-probs to round-off."""
    for one, other in zip(some, others, strict=True):
        assert replace(one, logprobs=[]) == replace(other, logprobs=[])
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def without_decode(monkeypatch) -> None:
    monkeypatch.setattr(backend, "can_decode", lambda model: False)


class Forwards:
    """(rows, tokens in them that aren't padding) of each forward of a model."""

    def __init__(self, model):
        self.prompts: list[tuple[int, int]] = []
        self.steps: list[int] = []
        model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, model, args, kwargs) -> None:
        rows, width = kwargs["input_ids"].shape
        if kwargs[prefilling.cache_argument(model)].get_seq_length():
            assert width == 1
            self.steps.append(rows)
        else:
            mask = kwargs["attention_mask"]  # None where nothing is hidden
            self.prompts.append((rows, rows * width if mask is None else int(mask.sum())))


# ---------------------------------------------------------------- what transformers generates


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_completions_are_those_of_transformers(name, penalty):
    model, requests = made(name), prompts(*LENGTHS)
    assert prefilling.can_decode(model)
    model.generation_config.eos_token_id = None
    own = GenerationConfig(
        max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0, repetition_penalty=penalty
    )
    expected = [model.generate(torch.tensor([request.prompt_ids]), generation_config=own) for request in requests]
    attention.install(model)
    run = generating_run(model, decode_batch_size=3)
    run.tokenizer.eos_token = None
    found = run.generate(requests, Sampling(max_new_tokens=12, temperature=0, repetition_penalty=penalty))
    for request, completion, ids in zip(requests, found, expected, strict=True):
        assert completion.token_ids == ids[0, len(request.prompt_ids) :].tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_both_ways_of_running_the_model_sample_the_same(name, monkeypatch):
    model, requests = made(name), prompts(*LENGTHS)
    requests = [replace(request, max_new_tokens=4 + 3 * index) for index, request in enumerate(requests)]
    sampling = Sampling(max_new_tokens=20, top_p=0.95, top_k=50, min_p=0.01, repetition_penalty=1.1, seed=5)
    ours = generating_run(model, decode_batch_size=3).generate(requests, sampling)
    assert [len(c.token_ids) for c in ours if c.finish_reason == "length"]
    without_decode(monkeypatch)
    close(ours, generating_run(model, decode_batch_size=3).generate(requests, sampling))


def test_both_ways_end_where_the_positions_do(monkeypatch):
    model, requests = made("gpt2", n_positions=24), prompts(20, 23, 2, 9, 20)
    sampling = Sampling(max_new_tokens=8, seed=2)
    ours = generating_run(model, decode_batch_size=2).generate(requests, sampling)
    assert [len(c.token_ids) for c in ours if c.finish_reason == "length"]
    assert all(len(c.token_ids) + len(r.prompt_ids) <= 24 for c, r in zip(ours, requests, strict=True))
    without_decode(monkeypatch)
    close(ours, generating_run(model).generate(requests, sampling))


def test_models_that_remember_something_else_go_through_generate():
    from transformers import AutoModelForCausalLM, Lfm2Config, Llama4TextConfig

    hybrid = Lfm2Config(**models.SIZES, layer_types=["conv", "full_attention"])
    chunked = Llama4TextConfig(**models.SIZES, head_dim=16, attention_chunk_size=8, num_local_experts=2)
    for model in (models.tiny_mamba(), *(AutoModelForCausalLM.from_config(each) for each in (hybrid, chunked))):
        assert not prefilling.can_decode(model)
        sampling = Sampling(max_new_tokens=6, temperature=0)
        for completion in generating_run(model.eval(), decode_batch_size=2).generate(prompts(5, 5), sampling):
            assert len(completion.token_ids) == len(completion.logprobs) <= 6


def test_generate_gets_few_batches_and_none_that_the_positions_dont_suffice_for():
    lengths, limits = (90, 60, 60, 30, 10, 5), (10, 4, 9, 20, 6, 8)
    pairs = enumerate(zip(lengths, limits, strict=True))
    jobs = [Job(index, [1] * length, index, limit) for index, (length, limit) in pairs]
    batched = [[job.index for job in batch] for batch in backend.batches_of(jobs, 3, 100)]
    assert batched == [[0, 1, 2], [3, 4, 5]]
    batched = [[job.index for job in batch] for batch in backend.batches_of(jobs[:4], 4, 100)]
    assert batched == [[0, 1, 2], [3]]
    assert len(backend.batches_of(jobs, 6, None)) == 1


# ---------------------------------------------------------------- rows that come and go


@pytest.mark.parametrize("name", ["qwen", "mistral", "gpt2"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_who_else_is_in_the_batch_makes_no_difference(name, size, monkeypatch):
    model, requests = made(name), prompts(*LENGTHS) + prompts(4, 9, 9, 4)[1:3] * 3
    tokenizer = models.tiny_tokenizer()
    model.generation_config.eos_token_id = list(range(20, 36))  # one token in sixteen: rows end at different times
    sampling = Sampling(max_new_tokens=40, seed=3)
    alone = [
        generating_run(model, tokenizer).generate([replace(request, number=number)], sampling)[0]
        for number, request in enumerate(requests)
    ]
    reasons = [completion.finish_reason for completion in alone]
    assert "length" in reasons
    assert reasons.count("stop") > len(reasons) // 2
    monkeypatch.setattr(decode, "ROOM", 3)  # so that room is made often
    forwards = Forwards(model)
    close(generating_run(model, tokenizer, decode_batch_size=size).generate(requests, sampling), alone)
    assert max(forwards.steps) == size
    steps = sum(len(completion.token_ids) - 1 for completion in alone)
    assert sum(forwards.steps) == steps  # a row that has ended takes part no more
    monkeypatch.setattr(decode, "STRETCH", {"cpu": 7})
    close(generating_run(model, tokenizer, decode_batch_size=size).generate(requests, sampling), alone)


def test_a_completion_longer_than_the_buffer_began_with():
    model, requests = made("qwen"), prompts(3, 30)
    model.generation_config.eos_token_id = None
    tokenizer = models.tiny_tokenizer()
    tokenizer.eos_token = None
    sampling = Sampling(max_new_tokens=decode.ROOM * 4, temperature=0)
    completions = generating_run(model, tokenizer).generate(requests, sampling)
    for request, completion in zip(requests, completions, strict=True):
        assert len(completion.token_ids) == decode.ROOM * 4
        ids = torch.tensor([request.prompt_ids + completion.token_ids])
        with torch.no_grad():
            logp = model(input_ids=ids, use_cache=False).logits[0, len(request.prompt_ids) - 1 : -1].log_softmax(-1)
        expected = logp.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [3, 8, 64])
def test_a_prompt_is_run_once_for_its_whole_group(size):
    model, alone = made("qwen"), prompts(9, 4, 6)
    requests = [request for request in alone for _ in range(5)]
    forwards = Forwards(model)
    completions = generating_run(model, decode_batch_size=size).generate(requests, Sampling(max_new_tokens=6, seed=0))
    assert sum(rows for rows, _ in forwards.prompts) == 3
    assert sum(tokens for _, tokens in forwards.prompts) == 9 + 4 + 6
    for group in range(3):
        said = completions[5 * group : 5 * group + 5]
        assert len({tuple(completion.token_ids) for completion in said}) == 5


def test_prompts_are_run_a_few_at_a_time(monkeypatch):
    model, requests = made("qwen"), prompts(*LENGTHS)
    expected = generating_run(model).generate(requests, Sampling(max_new_tokens=5, seed=0))
    monkeypatch.setattr(prefilling, "PREFILL_TOKENS", 24)
    forwards = Forwards(model)
    close(generating_run(model).generate(requests, Sampling(max_new_tokens=5, seed=0)), expected)
    assert forwards.prompts == [(1, 20), (1, 14), (2, 18), (3, 12), (1, 1)]


def test_prompts_enter_and_rows_leave_in_the_order_in_which_they_always_did(monkeypatch):
    """Of each forward, rows, tokens of each and columns: with the same inputs in the same order a run gives the very
    numbers that it gave before the loop had requests that arrive while others are under way."""
    monkeypatch.setattr(decode, "ROOM", 3)
    monkeypatch.setattr(prefilling, "PREFILL_TOKENS", 24)
    model, tokenizer, shapes = made("qwen"), models.tiny_tokenizer(), []
    model.generation_config.eos_token_id = tokenizer.eos_token = None
    argument = prefilling.cache_argument(model)
    model.register_forward_pre_hook(
        lambda model, args, kwargs: shapes.append(
            (*kwargs["input_ids"].shape, kwargs[argument].get_seq_length() + kwargs["input_ids"].shape[1])
        ),
        with_kwargs=True,
    )
    asked = prompts(*LENGTHS) + prompts(*LENGTHS)[1:4] * 2
    asked = [replace(request, max_new_tokens=1 + 5 * index % 13) for index, request in enumerate(asked)]
    generating_run(model, tokenizer, decode_batch_size=6).generate(asked, Sampling(max_new_tokens=20, seed=1))
    full = [(6, 1, columns) for columns in range(21, 32)]
    assert shapes[:3] == [(1, 20, 20), (1, 14, 14), (2, 11, 11)]
    assert shapes[3:9] == [*full[:2], (1, 7, 7), full[2], (1, 3, 3), (1, 2, 2)]
    assert shapes[9:19] == [full[3], (1, 1, 1), *full[4:], (5, 1, 32)]
    assert shapes[19:] == [(2, 1, 10), (2, 1, 11), (1, 1, 7), (1, 1, 8), (1, 1, 9)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu():
    requests, sampling = prompts(*LENGTHS), Sampling(max_new_tokens=30, temperature=0)
    terms = Terms(
        max_new_tokens=30, seed=0, ends=tuple(range(20, 28)), max_positions=None, tokenizer=models.tiny_tokenizer()
    )
    jobs = jobs_of(requests, terms)
    said = {}
    for device in ("cpu", "cuda"):
        model = made("qwen").to(device)
        with torch.no_grad():
            rows = loop.decode(model, jobs, sampling, 3)
            said[device] = {row.job.index: row for row in rows}
    for index, row in said["cpu"].items():
        assert said["cuda"][index].tokens == row.tokens
        assert said["cuda"][index].logprobs == pytest.approx(row.logprobs, abs=1e-3)
