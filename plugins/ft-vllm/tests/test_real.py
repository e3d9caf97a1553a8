"""Against the real vLLM, in the environment that environment/make.sh makes; its last lines say how to run this.

A server starts in 20 to 40 seconds on two cores. On a CPU, vLLM computes no heads smaller than 32.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from ft_vllm import backend
from ft_vllm.client import Client
from ft_vllm.completions import joined
from ft_vllm.server import free_port
from peft import LoraConfig, get_peft_model
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ft_host.api import EnginePlace, FtHostError, Piece, Request, RolloutConfig, Sampling, Sequence
from ft_host.testing import disturb, save_tiny, tiny_llama, tiny_moe, tiny_qwen

PYTHON = os.environ.get("FT_VLLM_PYTHON")
MODELS = {"tied": tiny_qwen, "untied": tiny_llama, "experts": tiny_moe}
HEADS = {"head_dim": 32}
PROMPTS = [[(7 * row + 13 * place) % 200 + 20 for place in range(5 + row)] for row in range(6)]
GREEDY = Sampling(max_new_tokens=8, temperature=0.0, seed=0)
EXACT = 1e-4  # nats: float32 on both sides, which differ by round-off alone

pytestmark = pytest.mark.slow
server_only = pytest.mark.skipif(
    PYTHON is None, reason="FT_VLLM_PYTHON isn't set: the Python of an environment with vLLM (environment/make.sh)"
)
process_only = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM isn't in this environment (environment/make.sh --trainer)"
)
SERVER = {"python": PYTHON, "max_num_seqs": 32, "start_timeout": 300.0, "timeout": 120.0}
PROCESS = {"mode": "inprocess", "max_num_seqs": 32}
WAYS = [pytest.param(SERVER, marks=server_only, id="server"), pytest.param(PROCESS, marks=process_only, id="inprocess")]


def logits_of(model, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """(N, V): what transformers' own forward pass gives for each token of a completion."""
    with torch.no_grad():
        return model.eval()(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]


def expected(model, prompt: list[int], tokens: list[int], sampling: Sampling) -> torch.Tensor:
    """(N,) log-probs of a completion, by transformers' processors."""
    logits = logits_of(model, prompt, tokens)
    chain = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)])
    if sampling.temperature > 0:
        chain += [TemperatureLogitsWarper(sampling.temperature)]
        chain += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
        chain += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
        chain += [MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    rows = [
        chain(torch.tensor([prompt + tokens[:place]]), logits[place : place + 1])[0] for place in range(len(tokens))
    ]
    return torch.stack(rows).log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]


def difference(run, **fields) -> float:
    """The largest difference of log-probs between vLLM and the policy, over what vLLM samples."""
    sampling = Sampling(**{"max_new_tokens": 24, "seed": 3, **fields})
    completions = run.generate([Request(prompt_ids=prompt) for prompt in PROMPTS], sampling)
    worst = 0.0
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        assert len(completion.token_ids) == len(completion.logprobs)
        theirs = expected(run.policy.model, prompt, completion.token_ids, sampling)
        worst = max(worst, (theirs - torch.tensor(completion.logprobs)).abs().max().item())
        if not sampling.temperature and sampling.repetition_penalty == 1:
            likeliest = logits_of(run.policy.model, prompt, completion.token_ids).argmax(-1).tolist()
            assert completion.token_ids == likeliest
    return worst


def follow(run, updates: int = 3) -> None:
    """Update, and see that what vLLM samples is what the policy says it should be; and that it was not before."""
    backend.ft_sync_weights(run.policy, 0, run)
    assert difference(run) < EXACT
    for version in range(1, updates + 1):
        disturb(run.policy.model)
        assert difference(run) > 0.1
        backend.ft_sync_weights(run.policy, version, run)
        assert difference(run) < EXACT
        assert difference(run, temperature=0.0) < EXACT
        assert difference(run, temperature=0.7) < EXACT
        assert run.generate([Request(prompt_ids=PROMPTS[0])], Sampling(max_new_tokens=2))[0].versions[0] == version


