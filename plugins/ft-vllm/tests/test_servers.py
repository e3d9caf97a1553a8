"""Several servers, of which the main process takes care: weights go to all, and who fails gets them later.

They are fake_vllm.py, in this process where a test changes what they do, and else started by the run.
"""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest
import torch
from ft_vllm import backend, connecting, opening
from ft_vllm.client import Client
from ft_vllm.places import devices_of
from ft_vllm.weights import as_saved
from peft import LoraConfig, get_peft_model

from ft_host.api import ConfigError, EnginePlace, FtHostError, Request, RolloutConfig, Sampling
from ft_host.testing import disturb, tiny_qwen

SAMPLING = Sampling(max_new_tokens=6, seed=3)
FAST = {"health_period": 0.1, "health_timeout": 1.0, "transfer_timeout": 20.0, "recovery_timeout": 60.0}
PATIENCE = 15.0


@pytest.fixture
def overlapping(make):
    """`overlapping(model, **fields)`: a run with rollouts: overlap."""

    def made(model, rollouts="overlap", recompute=True, **fields):
        run = make(model, **{**FAST, **fields})
        run.config = RolloutConfig(
            model=run.config.model, dataset="rows", rollouts=rollouts, recompute_cache=recompute, progress="none"
        )
        return run

    return made


