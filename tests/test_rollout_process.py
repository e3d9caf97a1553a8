"""Rollout processes that are killed, stopped or hang, and trainers that go on or are killed themselves.

The first tests drive a real process over a backend that samples 8, 9, 10 ... slowly, and writes down what it is asked.
The last ones are whole runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from ft_grpo.config import GRPOConfig

from ft_host.errors import FtHostError
from ft_host.scheduling.child import Limits
from ft_host.scheduling.ledger import Ledger
from ft_host.scheduling.packed import read_packed
from ft_host.scheduling.place import Opening
from ft_host.scheduling.remote import Remote
from ft_host.scheduling.unit import Finished, Progress, Restarted, Started, Unit
from ft_host.testing import assert_same, assert_same_weights, lines, run_in, tiny_run
from ft_host.testing.processes import finish, start, train_apart

pytestmark = pytest.mark.slow

LONG = 60  # tokens of a completion
PATIENCE = 120.0  # seconds; none of these tests waits so long
BACKEND = """
import pathlib, time
from ft_host.api import Piece, hookimpl

@hookimpl
def ft_generate(requests, sampling, run):
    raise NotImplementedError

@hookimpl
def ft_connect(run):
    raise NotImplementedError

@hookimpl
def ft_engine(place):
    return Counting(pathlib.Path(place.connection["folder"]))

class Counting:
    def __init__(self, folder):
        self.folder, self.rows = folder, {}

    def submit(self, key, request, sampling):
        with (self.folder / "asked").open("a") as file:
            file.write(f"{request.number} {request.offset}\\n")
        self.rows[key] = [request.offset, request.offset + (request.max_new_tokens or sampling.max_new_tokens)]

    def poll(self, patience):
        time.sleep(0.03)
        while (self.folder / "hang").exists():
            time.sleep(0.1)
        pieces = []
        for key, row in list(self.rows.items()):
            row[0] += 1
            ended = row[0] == row[1]
            why = "length" if ended else None
            pieces.append((key, Piece(token_ids=[7 + row[0]], logprobs=[-1.0], finish_reason=why)))
            if ended:
                del self.rows[key]
        return pieces

    def withdraw(self, key):
        self.rows.pop(key, None)

    def interrupt(self):
        self.rows.clear()

    def update(self, version, weights):
        pass

    def close(self):
        pass
"""
REWARD = """
def letters(completions, **columns):
    return [sum(letter.isalpha() for letter in text) / (len(text) + 1) for text in completions]
