"""What a rollout process does with messages, and the environment that it is started in; no process is started."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from ft_host.contract.names import UnknownName
from ft_host.errors import ConfigError, FtHostError
from ft_host.models.published import Published
from ft_host.scheduling import place, process
from ft_host.scheduling.apart import device_of, visible
from ft_host.scheduling.place import Opening, Place, Roles, plugins_of
from ft_host.scheduling.process import Rollouts
from ft_host.types import ModelSpec, Request, Sampling


class Wire:
    """Keeps what is sent."""

    def __init__(self):
        self.sent, self.events = [], []
        self.arrived = SimpleNamespace(put=lambda message: None)

    def begin(self, beats, scratch):
        pass

    @contextlib.contextmanager
    def loading(self):
        yield

    def emit(self, event):
        self.events.append(event)

    def send(self, *message):
        self.sent.append(message)

    def flush(self):
        self.sent.append(("events",))


class Parts:
    """What `Place` has, with an engine that keeps what it is told."""

    plugins = tokenizer = session = None

    def __init__(self):
        self.done = []

    def engine(self, connection):
        self.done.append(("engine", connection))
        return SimpleNamespace(
            submit=lambda key, request, sampling: self.done.append(("asked", request.number)),
            update=lambda version, weights: self.done.append(("update", version, weights)),
            interrupt=lambda: self.done.append(("interrupt",)),
            poll=lambda patience: [],
            close=lambda: None,
        )

    def apply(self, published):
        self.done.append(("apply", published.version))


def rollouts_of(monkeypatch, *, serves=False):
    parts = Parts()
    monkeypatch.setattr(Place, "open", lambda opening, emit, loading: parts)
    monkeypatch.setattr(
        process.Producer, "admit", lambda producer, units: parts.done.append(("admit", units, producer.inbox.version))
    )
    config = SimpleNamespace(recompute_cache=True)
    opening = Opening(
        config=config,
        plugins=[],
        backend_config=None,
        diagnostics_config={},
        folder="",
        positions=None,
        threads=1,
        serves=serves,
    )
    return Rollouts(Wire(), opening), parts


def published(version):
    return Published(place=None, version=version, base=None, tensors={}, values={}, indices={})


def test_prompts_begin_with_no_older_weights_than_those_sent_before_them(monkeypatch):
    rollouts, parts = rollouts_of(monkeypatch)
    rollouts.take(("admit", [1]))  # before there are any
    rollouts.take(("update", 4, "version-4"))
    rollouts.take(("admit", [2]))
    assert parts.done == []
    rollouts.take(("loaded", published(4)))
    assert parts.done == [("apply", 4), ("engine", None), ("admit", [1], 4), ("admit", [2], 4)]
    rollouts.take(("update", 5, "version-5"))
    rollouts.take(("update", 6, "version-6"))
    rollouts.take(("admit", [3]))
    rollouts.take(("loaded", published(5)))
    assert parts.done[4:] == [("apply", 5), ("update", 5, None)], "what was admitted is of version 6"
    rollouts.take(("loaded", published(6)))
    assert parts.done[-1] == ("admit", [3], 6)
    assert [message for message in rollouts.wire.sent if message[0] == "have"] == [
        ("have", 4),
        ("have", 5),
        ("have", 6),
    ]


def test_a_question_waits_for_the_weights_sent_before_it(monkeypatch):
    rollouts, parts = rollouts_of(monkeypatch)
    rollouts.take(("update", 0, "version-0"))
    rollouts.take(("generate", 7, [Request(prompt_ids=[1], number=3)], Sampling(max_new_tokens=2, seed=1)))
    rollouts.take(("flush", 8))
    assert rollouts.wire.sent[-1] == ("flushed", 8) and not rollouts.asked, "a flush waits for nothing"
    rollouts.take(("loaded", published(0)))
    rollouts.producer.step(0.0)
    assert parts.done[-1] == ("asked", 3)


def test_servers_get_what_was_connected_and_nothing_is_loaded(monkeypatch):
    rollouts, parts = rollouts_of(monkeypatch, serves=True)
    rollouts.take(("update", 0, {"urls": 1}))
    rollouts.take(("pause", 1))
    rollouts.take(("update", 2, {"urls": 2}))
    assert parts.done == [("engine", {"urls": 1}), ("update", 2, {"urls": 2})]
    assert ("paused", 1) in rollouts.wire.sent and not rollouts.producer.inbox.paused


def test_where_another_model_samples_the_version_comes_without_weights(monkeypatch):
    rollouts, parts = rollouts_of(monkeypatch)
    rollouts.take(("admit", [1]))
    rollouts.take(("update", 2, None))
    rollouts.take(("update", 3, None))
    rollouts.take(("admit", [2]))
    assert parts.done == [("engine", None), ("admit", [1], 2), ("update", 3, None), ("admit", [2], 3)]


def test_weights_that_cannot_be_read_are_asked_for_whole_a_few_times(monkeypatch):
    rollouts, _ = rollouts_of(monkeypatch)
    for _ in range(process.UNREADABLE):
        rollouts.take(("unreadable", 3, FtHostError("version-3: its checksum is another")))
    assert rollouts.wire.sent[-1] == ("whole", 3, "version-3: its checksum is another")
    with pytest.raises(FtHostError, match="its checksum is another"):
        rollouts.take(("unreadable", 3, FtHostError("version-3: its checksum is another")))


def test_a_role_is_loaded_when_it_is_asked_for_and_one_that_follows_the_policy_is_refused(monkeypatch):
    made = []
    monkeypatch.setattr(place, "AuxModel", lambda spec, run: made.append(spec) or SimpleNamespace(held=None))
    monkeypatch.setattr(place, "keep_adapter", lambda policy, specs, config: None)
    specs = {
        "teacher": ModelSpec(source="teacher"),
        "ema": ModelSpec(sync_steps=1),
        "value": ModelSpec(head="value", trained=True),
    }
    roles = Roles(SimpleNamespace(policy=None, config=None), specs, contextlib.nullcontext)
    assert sorted(roles) == ["ema", "teacher"] and not made
    assert roles["teacher"] is roles["teacher"] and made == [specs["teacher"]]
    with pytest.raises(ConfigError, match=r"role 'ema' follows the policy \(sync_steps\).*overlap or sync"):
        roles["ema"]
    with pytest.raises(UnknownName, match="has no 'teecher'; did you mean teacher"):
        roles["teecher"]


def test_the_device_is_one_that_the_trainer_does_not_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    cuda, cpu = torch.device("cuda:0"), torch.device("cpu")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert device_of(None, cuda) == torch.device("cuda:2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert device_of(None, cuda) == cuda and device_of(None, cpu) == cpu
    assert device_of("cuda:3", cuda) == torch.device("cuda:3") and device_of("cuda", cuda) == torch.device("cuda:0")
    with pytest.raises(
        ConfigError, match="rollout_device: 'cuda:4' is no device of this machine; expected cpu, cuda:0"
    ):
        device_of("cuda:4", cuda)
    with pytest.raises(ConfigError, match="rollout_device: cpu beside a trainer on cuda"):
        device_of("cpu", cuda)


def test_a_gpu_is_seen_alone_by_the_name_that_the_machine_has_for_it(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible(torch.device("cuda:2")) == {"CUDA_VISIBLE_DEVICES": "2"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-8932f937")
    assert visible(torch.device("cuda:1")) == {"CUDA_VISIBLE_DEVICES": "GPU-8932f937"}
    monkeypatch.setenv("ZE_AFFINITY_MASK", "4,6")
    assert visible(torch.device("xpu:1")) == {"ZE_AFFINITY_MASK": "6"}
    assert visible(torch.device("mps:0")) == {}  # a Mac has one
    assert set(visible(None).values()) == {""} and "CUDA_VISIBLE_DEVICES" in visible(None)


def test_plugins_of_a_run_are_found_by_name_elsewhere(tmp_path):
    from ft_host import registry

    file = tmp_path / "with a space" / "watch_it.py"
    file.parent.mkdir()
    file.write_text("from ft_host.api import hookimpl\n\n@hookimpl\ndef ft_log(entry, run):\n    pass\n")
    manager = registry.session(
        registry.find("method", "grpo"),
        registry.find("backend", "transformers"),
        [registry.find("diagnostics", str(file))],
        extra=[SimpleNamespace()],
    )
    named = plugins_of(manager)
    assert named == [("method", "ft-grpo:grpo"), ("backend", "ft-host:transformers"), ("diagnostics", str(file))]
    assert all(registry.find(*each) for each in named)
