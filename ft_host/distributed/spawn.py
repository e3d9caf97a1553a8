"""`--num-processes`: starts the run once per process on this machine, by torchrun's agent."""

from __future__ import annotations

import os
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ft_host.distributed.launcher import LAUNCHER
from ft_host.errors import Interrupted


def spawn(argv: list[str], num_processes: int) -> int:
    """Start `ft-host train` with these arguments once per process, under torchrun's agent.

    Returns the exit code of the first process that failed.
    """
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
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 1
    except SignalException:
        return Interrupted.exit_code
    return 0