"""


def unit(number: int) -> Unit:
    row = {"group": 0, "prompt_ids": [20 + number, 30], "prompt": f"p{number}", "columns": {}, "length": 2}
    return Unit(number=number, rollout=number, step=0, rows=[row], epoch=0.0)


@pytest.fixture
def grpo(llama, tmp_path):
    """A run of GRPO: eight rollouts of two prompts, four completions each, a step each, one rollout ahead."""
    (tmp_path / "pays.py").write_text(REWARD, encoding="utf-8")
    rows = [{"prompt": f"how much is {number} and {number}? "} for number in range(16)]

    def made(**fields):
        given = {
            "reward": [f"{tmp_path / 'pays.py'}:letters"],
            "num_generations": 4,
            "per_device_train_batch_size": 8,
            "max_completion_length": 12,
            "max_steps": 8,
            "rollouts": "async",
            "max_staleness": 1,
        }
        return tiny_run(GRPOConfig, llama, tmp_path, rows, **(given | fields))

    return made


@pytest.fixture
def driven(install_plugin, grpo, tmp_path):
    """`driven(**limits)` starts a rollout process over the slow backend. Gives it with a ledger of two prompts that it
    was given."""
    install_plugin(
        "ft-counting",
        entry_points={"ft_host.backends": {"counting": "counting_backend"}},
        modules={"counting_backend": BACKEND},
        requires=["ft-host"],
    )
    begun = []

    def made(**limits):
        opening = Opening(
            config=grpo(backend="counting", max_completion_length=LONG, num_generations=2),
            plugins=[("method", "ft-grpo:grpo"), ("backend", "ft-counting:counting")],
            backend_config=None,
            diagnostics_config={},
            folder=str(tmp_path),
            positions=None,
            threads=1,
            serves=True,
            beats=0.2,
        )
        ledger = Ledger(quota=2, ahead=1, updates=1)
        usual = {"silence": PATIENCE, "stuck": PATIENCE, "answer": PATIENCE, "restarts": 2, "pause": 0.0}
        source = Remote(opening, {"CUDA_VISIBLE_DEVICES": ""}, ledger.again, Limits(**usual | limits))
        begun.append(source)
        for number in (1, 2):
            ledger.add(unit(number))
        source.admit(list(ledger.units.values()))
        source.resume(0, {"folder": str(tmp_path)})
        return source, ledger

    yield made
    for source in begun:
        source.close()


def followed(source, ledger, until):
    """Put events into the ledger until one that is wanted; gives all of them."""
    seen, deadline = [], time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for event in source.events(0.1):
            seen.append(event)
            if isinstance(event, Progress):
                ledger.progress(event)
            elif isinstance(event, Started):
                ledger.begun(event)
            elif isinstance(event, Finished):
                ledger.finish(event)
        if until(seen):
            return seen
    raise AssertionError(f"not in {PATIENCE} s: {seen[-3:]}\n{source.circumstances()}")


def well_begun(ledger):
    """Whether each prompt has both its completions under way."""
    return lambda seen: all(
        len(each.begun) == 2 and all(len(begun.token_ids) > 5 for begun in each.begun.values())
        for each in ledger.units.values()
    )


def all_finished(ledger):
    return lambda seen: all(each.made is not None for each in ledger.units.values())


def whole(ledger):
    """Each completion has each of its tokens once."""
    for each in ledger.units.values():
        assert [row["completion_ids"] for row in each.made.rows] == [list(range(8, 8 + LONG))] * 2


def test_a_killed_process_is_started_again_and_its_tokens_are_kept(driven, tmp_path):
    source, ledger = driven()
    followed(source, ledger, well_begun(ledger))
    first = source.child.process.pid
    workers = [each.pid for each in psutil.Process(first).children(recursive=True)]
    assert workers, "the rewards have a process"
    os.kill(first, signal.SIGKILL)
    followed(source, ledger, lambda seen: any(isinstance(event, Restarted) for event in seen))
    had = Counter(len(begun.token_ids) for each in ledger.units.values() for begun in each.begun.values())
    asked = (tmp_path / "asked").read_text().splitlines()
    seen = followed(source, ledger, all_finished(ledger))
    assert sorted(event.unit for event in seen if isinstance(event, Finished)) == [1, 2]
    whole(ledger)
    again = (tmp_path / "asked").read_text().splitlines()[len(asked) :]
    assert Counter(int(line.split()[1]) for line in again) == had, "each went on behind the tokens that it had"
    assert not any(map(psutil.pid_exists, workers)), "what it had started is gone"


def test_a_killed_reward_worker_is_the_pools_business(driven):
    source, ledger = driven()
    followed(source, ledger, well_begun(ledger))
    for worker in psutil.Process(source.child.process.pid).children(recursive=True):
        worker.kill()
    seen = followed(source, ledger, all_finished(ledger))
    assert not any(isinstance(event, Restarted) for event in seen)
    whole(ledger)


def test_a_stopped_process_shows_no_sign_of_life_and_is_replaced(driven):
    source, ledger = driven(silence=2.0)
    followed(source, ledger, well_begun(ledger))
    os.kill(source.child.process.pid, signal.SIGSTOP)
    seen = followed(source, ledger, all_finished(ledger))
    [again] = [event for event in seen if isinstance(event, Restarted)]
    assert again.why.startswith("has shown no sign of life for")
    whole(ledger)


def test_an_engine_that_hangs_ends_the_run_with_its_stacks(driven, tmp_path):
    source, ledger = driven(stuck=2.0, restarts=0)
    followed(source, ledger, well_begun(ledger))
    (tmp_path / "hang").touch()
    with pytest.raises(FtHostError, match=r"has stood still at one place for \d+ seconds") as raised:
        followed(source, ledger, all_finished(ledger))
    assert "counting_backend.py" in str(raised.value) and "in poll" in str(raised.value)
    assert not psutil.pid_exists(source.child.process.pid)


# ---------------------------------------------------------------- whole runs


def process_of(trainer: int) -> psutil.Process | None:
    """The rollout process of a trainer."""
    for each in psutil.Process(trainer).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended; a zombie is one too
            if "ft_host.scheduling.process" in " ".join(each.cmdline()):
                return each
    return None


def learnt(folder: Path) -> Counter:
    """How often each prompt was learnt from, by its tokens, as the run recorded it."""
    found: Counter = Counter()
    for file in sorted((folder / "rollouts").glob("*.safetensors")):
        rows = read_packed(file)["rows"]
        found.update({tuple(row["prompt_ids"]) for row in rows})
    return found


def after_step(folder: Path, step: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if (folder / "metrics.jsonl").exists() and len(lines(folder)) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"no step {step} in {PATIENCE} s")


def test_a_run_goes_on_when_its_rollout_process_and_a_reward_worker_are_killed(grpo):
    config = grpo()
    folder, trainers = Path(config.output_dir), start(config)
    after_step(folder, 2)
    process_of(trainers[0].pid).kill()
    after_step(folder, 4)
    while (process := process_of(trainers[0].pid)) is None:  # the one after it, which begins in a while
        time.sleep(0.05)
    for worker in process.children():
        worker.kill()
    finish(trainers)
    assert len(lines(folder)) == 8
    assert set(learnt(folder).values()) == {1} and len(learnt(folder)) == 16
    said = [json.loads(line)["text"] for line in (folder / "events.jsonl").read_text().splitlines()]
    assert sum("the rollout process was killed by SIGKILL" in text for text in said) >= 1


def test_nothing_outlives_a_killed_trainer(grpo):
    config = grpo(max_steps=500, num_train_epochs=500)
    folder, [trainer] = Path(config.output_dir), start(config)
    after_step(folder, 2)
    process = process_of(trainer.pid)
    everything = [process, *process.children(recursive=True)]
    scratch = {Path(file.path).parent for file in psutil.Process(trainer.pid).open_files() if "in-use" in file.path}
    trainer.kill()
    trainer.join()
    _, alive = psutil.wait_procs(everything, timeout=20)
    assert not alive and not any(path.exists() for path in scratch)


def test_a_killed_trainer_goes_on_with_each_prompt_learnt_once(grpo):
    config = grpo(save_steps=2)
    folder, [trainer] = Path(config.output_dir), start(config)
    after_step(folder, 5)
    trainer.kill()
    trainer.join()
    train_apart(config, resume=folder)
    assert [line["step"] for line in lines(folder)] == list(range(1, 9))
    assert set(learnt(folder).values()) == {1} and len(learnt(folder)) == 16


@pytest.mark.nightly("ddp")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_trainers_share_one_rollout_process(grpo, strategy):
    config = grpo(distributed_strategy=strategy, per_device_train_batch_size=4)
    train_apart(config, world_size=2)
    folder = Path(config.output_dir)
    assert len(lines(folder)) == 8
    assert max(line["rollouts/staleness_max"] for line in lines(folder)) == 1
    assert set(learnt(folder).values()) == {1} and len(learnt(folder)) == 16


def test_all_ranks_end_with_the_error_of_the_one_that_has_the_process(grpo):
    config = grpo(max_steps=500, num_train_epochs=500, per_device_train_batch_size=4, rollout_retries={"engine": 0})
    folder, trainers = Path(config.output_dir), start(config, world_size=2)
    after_step(folder, 1)
    process = next(filter(None, (process_of(trainer.pid) for trainer in trainers)))
    process.kill()
    for trainer in trainers:
        trainer.join(PATIENCE)
    assert [trainer.exitcode for trainer in trainers] == [1, 1]
    for trainer in trainers:
        assert "the rollout process was lost once because it was killed by SIGKILL" in Path(trainer.name).read_text()


def test_two_trainers_without_staleness_are_the_synchronous_ones(grpo):
    exact = grpo(max_staleness=0, per_device_train_batch_size=4, max_steps=3)
    there = dataclasses.replace(exact, output_dir=exact.output_dir + "-sync", rollouts="sync")
    train_apart(exact, world_size=2)
    train_apart(there, world_size=2)
    assert_same(lines(exact.output_dir), lines(there.output_dir), rel=0.0)
    assert_same_weights(Path(exact.output_dir), Path(there.output_dir), rel=0.0)


def test_an_adapter_without_staleness_is_the_synchronous_one(grpo):
    config = grpo(use_peft=True, beta=0.1, learning_rate=1e-2, max_steps=3)
    there = run_in(config, "async", max_staleness=0)
    here = run_in(config, "sync", rollouts="sync", max_staleness=None)
    assert_same(lines(there), lines(here), rel=0.0)
    assert_same_weights(there, here, rel=0.0)


STRANGER = """
from dataclasses import dataclass

import ft_grpo.config
from ft_grpo.method import ft_annotate, ft_collate, ft_loss, ft_models, ft_prepare, ft_step
from ft_host.api import hookimpl
import ft_grpo.method

@dataclass(kw_only=True)
class Config(ft_grpo.config.GRPOConfig):
    pass

@hookimpl
def ft_rollout(rows, rollout):
    rollout.say(f"a stranger's rollout of version {rollout.version}")
    return ft_grpo.method.ft_rollout(rows, rollout)
"""


def test_a_method_in_a_file_and_a_reward_beside_it_are_found(grpo, tmp_path, monkeypatch):
    from ft_host.registry import config_class

    (tmp_path / "a_stranger.py").write_text(STRANGER, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    fields = {field.name: getattr(grpo(max_steps=2), field.name) for field in dataclasses.fields(GRPOConfig)}
    config = config_class("./a_stranger.py")(**fields | {"reward": ["pays.py:letters"]})
    folder = run_in(config, "stranger")
    assert len(lines(folder)) == 2
    assert "a stranger's rollout of version 0" in (folder / "events.jsonl").read_text()
