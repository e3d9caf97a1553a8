"""Starting vLLM's server: its arguments and its environment."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ft_host.api import ConfigError
from ft_vllm.client import KEY

if TYPE_CHECKING:
    from ft_vllm.config import VLLMConfig


RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # ranks of adapters that vLLM supports
# Those of torchrun and accelerate would make the server one of the trainer's processes; the others are of the
# trainer's environment.
NOT_INHERITED = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
    "ROLE_NAME",
    "ROLE_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "PYTHONPATH",
    "PYTHONHOME",
    "VIRTUAL_ENV",
    "OMP_NUM_THREADS",
)


@dataclass(frozen=True, kw_only=True)
class Served:
    """The model to serve."""

    name: str  # folder or hub id
    revision: str | None
    trust_remote_code: bool
    dtype: str
    on_gpu: bool
    transfer: str
    lora_rank: int | None  # None: no adapter


def arguments(config: VLLMConfig, served: Served, port: int, guarded: bool = False) -> list[str]:
    """Return the command line of `vllm serve`, after the Python. `guarded`: a key is asked for on all routes; vLLM by
    itself leaves those for weights open.
    """
    weights = json.dumps({"backend": served.transfer})
    out = [
        "-m",
        "vllm.entrypoints.cli.main",
        "serve",
        served.name,
        "--host",
        config.host,
        "--port",
        str(port),
        "--dtype",
        served.dtype,
        "--max-num-seqs",
        str(config.max_num_seqs),
        "--weight-transfer-config",
        weights,
        "--logprobs-mode",
        "processed_logprobs",  # log-probs after temperature, top_k, top_p
        "--generation-config",
        "vllm",  # not the model's own temperature and penalties
        "--enable-scale-out",  # the route that takes and gives tokens
        "--skip-tokenizer-init",
        "--tensor-parallel-size",
        str(config.tensor_parallel_size),
        "--disable-access-log-for-endpoints=/health,/inference/v1/generate",
    ]
    if served.revision is not None:
        out += ["--revision", served.revision]
    if served.trust_remote_code:
        out += ["--trust-remote-code"]
    if config.enforce_eager:
        out += ["--enforce-eager"]
    if config.max_model_len is not None:
        out += ["--max-model-len", str(config.max_model_len)]
    if served.on_gpu:
        out += ["--gpu-memory-utilization", str(memory_share(config, served.transfer))]
    else:
        # A seeded request whose prompt is read in parts kills vLLM 0.32 on a CPU ("CPU Generator does not use offset").
        out += ["--no-enable-chunked-prefill"]
    if served.lora_rank is not None:
        out += [
            "--enable-lora",
            "--max-loras",
            "1",
            "--max-cpu-loras",
            "2",
            "--max-lora-rank",
            str(lora_rank(served.lora_rank)),
        ]
    if guarded:
        out += ["--middleware", "ft_vllm.door.Door"]
    return out + config.server_args


def memory_share(config: VLLMConfig, transfer: str) -> float:
    if config.gpu_memory_utilization is not None:
        return config.gpu_memory_utilization
    return 0.9 if config.devices is not None or transfer == "nccl" else 0.3


def lora_rank(rank: int) -> int:
    """Return the smallest rank supported by vLLM that is at least ours."""
    for known in RANKS:
        if known >= rank:
            return known
    raise ConfigError(
        f"lora_r: vLLM takes adapters up to rank {RANKS[-1]}, found {rank}; set backend_config.lora: merged"
    )


def environment(
    config: VLLMConfig, served: Served, devices: str | None = None, key: str | None = None
) -> dict[str, str]:
    """Return the server's environment variables: ours, without those that make a process one of the trainer's.
    `devices` and `key` are this server's.
    """
    out = {
        name: value
        for name, value in os.environ.items()
        if name not in NOT_INHERITED and not name.startswith(("TORCHELASTIC_", "ACCELERATE_", "FSDP_"))
    }
    out |= {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONUNBUFFERED": "1"}
    if not served.on_gpu:
        out |= {"VLLM_CPU_KVCACHE_SPACE": str(config.cpu_kv_cache_gib), "TORCH_COMPILE_DISABLE": "1"}
    if served.lora_rank is not None:
        out |= {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    if served.transfer == "ipc":
        out |= {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}  # what names GPU memory to another process is a pickle
    if devices is not None:
        out |= {"CUDA_VISIBLE_DEVICES": devices}
    if key is not None:
        out |= {KEY: key}
    return out | config.server_env
