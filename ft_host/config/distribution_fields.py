"""The fields of every run that say on what it runs."""

from __future__ import annotations

from dataclasses import dataclass

from ft_host.config.options import option
from ft_host.config.usual import Usual


@dataclass(kw_only=True)
class DistributionFields:
    """A part of `RunConfig`."""

    num_processes: int = option(
        1,
        "Processes to start on this machine. torchrun and accelerate launch set it themselves.",
        group="distribution",
        gt=0,
    )
    distributed_strategy: str = option(
        "ddp",
        "'ddp' holds the model once per process; 'fsdp2' shards weights, gradients and optimizer state (torch's "
        "fully_shard, one group per decoder layer).",
        group="distribution",
        choices=("ddp", "fsdp2"),
    )
    use_cpu: bool = option(False, "Train on the CPU even if there is a GPU.", group="distribution")
    ddp_timeout: int = option(
        1800,
        "Seconds that a process waits for the others before it gives up.",
        group="distribution",
        gt=0,
        usual=Usual(
            low=60,
            why="an evaluation or a checkpoint that takes longer on one process ends the run",
            source="own judgement",
        ),
    )
