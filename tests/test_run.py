"""A run from start to end, and what becomes of it when it is stopped, killed, damaged, or goes wrong."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import ft_host
from ft_host.errors import FtHostError, UsageError
from ft_host.rundir import checkpoints
from ft_host.rundir.folder import RunFolder
from ft_host.testing import processes
from ft_host.testing.invariants import assert_same, assert_same_weights, beside, lines, run_in
from ft_host.training import checkpoint

ENV = os.environ | {"OMP_NUM_THREADS": "1"}


def manifest(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def command(config, method: str, name: str, **changes) -> tuple[list[str], Path]:
    """The command line that trains `config`, its fields in a file, and the folder of the run."""
    changed, default = beside(config, name, **changes), type(config)()
    fields = {
        field.name: getattr(changed, field.name)
        for field in dataclasses.fields(changed)
        if getattr(changed, field.name) != getattr(default, field.name)
    }
    folder = Path(changed.output_dir)
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.parent / f"{name}.json"
    file.write_text(json.dumps(fields))
    return ["train", method, str(file)], folder


def resume(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    return processes.command("train", "--resume", str(folder), *flags)


def test_what_a_run_leaves(config, tmp_path):
    folder = run_in(config, "a", eval_steps=2)
    run = manifest(folder)
    assert run["status"] == "finished" and run["method"] == "sft" and run["error"] is None
    assert run["config"]["learning_rate"] == 1e-2
    assert run["data"]["train"]["rows"] == 40 and run["data"]["train"]["fingerprint"]
    assert {plugin["name"] for plugin in run["plugins"]} == {"sft"}
    assert [line["step"] for line in lines(folder)] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in lines(folder, "eval")] == [0, 2, 4, 5]
    assert lines(folder)[-1]["loss"] < lines(folder)[0]["loss"]
    assert [path.name for _, path in checkpoints.steps_in(folder / "checkpoints")] == ["step-4", "step-5"]
    assert "<html" in (folder / "report.html").read_text()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert torch.isfinite(model(torch.tensor([[5, 6, 7]])).logits).all()
    AutoModelForCausalLM.from_pretrained(folder / "checkpoints/step-4/model")


def test_train_returns_the_metrics(config):
    done = ft_host.train(dataclasses.replace(config, output_dir=config.output_dir + "/r"))
    assert done.steps == 5 and done.folder == Path(config.output_dir + "/r")
    assert done.metrics["loss"] == lines(done.folder)[-1]["loss"]
    assert done.metrics["eval_loss"] == lines(done.folder, "eval")[-1]["eval_loss"]


def test_an_evaluation_does_not_depend_on_its_batch_size(config):
    one = run_in(config, "one", max_steps=1, per_device_eval_batch_size=1)
    six = run_in(config, "six", max_steps=1, per_device_eval_batch_size=6)
    assert_same(lines(one, "eval"), lines(six, "eval"), rel=1e-5)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(config):
    whole = run_in(config, "whole", max_steps=6)
    folder = run_in(config, "damaged", max_steps=6)
    for name in ("step-6", "step-4"):
        assert checkpoints.damage(folder / "checkpoints" / name) is None
    file = folder / "checkpoints/step-6/model/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    done = resume(folder, "--progress", "lines")
    assert done.returncode == 0, done.stderr
    assert "checkpoint step-6 is damaged (model/model.safetensors" in done.stderr
    assert "resumed from step-4" in done.stderr
    assert_same(lines(whole), lines(folder), rel=0)
    assert_same_weights(whole, folder, rel=0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on_where_it_was(config, number):
    config = dataclasses.replace(config, max_steps=200, save_steps=0, learning_rate=1e-3)
    argv, folder = command(config, "sft", "stopped")
    process = processes.Command(argv)
    while not process.ended() and not RunFolder(folder).read("metrics.jsonl"):
        time.sleep(0.01)
    while not process.ended() and RunFolder(folder).read("metrics.jsonl")[-1]["step"] < 3:
        time.sleep(0.01)
    os.kill(process.pid, number)
    done = process.finish(timeout=60)
    assert done.returncode == 130, done.stderr
    assert "go on with `ft-host train --resume" in done.stderr
    run = manifest(folder)
    assert run["status"] == "interrupted"
    last = lines(folder)[-1]["step"]
    assert last < 200 and (folder / f"checkpoints/step-{last}").is_dir()
    steps = last + 3
    done = resume(folder, "--max-steps", str(steps), "--lr-scheduler-type", "cosine")
    assert (
        done.returncode == 2 and "--lr-scheduler-type can't change" in done.stderr
    )  # a resumed run keeps its schedule
    done = resume(folder, "--max-steps", str(steps))
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in lines(folder)] == list(range(1, steps + 1))


def test_a_loss_that_is_not_finite_ends_the_run_by_name(config):
    with pytest.raises(FtHostError, match=r"step \d+: the (loss|gradient norm) is (nan|inf).*learning_rate"):
        run_in(config, "nan", max_steps=40, learning_rate=1e30, optim="sgd", max_grad_norm=0, save_steps=1)
    run = manifest(Path(config.output_dir, "nan"))
    assert run["status"] == "failed" and "learning_rate" in run["error"]
    newest, damaged = checkpoints.newest(Path(config.output_dir, "nan/checkpoints"))
    assert newest is not None and not damaged


def test_a_full_disk_is_named_and_the_checkpoints_stay(config, monkeypatch):
    written = []

    def full(*args, **kwargs):
        written.append(1)
        if len(written) > 1:
            raise OSError(errno.ENOSPC, "No space left on device", "checkpoints")
        return real(*args, **kwargs)

    real = checkpoint.dcp.save
    monkeypatch.setattr(checkpoint.dcp, "save", full)
    with pytest.raises(FtHostError, match="checkpoint at step 4 could not be written: the disk is full"):
        run_in(config, "full")
    folder = Path(config.output_dir, "full")
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-2"]
    assert checkpoints.damage(folder / "checkpoints/step-2") is None
    assert manifest(folder)["status"] == "failed"


def test_a_full_disk_while_logging_is_named(config):
    folder = Path(config.output_dir, "full")
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(FtHostError, match="the disk is full"):
        run_in(config, "full")


def test_a_bad_row_in_the_middle_names_its_line_and_loses_nothing(config, tiny, tmp_path):
    rows = (tiny / "train.jsonl").read_text().splitlines()
    rows[33] = json.dumps({"prompt": "no", "completion": 7})
    file = tmp_path / "bad.jsonl"
    file.write_text("\n".join(rows) + "\n")
    changes = {
        "dataset": str(file),
        "train_sampling_strategy": "sequential",
        "eval_on_start": False,
        "data_window": 8,
        "save_steps": 0,
    }
    with pytest.raises(UsageError, match=r"bad\.jsonl, line 34.*completion"):
        run_in(config, "bad", **changes)
    folder = Path(config.output_dir, "bad")
    assert [line["step"] for line in lines(folder)] == [1, 2, 3, 4]
    assert checkpoints.newest(folder / "checkpoints")[0].name == "step-4"
    rows[33] = rows[0]
    file.write_text("\n".join(rows) + "\n")


def test_other_data_is_not_resumed_on_unless_the_user_says_so(config, tiny, tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = (tiny / "train.jsonl").read_text().splitlines()
    file.write_text("\n".join(rows) + "\n")
    folder = run_in(config, "a", dataset=str(file), max_steps=2)
    rows[20] = json.dumps({"prompt": "mended", "completion": " row"})
    file.write_text("\n".join(rows) + "\n")
    done = resume(folder, "--max-steps", "3", "--progress", "lines")
    assert done.returncode == 2 and "rows.jsonl has rows that differ" in done.stderr
    done = resume(folder, "--max-steps", "3", "--progress", "lines", "--allow-changed", "dataset")
    assert done.returncode == 0 and "dataset has changed since the run began, as --allow-changed says" in done.stderr
    file.write_text("\n".join(rows[:-1]) + "\n")
    done = resume(folder, "--max-steps", "4")
    assert done.returncode == 2 and "39 rows with prompt, completion, was 40" in done.stderr


def test_a_step_keeps_its_rows_when_a_run_is_resumed(config):
    folder = run_in(config, "a", max_steps=2)
    done = resume(folder, "--max-steps", "3", "--per-device-train-batch-size", "4")
    assert done.returncode == 2 and "has 8 rows, and would now have 4" in done.stderr
    done = resume(
        folder, "--max-steps", "3", "--per-device-train-batch-size", "4", "--gradient-accumulation-steps", "2"
    )
    assert done.returncode == 0, done.stderr


def test_a_finished_run_goes_on_with_more_steps(config):
    folder = run_in(config, "a", max_steps=3, lr_scheduler_type="constant")
    done = resume(folder, "--max-steps", "5")
    assert done.returncode == 0, done.stderr
    longer = run_in(config, "b", max_steps=5, lr_scheduler_type="constant")
    assert_same(lines(longer), lines(folder), rel=0)


def test_several_epochs_packed_and_resumed(config):
    changes = {
        "max_steps": -1,
        "num_train_epochs": 2,
        "packing": True,
        "max_length": 48,
        "data_window": 16,
        "per_device_train_batch_size": 2,
        "save_steps": 3,
        "save_total_limit": 100,
    }
    whole = run_in(config, "whole", **changes)
    folder = run_in(config, "again", **changes)
    for _, path in checkpoints.steps_in(folder / "checkpoints")[2:]:
        (path / "files.json").unlink()
    done = resume(folder)
    assert done.returncode == 0, done.stderr
    assert_same(lines(whole), lines(folder), rel=0)
    assert lines(whole)[-1]["epoch"] == 2


@pytest.mark.parametrize(
    "launcher",
    [
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ft_host"],
        [
            "-m",
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            "2",
            "--num_machines",
            "1",
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            "-m",
            "ft_host",
        ],
    ],
    ids=["torchrun", "accelerate"],
)
def test_other_launchers_work(config, launcher):
    # --multi_gpu is how accelerate is told to start torchrun; it would want MPI for processes on CPUs
    one = run_in(config, "one")
    argv, folder = command(config, "sft", "two", per_device_train_batch_size=4)
    done = subprocess.run([sys.executable, *launcher, *argv], capture_output=True, text=True, env=ENV)
    assert done.returncode == 0, done.stderr
    assert manifest(folder)["environment"]["world_size"] == 2
    assert_same(lines(one), lines(folder), rel=2e-5)


WATCHED = """
import gc, json, sys
import torch
from torch.nn.parallel import DistributedDataParallel
from ft_host import launch
from ft_host.errors import FtHostError
from ft_sft.config import SFTConfig