def with_adapter(overlapping, **fields):
    """A run that sends an adapter: a server that the run starts needs no torch for it."""
    peft = get_peft_model(tiny_qwen(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    run = overlapping(peft.get_base_model(), **fields)
    run.policy.model = peft
    return run


def wait_for(what) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.02)


def sums(run) -> dict[str, list]:
    named = as_saved(run.policy, list(run.policy.causal_lm.named_parameters()))
    wide = [(name, each.double()) for name, each in named]
    return {name: [list(each.shape), each.sum().item(), each.abs().sum().item()] for name, each in wide}


def told(url: str) -> dict:
    return Client(url, 5).get("/state")


def generate(run, first: int = 20, count: int = 8) -> list:
    """Of prompts that begin with `first`: those that were asked before go to the server that knows them."""
    return run.generate([Request(prompt_ids=[first + number], number=number) for number in range(count)], SAMPLING)


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("transfer", ["gloo", "folder"])
def test_all_servers_get_the_weights_and_share_the_requests(overlapping, fakes, transfer):
    run = overlapping(tiny_qwen(), urls=[fake.url for fake in fakes], transfer=transfer)
    for version in (0, 3):
        disturb(run.policy.model)
        backend.ft_sync_weights(run.policy, version, run)
        for fake in fakes:
            assert fake.state["received"] == sums(run) and fake.state["version"] == str(version)
            assert not fake.state["paused"]
        assert all(set(each.versions) == {version} for each in generate(run))
    assert all(fake.bodies for fake in fakes)
    folders = opening.opened(run).folders
    assert len(folders) == (transfer == "folder")
    backend.ft_close(run)
    assert not any(folder.exists() for folder in folders)


@pytest.mark.parametrize("transfer", ["gloo", "folder"])
def test_a_server_that_refuses_an_update_is_left_out_and_gets_all_of_it_later(overlapping, fakes, transfer):
    bad, good = fakes
    run = overlapping(tiny_qwen(), urls=[fake.url for fake in fakes], transfer=transfer)
    backend.ft_sync_weights(run.policy, 0, run)
    bad.fault = "refuses weights"
    disturb(run.policy.model)
    backend.ft_sync_weights(run.policy, 1, run)
    assert bad.state["version"] == "0" and good.state["version"] == "1"
    seen = len(bad.bodies)
    assert all(set(each.versions) == {1} for each in generate(run)) and len(bad.bodies) == seen
    bad.fault = ""
    wait_for(lambda: bad.state["version"] == "1")  # without another step of the trainer
    assert bad.state["received"] == sums(run)
    wait_for(lambda: all(member.well for member in opening.opened(run).fleet.members))
    generate(run, first=120)
    assert len(bad.bodies) > seen


def test_a_synchronous_run_gives_it_with_its_next_update(make, fakes):
    bad, good = fakes
    run = make(tiny_qwen(), urls=[fake.url for fake in fakes], **FAST)
    backend.ft_sync_weights(run.policy, 0, run)
    bad.fault = "refuses weights"
    backend.ft_sync_weights(run.policy, 1, run)
    assert all(set(each.versions) == {1} for each in generate(run))
    bad.fault = ""
    disturb(run.policy.model)
    backend.ft_sync_weights(run.policy, 2, run)
    assert [fake.state["version"] for fake in fakes] == ["2", "2"] and bad.state["received"] == sums(run)


def test_changes_alone_are_sent_through_a_folder_and_the_whole_to_who_missed_some(overlapping, fakes):
    first, second = fakes
    run = overlapping(tiny_qwen(), urls=[fake.url for fake in fakes], transfer="folder")
    backend.ft_sync_weights(run.policy, 0, run)
    with torch.no_grad():
        next(run.policy.parameters())[0, :3] += 1
    backend.ft_sync_weights(run.policy, 1, run)
    place = next(path for path in opening.opened(run).folders[0].glob("version-1"))
    size = sum(parameter.nbytes for parameter in run.policy.parameters())
    assert sum(file.stat().st_size for file in place.glob("*.safetensors")) < size / 20
    first.held, first.read = {}, None  # as one that was begun anew
    with torch.no_grad():
        next(run.policy.parameters())[1, :3] += 1
    backend.ft_sync_weights(run.policy, 2, run)
    assert [fake.read for fake in fakes] == [2, 2]
    assert first.state["received"] == second.state["received"] == sums(run)


def test_a_server_that_somebody_else_began_anew_is_given_the_weights(overlapping, fakes, begin_fake):
    first, _ = fakes
    run = overlapping(tiny_qwen(), urls=[fake.url for fake in fakes])
    backend.ft_sync_weights(run.policy, 2, run)
    port = first.server.server_address[1]
    first.die()
    generate(run)
    back = begin_fake(port)
    wait_for(lambda: back.state["version"] == "2")
    assert back.state["received"] == sums(run)


def test_an_adapter_goes_to_all_servers(overlapping, fakes, begin_fake):
    run = with_adapter(overlapping, urls=[fake.url for fake in fakes])
    for version, name in ((0, "update-0"), (7, "update-1")):
        backend.ft_sync_weights(run.policy, version, run)
        assert all(fake.state["models"] == ["the model", name] for fake in fakes)
        for fake in fakes:
            fake.bodies.clear()
        generate(run)
        assert {body["model"] for fake in fakes for body in fake.bodies} == {name}
    port = fakes[0].server.server_address[1]
    fakes[0].die()
    generate(run)
    back = begin_fake(port)
    wait_for(lambda: back.state["version"] == "7" and back.state["models"] == ["the model", "update-1"])


def test_requests_that_keep_their_cache_stand_still_meanwhile(overlapping, fakes):
    run = overlapping(tiny_qwen(), recompute=False, urls=[fakes[0].url])
    backend.ft_sync_weights(run.policy, 0, run)
    asked = fakes[0].state["asked"]
    assert "POST /pause?mode=keep&clear_cache=false" in asked
    generate(run, count=2)
    assert [body["cache_salt"] for body in fakes[0].bodies if "cache_salt" in body] == ["0", "0"]
    other = overlapping(tiny_qwen(), urls=[fakes[1].url])
    backend.ft_sync_weights(other.policy, 0, other)
    assert "POST /pause?mode=abort&clear_cache=true" in fakes[1].state["asked"]


# ---------------------------------------------------------------- servers of the run


@pytest.mark.slow  # servers that take tensors import torch
def test_a_server_that_is_killed_is_started_anew_and_gets_all_weights_before_it_is_used(overlapping, python):
    run = overlapping(tiny_qwen(), python=python, servers=2)
    disturb(run.policy.model)
    backend.ft_sync_weights(run.policy, 5, run)
    engine = opening.opened(run)
    first = engine.keeper.kept[0]
    before = first.server.process.pid
    for process in psutil.Process(before).children(recursive=True):
        process.kill()
    completions = generate(run)
    assert all(set(each.versions) == {5} for each in completions)
    wait_for(lambda: first.has == 5 and first.server.process.pid != before)
    state = told(first.url)
    assert state["version"] == "5" and state["received"] == sums(run)
    before_that = state["asked"][: state["asked"].index("POST /finish_weight_update")]
    assert sum("generate" in line for line in before_that) == 1  # what tries its log-probs when it is found
    wait_for(lambda: all(member.well for member in engine.fleet.members))
    assert all(set(each.versions) == {5} for each in generate(run))
    with open(run.folder.path / "vllm.log") as log, open(run.folder.path / "vllm-2.log") as other:
        assert log.read().count("starting with") == 2 and other.read().count("starting with") == 1
    processes = [process for each in engine.keeper.kept for process in [psutil.Process(each.server.process.pid)]]
    backend.ft_close(run)
    assert not psutil.wait_procs(processes, timeout=10)[1]


def test_a_run_with_one_server_waits_until_it_is_back(overlapping, python):
    run = with_adapter(overlapping, python=python)
    backend.ft_sync_weights(run.policy, 1, run)
    kept = opening.opened(run).keeper.kept[0]
    psutil.Process(kept.server.process.pid).children()[0].kill()
    assert all(set(each.versions) == {1} for each in generate(run))
    assert told(kept.url)["models"] == ["the model", "update-0"]


@pytest.mark.slow  # its guard waits for ten seconds before it kills
def test_a_server_that_stands_still_is_started_anew(overlapping, python):
    run = with_adapter(overlapping, python=python, servers=2, health_timeout=0.5)
    backend.ft_sync_weights(run.policy, 1, run)
    engine = opening.opened(run)
    first = engine.keeper.kept[0]
    before = psutil.Process(first.server.process.pid)
    before.children()[0].send_signal(signal.SIGSTOP)
    assert all(set(each.versions) == {1} for each in generate(run))
    wait_for(lambda: first.has == 1 and first.server.process.pid != before.pid)


def test_where_no_server_takes_the_weights_the_run_ends_with_what_they_said(overlapping, python):
    fields = {"server_env": {"FAKE": "dies of adapters"}, "recovery_timeout": 3.0, "servers": 2}
    run = with_adapter(overlapping, python=python, **fields)
    with pytest.raises(FtHostError, match="(?s)no server has taken the weights within 3 seconds.*recovery_timeout"):
        backend.ft_sync_weights(run.policy, 1, run)


def test_ports_devices_and_logs_of_several_servers(overlapping, python):
    run = overlapping(tiny_qwen(), python=python, servers=2, devices="3,4", transfer="folder", port=port_of_two())
    kept = opening.opened(run).keeper.kept
    assert [each.launch.devices for each in kept] == ["3", "4"]
    assert kept[1].launch.port == kept[0].launch.port + 1
    environments = [psutil.Process(each.server.process.pid).children()[0].environ() for each in kept]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in environments] == ["3", "4"]
    assert devices_of("0, 1,2,3", 2) == ["0,1", "2,3"]


