"""A rollout process that is killed at the worst moments, or hangs, and the processes of its rewards: the run goes on,
learns from each prompt once, and leaves no process behind."""

from __future__ import annotations

import dataclasses
import errno
import pkgutil
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
from kills.harness import PATIENCE, is_alive, said, start, status, tree
from kills.once import held, problems
from kills.settings import AHEAD, Setting, config_of, files

from ft_host.errors import FtHostError
from ft_host.rundir.checkpoints import damage
from ft_host.rundir.folder import RunFolder
from ft_host.rundir.recorded import file_of
from ft_host.training.launch import train

ASYNC = AHEAD[1]
IN_USE = "ft-host-weights-"  # in the name of the folder of weights
ROLLOUTS, REWARDS = "ft_host.scheduling.process", "ft_host.rewards.worker"  # in the command lines of processes
GONE = 20.0  # seconds in which what a killed trainer had started must be gone


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    files(folder)
    return folder


@pytest.fixture
def by_hand(request: pytest.FixtureRequest) -> None:
    """For what takes a minute, and each part of which has a quick test beside it."""
    if request.config.getoption("kills") < 100:
        pytest.skip("with --kills 100 or more")


def until(process: BaseProcess, log: Path, found: Callable[[], object]) -> object:
    """Return what `found` gives as soon as it gives something."""
    end = time.monotonic() + PATIENCE
    while not (it := found()):
        assert process.is_alive() and time.monotonic() < end, said(log)
        time.sleep(0.002)
    return it


class Watched:
    """A run with its processes. `seen`: all that it ever had."""

    def __init__(self, setting: Setting, shared: Path, folder: Path, *, goes_on: bool = False):
        self.folder, self.log, self.config = folder, Path(f"{folder}.log"), config_of(setting, shared, folder)
        self.process = start(self.config, 1, folder if goes_on else None, self.log)
        self.seen: set[psutil.Process] = set()

    def processes(self, what: str) -> list[psutil.Process]:
        """Return its processes now with `what` in their command lines."""
        found = []
        for each in tree(self.process)[1:]:
            try:
                if what in " ".join(each.cmdline()) and is_alive(each):
                    found.append(each)
            except psutil.NoSuchProcess:
                continue
        self.seen.update(found)
        return found

    def one(self, what: str, but: psutil.Process | None = None) -> psutil.Process:
        """Wait for a process that isn't `but`, and return it."""
        return until(self.process, self.log, lambda: [each for each in self.processes(what) if each != but])[0]

    def rollout(self, number: int) -> None:
        """Wait until it has taken that rollout."""
        until(self.process, self.log, file_of(self.folder, number, 0).exists)

    def weights(self) -> None:
        """Wait until other weights are published than there are now."""
        files = psutil.Process(self.process.pid).open_files()
        [place] = {Path(each.path).parent for each in files if IN_USE in each.path}
        now = set(place.iterdir())
        until(self.process, self.log, lambda: set(place.iterdir()) - now)

    def nothing_left(self) -> None:
        end = time.monotonic() + GONE
        while left := [each for each in self.seen if is_alive(each)]:
            assert time.monotonic() < end, left
            time.sleep(0.02)


@pytest.mark.slow
def test_a_rollout_process_killed_at_any_moment(shared: Path, tmp_path: Path) -> None:
    """While it samples, while it starts, and while it reads weights; then a process of the rewards."""
    run = Watched(ASYNC, shared, tmp_path / "run")
    run.rollout(1)
    sampling = run.one(ROLLOUTS)
    run.one(REWARDS)
    sampling.kill()
    starting = run.one(ROLLOUTS, sampling)
    starting.kill()
    run.rollout(4)
    reading = run.one(ROLLOUTS, starting)
    run.weights()
    reading.kill()
    run.rollout(7)
    workers = {each for each in run.processes(REWARDS) if each.parent() in run.processes(ROLLOUTS)}
    for worker in workers:
        worker.kill()
    run.process.join(PATIENCE)
    assert run.process.exitcode == 0 and status(run.folder) == "finished", said(run.log)
    assert not problems(run.folder, run.config, [])
    run.nothing_left()
    assert workers
    texts = [event["text"] for event in RunFolder(run.folder).read("events.jsonl")]
    assert sum("was killed by SIGKILL (out of memory?); it is started again" in text for text in texts) == 3
    assert any("a process that calls rewards is gone" in text for text in texts)


@pytest.mark.slow
def test_a_trainer_killed_while_it_publishes_leaves_nothing_and_goes_on(shared: Path, tmp_path: Path) -> None:
    run = Watched(ASYNC, shared, tmp_path / "run")
    run.rollout(4)
    run.one(ROLLOUTS)
    run.one(REWARDS)
    run.weights()
    run.process.kill()
    run.process.join()
    run.nothing_left()
    kept = held(run.folder)  # prompts under way, of which a busy machine may leave none
    again = Watched(ASYNC, shared, run.folder, goes_on=True)
    again.process.join(PATIENCE)
    assert again.process.exitcode == 0, said(again.log)
    assert not problems(run.folder, run.config, [kept])


@pytest.mark.slow
@pytest.mark.usefixtures("by_hand")
def test_a_rollout_process_that_hangs_is_noticed_within_its_deadline(shared: Path, tmp_path: Path) -> None:
    setting = dataclasses.replace(ASYNC, fields=ASYNC.fields | {"rollout_timeout": 80.0})
    run = Watched(setting, shared, tmp_path / "run")
    run.rollout(1)
    hung = run.one(ROLLOUTS)
    hung.send_signal(signal.SIGSTOP)
    run.process.join(2 * PATIENCE)
    assert run.process.exitcode == 0, said(run.log)
    assert not problems(run.folder, run.config, [])
    run.nothing_left()
    texts = [event["text"] for event in RunFolder(run.folder).read("events.jsonl")]
    assert any("has shown no sign of life for 2" in text and "started again" in text for text in texts)


def full_from_rollout_six(
    setting: Setting, shared: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, writes: str, message: str
) -> None:
    """Run where the function `writes` finds no room once that rollout is there: it ends with `message`, what was
    written before is whole, nothing runs on, and it goes on once there is room."""
    config = config_of(setting, shared, folder)
    with monkeypatch.context() as patched:
        write = pkgutil.resolve_name(writes)

        def full(*arguments: Any, **named: Any) -> Any:
            if file_of(folder, 6, 0).exists():
                raise OSError(errno.ENOSPC, "No space left on device", "file")
            return write(*arguments, **named)

        patched.setattr(writes, full)
        with pytest.raises(FtHostError, match=message):
            train(config)
    assert not [each for each in psutil.Process().children() if ROLLOUTS in " ".join(each.cmdline())]
    kept = held(folder)
    assert damage(folder / "checkpoints" / kept.checkpoint) is None
    train(config, resume=folder)
    assert not problems(folder, config, [kept])


@pytest.mark.slow
def test_no_room_for_a_checkpoint_with_prompts_under_way(shared, tmp_path, monkeypatch):
    said = "checkpoint at step 9 could not be written: the disk is full"
    full_from_rollout_six(AHEAD[0], shared, tmp_path / "run", monkeypatch, "ft_host.training.checkpoint.dcp.save", said)


@pytest.mark.slow
@pytest.mark.usefixtures("by_hand")
def test_no_room_for_the_weights(shared, tmp_path, monkeypatch):
    said = "the weights of step 7 could not be written for the sampler: the disk is full"
    full_from_rollout_six(
        ASYNC, shared, tmp_path / "run", monkeypatch, "ft_host.models.weights_folder._write_file", said
    )
