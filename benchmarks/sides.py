"""One side of the comparison, in a process of its own: `python sides.py SIDE SPEC.json` trains and writes SPEC's `out`.

Both are called as a user calls them, with a model's folder and a file of rows. Both are watched from outside in the same
way: the clock and the process' memory are read when training begins and at the end of each optimizer step.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from work import BATCH, MAX_LENGTH


def _status(name: str) -> float:
    """A field of Linux' account of this process, in MiB: VmRSS (memory now) or VmHWM (its peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) / 1024


def _differences(values: list[float]) -> list[float]:
    return [now - then for then, now in itertools.pairwise(values)]


def busy() -> float:
    """Seconds that this machine's cores have worked, for whomever, since it started."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class Watch:
    """What is seen of a run: when its steps end, what they held, and the time and memory they took."""

    def __init__(self):
        self.called = time.perf_counter()
        self.began = self.called
        self.before = 0.0
        self.ends: list[float] = []
        self.cpu: list[float] = []  # CPU seconds of this process, and of all, at `began` and the end of each step
        self.busy: list[float] = []
        self.tokens: list[int] = []  # cumulative
        self.supervised: list[int] = []  # of each step
        self.losses: list[float] = []
        self.peak = 0.0

    def begin(self) -> None:
        """The first step comes next. Forgets the peak of what came before."""
        Path("/proc/self/clear_refs").write_text("5")
        self.before = _status("VmRSS")
        self.began = time.perf_counter()
        self._note()

    def _note(self) -> None:
        self.cpu.append(time.process_time())
        self.busy.append(busy())

    def step(self) -> None:
        self.ends.append(time.perf_counter())
        self._note()
        self.peak = _status("VmHWM")

    def report(self, imports: float) -> dict[str, Any]:
        return {
            "imports_s": imports,
            "first_step_s": self.ends[0] - self.called,
            "seconds": _differences([self.began, *self.ends]),
            "tokens": _differences([0, *self.tokens]),
            "cpu": _differences(self.cpu),
            "busy": _differences(self.busy),
            "supervised": self.supervised,
            "losses": self.losses,
            "before_mb": self.before,
            "peak_mb": self.peak,
        }


def ours(spec: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    import ft_sft.method  # noqa: F401
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401
    from ft_sft.config import SFTConfig

    import ft_host
    from ft_host import launch
    from ft_host.run import Run

    imports = time.perf_counter() - started
    fit, log = launch.fit, Run.log

    def watched_fit(*args, **kwargs):
        watch.begin()
        return fit(*args, **kwargs)

    def watched_log(run, entry):
        log(run, entry)
        if entry["kind"] == "train":
            watch.step()
            watch.tokens.append(entry["num_tokens"])
            watch.supervised.append(round(run.totals["tokens"]))
            watch.losses.append(entry["loss"])

    launch.fit, Run.log = watched_fit, watched_log
    watch = Watch()
    ft_host.train(
        SFTConfig(
            model=spec["model"],
            dataset=spec["rows"],
            output_dir=spec["work"] + "/run",
            max_length=MAX_LENGTH,
            per_device_train_batch_size=BATCH,
            max_steps=spec["steps"],
            train_sampling_strategy="sequential",
            gradient_checkpointing=False,
            bf16=False,
            save_steps=0,
            progress="quiet",
            use_cpu=True,
        )
    )
    return watch.report(imports)


def trl(spec: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    imports = time.perf_counter() - started

    class Watcher(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            watch.begin()

        def on_step_end(self, args, state, control, **kwargs):
            watch.step()

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in logs:
                watch.tokens.append(round(logs["num_tokens"]))
                watch.losses.append(logs["loss"])

    watch = Watch()
    trainer = SFTTrainer(
        model=spec["model"],
        train_dataset=Dataset.from_json(spec["rows"], cache_dir=spec["work"] + "/cache"),
        args=SFTConfig(
            output_dir=spec["work"] + "/run",
            max_length=MAX_LENGTH,
            per_device_train_batch_size=BATCH,
            max_steps=spec["steps"],
            train_sampling_strategy="sequential",
            gradient_checkpointing=False,
            bf16=False,
            model_init_kwargs={"dtype": "float32"},
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        callbacks=[Watcher()],
    )
    trainer.train()
    return watch.report(imports)


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[2]).read_text())
    seen = {"ours": ours, "trl": trl}[sys.argv[1]](given)
    Path(given["out"]).write_text(json.dumps(seen))
