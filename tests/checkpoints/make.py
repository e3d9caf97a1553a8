"""Writes the runs that later releases must be able to go on with, by the release that is installed:

    python tests/checkpoints/make.py tests/checkpoints/ft-host-1.0.0

Each is killed in the middle, after its checkpoint; beside it is what the same run logs that nobody kills. A release
writes them once, before it is published, and nothing is ever written over: see test_checkpoints.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

STEPS, SAVED, KILLED = 6, 2, 3
COMMON = {
    "model": "model",
    "use_cpu": True,
    "seed": 7,
    "max_steps": STEPS,
    "save_steps": SAVED,
    "learning_rate": 3e-3,
    "warmup_steps": 2,
    "per_device_train_batch_size": 2,
    "progress": "quiet",
    "eval_on_start": False,
}
RUNS = {
    "sft-lora": ("sft", {"dataset": "rows.jsonl", "use_peft": True, "lora_r": 2, "lora_dropout": 0.1}),
    "grpo": (
        "grpo",
        {
            "dataset": "prompts.jsonl",
            "reward": ["rewards.py:letters"],
            "num_generations": 2,
            "per_device_train_batch_size": 4,
            "num_iterations": 2,  # so that the run stops within a rollout
            "steps_per_generation": 2,
            "max_completion_length": 6,
            "beta": 0.1,
            "use_adaptive_entropy": True,
        },
    ),
}
REWARDS = '''"""Rewards of a run that a later release goes on with."""


def letters(completions, **columns):
    return [sum(letter.isalpha() for letter in text) / (len(text) + 1) for text in completions]
'''


def materials(folder: Path) -> None:
    """A model of a few thousand weights, rows, prompts and a reward."""
    from ft_host.testing import save_tiny, tiny_llama

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    save_tiny(folder / "model", tiny_llama(seed=3, **sizes))
    words = "apples and pears are quick brown over the lazy dog step by small task".split()
    texts = [" ".join(words[(at * step) % len(words)] for at in range(1, 9)) for step in range(1, 13)]
    rows = [{"prompt": f"{text}?", "completion": f" {text[::-1]}"} for text in texts]
    for name, found in (("rows", rows), ("prompts", [{"prompt": row["prompt"]} for row in rows])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    (folder / "rewards.py").write_text(REWARDS, encoding="utf-8")


def config_of(name: str, folder: str):
    from ft_host import registry

    method, fields = RUNS[name]
    return registry.config_class(registry.find("method", method))(**(COMMON | fields | {"output_dir": folder}))


def train(name: str, folder: str, killed: bool) -> None:
    """Train in this process, which is killed after the line of step `KILLED` if `killed`."""
    import ft_host
    from ft_host.run import Run

    log = Run.log

    def logged(run: Run, entry: dict) -> None:
        log(run, entry)
        if killed and entry["kind"] == "train" and entry["step"] == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)

    Run.log = logged  # type: ignore[method-assign]
    ft_host.train(config_of(name, folder))


def numbers(run: Path) -> list[dict]:
    """What a run logs that doesn't depend on the machine's speed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("perf/")} for line in lines]


def anonymous(run: Path) -> None:
    """Take out what names the machine: the process that was killed, and the system."""
    (run / "owner.json").unlink()
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    record["environment"]["platform"] = "Linux"
    (run / "run.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


def main(folder: Path) -> None:
    folder.mkdir(parents=True)  # which mustn't be there
    materials(folder)
    for name in RUNS:
        for killed in (False, True):
            command = [
                sys.executable,
                str(Path(__file__).resolve()),
                str(folder),
                name,
                "killed" if killed else "whole",
            ]
            code = subprocess.run(command, cwd=folder, check=False).returncode
            assert code == (-signal.SIGKILL if killed else 0), f"{name}: exit code {code}"
        anonymous(folder / name)
        text = "".join(json.dumps(line) + "\n" for line in numbers(folder / "whole"))
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        shutil.rmtree(folder / "whole")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]).resolve())
    else:
        train(sys.argv[2], "whole" if sys.argv[3] == "whole" else sys.argv[2], sys.argv[3] == "killed")
