from __future__ import annotations

import random
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ft_vllm import inprocess
from ft_vllm.sampling import jobs_of, params_of, seed_of, versions_of
from ft_vllm.stepping import StepEngine

from ft_host.api import DataError, Request, Sampling
from ft_host.testing import generating_run, tiny_qwen

ALL = Sampling(max_new_tokens=9, temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, repetition_penalty=1.2, seed=4)


def test_parameters_are_those_of_the_request_and_end_tokens_are_ours():
    assert params_of(ALL, 9, 123, [2, 7]) == {
        "max_tokens": 9,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "seed": 123,
        "stop_token_ids": [2, 7],
        "ignore_eos": True,
        "logprobs": 0,
        "detokenize": False,
    }
    greedy = params_of(replace(ALL, temperature=0.0), 9, 123, [])
    assert not {"seed", "top_p", "top_k", "min_p"} & greedy.keys() and greedy["temperature"] == 0


def test_seeds_are_of_the_call_and_the_number():
    seeds = {seed_of(seed, number) for seed in (0, 1, 12) for number in (0, 1, 21)}
    assert len(seeds) == 9 and all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(1, 21) != seed_of(12, 1)


def test_numbers_are_dealt_out_over_ranks_unless_given():
    run = generating_run(tiny_qwen())
    prompts = [Request(prompt_ids=[5]), Request(prompt_ids=[6], number=41), Request(prompt_ids=[7])]
    seeds = [job.params["seed"] for job in jobs_of(prompts, ALL, run, 64)]
    assert seeds == [seed_of(4, 0), seed_of(4, 41), seed_of(4, 2)]


def test_lengths_end_where_the_positions_do():
    run = generating_run(tiny_qwen())
    jobs = jobs_of([Request(prompt_ids=[5] * 60), Request(prompt_ids=[5], max_new_tokens=3)], ALL, run, 64)
    assert [job.params["max_tokens"] for job in jobs] == [4, 3]
    with pytest.raises(DataError, match=r"prompt 2 of 2 has 64 tokens, vLLM has room for 64"):
        jobs_of([Request(prompt_ids=[5]), Request(prompt_ids=[5] * 64)], ALL, run, 64)
    with pytest.raises(DataError, match="prompt 1 of 1 has no tokens"):
        jobs_of([Request(prompt_ids=[])], ALL, run, 64)
    with pytest.raises(DataError, match="max_new_tokens is 0"):
        jobs_of([Request(prompt_ids=[5], max_new_tokens=0)], ALL, run, 64)


def test_without_a_seed_one_comes_from_torchs_random_state():
    import torch

    run = generating_run(tiny_qwen())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first = jobs_of([Request(prompt_ids=[5])], replace(ALL, seed=None), run, 64)
        second = jobs_of([Request(prompt_ids=[5])], replace(ALL, seed=None), run, 64)
        torch.manual_seed(3)
        assert jobs_of([Request(prompt_ids=[5])], replace(ALL, seed=None), run, 64) == first != second


def test_versions_are_one_a_token():
    spans = [("3", 0, 2), ("4", 2, 5)]
    assert versions_of(spans) == [3, 3, 4, 4, 4]
    assert versions_of([("default", 0, 1)]) == versions_of(None) == []


def test_what_is_left_of_a_completion_has_noise_of_its_own_and_fewer_tokens():
    run = generating_run(tiny_qwen())
    begun, resumed = jobs_of(
        [Request(prompt_ids=[5], number=3), Request(prompt_ids=[5, 9, 8], number=3, offset=2, max_new_tokens=7)],
        ALL,
        run,
        64,
    )
    assert begun.body([]) == {"token_ids": [5], "sampling_params": begun.params}
    assert begun.body([9, 8]) == resumed.body([])  # whoever goes on with it
    assert begun.body([9, 8])["sampling_params"]["seed"] == seed_of(4, 3, 2) != seed_of(4, 3)
    assert begun.params["max_tokens"] == 9  # as it was


@pytest.mark.parametrize("way", ["whole calls", "steps"])
def test_noise_that_vllm_draws_in_the_trainers_process_is_not_the_trainers(way, monkeypatch):
    """It draws for each row of a batch, and then puts that of the request's seed in its place."""

    def draw(*given, **named):
        return [] if torch.rand(()) + random.random() + np.random.random() > 0 else [None]

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=dict))
    llm = SimpleNamespace(generate=draw, llm_engine=SimpleNamespace(step=draw))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    if way == "steps":
        StepEngine(llm, lambda sampling: [], 64, None, salted=False)._step()
    else:
        assert inprocess.generate(llm, [], None) == []
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
