"""Tokens scored by a teacher that a server has: against a server that says what it is known to say."""

from __future__ import annotations

import pytest
from ft_vllm.config import VLLMConfig

from ft_host.api import ConfigError, FtHostError, Request, Sampling, Sequence
from ft_host.testing import tiny_llama


@pytest.fixture
def url(fakes):
    fakes[0].state["models"] = ["the teacher"]
    return fakes[0].url


def test_the_likeliest_tokens_of_each_place_likeliest_first(make, url):
    run = make(tiny_llama(), teacher_url=url)
    sequences = [Sequence(token_ids=[5, 6, 7, 8], start=2), Sequence(token_ids=[9, 10], start=1)]
    first, second = run.score(sequences, 2)
    assert first.token_ids == [[8, 9], [9, 10]] and first.logprobs == [[-0.1, -0.2]] * 2
    assert second.token_ids == [[11, 12]]
    assert run.score(sequences, 3)[1].token_ids == [[11, 12, 10]]
    assert run.score([], 2) == []


def test_what_is_too_long_for_the_teacher_is_refused(make, url):
    run = make(tiny_llama(), teacher_url=url)
    with pytest.raises(FtHostError, match="64 positions, and a sequence has 64 tokens"):
        run.score([Sequence(token_ids=[1] * 64, start=3)], 2)


def test_a_server_of_several_models_is_refused(make, url, fakes):
    fakes[0].state["models"] = ["a", "b"]
    with pytest.raises(ConfigError, match="serves a, b; expected one model"):
        make(tiny_llama(), teacher_url=url).score([Sequence(token_ids=[1, 2], start=1)], 2)


def test_with_a_teacher_alone_nothing_is_generated(make, url):
    run = make(tiny_llama(), teacher_url=url)
    with pytest.raises(ConfigError, match="vLLM can score tokens but not generate"):
        run.generate([Request(prompt_ids=[1, 2])], Sampling(max_new_tokens=2))


def test_without_a_teacher_nothing_is_scored(make, python):
    run = make(tiny_llama(), python=python)
    with pytest.raises(ConfigError, match="backend_config.teacher_url: not set"):
        run.score([Sequence(token_ids=[1, 2], start=1)], 2)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"teacher_url": "127.0.0.1:8000"}, "backend_config.teacher_url: '127.0.0.1:8000' is not the address"),
        (
            {"teacher_url": "http://127.0.0.1:1", "lora": "merged"},
            "backend_config.lora: has no effect without python or url",
        ),
    ],
)
def test_refusals_of_fields(fields, says):
    with pytest.raises(ConfigError, match=says):
        VLLMConfig(**fields).check()