def port_of_two() -> int:
    """A port with a free one after it."""
    from ft_vllm.server import free_port

    for _ in range(20):
        port = free_port("127.0.0.1")
        used = {each.laddr.port for each in psutil.net_connections("tcp")}
        if port < 65535 and port + 1 not in used:
            return port
    raise AssertionError("no two free ports")


# ---------------------------------------------------------------- a rollout process


def test_a_rollout_process_is_told_where_the_servers_are_and_what_they_have(overlapping, fakes):
    run = overlapping(tiny_qwen(), rollouts="async", urls=[fake.url for fake in fakes])
    backend.ft_sync_weights(run.policy, 6, run)
    said = backend.ft_connect(run)
    assert said["ready"] == [True, True] and said["version"] == 6 and said["model"] == "the model"
    place = EnginePlace(
        config=run.config,
        tokenizer=run.tokenizer,
        backend_config=run.backend_config,
        say=lambda text, level="info": None,
        connection=said,
    )
    engine = connecting.engine_elsewhere(place)
    try:
        ends = [5, 9]
        assert engine.ends(SAMPLING) == opening_ends(run, SAMPLING)
        own = Sampling(max_new_tokens=1, stop_token_ids=ends)
        assert engine.ends(own) == opening_ends(run, own)
        engine.submit(0, Request(prompt_ids=[20], number=0), SAMPLING)
        found = []
        end = time.monotonic() + PATIENCE
        while not (found and found[-1][1].finish_reason) and time.monotonic() < end:
            found += engine.poll(0.05)
        assert {version for _, piece in found for version in piece.versions} == {6}
    finally:
        engine.close()
    assert generate(run)  # the trainer's own way to the servers is as it was: evaluations take it


def opening_ends(run, sampling) -> list[int]:
    from ft_host.api import end_tokens

    return end_tokens(run.policy.causal_lm, run.tokenizer, sampling)


def test_what_can_not_be_is_refused_by_name(overlapping, fakes):
    usual = {"health_period": 5.0, "health_timeout": 10.0, "transfer_timeout": 300.0, "recovery_timeout": 400.0}
    run = overlapping(tiny_qwen(), rollouts="async", mode="inprocess", **usual)
    with pytest.raises(ConfigError, match="mode: inprocess is an engine of the trainer's process, and rollouts: async"):
        backend.ft_connect(run)
    run = with_adapter(overlapping, recompute=False, urls=[fakes[0].url])
    with pytest.raises(ConfigError, match="recompute_cache: false can't be with an adapter .*lora: merged"):
        backend.ft_sync_weights(run.policy, 0, run)
    fakes[1].state["models"] = ["another"]
    run = overlapping(tiny_qwen(), urls=[fake.url for fake in fakes])
    with pytest.raises(ConfigError, match="urls: the servers serve another and the model; expected one model"):
        backend.ft_sync_weights(run.policy, 0, run)


def test_a_server_that_asks_for_no_key_is_named_where_others_reach_it(overlapping, fakes, monkeypatch):
    from ft_vllm import server

    monkeypatch.setattr(server, "is_loopback", lambda host: False)
    run = overlapping(tiny_qwen(), urls=[fake.url for fake in fakes])
    fakes[1].key = "secret"
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    backend.ft_sync_weights(run.policy, 0, run)
    said = [event["text"] for event in run.folder.read("events.jsonl")]
    assert [fake.url for fake in fakes if any(fake.url in text and "asks for no key" in text for text in said)] == [
        fakes[0].url
    ]
    assert os.environ["VLLM_API_KEY"] not in "".join(said)
