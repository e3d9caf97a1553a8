"""Nobody else writes into a run: its owner, what readers make of one that is gone, and ranks without a launcher."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from ft_host.cli import runs as runs_command
from ft_host.cli.train import read
from ft_host.cli.train import run as train_command
from ft_host.diagnostics.replay import diagnose
from ft_host.distributed import launcher
from ft_host.errors import UsageError
from ft_host.report import read_run, write_report
from ft_host.rundir import opening
from ft_host.rundir.folder import RunFolder
from ft_host.rundir.opening import Resuming
from ft_host.rundir.owner import FILE, Owner, _this_process, refuse_if_owned, state_of
from ft_host.testing import Command
from ft_host.testing.invariants import assert_same, beside, lines, run_in
from ft_host.testing.runs import make_run
from ft_host.training.launch import train

ENV = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def ended():
    """What an owner that has been killed left: its pid is another process' now."""
    return _this_process() | {"began": 1, "locked": True}


def leave(folder: Path, owner: dict) -> None:
    (folder / FILE).write_text(json.dumps(owner))


# ---------------------------------------------------------------- the lock


def test_one_owner_at_a_time_and_the_file_goes_with_it(tmp_path):
    one = Owner.take(tmp_path)
    assert one.taken_from is None and state_of(tmp_path) == "alive"
    with pytest.raises(UsageError, match=f"is in use: process {os.getpid()} on {socket.gethostname()} trains in it"):
        Owner.take(tmp_path)
    with pytest.raises(UsageError, match=f"process {os.getpid()}"):
        refuse_if_owned(tmp_path)
    one.release(ended=True)
    assert list(tmp_path.iterdir()) == [] and state_of(tmp_path) is None
    Owner.take(tmp_path).release(ended=True)


def test_of_many_that_begin_at_once_exactly_one_becomes_the_owner(tmp_path, ended):
    for stale in (False, True):
        if stale:
            leave(tmp_path, ended)

        def attempt(_):
            try:
                return Owner.take(tmp_path)
            except UsageError as error:
                return str(error)

        with ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(attempt, range(8)))
        owners = [each for each in outcomes if isinstance(each, Owner)]
        assert len(owners) == 1
        assert all(f"process {os.getpid()} on" in each for each in outcomes if isinstance(each, str))
        owners[0].release(ended=True)


@pytest.mark.parametrize(
    "left",
    [{"began": 1}, {"boot": "another"}, {"boot": "another", "began": 1}, {"pid": 2**30}],
    ids=["pid-of-another-process", "another-boot", "both", "no-process"],
)
def test_a_dead_owner_is_recognised_and_taken_over(tmp_path, left):
    dead = _this_process() | {"locked": False} | left
    leave(tmp_path, dead)
    assert state_of(tmp_path) == "dead"
    refuse_if_owned(tmp_path)
    owner = Owner.take(tmp_path)
    assert f"process {dead['pid']} on {socket.gethostname()}" in owner.taken_from and "was killed" in owner.taken_from
    assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
    owner.release(ended=True)


def test_a_zombie_is_dead(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has collected it
    leave(tmp_path, _this_process() | {"pid": child.pid})
    assert state_of(tmp_path) == "dead"
    child.wait()


def test_an_owner_without_a_lock_is_known_by_its_process(tmp_path, monkeypatch):
    """A file system without flock."""

    def unsupported(*args):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("ft_host.rundir.owner.fcntl.flock", unsupported)
    owner = Owner.take(tmp_path)
    with pytest.raises(UsageError, match=f"process {os.getpid()}"):
        Owner.take(tmp_path)
    owner.release(ended=True)


def test_an_owner_on_another_host_is_refused_unless_the_user_says_otherwise(tmp_path):
    leave(tmp_path, _this_process() | {"host": "node-7", "pid": 41, "locked": True})
    assert state_of(tmp_path) is None
    with pytest.raises(UsageError, match=r"process 41 on node-7.*whether it still runs.*--take-over"):
        Owner.take(tmp_path)
    owner = Owner.take(tmp_path, take_over=True)
    assert owner.taken_from == "taken over from process 41 on node-7, as --take-over says"
    owner.release(ended=True)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"pid": "x"}', '{"pid": 3}', "\x00\x00"])
