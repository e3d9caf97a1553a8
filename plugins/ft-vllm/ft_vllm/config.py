"""The fields of the backend, given as `backend_config`. Imports neither torch nor vLLM."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

from ft_host.api import ConfigError, option

# Fields without effect in the other mode.
STARTED_ONLY = ("python", "port", "start_timeout", "devices", "server_args", "server_env", "log")
ENGINE_FIELDS = ("max_model_len", "enforce_eager", "tensor_parallel_size", "gpu_memory_utilization", "cpu_kv_cache_gib")
OF_ENGINE = "an argument of the engine: server_args of a started server, engine_args with mode: inprocess"
OF_RUN = "a field of the run, beside backend_config"
# What TRL calls these fields, and what is set elsewhere.
ELSEWHERE = {
    "vllm_mode": "here it is mode; TRL's colocate is inprocess",
    "colocate": "here it is mode: inprocess",
    "base_url": "here it is url",
    "server_base_url": "here it is url",
    "vllm_server_base_url": "here it is url",
    "vllm_server_timeout": "here it is start_timeout",
    "max_model_length": "here it is max_model_len",
    "vllm_max_model_length": "here it is max_model_len",
    "vllm_gpu_memory_utilization": "here it is gpu_memory_utilization",
    "vllm_tensor_parallel_size": "here it is tensor_parallel_size",
    "cuda_visible_devices": "here it is devices",
    **dict.fromkeys(
        "swap_space enable_prefix_caching max_num_batched_tokens kv_cache_dtype quantization load_format download_dir "
        "max_lora_rank enable_chunked_prefill cpu_offload_gb pipeline_parallel_size data_parallel_size "
        "model_impl".split(),
        OF_ENGINE,
    ),
    **dict.fromkeys(
        "model temperature top_p top_k min_p repetition_penalty max_completion_length seed trust_remote_code".split(),
        OF_RUN,
    ),
    "max_tokens": "here it is max_completion_length, a field of the run",
}


@dataclass(kw_only=True)
class VLLMConfig:
    """How vLLM runs, and how it receives the policy's weights."""

    elsewhere: ClassVar[dict[str, str]] = ELSEWHERE

    mode: str = option(
        "server",
        "'server': `vllm serve`, a process in an environment of its own, so that vLLM's pinned versions don't bind the "
        "trainer. 'inprocess': an engine within the trainer's process, whose environment then has vLLM in it.",
        group="rollouts",
        choices=("server", "inprocess"),
    )
    python: str | None = option(
        None,
        "The Python of the environment with vLLM: the run starts the server with it, and ends it.",
        group="rollouts",
        example="/opt/vllm/bin/python",
        path=True,
        compared=False,
    )
    url: str | None = option(
        None,
        "A server that runs already. It must have been started as docs/vllm.md says.",
        group="rollouts",
        example="http://127.0.0.1:8000",
    )
    teacher_url: str | None = option(
        None,
        "A server that runs already and serves a teacher, for methods that score tokens with one: `vllm serve "
        "TEACHER --host 127.0.0.1 --max-logprobs 100`. Without python and url vLLM generates nothing.",
        group="rollouts",
        example="http://127.0.0.1:8001",
    )
    host: str = option(
        "127.0.0.1",
        "Address that a server started by the run listens on. vLLM's routes for weights need no password: "
        "whoever reaches them may change the model.",
        group="rollouts",
    )
    port: int | None = option(
        None, "Port of a server started by the run. Not set: a free one.", group="rollouts", ge=1, le=65535
    )
    devices: str | None = option(
        None,
        "GPUs of a server started by the run, as CUDA_VISIBLE_DEVICES has them. Not set: those of the trainer.",
        group="rollouts",
        example="1",
    )
    dtype: str = option(
        "auto",
        "Type that vLLM computes in. auto: the trainer's, which keeps their log-probs closest.",
        group="rollouts",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    max_model_len: int | None = option(
        None,
        "Longest prompt and completion together, in tokens. Not set: the model's positions.",
        group="rollouts",
        gt=1,
    )
    max_num_seqs: int = option(
        256,
        "Completions that are generated at once; a run sends no more at a time. 256 is vLLM's own default for servers.",
        group="rollouts",
        gt=0,
    )
    gpu_memory_utilization: float | None = option(
        None,
        "Share of a GPU's memory that vLLM takes for weights and cache. Not set: 0.9 on GPUs of its own, 0.3 on one"
        " that it shares with the trainer.",
        group="rollouts",
        gt=0,
        le=1,
    )
    cpu_kv_cache_gib: int = option(1, "Memory for the key-value cache on a CPU, in GiB.", group="rollouts", gt=0)
    tensor_parallel_size: int = option(1, "GPUs that the model is split over.", group="rollouts", gt=0)
    enforce_eager: bool = option(
        True,
        "Don't compile the model or capture CUDA graphs: starts in seconds rather than minutes. On a GPU, false makes "
        "long rollouts faster.",
        group="rollouts",
    )
    transfer: str = option(
        "auto",
        "How weights get to vLLM. 'direct': handed over within the process. 'gloo': over TCP, on any device. 'nccl': "
        "from GPU to GPU. 'ipc': within one GPU. auto: direct in the process; for a server gloo on a CPU, nccl with "
        "`devices` or `url`, ipc otherwise.",
        group="rollouts",
        choices=("auto", "direct", "gloo", "nccl", "ipc"),
    )
    lora: str = option(
        "adapter",
        "What a LoRA run sends to vLLM. 'adapter': the adapter alone, as a folder. 'merged': all weights, the "
        "adapter added to them; works with every kind of LoRA.",
        group="rollouts",
        choices=("adapter", "merged"),
    )
    adapter_folder: str | None = option(
        None,
        "Where adapters are written for the server to read; a server elsewhere needs a folder that both see. Not set: "
        "a temporary one.",
        group="rollouts",
        path=True,
        compared=False,
    )
    trainer_address: str = option(
        "127.0.0.1", "The trainer's address as a server elsewhere reaches it; `gloo` connects to it.", group="rollouts"
    )
    start_timeout: float = option(
        600.0, "Seconds that a server may take to start: it reads the weights, and may compile.", group="rollouts", gt=0
    )
    timeout: float = option(
        1800.0,
        "Seconds that the server may take for one answer, including the wait for others before it.",
        group="rollouts",
        gt=0,
    )
    transfer_timeout: float = option(
        300.0, "Seconds that the transfer of the weights may take.", group="rollouts", gt=0
    )
    log: str | None = option(
        None,
        "File that a started server's output goes to. Not set: vllm.log in the run's folder.",
        group="rollouts",
        path=True,
        compared=False,
    )
    server_args: list[str] = option(
        [],
        "Further arguments of `vllm serve`, as on its command line.",
        group="rollouts",
        example="--max-num-batched-tokens=8192",
    )
    server_env: dict[str, str] = option({}, "Further environment variables of a started server.", group="rollouts")
    engine_args: dict[str, Any] = option(
        {}, "Further arguments of vllm.LLM, if it runs in the trainer's process.", group="rollouts"
    )

    def check(self) -> None:
        """Refuse what can't work. Raises ConfigError that names the field."""
        defaults = type(self)()
        given = [name for name in vars(self) if getattr(self, name) != getattr(defaults, name)]
        if self.teacher_url is not None:
            self._check_url("teacher_url")
        if self.mode == "inprocess":
            _refuse(
                given,
                {"url", "trainer_address", "adapter_folder", "timeout", "host", *STARTED_ONLY},
                "is of a server; with mode: inprocess there is none",
            )
            _refuse_transfer(self.transfer, ("auto", "direct"), "mode: inprocess")
            if self.tensor_parallel_size > 1:
                raise ConfigError(
                    "backend_config.tensor_parallel_size: an engine in the trainer's process is on one GPU; mode:"
                    " server splits the model"
                )
            return
        if self.python is None and self.url is None and self.teacher_url is not None:
            given.remove("teacher_url")
            if given:
                raise ConfigError(
                    f"backend_config.{given[0]}: has no effect without python or url: only tokens are scored"
                )
            return
        if self.python is None and self.url is None:
            raise ConfigError(
                "backend_config: mode: server needs python, the Python of vLLM's environment (the run then starts the "
                "server), or url, the address of a server that runs"
            )
        _refuse(given, {"engine_args"}, "is of mode: inprocess; a server has server_args")
        _refuse_transfer(self.transfer, ("auto", "gloo", "nccl", "ipc"), "mode: server")
        if self.url is not None:
            _refuse(
                given,
                {"host", *STARTED_ONLY, *ENGINE_FIELDS, "dtype"},
                "is of a server that the run starts; with url the server runs already",
            )
            self._check_url("url")
            return
        if shutil.which(self.python) is None:
            what = "is not executable" if os.path.exists(self.python) else "does not exist"
            raise ConfigError(f"backend_config.python: {self.python} {what}; expected the bin/python of an environment")
        if "://" in self.host:
            raise ConfigError(f"backend_config.host: {self.host!r} is a URL; expected an address such as 127.0.0.1")
        if self.transfer == "nccl" and self.devices is None:
            raise ConfigError(
                "backend_config.transfer: nccl needs GPUs that the trainer doesn't use; set devices, or transfer: ipc"
            )
        if self.transfer == "ipc" and self.tensor_parallel_size > 1:
            raise ConfigError("backend_config.transfer: ipc is within one GPU; tensor_parallel_size must be 1")

    def _check_url(self, field: str) -> None:
        url = getattr(self, field)
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path.strip("/") or parts.query:
            raise ConfigError(
                f"backend_config.{field}: {url!r} is not the address of a server; expected http://HOST:PORT"
            )


def _refuse(given: list[str], names: set[str], why: str) -> None:
    for name in given:
        if name in names:
            raise ConfigError(f"backend_config.{name}: {why}")


def _refuse_transfer(found: str, expected: tuple[str, ...], where: str) -> None:
    if found not in expected:
        raise ConfigError(f"backend_config.transfer: {found} can't be with {where}; expected {' or '.join(expected)}")