destroy, left = torch.distributed.destroy_process_group, []

def watched():
    left.append([vars(each).keys() & {"reducer", "logger"} for each in gc.get_objects()
                 if isinstance(each, DistributedDataParallel)])
    destroy()

torch.distributed.destroy_process_group = watched
try:
    launch.train(SFTConfig(**json.load(open(sys.argv[1]))))
except FtHostError as error:
    print(error)
    assert left == [[set()]], left  # the model itself is in the frames that the error came through
assert left and not any(map(any, left)), left
"""


@pytest.mark.slow
@pytest.mark.parametrize("learning_rate", [1e-2, 1e30], ids=["finishes", "fails"])
def test_what_holds_the_process_group_is_gone_before_it_is(config, tmp_path, learning_rate):
    """Else DDP's reducer is the last that does, and now and then a rank never ends."""
    (tmp_path / "script.py").write_text(WATCHED)
    argv, _ = command(config, "sft", "two", per_device_train_batch_size=4, max_steps=2, learning_rate=learning_rate)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "script.py")]
    done = subprocess.run([sys.executable, *torchrun, argv[-1]], capture_output=True, text=True, env=ENV, timeout=120)
    assert done.returncode == 0, done.stderr
    assert ("weights were not updated" in done.stdout) == (learning_rate == 1e30)