def test_a_damaged_owner_file_is_nobody(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    assert state_of(tmp_path) is None
    Owner.take(tmp_path).release(ended=True)


def test_a_forked_child_does_not_hold_the_lock(tmp_path):
    owner = Owner.take(tmp_path)
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.write(theirs, b"up")
        time.sleep(30)
        os._exit(0)
    try:
        assert os.read(ours, 2) == b"up"
        owner._close()  # as the kernel closes it for a killed process
        Owner.take(tmp_path).release(ended=True)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# ---------------------------------------------------------------- runs


def test_a_run_that_goes_on_is_not_resumed(config):
    folder = run_in(config, "a", max_steps=2)
    before = (folder / "run.json").read_bytes(), (folder / "metrics.jsonl").read_bytes()
    owner = Owner.take(folder)
    for asked in (Resuming(), Resuming(restart=True), Resuming(take_over=True)):
        with pytest.raises(UsageError, match=f"process {os.getpid()}"):
            train(beside(config, "a", max_steps=4), resume=folder, asked=asked)
    with pytest.raises(UsageError, match=f"process {os.getpid()}"):
        train_command(["--resume", str(folder)])
    assert before == ((folder / "run.json").read_bytes(), (folder / "metrics.jsonl").read_bytes())
    owner.release(ended=True)
    train(beside(config, "a", max_steps=4), resume=folder)
    assert not (folder / FILE).exists()


def test_a_run_that_fails_gives_its_folder_free(config):
    with pytest.raises(UsageError):
        run_in(config, "a", resume_from_checkpoint=str(Path(config.output_dir, "none/checkpoints/step-1")))
    assert read_run(Path(config.output_dir, "a")).status == "refused"
    assert not Path(config.output_dir, "a", FILE).exists()
    with pytest.raises(Exception, match="learning_rate"):
        run_in(config, "b", max_steps=40, learning_rate=1e30, optim="sgd", max_grad_norm=0)
    assert not Path(config.output_dir, "b", FILE).exists()


def test_a_run_that_is_refused_gives_its_folder_free_too(config, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(Path(config.dataset).read_text())
    other = run_in(config, "a", max_steps=2, dataset=str(rows))
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[::-1]))
    with pytest.raises(UsageError, match="another order"):
        run_in(config, "b", dataset=str(rows), resume_from_checkpoint=str(other / "checkpoints/step-2"))
    refused = Path(config.output_dir, "b")
    assert read_run(refused).status == "refused" and not (refused / FILE).exists()
    assert not (refused / "metrics.jsonl").exists(), "nothing of the other run is taken over"


def test_a_folder_in_which_a_run_begins_is_refused(config):
    folder = Path(config.output_dir, "a")
    folder.mkdir(parents=True)
    owner = Owner.take(folder)
    with pytest.raises(UsageError, match="is in use"):
        run_in(config, "a")
    assert [path.name for path in folder.iterdir()] == [FILE]
    owner.release(ended=True)


def test_default_folders_of_runs_that_begin_in_the_same_second_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: opening.claim_folder("sft"), range(24)))
    assert len(set(folders)) == 24 and all(folder.is_dir() for folder in folders)


def test_what_is_for_runs_that_go_on_is_refused_for_new_ones():
    for flag in ("--restart", "--take-over"):
        with pytest.raises(UsageError, match=f"{flag} is for a run that goes on"):
            read(["sft", flag])
    asked = read(["--resume", "a", "--restart", "--allow-changed", "model, dataset", "--take_over"])
    assert (asked.restart, asked.take_over, asked.allow_changed) == (True, True, ("model", "dataset"))


# ---------------------------------------------------------------- readers


def test_readers_tell_a_killed_run_from_one_that_goes_on(tmp_path, ended, capsys):
    for name in ("killed", "alive", "unknown", "elsewhere"):
        make_run(tmp_path / name, steps=60, status="running", planned_steps=100)
    leave(tmp_path / "killed", ended)
    leave(tmp_path / "elsewhere", _this_process() | {"host": "node-7"})
    leave(tmp_path / "alive", _this_process())
    before = {path: path.read_bytes() for path in (tmp_path / "killed").rglob("*") if path.is_file()}
    runs_command.run([str(tmp_path), "--json"])
    told = {entry["name"]: entry["status"] for entry in json.loads(capsys.readouterr().out)}
    assert told == {"killed": "killed", "alive": "running", "unknown": "running", "elsewhere": "running"}
    assert diagnose(tmp_path / "killed").record.status == "killed"
    page = write_report(tmp_path / "killed", tmp_path / "page.html").read_text(encoding="utf-8")
    assert "The run was killed after step 60." in page and "ft-host train --resume" in page
    assert before == {path: path.read_bytes() for path in (tmp_path / "killed").rglob("*") if path.is_file()}


