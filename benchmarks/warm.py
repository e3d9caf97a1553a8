"""A process that has imported what a side needs, and makes a copy of itself for each spec: `python warm.py SIDE`.

For rehearsals alone, whose time would mostly be imports: it reads the path of a spec from each line of its input, and
answers how the copy ended. A device that was used before a fork can't be used after it, so that runs on one have fresh
processes (see turns.run_side).
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from turns import SideFailed, filled, variables_of

USED = ["transformers.models.qwen3.modeling_qwen3", "datasets", "peft", "accelerate", "torch.profiler"]
OURS = ["ft_host.training.launch", "ft_sft.method", "ft_dpo.method", "ft_grpo.method"]
TRL = ["trl.trainer.sft_trainer", "trl.trainer.dpo_trainer", "trl.trainer.grpo_trainer"]


class Warm:
    """Does what `turns.run_side` does, with copies of one process for each side. To be used as a context."""

    def __init__(self, cache: Path):
        self.cache = cache
        self.servers: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for server in self.servers.values():
            server.stdin.close()
            server.wait()
            server.stdout.close()

    def run(self, side: str, spec: dict[str, Any], limit: float, log: Path) -> dict[str, Any]:
        """What a copy saw of the training that `spec` asks for. Raises SideFailed where it failed."""
        if side not in self.servers:
            command = [sys.executable, __file__, side]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.servers[side] = subprocess.Popen(command, env=variables_of({}, str(self.cache)), **pipes)
        server = self.servers[side]
        log.touch()
        with tempfile.TemporaryDirectory() as folder:
            given = Path(folder) / "spec.json"
            full = filled(spec, folder, str(self.cache)) | {"limit": limit, "log": str(log)}
            given.write_text(json.dumps(full))
            server.stdin.write(f"{given}\n")
            server.stdin.flush()
            code = server.stdout.readline().strip()
            if code != "0":
                raise SideFailed(f"{side} failed ({code or 'its process ended'}):\n{log.read_text()[-3000:]}")
            return json.loads(Path(full["out"]).read_text())


def copy(side: str, spec: dict[str, Any]) -> int:
    """How a copy of this process ended that did a spec."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        signal.alarm(max(1, round(spec["limit"])))  # which ends it
        file = os.open(spec["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        import sides

        seen = {"ours": sides.ours, "trl": sides.trl}[side](spec)
        Path(spec["out"]).write_text(json.dumps(seen))
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    for module in [*USED, *{"ours": OURS, "trl": TRL}[sys.argv[1]]]:
        importlib.import_module(module)
    for line in sys.stdin:
        print(copy(sys.argv[1], json.loads(Path(line.strip()).read_text())), flush=True)
