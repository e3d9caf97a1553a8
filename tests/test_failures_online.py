"""Errors and signals in runs that learn from their own completions, and among several ranks."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ft_grpo.config import GRPOConfig

import ft_host
from ft_host.errors import DataError, HookError, Interrupted
from ft_host.generation import transformers as backend
from ft_host.rollouts.rollout import RolloutRun
from ft_host.rundir.checkpoints import newest
from ft_host.rundir.folder import RunFolder
from ft_host.testing import command
from ft_host.testing.invariants import assert_same, lines
from ft_host.testing.models import save_tiny, tiny_llama
from ft_host.training import launch

PAYS = "def letters(completions, **columns):\n    return [float(len(set(text))) for text in completions]\n"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("llama"), tiny_llama())


@pytest.fixture
def online(tmp_path, llama):
    """A GRPO run of two rollouts, in two steps each."""
    (tmp_path / "pays.py").write_text(PAYS)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": f"what is {n}? "}) + "\n" for n in range(24)))
    return GRPOConfig(
        model=str(llama),
        dataset=str(tmp_path / "rows.jsonl"),
        reward=[f"{tmp_path / 'pays.py'}:letters"],
        max_completion_length=8,
        num_generations=4,
        max_steps=4,
        per_device_train_batch_size=8,
        steps_per_generation=2,
        save_steps=0,
        use_cpu=True,
        progress="quiet",
        output_dir=str(tmp_path / "runs"),
    )


def status(config) -> str:
    return json.loads(Path(config.output_dir, "run.json").read_text())["status"]


@pytest.mark.usefixtures("without_nohup")
def test_a_signal_within_a_rollout_loses_no_step_and_the_run_goes_on_the_same(online, monkeypatch):
    reward = RolloutRun.reward

    def asked(self, rows, completions):
        if self.number == 1:
            signal.raise_signal(signal.SIGHUP)
            raise AssertionError("the rollout goes on")
        return reward(self, rows, completions)

    with monkeypatch.context() as patched:
        patched.setattr(RolloutRun, "reward", asked)
        with pytest.raises(Interrupted, match="stopped at step 2 as asked"):
            ft_host.train(online)
    assert status(online) == "interrupted"
    folder = Path(online.output_dir)
    assert newest(folder / "checkpoints")[0].name == "step-2"
    launch.train(online, resume=folder)
    whole = dataclasses.replace(online, output_dir=online.output_dir + "-whole")
    ft_host.train(whole)
    assert_same(lines(Path(whole.output_dir)), lines(folder), rel=0)


@pytest.mark.parametrize("error", [KeyError("x"), ConnectionError("no server")], ids=str)
def test_an_error_of_the_backend_in_a_later_rollout_names_it_and_loses_no_step(online, monkeypatch, error):
    generate = backend.ft_generate

    def broken(requests, sampling, run):
        if run.step == 2:
            raise error
        return generate(requests, sampling, run)

    monkeypatch.setattr(backend, "ft_generate", backend.hookimpl(broken))
    with pytest.raises(HookError, match="(?s)ft_generate of .*step-2 is intact"):
        ft_host.train(online)
    found = RunFolder(online.output_dir).read("findings.jsonl")
    assert any(each["code"] == "SYS005" and "ft_generate" in each["message"] for each in found)


@pytest.mark.parametrize("steps", [{"max_steps": 4}, {"max_steps": -1, "num_train_epochs": 1.0}], ids=str)
def test_no_prompt_left_is_an_error(online, tmp_path, steps):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": f"{n} " * 90}) + "\n" for n in range(6)))
    config = dataclasses.replace(online, max_length=20, max_dropped_share=1.0, **steps)
    with pytest.raises(DataError, match="no (prompt|row) is left"):
        ft_host.train(config)
    assert status(online) == "refused"


# ---------------------------------------------------------------- several ranks

BROKEN = """
import os
import re
from dataclasses import dataclass

import ft_sft.config
import ft_sft.method
from ft_host.api import hookimpl
from ft_sft.method import ft_collate, ft_loss, ft_prepare


@dataclass(kw_only=True)
class Config(ft_sft.config.SFTConfig):
    pass


@hookimpl
def HOOK:
    if run.step == 3 and run.rank == 1:
        WHAT
    RETURN
"""
LOSS = ("ft_loss(model, batch, run)", "return ft_sft.method.ft_loss(model, batch, run)")
STEP = ("ft_step(rows, run)", "return None")


def on_two_ranks(config, tmp_path: Path, hook: tuple[str, str], what: str) -> subprocess.CompletedProcess:
    text = BROKEN.replace("HOOK", hook[0]).replace("WHAT", what).replace("RETURN", hook[1])
    (tmp_path / "broken.py").write_text(text)
    names = ("model", "dataset", "max_steps", "save_steps", "output_dir", "per_device_train_batch_size", "use_cpu")
    flags = [word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(config, name)))]
    return command("train", str(tmp_path / "broken.py"), *flags, "--num-processes", "2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hook", "what", "code", "said", "kept"),
    [
        (STEP, "raise KeyError('x')", 3, "ft_step of the method .*KeyError: 'x'", "step-3"),
        (LOSS, "raise KeyError('x')", 3, "ft_loss of the method .*KeyError: 'x'", "step-2"),
        (LOSS, "os.kill(os.getpid(), 9)", 1, "process 1 of the run was killed by SIGKILL", "step-2"),
        (LOSS, "os.kill(os.getpid(), 15)", 130, "stopped at step 4 as asked", "step-4"),
    ],
    ids=["data phase", "loss", "killed", "asked to stop"],
)
def test_an_error_of_one_rank_is_the_last_thing_seen(config, tmp_path, hook, what, code, said, kept):
    done = on_two_ranks(dataclasses.replace(config, use_cpu=True), tmp_path, hook, what)
    assert done.returncode == code, done.stderr
    seen = [line for line in done.stderr.splitlines() if line.startswith("ft-host: error")]
    assert re.search(said, seen[-1]), done.stderr
    assert "Traceback (" not in done.stderr and "Connection closed" not in done.stderr
    folder = Path(config.output_dir)
    assert newest(folder / "checkpoints")[0].name == kept
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == ("interrupted" if code == 130 else "failed")


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    [mask] = re.findall(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.slow
@pytest.mark.usefixtures("without_nohup")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux whether the command is up")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["at once", "with a folder"])
def test_a_signal_while_the_command_starts_ends_it_with_130(config, tmp_path, number, moment):
    command = [sys.executable, "-m", "ft_host", "train", "sft", "--model", config.model, "--dataset", config.dataset]
    process = subprocess.Popen(
        [*command, "--output-dir", config.output_dir, "--num-train-epochs", "1000"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    record = Path(config.output_dir, "run.json")
    while not (catches(process.pid, number) and (moment == "at once" or record.exists())):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and ("interrupted" in said or "stopped at step" in said), said
    assert "Traceback" not in said
    file = Path(config.output_dir, "run.json")
    assert not file.exists() or json.loads(file.read_text())["status"] == "interrupted"
