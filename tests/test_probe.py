"""Whether what samples has the weights that are trained: backends that do, and backends that are off in each way."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from ft_host import hookimpl
from ft_host.config.rollout import RolloutConfig
from ft_host.errors import FtHostError
from ft_host.generation import Sampling, transformers
from ft_host.models import load_policy
from ft_host.models.policy import Policy
from ft_host.rollouts.probe import PROMPTS, TOKENS, probe_sampler
from ft_host.rollouts.session import RolloutSession
from ft_host.rundir.folder import RunFolder
from ft_host.testing.generation import generating_run
from ft_host.testing.models import save_tiny, tiny_llama, tiny_tokenizer
from ft_host.testing.ranks import as_ranks


@dataclass(kw_only=True)
class Config(RolloutConfig):
    """Without a plan: nothing here is a step."""


class Recorder:
    """The built-in backend, with what it was asked, and a change of what it says."""

    def __init__(self, change=lambda completion: completion, sampling=lambda sampling: sampling):
        self.change, self.sampling = change, sampling
        self.asked = []

    @hookimpl
    def ft_generate(self, requests, sampling, run):
        self.asked.append((requests, sampling))
        return [self.change(each) for each in transformers.ft_generate(requests, self.sampling(sampling), run)]


class Engine:
    """A backend with a copy of the policy, as an engine in another process has, that may not take over what it is
    given."""

    def __init__(self, takes: bool):
        self.takes, self.versions = takes, []

    @hookimpl
    def ft_sync_weights(self, model, version, run):
        self.versions.append(version)
        if version == 0 or self.takes:
            self.model = copy.deepcopy(model.model)

    @hookimpl
    def ft_generate(self, requests, sampling, run):
        return transformers.ft_generate(requests, sampling, replace(run, policy=Policy(self.model)))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("llama"), tiny_llama())


@pytest.fixture
def make(tmp_path, llama):
    def made(backend=None, **fields):
        config = Config(**({"model": str(llama), "dataset": "d", "temperature": 0.8, "progress": "quiet"} | fields))
        policy = load_policy(config, tiny_tokenizer(), torch.device("cpu"))
        run = generating_run(policy.model, backend=backend)
        run.config, run.policy, run.folder = config, policy.train(), RunFolder(tmp_path)
        return run

    return made


def prompts(count: int) -> list[dict]:
    return [{"prompt_ids": list(range(20, 24 + index)), "group": index} for index in range(count)]


def said(run) -> list[str]:
    return [event["text"] for event in run.folder.read("events.jsonl")]


def nudge(run) -> None:
    """An optimizer step, as far as a backend can tell."""
    with torch.no_grad():
        run.policy.causal_lm.lm_head.weight.mul_(1.5)
    run.step += 1


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_the_built_in_backend_has_the_policys_log_probs(make, temperature):
    run = make(temperature=temperature, max_sampling_logp_difference=1e-4, top_k=3)
    probe_sampler(prompts(3), run, "before training")
    (text,) = said(run)
    assert text.startswith("before training, the log-probs of the backend transformers match the policy's within ")
    assert text.endswith("(48 tokens)")
    assert run.policy.training, "it trains on as before"
    nudge(run)
    probe_sampler(prompts(3), run, "after 1 steps")


def test_it_looks_at_a_few_tokens_of_a_few_prompts(make):
    backend = Recorder()
    run = make(backend, temperature=0.7, top_p=0.5, top_k=3, min_p=0.2, repetition_penalty=1.3, seed=9)
    probe_sampler(prompts(9), run, "before training")
    ((requests, sampling),) = backend.asked
    assert [request.prompt_ids for request in requests] == [row["prompt_ids"] for row in prompts(PROMPTS)]
    assert [request.number for request in requests] == [0, 1, 2, 3]
    # from all tokens: what top_p and the like leave is a distribution of its own
    assert sampling == Sampling(max_new_tokens=TOKENS, temperature=0.7, seed=9)
    probe_sampler(prompts(1), make(backend, max_completion_length=5), "before training")
    assert backend.asked[1][1].max_new_tokens == backend.asked[1][0][0].max_new_tokens == 5


def test_a_backend_that_is_off_is_refused_with_how_much(make):
    backend = Recorder(lambda each: replace(each, logprobs=[logp + 0.25 for logp in each.logprobs]))
    run = make(backend)
    with pytest.raises(FtHostError) as caught:
        probe_sampler(prompts(2), run, "before training")
    assert (
        str(caught.value)
        == "before training, the log-probs of the backend transformers differ from the policy's by 0.25 nats on average"
        " (over 32 tokens, 0.25 at most), and max_sampling_logp_difference allows 0.1: it doesn't sample from the"
        " trained model. Look for another precision (dtype, bf16), quantised weights, another model or"
        " revision"
    )
    assert said(run) == []
    probe_sampler(prompts(2), make(backend, max_sampling_logp_difference=0.3), "before training")


def test_another_temperature_is_found(make):
    backend = Recorder(sampling=lambda sampling: replace(sampling, temperature=1.0))
    with pytest.raises(FtHostError, match="differ from the policy's"):
        probe_sampler(prompts(4), make(backend, temperature=0.5), "before training")


def test_log_probs_that_are_no_numbers_are_refused(make):
    backend = Recorder(lambda each: replace(each, logprobs=[float("nan"), *each.logprobs[1:]]))
    with pytest.raises(FtHostError, match="by nan nats"):
        probe_sampler(prompts(4), make(backend), "before training")


def test_one_token_that_is_off_is_within_the_mean(make):
    """Kernels differ here and there; weights that are others differ everywhere."""
    backend = Recorder(lambda each: replace(each, logprobs=[each.logprobs[0] + 1.0, *each.logprobs[1:]]))
    run = make(backend)
    probe_sampler(prompts(4), run, "before training")
    assert "within 0.063 nats on average, 1 at most (64 tokens)" in said(run)[0]


def test_weights_that_never_arrive_are_found_after_the_first_update(make):
    backend, facts = Engine(takes=False), {}
    run, online = make(backend), RolloutSession(config=None, pool=None, toolbox=None)
    run.watch = SimpleNamespace(record_facts=facts.update)  # told before it raises, so that findings have it
    online.begin(run, prompts(4))
    nudge(run)
    with pytest.raises(FtHostError) as caught:
        online.begin(run, prompts(4))
    assert str(caught.value).startswith("after 1 steps, the log-probs of the backend transformers differ")
    assert str(caught.value).endswith("The update of its weights did not arrive")
    assert backend.versions == [0, 1]
    assert facts["probe/sampler_difference"] < 1e-5 < 0.1 < facts["probe/sampler_difference_after_update"]
    assert facts["probe/sampler_difference_limit"] == 0.1 and facts["probe/sampler_difference_max"] < 1e-4


def test_weights_are_given_before_each_rollout_that_follows_an_update_and_looked_at_twice(make):
    backend = Engine(takes=True)
    run, online = make(backend), RolloutSession(config=None, pool=None, toolbox=None)
    online.begin(run, prompts(4))
    run.sync_weights()  # no update in between: nothing to give
    assert backend.versions == [0]
    for _ in range(3):
        nudge(run)
        online.begin(run, prompts(4))
    assert backend.versions == [0, 1, 2, 3]
    assert [text.partition(",")[0] for text in said(run)] == ["before training", "after 1 steps"]
    assert run.seconds["weight_sync"] > 0


def test_one_rank_that_is_off_ends_all(make):
    """Eight tokens of rank 1 are 4 nats off, of 40: 0.8 on average."""
    off = Recorder(lambda each: replace(each, logprobs=[logp - 4 for logp in each.logprobs]))

    runs = [
        make(each, max_completion_length=8) for each in (Recorder(), off)
    ]  # not in threads: accelerate isn't for them

    def work(rank, gather):
        run = runs[rank]
        run.gather = gather
        probe_sampler(prompts(1 if rank else 4), run, "before training")

    for error in as_ranks(2, work):
        assert "by 0.8 nats on average (over 40 tokens, 4 at most)" in str(error)


def test_a_rank_may_have_no_prompts(make):
    runs = [make(), make()]

    def work(rank, gather):
        run = runs[rank]
        run.gather = gather
        probe_sampler(prompts(2 - 2 * rank), run, "before training")
        return True

    assert as_ranks(2, work) == [True, True]