def test_an_engine_of_accelerate_is_refused_and_its_accumulation_is_not_added_to_ours(config, monkeypatch):
    plain = run_in(config, "plain", max_steps=2)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert_same(lines(plain), lines(run_in(config, "told", max_steps=2)), rel=0)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match="distributed_strategy: fsdp2"):
        run_in(config, "fsdp")


def test_what_a_rank_refuses_ends_all_with_its_exit_code(config, tiny, tmp_path):
    rows = (tiny / "train.jsonl").read_text().splitlines()
    rows[33] = "{"
    file = tmp_path / "bad.jsonl"
    file.write_text("\n".join(rows) + "\n")
    argv, folder = command(
        config,
        "sft",
        "bad",
        dataset=str(file),
        train_sampling_strategy="sequential",
        num_processes=2,
        per_device_train_batch_size=4,
        data_window=8,
    )
    done = processes.command(*argv)
    assert done.returncode == 2, done.stderr
    assert "bad.jsonl, line 34" in done.stderr
    assert checkpoints.newest(folder / "checkpoints")[0].name == "step-4"


def test_trackers_get_the_metrics(config):
    pytest.importorskip("tensorboard")
    folder = run_in(config, "tracked", report_to=["tensorboard"], logging_steps=1)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = [path for path in folder.rglob("events.out.tfevents*")]
    assert events, "no event file in the run's folder"
    accumulator = EventAccumulator(str(events[0].parent))
    accumulator.Reload()
    assert [round(event.value, 4) for event in accumulator.Scalars("loss")] == [
        round(line["loss"], 4) for line in lines(folder)
    ]


def test_a_local_file_is_a_method_and_resumes(config, tiny, tmp_path):
    method = Path(ft_host.__file__).parents[1] / "plugins/ft-sft/ft_sft/method.py"
    file = tmp_path / "my_method.py"
    file.write_text(method.read_text() + "\n\nfrom ft_sft.config import SFTConfig as Config\n")
    argv, folder = command(config, str(file), "mine", max_steps=2)
    done = processes.command(*argv)
    assert done.returncode == 0, done.stderr
    done = resume(folder, "--max-steps", "3")
    assert done.returncode == 0, done.stderr
    assert_same(lines(run_in(config, "packaged", max_steps=2))[:2], lines(folder)[:2], rel=0, skip=("learning_rate",))
