"""`--num-processes`: starts the run once per process on this machine, by torchrun's agent."""

from __future__ import annotations

import logging
import os
import signal
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ft_host.distributed.launcher import LAUNCHER
from ft_host.errors import Interrupted


def spawn(argv: list[str], num_processes: int) -> int:
    """Start `ft-host train` with these arguments once per process, under torchrun's agent.

    Returns the exit code of the first process that failed. What a process says of its end is the last to be seen: the
    agent is silent, and only a process that could say nothing is named here.
    """
    logging.disable(logging.ERROR)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
    os.environ[LAUNCHER] = str(os.getpid())  # the agent runs in this process; the ranks end with it
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=f"ft-host-{os.getpid()}",
        local_addr="localhost",
        max_restarts=0,  # the user resumes a run, after seeing why it stopped
    )
    try:
        elastic_launch(config, sys.executable)("-m", "ft_host", "train", *argv)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            why = ", out of memory perhaps (dmesg says)" if name == "SIGKILL" else ""
            print(f"ft-host: error: process {rank} of the run was killed by {name}{why}", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 1
    except SignalException:
        return Interrupted.exit_code
    return 0
