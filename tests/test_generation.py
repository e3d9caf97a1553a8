"""The backend `transformers`: what it generates is what the model says, whatever the batches and ranks."""

from __future__ import annotations

import os
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ft_host.batch import Segment, flat_batch
from ft_host.cli.train import leave
from ft_host.errors import DataError
from ft_host.generation import Request, Sampling
from ft_host.generation import sampling as picking
from ft_host.models import attention
from ft_host.testing import models
from ft_host.testing.generation import generating_run


def prompts(*lengths: int, seed: int = 0) -> list[Request]:
    rng = np.random.default_rng(seed)
    return [Request(prompt_ids=rng.integers(10, 250, length).tolist()) for length in lengths]


@torch.no_grad()
def replay(model, request: Request, token_ids: list[int]) -> torch.Tensor:
    """(len(token_ids), V) logits that each token was chosen from, by one plain forward without cache."""
    ids = torch.tensor([request.prompt_ids + token_ids])
    logits = model(input_ids=ids, use_cache=False).logits[0].float()
    return logits[len(request.prompt_ids) - 1 : -1]


# ---------------------------------------------------------------- greedy


@pytest.mark.parametrize(
    "name", ["tiny_llama", "tiny_qwen", "tiny_mistral", "tiny_gemma", "tiny_gpt2", "tiny_moe", "tiny_mamba"]
)
def test_greedy_takes_the_likeliest_token_whatever_is_beside_it(name):
    model = getattr(models, name)(tie_word_embeddings=False)  # tied ones, at random, repeat the last token
    run = generating_run(model, decode_batch_size=3)
    requests = prompts(3, 11, 1, 7, 7)
    completions = run.generate(requests, Sampling(max_new_tokens=12, temperature=0))
    for request, completion in zip(requests, completions, strict=True):
        logits = replay(model, request, completion.token_ids)
        assert completion.token_ids == logits.argmax(-1).tolist()
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=2e-5, rtol=1e-4)
    assert any(len(set(completion.token_ids)) > 3 for completion in completions)


def test_segment_attention_does_not_get_in_the_way():
    requests, sampling = prompts(3, 11, 1), Sampling(max_new_tokens=10, temperature=0)
    plain = generating_run(models.tiny_gemma()).generate(requests, sampling)
    model = models.tiny_gemma()
    attention.install(model)
    assert generating_run(model).generate(requests, sampling) == plain


def test_an_adapter_takes_part():
    from peft import LoraConfig, get_peft_model

    requests, sampling = prompts(4, 6), Sampling(max_new_tokens=10, temperature=0)
    before = generating_run(models.tiny_qwen()).generate(requests, sampling)
    model = get_peft_model(models.tiny_qwen(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    fresh = generating_run(model).generate(requests, sampling)
    assert [c.token_ids for c in fresh] == [c.token_ids for c in before]  # B is zero
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.fill_(0.3)
    after = generating_run(model).generate(requests, sampling)
    assert after != before
    for request, completion in zip(requests, after, strict=True):
        assert completion.token_ids == replay(model, request, completion.token_ids).argmax(-1).tolist()


# ---------------------------------------------------------------- sampling


def warped(logits: torch.Tensor, sampling: Sampling, texts: list[list[int]] | None = None) -> torch.Tensor:
    """(N, V) probabilities as transformers' own processors make them; `texts` are the tokens before each."""
    chain = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        chain.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        chain.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        chain.append(MinPLogitsWarper(sampling.min_p))
    if sampling.repetition_penalty != 1:
        penalty = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)
        rows = zip(texts, logits, strict=True)
        logits = torch.cat([penalty(torch.tensor([text]), row[None].clone()) for text, row in rows])
    return chain(None, logits).softmax(-1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 5},
        {"top_p": 0.7},
        {"top_k": 6, "top_p": 0.8},
        {"top_p": 1e-6},
        {"top_k": 1},
        {"min_p": 0.2},
        {"min_p": 1.0},
        {"repetition_penalty": 1.8},
        {"repetition_penalty": 0.6, "temperature": 1.0},
        {"top_k": 9, "top_p": 0.9, "min_p": 0.15, "repetition_penalty": 1.3},
    ],
    ids=str,
)
def test_tokens_are_drawn_from_the_distribution_of_transformers(options):
    sampling = Sampling(**{"max_new_tokens": 1, "temperature": 0.7, **options})
    torch.manual_seed(0)
    logits = torch.randn(1, 12) * 1.5
    text = [0, 3, 3, 7, 8, 11]
    expected = warped(logits, sampling, [text])[0]
    draws = 40_000
    noise = torch.from_numpy(np.random.default_rng(0).random(draws, dtype=np.float32))
    ids = torch.tensor([[0, *text]])  # padded with a token of the text
    seen = picking.tokens_seen(ids, torch.tensor([[0] + [1] * len(text)]), 12).expand(draws, -1)
    token, logp = picking.sample_token(logits.expand(draws, -1), sampling, noise, seen)
    torch.testing.assert_close(logp.exp(), expected[token], atol=1e-6, rtol=1e-5)
    drawn = torch.bincount(token, minlength=12) / draws
    error = (expected * (1 - expected) / draws).sqrt()
    assert (drawn[expected == 0] == 0).all()
    assert ((drawn - expected).abs() <= 4.5 * error + 1e-9).all()


