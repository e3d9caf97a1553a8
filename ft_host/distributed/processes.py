"""The processes of a run: started by torchrun, accelerate launch or `ft-host train`, and run through accelerate."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import torch

from ft_host.distributed.trackers import chosen
from ft_host.errors import ConfigError
from ft_host.util import devices
from ft_host.util.freed import keep_freed
from ft_host.util.ranks import Failure, everywhere

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ft_host.config import RunConfig

T = TypeVar("T")
BUILT_IN = "transformers"  # the backend that holds no memory of its own


def start_processes(config: RunConfig) -> Accelerator:
    """Return the accelerator of this process. Raises ConfigError where accelerate is configured for another engine, and
    for several processes on a kind of device that can't exchange tensors with another process."""
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

    for engine in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true":
            raise ConfigError(
                f"accelerate is configured for {engine}, which ft-host doesn't support; configure plain processes, and "
                "set distributed_strategy: fsdp2 to shard the model"
            )
    device = devices.chosen(config.use_cpu)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and not devices.exchanges(device):  # each would train by itself, and write into the same folder
        raise ConfigError(
            f"num_processes: {started} processes can't exchange gradients on {device.type}: this torch has no "
            "collectives for it; use num_processes: 1, or use_cpu: true"
        )
    _grow_memory_in_place(config, device)
    if device.type == "cpu":
        keep_freed()
    timeout = datetime.timedelta(seconds=config.ddp_timeout)
    if started > 1 and device.type != "cpu":
        _join(device, timeout)
    handlers = [
        InitProcessGroupKwargs(timeout=timeout),
        DistributedDataParallelKwargs(gradient_as_bucket_view=True),  # gradients are views of what is reduced
    ]
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=precision(config, device),
        log_with=chosen(config.report_to) or None,
        project_dir=config.output_dir or ".",
        kwargs_handlers=handlers,
    )
    accelerator.gradient_accumulation_steps = 1  # the loop accumulates itself, whatever accelerate's config says
    return accelerator


def _join(device: torch.device, timeout: datetime.timedelta) -> None:
    """Begin the group of processes with a way for tensors of the host beside that for tensors of the device.

    What is pickled (`Run.gather`) then goes from host to host. Over NCCL alone it would be copied to the device and
    back, which waits for it; and NCCL's watchdog ends a process that waits for another too long, without an error that
    says so. accelerate takes a group that is there.
    """
    if not torch.distributed.is_initialized():
        of_device = torch.distributed.get_default_backend_for_device(device)
        torch.distributed.init_process_group(f"cpu:gloo,{device.type}:{of_device}", timeout=timeout)


def _grow_memory_in_place(config: RunConfig, device: torch.device) -> None:
    """Let torch's allocator extend what it has reserved, unless the user has said how it works: each micro-batch has
    another size, and blocks of fixed sizes would fall to pieces. Before anything is on the device.

    Left out with a backend of others: an engine in this process, and tensors that it takes by their handle (CUDA IPC),
    may need blocks of fixed sizes.
    """
    said = {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys()
    if device.type == "cuda" and config.backend == BUILT_IN and not said:
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def is_sharded(config: RunConfig, world_size: int) -> bool:
    """Return whether models are sharded over the processes. A single process doesn't shard."""
    return config.distributed_strategy == "fsdp2" and world_size > 1


def check_overlap(config: RunConfig, world_size: int) -> None:
    """Refuse to decode with a model that is sharded, while requests come and go. Raises ConfigError."""
    if is_sharded(config, world_size):
        raise ConfigError(
            f"rollouts: overlap can't decode with a model that distributed_strategy: fsdp2 shards over {world_size} "
            "processes, which would have to take each step at the same time; use rollouts: async, whose rollout "
            "process holds the whole model, or distributed_strategy: ddp"
        )


def agreed(accelerator: Accelerator, value: Any) -> Any:
    """Return the main process' value on every rank."""
    if accelerator.num_processes == 1:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Do `work` on the main process, and return its picklable result on every rank. All ranks must call it; what it
    raises is raised on all, as one of `ft_host.errors`, so that none waits for the others."""
    if accelerator.num_processes == 1:
        return work()
    found: Any = None
    if accelerator.is_main_process:
        try:
            found = work()
        except Exception as error:
            found = Failure.of(error)
    found = agreed(accelerator, found)
    if isinstance(found, Failure):
        raise everywhere(found.error)
    return found


def end_processes(model: torch.nn.Module | None = None) -> None:
    """Clean up: a program may train again in this process, with other settings. `model` can't be used after this."""
    from accelerate.state import AcceleratorState

    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        # If the model's reducer were the last to hold the process group, freeing it would wait for a gloo thread, which
        # may wait for the GIL, which is held meanwhile: the rank would never end.
        del model.reducer, model.logger
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)


def precision(config: RunConfig, device: torch.device) -> str:
    """Return accelerate's name of the compute dtype: "no", "bf16" or "fp16".

    bfloat16 is the default only on a GPU that has units for it: on a CPU, or where a GPU emulates it, it is slower than
    float32.
    """
    if config.fp16:
        if device.type == "cpu":
            raise ConfigError("fp16: float16 with loss scaling needs a GPU; remove it")
        return "fp16"
    if config.bf16 is None:
        return "bf16" if devices.computes_bfloat16(device) else "no"
    return "bf16" if config.bf16 else "no"


def free_memory(device: torch.device) -> int:
    if device.type == "cpu":
        return psutil.virtual_memory().available  # includes what the page cache can release
    return devices.memory_of(device).free
