"""The processes of a run: started by torchrun, accelerate launch or `ft-host train`, driven through accelerate."""

from __future__ import annotations

import datetime
import os
from typing import TYPE_CHECKING, Any

import psutil
import torch

from ft_host.errors import ConfigError

if TYPE_CHECKING:
    from ft_host.config import RunConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ft_host.config import RunConfig


def start_processes(config: RunConfig) -> Accelerator:
    """This process, among the others. Raises ConfigError where accelerate is configured for an engine of its own."""
    from accelerate import Accelerator, InitProcessGroupKwargs

    for engine in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true":
            raise ConfigError(
                f"accelerate is configured for {engine}, which this loop doesn't drive; configure plain processes, and "
                "set distributed_strategy: fsdp2 to shard the model"
            )
    cpu = config.use_cpu or not torch.cuda.is_available()
    patience = InitProcessGroupKwargs(timeout=datetime.timedelta(seconds=config.ddp_timeout))
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=precision(config, torch.device("cpu" if cpu else "cuda")),
        log_with=config.report_to or None,
        project_dir=config.output_dir or ".",
        kwargs_handlers=[patience],
    )
    accelerator.gradient_accumulation_steps = 1  # the loop's own business, whatever accelerate's config says
    return accelerator


def is_sharded(config: RunConfig, world_size: int) -> bool:
    """Whether models are sharded over the processes. One process has nothing to shard over."""
    return config.distributed_strategy == "fsdp2" and world_size > 1


def agreed(accelerator: Accelerator, value: Any) -> Any:
    """The main process' value, on every rank."""
    if accelerator.num_processes == 1:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def end_processes(model: torch.nn.Module | None = None) -> None:
    """Leave nothing behind: a program may train again in this process, with other settings. `model` is of no use after
    that."""
    from accelerate.state import AcceleratorState

    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        # If the last that holds the process group were its reducer, freeing it would wait for a thread of gloo's, which
        # may itself wait for the lock of Python, and that is held meanwhile: the rank would never end.
        del model.reducer, model.logger
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)


def precision(config: RunConfig, device: torch.device) -> str:
    """accelerate's word for the type of the maths: "no", "bf16" or "fp16". bfloat16 by itself only on a GPU that has
    it: a CPU without such units is many times slower in it."""
    if config.fp16:
        if device.type == "cpu":
            raise ConfigError("fp16: float16 with loss scaling needs a GPU; leave it out")
        return "fp16"
    if config.bf16 is None:
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "no"
    return "bf16" if config.bf16 else "no"


def free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available  # with what the page cache would give back