def test_noise_at_its_ends_never_gives_an_impossible_token():
    logits = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]]).expand(3, -1)
    noise = torch.tensor([0.0, 0.5, 1 - 2**-24])
    token, logp = picking.sample_token(logits, Sampling(max_new_tokens=1), noise)
    assert token.tolist() == [1, 2, 2]
    assert logp.isfinite().all()


def test_logprobs_are_of_the_distribution_that_was_sampled():
    model = models.tiny_qwen()
    run = generating_run(model, decode_batch_size=2)
    plain = Sampling(max_new_tokens=8, temperature=1.3, seed=1)
    cut = Sampling(max_new_tokens=8, temperature=1.3, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.2, seed=1)
    requests = prompts(5, 2, 9)
    for sampling in (plain, cut):
        for request, completion in zip(requests, run.generate(requests, sampling), strict=True):
            ids = completion.token_ids
            texts = [request.prompt_ids + ids[:index] for index in range(len(ids))]
            expected = warped(replay(model, request, ids), sampling, texts)
            expected = expected.gather(-1, torch.tensor(ids)[:, None])[:, 0].log()
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=1e-5)


def test_a_seed_gives_the_same_completions_in_any_batches_and_leaves_the_training_alone():
    model = models.tiny_qwen()
    requests = prompts(5, 2, 9, 4, 6)
    sampling = Sampling(max_new_tokens=8, seed=7)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    alone = generating_run(model, decode_batch_size=1).generate(requests, sampling)
    together = generating_run(model, decode_batch_size=64).generate(requests, sampling)
    assert torch.equal(torch.get_rng_state(), state)
    assert [c.token_ids for c in alone] == [c.token_ids for c in together]
    fewer = generating_run(model).generate(requests[:2], sampling)
    assert [c.token_ids for c in fewer] == [c.token_ids for c in alone[:2]]
    other = generating_run(model).generate(requests, Sampling(max_new_tokens=8, seed=8))
    assert [c.token_ids for c in other] != [c.token_ids for c in alone]
    numbered = [replace(request, number=number) for number, request in enumerate(requests)]
    backwards = generating_run(model, decode_batch_size=2).generate(numbered[::-1], sampling)
    assert [c.token_ids for c in backwards[::-1]] == [c.token_ids for c in alone]
    twice = generating_run(model).generate([requests[0]] * 2, sampling)
    assert twice[0].token_ids != twice[1].token_ids  # the same prompt, asked twice, is sampled twice


