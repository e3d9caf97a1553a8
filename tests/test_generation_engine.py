"""The engine of the built-in backend: requests that arrive while others run get what each would get alone."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from ft_grpo.config import GRPOConfig
from peft import LoraConfig, get_peft_model

from ft_host import registry
from ft_host.contract.names import Named
from ft_host.errors import ConfigError, DataError, HookError, OutOfMemory
from ft_host.generation import Completion, Request, Sampling, decode, engine
from ft_host.generation import prompts as prefilling
from ft_host.generation import transformers as backend
from ft_host.models.aux_models import AuxModel
from ft_host.run import EnginePlace, Run
from ft_host.testing import models
from ft_host.testing.generation import generating_run
from ft_host.training.preflight import choose
from ft_host.types import ModelSpec

FULL = {"top_p": 0.95, "top_k": 50, "min_p": 0.01, "repetition_penalty": 1.3}
ENDS = list(range(20, 36))  # one token in sixteen: rows end at different times


def prompts(*lengths: int, seed: int = 0) -> list[Request]:
    """Requests with numbers, some of which get few tokens."""
    rng = np.random.default_rng(seed)
    return [
        Request(prompt_ids=rng.integers(40, 250, length).tolist(), number=number, max_new_tokens=3 + 5 * number % 17)
        for number, length in enumerate(lengths)
    ]


MIXED = prompts(3, 11, 1, 7, 7, 20, 14, 2, 33, 5)


def made(name: str, **overrides):
    """Weights of the head are apart: tied ones, at random, repeat the last token."""
    model = models.FAMILIES[name](tie_word_embeddings=False, **overrides)
    model.generation_config.eos_token_id = ENDS
    return model


def run_of(name: str = "qwen", size: int = 4, **overrides) -> Run:
    return generating_run(made(name, **overrides), decode_batch_size=size)


def place_of(run: Run) -> EnginePlace:
    return EnginePlace(
        config=run.config, tokenizer=run.tokenizer, backend_config=None, say=lambda text, level="info": None, run=run
    )


class Asked:
    """An engine, and what it has returned for each key."""

    def __init__(self, run: Run):
        self.run = run
        self.engine = run.plugins.hook.ft_engine(place=place_of(run))
        self.tokens: dict[int, list[int]] = {}
        self.logprobs: dict[int, list[float]] = {}
        self.reasons: dict[int, str] = {}
        self.polls = 0

    def submit(self, key: int, request: Request, sampling: Sampling) -> None:
        self.engine.submit(key, request, sampling)
        self.tokens[key], self.logprobs[key] = [], []

    def poll(self, patience: float = 0.0) -> set[int]:
        """Returns the keys that there was a piece of."""
        pieces = self.engine.poll(patience)
        self.polls += 1
        for key, piece in pieces:
            assert key not in self.reasons  # nothing comes after the end
            assert len(piece.token_ids) == len(piece.logprobs) and not piece.problem
            self.tokens[key] += piece.token_ids
            self.logprobs[key] += piece.logprobs
            if piece.finish_reason is not None:
                self.reasons[key] = piece.finish_reason
        keys = [key for key, _ in pieces]
        assert len(set(keys)) == len(keys)
        return set(keys)

    def rest(self) -> list[Completion]:
        """Poll until all has ended; completions by key."""
        while set(self.reasons) != set(self.tokens):
            assert self.poll(), "no progress"
        assert not self.engine.lanes and not self.engine.told
        return [
            Completion(token_ids=self.tokens[key], logprobs=self.logprobs[key], finish_reason=self.reasons[key])
            for key in sorted(self.tokens)
        ]


def ask(run: Run, requests: list[Request], sampling: Sampling) -> list[Completion]:
    asked = Asked(run)
    for key, request in enumerate(requests):
        asked.submit(key, request, sampling)
    return asked.rest()


def close(some: list[Completion], others: list[Completion]) -> None:
    """The same tokens and ends, and log-probs to round-off."""
    for one, other in zip(some, others, strict=True):
        assert replace(one, logprobs=[]) == replace(other, logprobs=[])
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-5)


def continued(request: Request, tokens: list[int], limit: int) -> Request:
    """As the inbox goes on with a request that was interrupted."""
    most = limit if request.max_new_tokens is None else request.max_new_tokens
    return replace(
        request,
        prompt_ids=request.prompt_ids + tokens,
        offset=request.offset + len(tokens),
        max_new_tokens=most - len(tokens),
    )


# ---------------------------------------------------------------- all at once


@pytest.mark.parametrize(
    ("name", "size"), [("qwen", 1), ("qwen", 3), ("qwen", 16), ("mistral", 64), ("gemma", 3), ("gpt2", 7)]
)
def test_what_is_asked_at_once_gets_the_very_numbers_of_ft_generate(name, size):
    run = run_of(name, size)
    requests = MIXED + [replace(MIXED[1], number=50 + index, max_new_tokens=12) for index in range(6)]
    for sampling in (Sampling(max_new_tokens=30, seed=3), Sampling(max_new_tokens=30, seed=4, **FULL)):
        expected = run.generate(requests, sampling)
        assert {completion.finish_reason for completion in expected} == {"stop", "length"}
        assert ask(run, requests, sampling) == expected


def test_steps_that_are_read_late_change_nothing(monkeypatch):
    run = run_of(size=3)
    expected = ask(run, MIXED, Sampling(max_new_tokens=30, seed=3))
    monkeypatch.setattr(decode, "STRETCH", {"cpu": 7})
    close(ask(run, MIXED, Sampling(max_new_tokens=30, seed=3)), expected)


def test_a_model_that_cant_decode_is_run_in_the_batches_of_ft_generate(monkeypatch):
    for module in (backend, engine):
        monkeypatch.setattr(module, "can_decode", lambda model: False)
    run, sampling = run_of(size=3), Sampling(max_new_tokens=20, seed=5, **FULL)
    asked = Asked(run)
    for key, request in enumerate(MIXED):
        asked.submit(key, request, sampling)
    asked.poll()
    assert len(asked.reasons) == 3  # a whole batch
    asked.engine.interrupt()
    left = asked.poll()
    assert len(left) == len(MIXED) - 3 and not any(asked.tokens[key] for key in left)  # nothing is half done
    for key in left:
        asked.submit(key, MIXED[key], replace(sampling, stop_token_ids=[int(key == 9)]))
    close(asked.rest(), run.generate(MIXED, sampling))
    assert ask(run, MIXED, sampling) == run.generate(MIXED, sampling)


def test_a_model_without_keys_and_values():
    run = generating_run(models.tiny_mamba(), decode_batch_size=2)
    sampling = Sampling(max_new_tokens=6, seed=2)
    assert ask(run, MIXED[:4], sampling) == run.generate(MIXED[:4], sampling)


# ---------------------------------------------------------------- arrivals


@pytest.mark.parametrize(("name", "size"), [("qwen", 1), ("qwen", 3), ("mistral", 3), ("gpt2", 64)])
def test_requests_that_arrive_one_by_one_in_any_order(name, size, monkeypatch):
    monkeypatch.setattr(decode, "ROOM", 3)  # so that room is made often
    run, sampling = run_of(name, size), Sampling(max_new_tokens=30, seed=3, **FULL)
    expected = run.generate(MIXED, sampling)
    rng = np.random.default_rng(size)
    asked = Asked(run)
    for key in rng.permutation(len(MIXED)).tolist():
        asked.submit(key, MIXED[key], sampling)
        for _ in range(rng.integers(0, 4)):
            asked.poll()
    close(asked.rest(), expected)


@pytest.mark.parametrize("name", ["qwen", "mistral", "gpt2"])
def test_a_prompt_longer_than_the_columns_in_use_enters_at_once(name):
    run, sampling = run_of(name), Sampling(max_new_tokens=25, seed=1, temperature=1.2)
    short, long = Request(prompt_ids=[50, 60, 70], number=0), Request(prompt_ids=list(range(60, 200)), number=1)
    expected = run.generate([short], sampling) + run.generate([long], sampling)
    asked = Asked(run)
    asked.submit(0, short, sampling)
    for _ in range(4):
        asked.poll()
    asked.submit(1, long, sampling)
    asked.poll()
    assert len(asked.tokens[1]) == 1 and len(asked.tokens[0]) == 4
    (lane,) = asked.engine.lanes.values()
    assert lane.decoder.used.first == 0 and lane.decoder.used.end == 140
    close(asked.rest(), expected)


def test_a_request_does_not_wait_for_places_that_it_does_not_need():
    """With 16 places two must be free before a prefill, unless fewer wait."""
    run, sampling = run_of(size=16), Sampling(max_new_tokens=40, seed=1, stop_token_ids=[])
    run.policy.causal_lm.generation_config.eos_token_id = None
    asked = Asked(run)
    for key in range(15):
        asked.submit(key, Request(prompt_ids=[50 + key], number=key), sampling)
    asked.poll()
    asked.submit(15, Request(prompt_ids=[90], number=15), sampling)
    asked.poll()
    assert len(asked.tokens[15]) == 1


def test_none_waits_for_ever_while_longer_prompts_arrive():
    run, sampling = run_of(size=1), Sampling(max_new_tokens=2, seed=1)
    asked = Asked(run)
    asked.submit(0, Request(prompt_ids=[50, 60], number=0), sampling)
    asked.submit(1, Request(prompt_ids=[50], number=1), sampling)
    for key in range(2, 12):
        asked.submit(key, Request(prompt_ids=[60] * (10 + key), number=key), sampling)
        asked.poll()
        asked.poll()
    assert 1 in asked.reasons or len(asked.tokens[1]) == 2
    asked.rest()


def test_a_shared_prompt_is_run_once_though_its_group_enters_in_parts():
    run, sampling = run_of(size=3), Sampling(max_new_tokens=8, seed=1)
    widths: list[int] = []
    run.policy.causal_lm.register_forward_pre_hook(
        lambda model, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    group = [Request(prompt_ids=[50, 60, 70, 80], number=number) for number in range(7)]
    completions = ask(run, group, sampling)
    assert widths.count(4) == 1 and set(widths) == {4, 1}
    assert len({tuple(completion.token_ids) for completion in completions}) == 7


def test_rows_take_no_more_memory_than_there_are_requests():
    run, sampling = run_of(size=64), Sampling(max_new_tokens=40, seed=1, stop_token_ids=[])
    run.policy.causal_lm.generation_config.eos_token_id = None
    asked = Asked(run)
    sizes = []
    for key in range(9):
        asked.submit(key, Request(prompt_ids=[50 + key], number=key), sampling)
        asked.poll()
        (lane,) = asked.engine.lanes.values()
        sizes.append(len(lane.decoder.layers[0].keys))
    assert sizes == [1, 2, 4, 4, 8, 8, 8, 8, 16]


# ---------------------------------------------------------------- different samplings


def test_each_request_has_its_own_seed_ends_and_limit_in_one_batch():
    run = run_of(size=8)
    samplings = [
        Sampling(max_new_tokens=4 + 3 * index, seed=index % 3, stop_token_ids=[100 + 7 * index], **FULL)
        for index in range(len(MIXED))
    ]
    pairs = list(zip(MIXED, samplings, strict=True))
    expected = [run.generate([request], sampling)[0] for request, sampling in pairs]
    asked = Asked(run)
    for key, (request, sampling) in enumerate(pairs):
        asked.submit(key, request, sampling)
    assert len(asked.engine.lanes) == 1
    close(asked.rest(), expected)


def test_requests_that_are_sampled_in_other_ways_take_turns():
    run, size = run_of(size=4), 4
    kinds = [{}, {"temperature": 0.0}, {"top_k": 5}, FULL]
    samplings = [Sampling(max_new_tokens=20, seed=7, **kinds[index % 4]) for index in range(len(MIXED))]
    pairs = list(zip(MIXED, samplings, strict=True))
    expected = [run.generate([request], sampling)[0] for request, sampling in pairs]
    asked = Asked(run)
    asked.submit(0, *pairs[0])
    asked.submit(4, *pairs[4])
    asked.submit(8, *pairs[8])
    asked.poll()
    for key in (1, 2, 3, 5, 6, 7, 9):
        asked.submit(key, *pairs[key])
    before = len(asked.engine.lanes)
    asked.poll()
    assert before == 4
    for kind in range(4):  # each lane gets on, and at once
        assert any(asked.tokens[key] for key in range(kind, len(MIXED), 4))
    assert sum(len(lane.rows) for lane in asked.engine.lanes.values()) <= size + 3
    close(asked.rest(), expected)


def test_a_model_of_another_role_answers_beside_the_policy():
    """The policy without its adapter, which is switched off and on between the steps of one and the other."""
    model = get_peft_model(made("qwen"), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    run = generating_run(model, decode_batch_size=4, use_peft=True)
    run.models["reference"] = AuxModel(ModelSpec(), run)
    sampling = Sampling(max_new_tokens=12, seed=2)
    requests = [replace(request, max_new_tokens=12) for request in MIXED]
    apart = {role: run.generate(requests, replace(sampling, role=role)) for role in ("policy", "reference")}
    assert apart["policy"] != apart["reference"]
    close(apart["reference"], run_of().generate(requests, sampling))
    asked = Asked(run)
    for key, request in enumerate(requests * 2):
        asked.submit(key, request, replace(sampling, role="policy" if key < len(requests) else "reference"))
    close(asked.rest(), apart["policy"] + apart["reference"])


def test_requests_without_seed_or_number_differ():
    run = run_of(size=8)
    torch.manual_seed(5)
    asked = Asked(run)
    for key in range(4):
        asked.submit(key, Request(prompt_ids=[50, 60]), Sampling(max_new_tokens=8))
    for key in range(4, 8):
        asked.submit(key, Request(prompt_ids=[50, 60]), Sampling(max_new_tokens=8, seed=3))
    assert len({tuple(completion.token_ids) for completion in asked.rest()}) == 8


# ---------------------------------------------------------------- interrupted, and gone on with


@pytest.mark.parametrize(
    ("name", "options"),
    [("qwen", FULL), ("mistral", {}), ("gemma", {"temperature": 0.0, "repetition_penalty": 1.4}), ("gpt2", FULL)],
)
def test_a_completion_that_is_cut_anywhere_goes_on_with_the_same_tokens(name, options):
    run, sampling = run_of(name), Sampling(max_new_tokens=14, seed=6, **options)
    requests = [replace(request, max_new_tokens=None) for request in MIXED[:4]]
    whole = run.generate(requests, sampling)
    rests, parts = [], []
    for request, completion in zip(requests, whole, strict=True):
        for cut in range(len(completion.token_ids)):
            rests.append(continued(request, completion.token_ids[:cut], 14))
            parts.append(replace(completion, token_ids=completion.token_ids[cut:], logprobs=completion.logprobs[cut:]))
    close(run.generate(rests, sampling), parts)
    close(ask(run, rests, sampling), parts)


def test_the_batches_of_generate_go_on_with_the_same_tokens_too(monkeypatch):
    run, sampling = run_of(), Sampling(max_new_tokens=14, seed=6, **FULL)
    requests = [replace(request, max_new_tokens=None) for request in MIXED[:4]]
    whole = run.generate(requests, sampling)
    monkeypatch.setattr(backend, "can_decode", lambda model: False)
    cuts = [len(completion.token_ids) // 2 for completion in whole]
    assert len(set(cuts)) > 1  # each its own offset
    rests = [continued(r, c.token_ids[:cut], 14) for r, c, cut in zip(requests, whole, cuts, strict=True)]
    parts = [replace(c, token_ids=c.token_ids[n:], logprobs=c.logprobs[n:]) for c, n in zip(whole, cuts, strict=True)]
    close(run.generate(rests, sampling), parts)


def test_a_completion_that_ends_with_the_positions_ends_there_after_an_interruption():
    run, sampling = run_of("gpt2", n_positions=24), Sampling(max_new_tokens=30, seed=1, stop_token_ids=[])
    run.policy.causal_lm.generation_config.eos_token_id = None
    request = Request(prompt_ids=list(range(50, 60)), number=0)
    (whole,) = run.generate([request], sampling)
    assert len(whole.token_ids) == 14 and whole.finish_reason == "length"
    (rest,) = run.generate([continued(request, whole.token_ids[:9], 30)], sampling)
    assert (rest.token_ids, rest.finish_reason) == (whole.token_ids[9:], "length")


@pytest.mark.parametrize("size", [2, 8])
def test_interrupted_at_any_time_and_gone_on_equals_what_ran_through(size):
    run, sampling = run_of(size=size), Sampling(max_new_tokens=30, seed=3, **FULL)
    expected = run.generate(MIXED, sampling)
    rng = np.random.default_rng(size)
    asked, key = Asked(run), 0
    running: dict[int, int] = {}  # by the engine's key, which request it is
    tokens: list[list[int]] = [[] for _ in MIXED]
    logprobs: list[list[float]] = [[] for _ in MIXED]
    while True:
        for index, request in enumerate(MIXED):
            if index not in running.values() and not (tokens[index] and index in asked.reasons):
                asked.engine.submit(key, continued(request, tokens[index], 30), sampling)
                running[key] = index
                key += 1
        for _ in range(rng.integers(1, 6)):
            for got, piece in asked.engine.poll(0.0):
                tokens[running[got]] += piece.token_ids
                logprobs[running[got]] += piece.logprobs
                if piece.finish_reason:
                    asked.reasons[running[got]] = piece.finish_reason
        asked.engine.interrupt()
        last = asked.engine.poll(0.0)
        assert {running[got] for got, _ in last} == set(range(len(MIXED))) - set(asked.reasons)
        assert not any(piece.finish_reason for _, piece in last)
        assert not asked.engine.poll(0.0)
        running.clear()
        running |= {-1 - index: index for index in asked.reasons}
        if len(asked.reasons) == len(MIXED):
            break
    found = [
        Completion(token_ids=tokens[index], logprobs=logprobs[index], finish_reason=asked.reasons[index])
        for index in range(len(MIXED))
    ]
    close(found, expected)


def test_no_keys_and_values_are_held_after_an_interruption_or_at_the_end():
    run, sampling = run_of(size=3), Sampling(max_new_tokens=30, seed=3)

    def under_way() -> tuple[Asked, list[weakref.ref]]:
        asked = Asked(run)
        for key, request in enumerate([*MIXED, *[replace(MIXED[8], number=90 + n) for n in range(5)]]):
            asked.submit(key, request, sampling)
        asked.poll()
        asked.poll()
        (lane,) = asked.engine.lanes.values()
        held = [pair for prompt in lane.waiting.values() for pair in prompt.states or ()]
        assert held  # a group that entered in part
        tensors = [layer.keys for layer in lane.decoder.layers] + [keys for keys, _ in held]
        return asked, [weakref.ref(tensor) for tensor in tensors]

    for end in ("interrupt", "close"):
        asked, tensors = under_way()
        getattr(asked.engine, end)()
        assert not any(tensor() is not None for tensor in tensors)
    asked, tensors = under_way()
    asked.rest()
    assert not any(tensor() is not None for tensor in tensors)


def test_withdrawn_requests_leave_no_trace_in_those_beside_them():
    run, sampling = run_of(size=3), Sampling(max_new_tokens=30, seed=3)
    expected = run.generate(MIXED, sampling)
    asked = Asked(run)
    for key, request in enumerate(MIXED):
        asked.submit(key, request, sampling)
    asked.poll()
    running = [key for key in asked.tokens if asked.tokens[key] and key not in asked.reasons]
    waiting = [key for key in asked.tokens if not asked.tokens[key]]
    gone = [running[0], waiting[0], waiting[-1]]
    for key in gone:
        asked.engine.withdraw(key)
        asked.tokens.pop(key)
    asked.engine.withdraw(12345)  # of one that has ended, say
    close(asked.rest(), [completion for key, completion in enumerate(expected) if key not in gone])


def test_withdrawing_all_frees_all():
    asked = Asked(run_of())
    for key, request in enumerate(MIXED):
        asked.submit(key, request, Sampling(max_new_tokens=30, seed=3))
    asked.poll()
    for key in range(len(MIXED)):
        asked.engine.withdraw(key)
    assert not asked.engine.lanes and not asked.engine.poll(0.0)


@pytest.mark.parametrize("seed", range(3))
def test_requests_that_come_go_and_come_again_at_random(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(decode, "ROOM", int(rng.choice([1, 3, 64])))
    monkeypatch.setattr(prefilling, "PREFILL_TOKENS", int(rng.choice([10, 60])))
    monkeypatch.setattr(decode, "STRETCH", {"cpu": int(rng.choice([1, 3, 8]))})
    run, sampling = run_of(size=int(rng.choice([2, 5, 9]))), Sampling(max_new_tokens=20, seed=seed, **FULL)
    requests = MIXED + [replace(MIXED[1 + number % 3], number=20 + number, max_new_tokens=9) for number in range(6)]
    expected = run.generate(requests, sampling)
    asked, count = Asked(run), len(requests)
    tokens, logprobs, reasons = [[] for _ in requests], [[] for _ in requests], {}
    outside, inside = rng.permutation(count).tolist(), {}  # inside: by the engine's key
    gone: set[int] = set()
    for key in range(2000):
        chance = rng.random()
        if outside and chance < 0.4:
            inside[key] = outside.pop()
            asked.engine.submit(key, continued(requests[inside[key]], tokens[inside[key]], 20), sampling)
        elif inside and chance < 0.43:
            other = int(rng.choice(list(inside)))
            asked.engine.withdraw(other)
            gone.add(inside.pop(other))
        else:
            interrupts = chance < 0.5
            if interrupts:
                asked.engine.interrupt()
            for other, piece in asked.engine.poll(0.0):
                index = inside[other]
                tokens[index] += piece.token_ids
                logprobs[index] += piece.logprobs
                if piece.finish_reason:
                    reasons[index] = piece.finish_reason
                    del inside[other]
            if interrupts:
                outside += inside.values()
                inside = {}
        if not outside and not inside:
            break
    assert not asked.engine.lanes and not asked.engine.told
    assert set(reasons) == set(range(count)) - gone
    left = sorted(reasons)
    found = [
        Completion(token_ids=tokens[index], logprobs=logprobs[index], finish_reason=reasons[index]) for index in left
    ]
    close(found, [expected[index] for index in left])


# ---------------------------------------------------------------- other weights


@torch.no_grad()
def log_probs(model, request: Request, tokens: list[int], cache=None, upto: int = 0) -> list[float]:
    """Of each token, by one plain forward of those after `upto` positions, whose keys and values `cache` has."""
    ids = torch.tensor([request.prompt_ids + tokens])[:, upto:]
    logits = model(input_ids=ids, past_key_values=cache, use_cache=cache is not None).logits[0].log_softmax(-1)
    first = len(request.prompt_ids) - 1 - upto
    picked = torch.tensor(tokens)[max(0, -first) :]
    return logits[max(first, 0) : -1].gather(1, picked[:, None])[:, 0].tolist()


def changed(model) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.2)


@pytest.mark.parametrize("name", ["qwen", "mistral"])
def test_after_an_update_in_flight_tokens_are_of_the_new_weights_on_old_keys_and_values(name):
    from transformers import DynamicCache

    old, run = made(name).eval(), run_of(name)
    run.policy.causal_lm.generation_config.eos_token_id = None
    asked, sampling = Asked(run), Sampling(max_new_tokens=12, seed=3, stop_token_ids=[])
    requests = [replace(request, max_new_tokens=None) for request in (MIXED[1], MIXED[5])]
    for key, request in enumerate(requests):
        asked.submit(key, request, sampling)
    for _ in range(5):
        asked.poll()
    before = {key: list(tokens) for key, tokens in asked.tokens.items()}
    changed(run.policy.causal_lm)
    asked.engine.update(1, None)
    completions = asked.rest()
    for key, (request, completion) in enumerate(zip(requests, completions, strict=True)):
        assert 0 < len(before[key]) < 12
        expected = log_probs(old, request, before[key])
        assert completion.logprobs[: len(expected)] == pytest.approx(expected, abs=2e-5)
        cache = DynamicCache(config=old.config)
        known = request.prompt_ids + before[key][:-1]  # the last token has no keys and values yet
        with torch.no_grad():
            old(input_ids=torch.tensor([known]), past_key_values=cache, use_cache=True)
        later = log_probs(run.policy.causal_lm.eval(), request, completion.token_ids, cache, len(known))
        assert completion.logprobs[-len(later) :] == pytest.approx(later, abs=2e-5)
        assert len(later) == 12 - len(before[key])
        new = log_probs(run.policy.causal_lm, request, completion.token_ids)
        assert completion.logprobs[-len(later) :] != pytest.approx(new[-len(later) :], abs=1e-3)


def test_a_prompt_that_was_run_before_an_update_and_enters_after_it_is_run_again():
    run = run_of(size=2)
    run.policy.causal_lm.generation_config.eos_token_id = None
    asked, sampling = Asked(run), Sampling(max_new_tokens=3, seed=3, stop_token_ids=[])
    group = [Request(prompt_ids=[50, 60, 70], number=number) for number in range(5)]
    for key, request in enumerate(group):
        asked.submit(key, request, sampling)
    asked.poll()
    changed(run.policy.causal_lm)
    asked.engine.update(1, None)
    for request, completion in list(zip(group, asked.rest(), strict=True))[2:]:
        expected = log_probs(run.policy.causal_lm, request, completion.token_ids)
        assert completion.logprobs == pytest.approx(expected, abs=2e-5)


def test_interrupted_requests_go_on_with_the_new_weights_alone():
    run, sampling = run_of(), Sampling(max_new_tokens=12, seed=3, stop_token_ids=[])
    run.policy.causal_lm.generation_config.eos_token_id = None
    request = replace(MIXED[5], max_new_tokens=12)
    asked = Asked(run)
    asked.submit(0, request, sampling)
    for _ in range(3):
        asked.poll()
    asked.engine.interrupt()
    asked.poll()
    begun = asked.tokens.pop(0)
    changed(run.policy.causal_lm)
    asked.engine.update(1, None)
    asked.submit(1, continued(request, begun, 12), sampling)
    (rest,) = asked.rest()
    expected = log_probs(run.policy.causal_lm, continued(request, begun, 12), rest.token_ids)
    assert rest.logprobs == pytest.approx(expected, abs=2e-5)


# ---------------------------------------------------------------- beside a training


def test_each_poll_leaves_the_model_as_the_training_needs_it():
    run = run_of()
    model, defaults = run.policy.causal_lm, run.policy.causal_lm.generation_config
    modes = []
    model.register_forward_pre_hook(lambda model, args: modes.append((model.training, torch.is_grad_enabled())))
    run.policy.train()
    asked = Asked(run)
    state = torch.get_rng_state()
    for key, request in enumerate(MIXED):
        asked.submit(key, request, Sampling(max_new_tokens=8, seed=1))
        asked.poll()
        assert run.policy.training and model.training and torch.is_grad_enabled()
        assert model.generation_config is defaults
    asked.rest()
    assert set(modes) == {(False, False)}
    assert torch.equal(torch.get_rng_state(), state)


def test_poll_lasts_about_as_long_as_it_may(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(engine.time, "perf_counter", lambda: clock[0])
    run, sampling = run_of(), Sampling(max_new_tokens=100, seed=1, stop_token_ids=[])
    run.policy.causal_lm.generation_config.eos_token_id = None
    run.policy.causal_lm.register_forward_hook(lambda *args: clock.__setitem__(0, clock[0] + 1.0))
    asked = Asked(run)
    asked.submit(0, Request(prompt_ids=[50], number=0), sampling)
    asked.poll(10.0)
    assert len(asked.tokens[0]) == 10
    asked.submit(1, Request(prompt_ids=[60], number=1), replace(sampling, temperature=0.5))
    asked.poll(10.0)
    assert (len(asked.tokens[0]), len(asked.tokens[1])) == (15, 5)  # each lane gets its share
    asked.poll(0.0)
    assert (len(asked.tokens[0]), len(asked.tokens[1])) == (16, 6)


def test_memory_that_runs_out_frees_what_is_held_and_loses_no_token(monkeypatch):
    run, sampling = run_of(size=3), Sampling(max_new_tokens=30, seed=3)
    expected = run.generate(MIXED, sampling)
    asked = Asked(run)
    for key, request in enumerate(MIXED):
        asked.submit(key, request, sampling)
    asked.poll()
    make_room, calls = decode.Decoder._fit, []

    def fails(decoder, *args):
        calls.append(args)
        if len(calls) == 1:
            raise MemoryError("out of memory")
        make_room(decoder, *args)

    monkeypatch.setattr(decode.Decoder, "_fit", fails)
    with pytest.raises(OutOfMemory, match="generation"):
        while True:
            asked.poll()
    assert not asked.engine.lanes
    asked.poll()
    assert not asked.engine.told
    for key in [key for key in asked.tokens if key not in asked.reasons]:
        asked.engine.submit(key, continued(MIXED[key], asked.tokens[key], 30), sampling)
    close(asked.rest(), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu():
    run, sampling = run_of(), Sampling(max_new_tokens=30, temperature=0, repetition_penalty=1.3)
    expected = run.generate(MIXED, sampling)
    run.policy.to("cuda")
    asked = Asked(run)
    for key, request in enumerate(MIXED):
        asked.submit(key, request, sampling)
        asked.poll()
    for one, other in zip(asked.rest(), expected, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)


# ---------------------------------------------------------------- refused


def test_a_prompt_that_is_empty_or_leaves_no_room_is_refused_and_the_others_go_on():
    asked = Asked(run_of("gpt2", n_positions=24))
    sampling = Sampling(max_new_tokens=4, seed=1)
    asked.submit(0, MIXED[0], sampling)
    refused = {
        "the prompt has no tokens": Request(prompt_ids=[]),
        "the prompt has 24 tokens, the model has 24 positions": Request(prompt_ids=[50] * 24),
        "the prompt: max_new_tokens is 0": Request(prompt_ids=[50], max_new_tokens=0),
        "expected 0 to 1": Request(prompt_ids=[50, 60], offset=2),
    }
    for text, request in refused.items():
        with pytest.raises(DataError, match=text):
            asked.engine.submit(1, request, sampling)
    asked.run.models = Named("run.models", {"teacher": None})
    with pytest.raises(HookError, match="role 'teecher' is asked for: run.models has no .* did you mean teacher"):
        asked.engine.submit(1, MIXED[0], replace(sampling, role="teecher"))
    assert len(asked.rest()) == 1


def test_a_sharded_policy_is_refused_before_anything_is_loaded():
    fields = {"model": "nowhere", "dataset": "nowhere", "reward": ["length_ratio"], "distributed_strategy": "fsdp2"}
    with pytest.raises(ConfigError, match="rollouts: overlap .* fsdp2 .* 2 processes"):
        choose(GRPOConfig(**fields, rollouts="overlap", num_processes=2), registry.find("method", "grpo"))
    for allowed in ({"rollouts": "sync", "num_processes": 2}, {"rollouts": "overlap"}):
        choose(GRPOConfig(**fields, **allowed), registry.find("method", "grpo"))
