"""The fields of the backend, given as `backend_config`. Imports neither torch nor vLLM.

Longer than 300 lines: it is one list of fields, in the order of the help.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import Any, ClassVar

from ft_host.api import ConfigError, option
from ft_vllm import ranges
from ft_vllm.elsewhere import ELSEWHERE
from ft_vllm.places import check_url, devices_of

# Fields without effect in the other mode.
STARTED_ONLY = ("python", "servers", "port", "start_timeout", "devices", "server_args", "server_env", "log")
OF_SERVERS = ("url", "urls", "trainer_address", "adapter_folder", "weights_folder", "timeout", "host")
HEALTH = ("health_period", "health_timeout", "recovery_timeout")
ENGINE_FIELDS = ("max_model_len", "enforce_eager", "tensor_parallel_size", "gpu_memory_utilization", "cpu_kv_cache_gib")


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
    urls: list[str] = option(
        [],
        "Several such servers of the same model: requests go to the one that has the fewest.",
        group="rollouts",
        example="http://127.0.0.1:8000",
    )
    servers: int = option(
        1, "Servers that the run starts. The GPUs of `devices` are dealt out to them in order.", group="rollouts", gt=0
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
        "Address that servers started by the run listen on. At another than this machine's own they ask for a key: "
        "that of the variable VLLM_API_KEY, or one that the run makes.",
        group="rollouts",
    )
    port: int | None = option(
        None,
        "Port of a server started by the run; of several the first has it, and the others those after it. Not set: "
        "free ones.",
        group="rollouts",
        ge=1,
        le=65535,
    )
    devices: str | None = option(
        None,
        "GPUs of servers started by the run, as CUDA_VISIBLE_DEVICES has them; each server gets as many as the next. "
        "Not set: those of the trainer.",
        group="rollouts",
        example="1,2",
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
        "Completions that a server generates at once; a process sends it no more. 256 is vLLM's own default.",
        group="rollouts",
        gt=0,
        usual=ranges.MAX_NUM_SEQS,
    )
    gpu_memory_utilization: float | None = option(
        None,
        "Share of a GPU's memory that vLLM takes for weights and cache. Not set: 0.9 on GPUs of its own, 0.3 on one"
        " that it shares with the trainer.",
        group="rollouts",
        gt=0,
        le=1,
        usual=ranges.GPU_MEMORY_UTILIZATION,
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
        "from GPU to GPU. 'ipc': within one GPU. 'folder': files in a folder that both sides see. auto: direct in the "
        "process; for a server gloo on a CPU, nccl with `devices` or `url`, ipc otherwise.",
        group="rollouts",
        choices=("auto", "direct", "gloo", "nccl", "ipc", "folder"),
    )
    lora: str = option(
        "adapter",
        "What a LoRA run sends to vLLM. 'adapter': the adapter alone, as a folder. 'merged': all weights, the "
        "adapter added to them; works with every kind of LoRA.",
        group="rollouts",
        choices=("adapter", "merged"),
    )
    lora_rank: int | None = option(
        None, "Of `ft-host serve`: the largest rank of adapters that runs may load.", group="rollouts", gt=0
    )
    adapter_folder: str | None = option(
        None,
        "Where adapters are written for the server to read; a server elsewhere needs a folder that both see. Not set: "
        "a temporary one.",
        group="rollouts",
        path=True,
        compared=False,
    )
    weights_folder: str | None = option(
        None,
        "Where `transfer: folder` writes the weights; servers elsewhere need a folder that all see. Not set: a "
        "temporary one.",
        group="rollouts",
        path=True,
        compared=False,
    )
    trainer_address: str = option(
        "127.0.0.1", "The trainer's address as a server elsewhere reaches it; `gloo` connects to it.", group="rollouts"
    )
    start_timeout: float = option(
        600.0,
        "Seconds that a server may take to start: it reads the weights, and may compile.",
        group="rollouts",
        gt=0,
        usual=ranges.START_TIMEOUT,
    )
    timeout: float = option(
        1800.0,
        "Seconds that the server may take for one answer, including the wait for others before it.",
        group="rollouts",
        gt=0,
        usual=ranges.TIMEOUT,
    )
    transfer_timeout: float = option(
        300.0,
        "Seconds that the transfer of the weights may take.",
        group="rollouts",
        gt=0,
        usual=ranges.TRANSFER_TIMEOUT,
    )
    health_period: float = option(
        5.0,
        "Seconds between two questions to a server whether it is well. After three that fail it is left out until it "
        "answers again, and one that the run started is started anew.",
        group="rollouts",
        gt=0,
        usual=ranges.HEALTH_PERIOD,
    )
    health_timeout: float = option(
        10.0,
        "Seconds that a server may take to say that it is well, or to stop for an update.",
        group="rollouts",
        gt=0,
        usual=ranges.HEALTH_TIMEOUT,
    )
    recovery_timeout: float = option(
        400.0,
        "Seconds that an overlap or async run waits while no server can be used; then it ends and says why. Below a "
        "quarter of rollout_timeout, after which the host takes the rollout process itself for hung.",
        group="rollouts",
        gt=0,
    )
    log: str | None = option(
        None,
        "File that a started server's output goes to. Not set: vllm.log in the run's folder. Those of further servers "
        "have their number in the name.",
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

    def check(self, in_run: bool = True) -> None:
        """Refuse what can't work. Raises ConfigError that names the field."""
        defaults = type(self)()
        if in_run and self.lora_rank is not None:
            raise ConfigError("backend_config.lora_rank: is of ft-host serve; a run knows the rank of its adapter")
        given = [name for name in vars(self) if getattr(self, name) != getattr(defaults, name)]
        if self.teacher_url is not None:
            check_url("teacher_url", self.teacher_url)
        if self.mode == "inprocess":
            _refuse(given, {*OF_SERVERS, *HEALTH, *STARTED_ONLY}, "is of a server; with mode: inprocess there is none")
            _refuse_transfer(self.transfer, ("auto", "direct"), "mode: inprocess")
            if self.tensor_parallel_size > 1:
                raise ConfigError(
                    "backend_config.tensor_parallel_size: an engine in the trainer's process is on one GPU; mode:"
                    " server splits the model"
                )
            return
        if self.python is None and not self.found and self.teacher_url is not None:
            given.remove("teacher_url")
            if given:
                raise ConfigError(
                    f"backend_config.{given[0]}: has no effect without python or url: only tokens are scored"
                )
            return
        if self.python is None and not self.found:
            raise ConfigError(
                "backend_config: mode: server needs python, the Python of vLLM's environment (the run then starts the "
                "server), or url, the address of a server that runs"
            )
        _refuse(given, {"engine_args"}, "is of mode: inprocess; a server has server_args")
        _refuse_transfer(self.transfer, ("auto", "gloo", "nccl", "ipc", "folder"), "mode: server")
        if self.weights_folder is not None and self.transfer != "folder":
            raise ConfigError("backend_config.weights_folder: only transfer: folder writes there")
        if self.transfer == "ipc" and (self.servers > 1 or len(self.found) > 1):
            raise ConfigError(
                "backend_config.transfer: ipc is within one GPU, for one server; use gloo, nccl or folder"
            )
        if self.found:
            _refuse(
                given,
                {"host", *STARTED_ONLY, *ENGINE_FIELDS, "dtype"},
                "is of a server that the run starts; with url the server runs already",
            )
            self._check_found()
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
        if self.devices is not None:
            devices_of(self.devices, self.servers)
        if self.port is not None and self.port + self.servers - 1 > 65535:
            raise ConfigError(f"backend_config.port: {self.servers} servers from {self.port} on go past port 65535")

    @property
    def found(self) -> list[str]:
        """The addresses of servers that run already."""
        return [self.url, *self.urls] if self.url is not None else self.urls

    def _check_found(self) -> None:
        if self.url is not None and self.urls:
            raise ConfigError("backend_config.urls: one server is in url already; give all of them in urls")
        for url in self.found:
            check_url("url" if self.url is not None else "urls", url)
        twice = [url for url in self.urls if self.urls.count(url) > 1]
        if twice:
            raise ConfigError(f"backend_config.urls: {twice[0]} is given twice")


def _refuse(given: list[str], names: set[str], why: str) -> None:
    for name in given:
        if name in names:
            raise ConfigError(f"backend_config.{name}: {why}")


def _refuse_transfer(found: str, expected: tuple[str, ...], where: str) -> None:
    if found not in expected:
        raise ConfigError(f"backend_config.transfer: {found} can't be with {where}; expected {' or '.join(expected)}")