def test_without_a_seed_the_random_state_of_torch_decides():
    run, requests = generating_run(models.tiny_qwen()), prompts(5, 2)
    torch.manual_seed(3)
    first, second = (run.generate(requests, Sampling(max_new_tokens=8)) for _ in range(2))
    torch.manual_seed(3)
    assert run.generate(requests, Sampling(max_new_tokens=8)) == first
    assert first != second


# ---------------------------------------------------------------- ends


def test_a_completion_ends_with_the_first_end_token_of_tokenizer_or_model():
    model, requests = models.tiny_qwen(), prompts(5, 2, 9)
    sampling = Sampling(max_new_tokens=10, temperature=0)
    free = generating_run(model).generate(requests, sampling)
    assert all(c.finish_reason == "length" and len(c.token_ids) == len(c.logprobs) == 10 for c in free)
    tokenizer = models.tiny_tokenizer()
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(free[0].token_ids[3])
    model.generation_config.eos_token_id = [2, free[1].token_ids[6]]
    ends = {tokenizer.eos_token_id, *model.generation_config.eos_token_id}
    stopped = generating_run(model, tokenizer).generate(requests, sampling)
    for whole, cut in zip(free, stopped, strict=True):
        end = next((i + 1 for i, token in enumerate(whole.token_ids) if token in ends), None)
        assert cut.token_ids == whole.token_ids[:end]
        assert cut.logprobs == pytest.approx(whole.logprobs[:end], abs=1e-5)
        assert cut.finish_reason == ("stop" if end else "length")
    assert [c.finish_reason for c in stopped][:2] == ["stop", "stop"]


def test_ends_that_are_told_stand_in_for_the_tokenizers():
    """Where the model that answers reads other tokens: what the tokenizer calls an end is an ordinary one."""
    model, requests = models.tiny_qwen(), prompts(5, 2)
    free = Sampling(max_new_tokens=10, temperature=1.5, seed=3)
    ids = generating_run(model).generate(requests, free)[0].token_ids
    tokenizer, place = models.tiny_tokenizer(), max(ids.index(token) for token in ids)  # the last new one
    early = next(token for token in ids if token < len(tokenizer))
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(early)
    told = replace(free, stop_token_ids=[ids[place]])
    first = generating_run(model, tokenizer).generate(requests, told)[0]
    assert place > ids.index(early) and (first.token_ids, first.finish_reason) == (ids[: place + 1], "stop")
    ordinary = generating_run(model, tokenizer).generate(requests, free)[0]
    assert (ordinary.token_ids, ordinary.finish_reason) == (ids[: ids.index(early) + 1], "stop")


def test_the_models_own_defaults_are_neither_used_nor_lost():
    model, requests = models.tiny_qwen(), prompts(5, 2)
    sampling = Sampling(max_new_tokens=10, temperature=0)
    plain = generating_run(model).generate(requests, sampling)
    banned = plain[0].token_ids[0]
    model.generation_config.update(
        do_sample=True,
        temperature=2.0,
        top_k=3,
        repetition_penalty=5.0,
        suppress_tokens=[banned],
        max_length=8,
        min_new_tokens=2,
        no_repeat_ngram_size=1,
    )
    model.config.use_cache = False
    held = model.generation_config
    assert generating_run(model).generate(requests, sampling) == plain
    assert model.generation_config is held
    assert held.repetition_penalty == 5.0


def test_dropout_and_checkpointing_are_off_meanwhile_and_on_again_after():
    model = models.tiny_gpt2(embd_pdrop=0.5, resid_pdrop=0.5)
    requests, sampling = prompts(5, 2), Sampling(max_new_tokens=6, temperature=0)
    run = generating_run(model)
    run.policy.eval()
    quiet = run.generate(requests, sampling)
    assert not model.training
    model.gradient_checkpointing_enable({"use_reentrant": False})
    run.policy.train()
    assert run.generate(requests, sampling) == quiet
    assert model.training
    assert model.is_gradient_checkpointing