@pytest.fixture
def adapted(make):
    """A run whose policy is a tiny model with a LoRA adapter."""

    def made(make_model, fields: dict, **lora):
        run = make(make_model(**HEADS), **fields)
        torch.manual_seed(0)
        config = LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora})
        run.policy.model = get_peft_model(run.policy.model, config)
        return run

    return made


@pytest.mark.parametrize("fields", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_log_probs_agree_after_each_update(make, fields, name):
    follow(make(MODELS[name](**HEADS), **fields))


@pytest.mark.parametrize("fields", WAYS)
@pytest.mark.parametrize("name", ["tied", "untied"])
def test_an_adapter_alone(adapted, fields, name):
    follow(adapted(MODELS[name], fields))


@pytest.mark.parametrize("fields", WAYS)
def test_an_adapter_merged_with_a_module_trained_in_full(adapted, fields):
    follow(adapted(tiny_llama, {**fields, "lora": "merged"}, modules_to_save=["lm_head"]))


@server_only
def test_a_teacher_scores_tokens_as_its_own_forward_pass_does(make, tmp_path, served):
    teacher = tiny_qwen(**HEADS)
    with served(PYTHON, save_tiny(tmp_path / "teacher", teacher), tmp_path / "teacher.log", top=20) as url:
        run = make(tiny_llama(**HEADS), teacher_url=url)
        found = run.score([Sequence(token_ids=prompt, start=2) for prompt in PROMPTS], 10)
    for prompt, scores in zip(PROMPTS, found, strict=True):
        logs = logits_of(teacher, prompt[:2], prompt[2:]).log_softmax(-1)
        best, places = logs.topk(10, -1)
        torch.testing.assert_close(torch.tensor(scores.logprobs), best, atol=EXACT, rtol=0)
        assert scores.token_ids == places.tolist()


@pytest.mark.parametrize("fields", WAYS)
def test_sampling(make, fields):
    run = make(tiny_qwen(**HEADS), **fields)
    backend.ft_sync_weights(run.policy, 0, run)
    for each in ({"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"repetition_penalty": 1.3}):
        assert difference(run, **each) < EXACT
        assert difference(run, temperature=0.7, **each) < EXACT
    assert difference(run, temperature=0.0, repetition_penalty=1.3) < EXACT

    sampling = Sampling(max_new_tokens=16, seed=3)
    requests = [Request(prompt_ids=prompt, number=number) for number, prompt in enumerate(PROMPTS)]
    tokens = [each.token_ids for each in run.generate(requests, sampling)]
    assert [each.token_ids for each in run.generate(requests[::-1], sampling)][::-1] == tokens
    assert run.generate(requests[2:3], sampling)[0].token_ids == tokens[2]
    assert run.generate([Request(prompt_ids=PROMPTS[2], number=7)], sampling)[0].token_ids != tokens[2]

    many = [Request(prompt_ids=PROMPTS[0], max_new_tokens=200) for _ in range(32)]
    ended = [each for each in run.generate(many, Sampling(max_new_tokens=300, seed=1)) if each.finish_reason == "stop"]
    ends = backend.jobs_of(requests, sampling, run, 512)[0].params["stop_token_ids"]
    assert ended and all(each.token_ids[-1] in ends for each in ended)
    assert not any(token in ends for each in ended for token in each.token_ids[:-1])

    # more tokens than vLLM reads at once: of what is left over from one step, prompts are not read in part
    long = [Request(prompt_ids=[20 + (place * number) % 180 for place in range(400)]) for number in range(1, 33)]
    assert all(len(each.token_ids) for each in run.generate(long, sampling))

    shared = [Request(prompt_ids=PROMPTS[3] * 20)] * 8  # a group: the prompt is read from the cache
    assert len({tuple(each.token_ids) for each in run.generate(shared, sampling)}) > 1


@pytest.mark.parametrize("fields", WAYS)
def test_a_model_that_vllm_refuses_is_named(make, fields):
    run = make(tiny_qwen(head_dim=16), **fields)
    with pytest.raises(FtHostError, match="head_dim=16"):
        run.generate([Request(prompt_ids=PROMPTS[0])], Sampling(max_new_tokens=2))


@server_only
def test_a_server_listens_to_this_machine_alone_and_an_engine_that_dies_is_named(make):
    run = make(tiny_qwen(**HEADS), **SERVER)
    backend.ft_sync_weights(run.policy, 0, run)
    server = backend.opened(run).started
    processes = psutil.Process(server.process.pid).children(recursive=True)
    heard = [place for each in processes for place in each.net_connections() if place.status == psutil.CONN_LISTEN]
    assert heard and all(place.laddr.ip == "127.0.0.1" for place in heard)
    engine = next(each for each in processes if "EngineCore" in " ".join(each.cmdline()))
    engine.kill()
    with pytest.raises(FtHostError, match="(?s)vLLM.*the end of .*vllm.log"):
        run.generate([Request(prompt_ids=prompt) for prompt in PROMPTS], Sampling(max_new_tokens=200))
    backend.ft_close(run)
    assert not psutil.wait_procs(processes, timeout=20)[1]


@server_only
def test_a_server_at_a_url(make):
    first = make(tiny_llama(**HEADS), **SERVER)
    backend.ft_sync_weights(first.policy, 0, first)
    engine = backend.opened(first)
    Client(engine.client.url, 30).post("/shutdown_weight_transfer_engine")
    second = make(tiny_llama(**HEADS), url=engine.client.url, max_num_seqs=8)
    follow(second, updates=1)
    backend.ft_close(second)
    assert engine.client.get("/health") is None


@process_only
def test_an_engine_in_the_process_leaves_the_trainer_alone(make):
    """Random states are what they were, gradients are made, and the trainer's own tensors are not vLLM's."""
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    drawn = random.random(), np.random.random(), torch.rand(3).tolist()
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    run = make(tiny_qwen(**HEADS), **PROCESS)
    backend.ft_sync_weights(run.policy, 0, run)
    before = run.generate([Request(prompt_ids=PROMPTS[0])], GREEDY)
    assert (random.random(), np.random.random(), torch.rand(3).tolist()) == drawn
    optimizer = torch.optim.SGD(run.policy.parameters(), lr=0.5)
    ids = torch.tensor([PROMPTS[0]])
    run.policy.model(ids, labels=ids).loss.backward()
    optimizer.step()
    assert run.generate([Request(prompt_ids=PROMPTS[0])], GREEDY) == before
    backend.ft_sync_weights(run.policy, 1, run)
    assert difference(run) < EXACT


@server_only
@pytest.mark.nightly("ddp")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_share_a_server(tmp_path, strategy):
    script, port = Path(__file__).with_name("two_real_ranks.py"), str(free_port("127.0.0.1"))
    ranks = []
    for rank in "01":
        variables = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        with open(tmp_path / f"{rank}.log", "w") as log:
            command = [sys.executable, str(script), str(tmp_path), PYTHON, strategy]
            ranks.append(subprocess.Popen(command, env=os.environ | variables, stdout=log, stderr=log))
    for rank, process in enumerate(ranks):
        assert process.wait(300) == 0, (tmp_path / f"{rank}.log").read_text()


# ---------------------------------------------------------------- rollouts that don't wait


def overlapping(run, **fields):
    """The same run with `rollouts: overlap`."""
    run.config = RolloutConfig(
        model=run.config.model, dataset="rows", rollouts="overlap", progress="none", use_cpu=True, **fields
    )
    return run


def collect(engine, got: dict, until) -> None:
    end = time.monotonic() + 60
    while not until():
        assert time.monotonic() < end, got
        for key, piece in engine.poll(0.05):
            got[key].append(piece)


@pytest.mark.parametrize("fields", WAYS)
def test_an_update_in_flight_goes_on_with_what_there_is(make, fields, monkeypatch):
    """Tokens before it have the log-probs of the old policy, those after it of the new one; and a server that has a key
    asks for it on the routes for weights too."""
    monkeypatch.setenv("VLLM_API_KEY", "a secret")
    run = overlapping(make(tiny_llama(**HEADS), **fields))
    backend.ft_sync_weights(run.policy, 0, run)
    engine = backend.ft_engine(
        EnginePlace(config=run.config, tokenizer=run.tokenizer, backend_config=run.backend_config, say=run.say, run=run)
    )
    sampling = Sampling(max_new_tokens=400, seed=3, stop_token_ids=[])
    run.policy.causal_lm.generation_config.eos_token_id = None
    got: dict[int, list] = {number: [] for number in range(4)}
    for number in got:
        engine.submit(number, Request(prompt_ids=PROMPTS[number], number=number), sampling)
    collect(engine, got, lambda: all(sum(len(piece.token_ids) for piece in pieces) > 10 for pieces in got.values()))
    engine.interrupt()
    for key, piece in engine.poll(0.0):
        got[key].append(piece)
    begun = {number: joined_all(pieces) for number, pieces in got.items()}
    assert all(10 < len(piece.token_ids) < 400 and piece.finish_reason is None for piece in begun.values())
    old = copy.deepcopy(run.policy.model)
    disturb(run.policy.model)
    backend.ft_sync_weights(run.policy, 1, run)
    engine.update(1, backend.ft_connect(run))
    rest: dict[int, list] = {10 + number: [] for number in begun}
    for number, piece in begun.items():
        done = len(piece.token_ids)
        engine.submit(
            10 + number,
            Request(
                prompt_ids=PROMPTS[number] + piece.token_ids, number=number, offset=done, max_new_tokens=100 - done % 50
            ),
            sampling,
        )
    assert difference(run) < EXACT  # an evaluation, beside what is under way
    collect(engine, rest, lambda: all(pieces and pieces[-1].finish_reason for pieces in rest.values()))
    for number, piece in begun.items():
        theirs = expected(old, PROMPTS[number], piece.token_ids, sampling)
        assert (theirs - torch.tensor(piece.logprobs)).abs().max() < EXACT
        more = joined_all(rest[10 + number])
        ours = expected(run.policy.model, PROMPTS[number] + piece.token_ids, more.token_ids, sampling)
        assert (ours - torch.tensor(more.logprobs)).abs().max() < EXACT
        assert set(piece.versions) == {0} and set(more.versions) == {1}
        other = expected(old, PROMPTS[number] + piece.token_ids, more.token_ids, sampling)
        assert (other - torch.tensor(more.logprobs)).abs().max() > 0.1  # the policies do differ
    if fields is SERVER:
        url = backend.opened(run).client.url
        for path in ("/weight_info", "/v1/models"):
            with pytest.raises(FtHostError, match="401"):
                Client(url, 10, key="").get(path)
        assert Client(url, 10, key="").get("/health") is None


def joined_all(pieces: list[Piece]) -> Piece:
    found = Piece(token_ids=[], logprobs=[])
    for piece in pieces:
        found = joined(found, piece)
    return found


@server_only
@pytest.mark.parametrize("name", ["tied", "untied"])
def test_weights_through_a_folder(make, name):
    """Whole, then what has changed; then to a server that a failed update has left half-way."""
    run = make(MODELS[name](**HEADS), **SERVER, transfer="folder")
    follow(run, updates=2)
    client = backend.opened(run).client
    client.pause(30)
    client.post("/start_weight_update", timeout=30)
    backend.opened(run).keeper.kept[0].has = None  # as after an update that broke off
    with torch.no_grad():
        next(run.policy.parameters())[20, :4] += 0.5
    backend.ft_sync_weights(run.policy, 7, run)
    assert difference(run) < EXACT