def test_a_run_whose_end_could_not_be_written_is_seen_to_be_gone(tmp_path):
    folder = RunFolder(make_run(tmp_path / "a", steps=3, status="running"))
    folder.own()
    folder.release()  # a full disk: run.json still says running
    assert state_of(folder.path) == "alive"  # of this process, which the test still is
    leave(folder.path, json.loads((folder.path / FILE).read_text()) | {"began": 1})
    assert read_run(folder.path).status == "killed"


# ---------------------------------------------------------------- processes


def test_a_process_without_an_agent_watches_nobody(monkeypatch):
    monkeypatch.delenv(launcher.AGENT, raising=False)
    launcher.end_with_launcher()
    assert launcher._watched == []


def test_a_rank_ends_with_its_launcher(tmp_path):
    """As one of torchrun, whose agent is killed; and one that is born after its launcher died."""
    rank = "from ft_host.distributed.launcher import *; import time; end_with_launcher(); print('up', flush=True); "
    rank += "time.sleep(60)"
    agent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {rank!r}])"
    env = {name: value for name, value in ENV.items() if name != launcher.LAUNCHER} | {launcher.AGENT: "x"}
    parent = subprocess.Popen([sys.executable, "-c", agent], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    assert parent.stdout.readline() == b"up\n"
    (child,) = psutil.Process(parent.pid).children()
    parent.kill()
    _, gone = parent.communicate(timeout=30)  # until the rank has closed its end
    assert f"process {parent.pid}, which launched this rank, is gone".encode() in gone
    assert psutil.wait_procs([child], timeout=30)[1] == []
    late = subprocess.run([sys.executable, "-c", rank], env=env | {launcher.LAUNCHER: str(parent.pid)}, timeout=30)
    assert late.returncode == launcher.EXIT_CODE


def start(folder: Path, *words: str) -> Command:
    return Command(["train", *words], folder=folder)


def flags(config, **changes) -> list[str]:
    names = ("model", "dataset", "per_device_train_batch_size", "max_steps", "learning_rate", "save_steps")
    values = {name: getattr(config, name) for name in names} | {"progress": "quiet"} | changes
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.mark.slow
def test_of_two_resumes_at_once_exactly_one_goes_on(config, tmp_path):
    whole = run_in(config, "whole", max_steps=8)
    folder = run_in(config, "a", max_steps=8)
    manifest = json.loads((folder / "run.json").read_text())
    manifest["config"]["max_steps"] = 8
    (folder / "run.json").write_text(json.dumps(manifest | {"status": "running"}))
    for step in (6, 8):
        for file in (folder / f"checkpoints/step-{step}").glob("files.json"):
            file.unlink() if step == 8 else None
    both = [start(tmp_path, "--resume", str(folder)) for _ in range(2)]
    ended = [process.finish(timeout=120) for process in both]
    assert sorted(done.returncode for done in ended) in ([0, 2], [0, 0]), ended
    assert all("is in use: process" in done.stderr for done in ended if done.returncode == 2)
    assert_same(lines(whole), lines(folder), rel=0)
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_ranks_end_when_their_launcher_is_killed_and_the_run_goes_on(config, tmp_path):
    words = flags(config, per_device_train_batch_size=4, max_steps=2000, save_steps=1, num_processes=2)
    parent = start(tmp_path, "sft", *words, "--output-dir", str(tmp_path / "a"))
    while not parent.ended() and not list(tmp_path.glob("a/checkpoints/step-*")):
        time.sleep(0.05)
    ranks = [] if parent.ended() else psutil.Process(parent.pid).children(recursive=True)
    assert len(ranks) >= 2, parent.finish()
    os.kill(parent.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(ranks, timeout=30)
    assert not alive, alive
    assert parent.finish(timeout=30).returncode == -signal.SIGKILL
    assert read_run(tmp_path / "a").status in ("killed", "failed")  # a rank that ends first is the other's error
    step = max(line["step"] for line in lines(tmp_path / "a"))
    again = start(tmp_path, "--resume", str(tmp_path / "a"), "--max-steps", str(step + 2)).finish(timeout=120)
    assert again.returncode == 0, again.stderr
    assert [line["step"] for line in lines(tmp_path / "a")] == list(range(1, step + 3))