def test_completions_stop_where_the_positions_of_the_model_do():
    model = models.tiny_gpt2(n_positions=16)  # learned positions: a step too far is an index error
    requests = prompts(14, 2, 13, 14, 15)
    completions = generating_run(model).generate(requests, Sampling(max_new_tokens=6, temperature=0))
    assert [len(c.token_ids) for c in completions] == [2, 6, 3, 2, 1]
    for request, completion in zip(requests, completions, strict=True):
        assert completion.token_ids == replay(model, request, completion.token_ids).argmax(-1).tolist()


def test_prompts_that_leave_no_room_are_named():
    run = generating_run(models.tiny_gpt2(n_positions=16))
    with pytest.raises(DataError, match=r"prompt 2 of 3 has 16 tokens, the model has 16 positions"):
        run.generate(prompts(4, 16, 3), Sampling(max_new_tokens=6))
    with pytest.raises(DataError, match=r"prompt 1 of 1 has no tokens"):
        run.generate([Request(prompt_ids=[])], Sampling(max_new_tokens=6))
    with pytest.raises(DataError, match=r"prompt 1 of 1: max_new_tokens is 0; expected at least 1"):
        run.generate([Request(prompt_ids=[5], max_new_tokens=0)], Sampling(max_new_tokens=6))
    assert run.generate([], Sampling(max_new_tokens=6)) == []


# ---------------------------------------------------------------- several processes

LENGTHS = (5, 2, 9, 4, 6)
SAMPLINGS = [Sampling(max_new_tokens=8, seed=7), Sampling(max_new_tokens=5, temperature=0)]


def update(run) -> None:
    """One step of gradient descent on a batch that is the same on every rank."""
    ids = list(range(10, 40))
    batch = flat_batch([Segment(input_ids=ids, labels=ids, row=0)], num_rows=1)
    loss = -run.policy(batch, want=("logp",))["logp"].mean()
    loss.backward()
    with torch.no_grad():
        for parameter in run.policy.parameters():
            parameter -= 0.05 * parameter.grad
            parameter.grad = None


def _rank(rank: int, world_size: int, port: int, folder: str, requests: list[Request]) -> None:
    from torch.distributed.fsdp import fully_shard

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    model = models.tiny_qwen()
    attention.install(model)
    run = generating_run(model, distributed_strategy="fsdp2", decode_batch_size=2)
    mesh = torch.distributed.init_device_mesh("cpu", (world_size,))
    for layer in run.policy.causal_lm.get_decoder().layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(run.policy, mesh=mesh)
    mine = requests[rank::world_size]
    results = [run.generate(mine, sampling) for sampling in SAMPLINGS]
    # one rank without requests, then the other: they take part all the same
    results += [run.generate(mine if rank == r else [], SAMPLINGS[0]) for r in range(world_size)]
    update(run)
    results.append(run.generate(mine, SAMPLINGS[1]))
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
    leave(0)  # as a run's ranks do


def test_sharded_ranks_generate_what_one_process_does(tmp_path):
    requests = prompts(*LENGTHS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (2, port, str(tmp_path), requests), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    model = models.tiny_qwen()
    attention.install(model)
    run = generating_run(model)
    alone = [run.generate(requests, sampling) for sampling in SAMPLINGS]
    update(run)
    alone.append(run.generate(requests, SAMPLINGS[1]))
    assert alone[2] != alone[1]
    for index, one in zip((0, 1, 4), alone, strict=True):
        both = [ranks[i % 2][index][i // 2] for i in range(len(requests))]
        assert [c.token_ids for c in both] == [c.token_ids for c in one]
        for left, right in zip(both, one, strict=True):
            assert left.logprobs == pytest.approx(right.logprobs, abs=1e-5)
    for rank in range(2):
        assert ranks[rank][2 + rank] == ranks[rank][0]
        assert ranks[rank][3 - rank] == []
