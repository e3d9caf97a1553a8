"""vLLM's engine in the trainer's process: weights are passed by reference."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ft_host.api import Completion, ConfigError, FtHostError
from ft_vllm.command import Served, lora_rank, memory_share
from ft_vllm.sampling import Job, versions_of
from ft_vllm.server import TESTED, WANTED

if TYPE_CHECKING:
    from ft_vllm.config import VLLMConfig
    from ft_vllm.weights import Named


def check_environment() -> None:
    """Refuse a missing vLLM, or one of another version, before anything is loaded."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "backend_config.mode: inprocess needs vLLM in the trainer's environment, where it isn't installed; "
            "mode: server uses another environment"
        )


def start(config: VLLMConfig, served: Served) -> Any:
    """Return a `vllm.LLM` of the model. Raises ConfigError for an unsupported vLLM, FtHostError for a model that it
    refuses.
    """
    check_environment()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # read when vllm is imported: no process of the engine's own
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    # It warns of much that is correct, such as tied heads in an update: "Failed to load weights".
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if not served.on_gpu:
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(config.cpu_kv_cache_gib)
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # the trainer's threads stay where they are
    import vllm
    from vllm.config import WeightTransferConfig

    from ft_vllm.engines import register

    if not vllm.__version__.startswith(TESTED):
        raise ConfigError(
            f"backend_config.mode: inprocess: vLLM {vllm.__version__} is installed; this package is written for"
            f" {WANTED}"
        )
    register()
    arguments = {
        "model": served.name,
        "revision": served.revision,
        "trust_remote_code": served.trust_remote_code,
        "dtype": served.dtype,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "enforce_eager": config.enforce_eager,
        "tensor_parallel_size": config.tensor_parallel_size,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "skip_tokenizer_init": True,
        "seed": 0,
        "weight_transfer_config": WeightTransferConfig(backend="direct"),
    }
    if served.on_gpu:
        arguments["gpu_memory_utilization"] = memory_share(config, "direct")
    else:
        arguments["enable_chunked_prefill"] = False  # for the reason in command.arguments
    if served.lora_rank is not None:
        arguments |= {
            "enable_lora": True,
            "max_loras": 1,
            "max_cpu_loras": 2,
            "max_lora_rank": lora_rank(served.lora_rank),
        }
    with as_they_were():
        try:
            llm = vllm.LLM(**(arguments | config.engine_args))
        except (ValueError, RuntimeError, OSError) as error:
            raise FtHostError(f"vLLM can't serve {served.name}: {error}") from error
    llm.init_weight_transfer_engine({"init_info": {}})
    return llm


@contextlib.contextmanager
def as_they_were() -> Iterator[None]:
    """Restore the random states: vLLM seeds the process in which it starts, and draws noise for each row of a batch
    before it puts that of the request's own seed in its place. Neither may change the trainer's."""
    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(numpy)


def load(llm: Any, weights: Iterator[Named], version: int, *, clear_cache: bool = True) -> None:
    """Run one update between two steps of the engine. The cache is cleared, unless requests are under way that keep
    theirs.
    """
    llm.start_weight_update()
    llm.update_weights({"update_info": {"weights": weights}})
    llm.finish_weight_update(str(version))
    if clear_cache:
        clear(llm)


def load_adapter(llm: Any, adapter: Any, previous: Any, version: int) -> None:
    """Load an adapter, a `LoRARequest`, in place of another."""
    if previous is not None:
        llm.llm_engine.remove_lora(previous.lora_int_id)
    llm.llm_engine.add_lora(adapter)
    llm.update_weight_version(str(version))
    clear(llm)


def clear(llm: Any) -> None:
    if not llm.reset_prefix_cache():
        raise FtHostError("vLLM has not cleared its cache after an update: a request is under way")


def generate(llm: Any, jobs: list[Job], adapter: Any) -> list[Completion]:
    from vllm import SamplingParams

    try:
        with as_they_were():
            answers = llm.generate(
                [{"prompt_token_ids": job.prompt_ids} for job in jobs],
                [SamplingParams(**job.params) for job in jobs],
                use_tqdm=False,
                lora_request=adapter,
            )
    except (ValueError, RuntimeError) as error:
        raise FtHostError(f"vLLM can't complete these prompts: {error}") from error
    completions = []
    for answer in answers:
        said = answer.outputs[0]
        if said.finish_reason not in ("stop", "length"):
            raise FtHostError(f"vLLM ended a completion with {said.finish_reason!r}; expected stop or length")
        logprobs = [entry[token].logprob for token, entry in zip(said.token_ids, said.logprobs, strict=True)]
        spans = [(span.version, span.start, span.end) for span in said.weight_versions or []]
        completions.append(
            Completion(
                token_ids=list(said.token_ids),
                logprobs=logprobs,
                finish_reason=said.finish_reason,
                versions=versions_of(spans),
            )
        )
    return completions


def stop(llm: Any) -> None:
    """End the engine, and the process group of one that it has made."""
    from vllm.distributed import cleanup_dist_env_and_memory

    llm.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()
