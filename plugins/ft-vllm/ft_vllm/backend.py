"""The backend `vllm`: completions by vLLM, in the trainer's process or in a separate server.

Its state is in `run.backend_state`: an `Engine`, opened by the first hook that needs it and closed by `ft_close`. Each
rank has one. With a server, the main process holds the server's process and the weight transfer, and all ranks send
requests.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ft_host.api import (
    Completion,
    ConfigError,
    FtHostError,
    Request,
    Sampling,
    Scores,
    Sequence,
    base_of,
    hookimpl,
    precision,
)
from ft_vllm import command, inprocess, scoring, server, transfer, weights
from ft_vllm.client import Client
from ft_vllm.completions import ask
from ft_vllm.config import VLLMConfig
from ft_vllm.sampling import jobs_of

if TYPE_CHECKING:
    from ft_host.api import Policy, Run

KEY, TEACHER = "vllm", "vllm teacher"  # in run.backend_state
T = TypeVar("T")


@dataclass
class Engine:
    """A rank's connection to vLLM. `positions`: the most tokens of a prompt with its completion."""

    positions: int
    client: Client | None = None  # of a server
    model: str = ""  # the model name in requests: the model, or the last adapter
    link: transfer.Link | None = None  # on the main process
    started: server.Server | None = None  # on the main process
    llm: Any = None  # in the process
    adapter: Any = None  # the last adapter in the process: a LoRARequest
    folder: Path | None = None  # that adapters are written to
    updates: int = 0


# ---------------------------------------------------------------- hooks


@hookimpl
def ft_generate(requests: list[Request], sampling: Sampling, run: Run) -> list[Completion]:
    if sampling.role != "policy":
        raise ConfigError(
            f"backend: vllm has only the policy, but the {sampling.role} must generate; backend transformers can do"
            " that"
        )
    engine = opened(run)
    jobs = jobs_of(requests, sampling, run, engine.positions)
    if engine.llm is not None:
        return inprocess.generate(engine.llm, jobs, engine.adapter)
    return ask(engine, jobs, run.backend_config.max_num_seqs)


@hookimpl
def ft_score(sequences: list[Sequence], top: int, run: Run) -> list[Scores]:
    config = run.backend_config
    if config.teacher_url is None:
        raise ConfigError("backend_config.teacher_url: not set, but a teacher must score tokens; see docs/vllm.md")
    if TEACHER not in run.backend_state:
        run.backend_state[TEACHER] = scoring.find(config)
    return scoring.score(run.backend_state[TEACHER], sequences, top, config.max_num_seqs)


@hookimpl
def ft_sync_weights(model: Policy, version: int, run: Run) -> None:
    engine = opened(run)
    if sends_adapter(run):
        sync_adapter(engine, model, version, run)
    elif engine.llm is not None:
        manifest = weights.manifest_of(model)
        for_vllm = (pair for piece in weights.pieces(model, manifest, keep=True) for pair in piece)
        inprocess.load(engine.llm, for_vllm, version)
    else:
        sync_server(engine, model, version, run)
    engine.updates += 1


@hookimpl
def ft_close(run: Run) -> None:
    """End what this run has started. Called however the run ends, so it asks nothing of other ranks."""
    run.backend_state.pop(TEACHER, None)  # a server that isn't ours
    engine = run.backend_state.pop(KEY, None)
    if engine is None:
        return
    if engine.llm is not None:
        inprocess.stop(engine.llm)
    if engine.started is not None:
        server.stop(engine.started)
    if engine.link is not None:
        transfer.close_link(engine.link)
    if engine.folder is not None and run.rank == 0:
        shutil.rmtree(engine.folder, ignore_errors=True)


# ---------------------------------------------------------------- opening


def opened(run: Run) -> Engine:
    """Return the run's engine. All ranks must call it at once the first time."""
    if KEY not in run.backend_state:
        config = run.backend_config
        if not isinstance(config, VLLMConfig):
            raise ConfigError(f"backend_config: expected the fields of vllm, found {type(config).__name__}")
        if config.mode == "server" and config.python is None and config.url is None:
            raise ConfigError(
                "backend_config: only teacher_url is set, so vLLM can score tokens but not generate; set python or"
                " url too"
            )
        run.backend_state[KEY] = in_process(config, run) if config.mode == "inprocess" else of_server(config, run)
    return run.backend_state[KEY]


def in_process(config: VLLMConfig, run: Run) -> Engine:
    if run.world_size > 1:
        raise ConfigError(
            f"backend_config.mode: inprocess is for runs of one process, this one has {run.world_size}: vLLM would take"
            " the processes of the trainer for its own; mode: server serves all of them"
        )
    run.say("starting vLLM in this process")
    llm = inprocess.start(config, served(config, run, "direct"))
    return Engine(positions=llm.llm_engine.model_config.max_model_len, llm=llm, folder=adapter_folder(config, run))


def of_server(config: VLLMConfig, run: Run) -> Engine:
    """Start or find the server and set up the weight transfer on the main process; all ranks send requests
    afterwards.
    """
    if run.world_size > 1 and config.start_timeout >= run.config.ddp_timeout:
        raise ConfigError(
            f"backend_config.start_timeout: {config.start_timeout:g} seconds, but the other processes of the run give"
            f" up after {run.config.ddp_timeout} (ddp_timeout)"
        )
    kind = transfer_of(config, run)
    own: dict[str, Any] = {}

    def begin() -> tuple[str, str, int]:
        what = served(config, run, kind)
        if config.url is None:
            log = run.folder.path / "vllm.log" if config.log is None else Path(config.log)
            run.say(f"starting vLLM with {config.python}; its output goes to {log}")
            found = own["started"] = server.start(config, what, log)
        else:
            found = own["started"] = server.Server(url=config.url.rstrip("/"))
        client = Client(found.url, config.timeout, lambda: server.circumstances(found))
        try:
            server.attach(found, client)
            if not sends_adapter(run):
                own["link"] = transfer.open_link(
                    kind,
                    client,
                    workers=found.workers,
                    address=config.trainer_address,
                    timeout=config.transfer_timeout,
                    device=run.device,
                )
        except BaseException:
            server.stop(found)
            raise
        return found.url, found.model, found.positions

    url, model, positions = on_main(run, begin)
    known = (lambda: server.circumstances(own["started"])) if run.rank == 0 else str
    client = own["link"].client if "link" in own else Client(url, config.timeout, known)
    folder = on_main(run, lambda: adapter_folder(config, run))
    return Engine(positions=positions, client=client, model=model, folder=folder, **own)


def served(config: VLLMConfig, run: Run, kind: str) -> command.Served:
    revision = run.config.model_revision if base_of(run.config.model) == run.config.model else None
    half = {"no": run.config.dtype, "bf16": "bfloat16", "fp16": "float16"}[precision(run.config, run.device)]
    return command.Served(
        **server.known_model(base_of(run.config.model)),
        revision=revision,
        trust_remote_code=run.config.trust_remote_code,
        dtype=half if config.dtype == "auto" else config.dtype,
        on_gpu=run.device.type != "cpu",
        transfer=kind,
        lora_rank=weights.check_adapter(run.policy) if sends_adapter(run) else None,
    )


def transfer_of(config: VLLMConfig, run: Run) -> str:
    if config.transfer != "auto":
        return config.transfer
    if run.device.type != "cuda":
        return "gloo"
    return "nccl" if config.devices is not None or config.url is not None else "ipc"


def sends_adapter(run: Run) -> bool:
    return run.backend_config.lora == "adapter" and weights.adapted(run.policy)


def adapter_folder(config: VLLMConfig, run: Run) -> Path | None:
    if not sends_adapter(run):
        return None
    return Path(tempfile.mkdtemp(prefix="ft-vllm-adapters-", dir=config.adapter_folder)).resolve()


def on_main(run: Run, work: Callable[[], T]) -> T:
    """Return on every rank the result of `work` on the main process. What it raises there is raised on every rank."""
    result, error = None, None
    if run.rank == 0:
        try:
            result = work()
        except FtHostError as raised:
            error = raised
    result, failure = run.gather((result, None if error is None else (type(error), str(error))))[0]
    if error is not None:
        raise error
    if failure is not None:
        raise failure[0](failure[1])
    return result


# ---------------------------------------------------------------- weights


def sync_server(engine: Engine, policy: Policy, version: int, run: Run) -> None:
    manifest = weights.manifest_of(policy)
    pieces = weights.pieces(policy, manifest, keep=run.rank == 0)
    if run.rank != 0:
        for _ in pieces:  # takes part in gathering
            pass

    def work() -> None:
        try:
            transfer.send(engine.link, manifest, pieces, version)
        except FtHostError:
            for _ in pieces:  # the other ranks are gathering, and can't be stopped meanwhile
                pass
            raise

    on_main(run, work)


def sync_adapter(engine: Engine, policy: Policy, version: int, run: Run) -> None:
    """Write the adapter to its own folder, and let vLLM load it under its own name."""
    name = f"update-{engine.updates}"
    folder = engine.folder / name
    weights.write_adapter(policy, folder, keep=run.rank == 0)
    if engine.llm is not None:
        from vllm.lora.request import LoRARequest

        adapter = LoRARequest(name, engine.updates + 1, str(folder))
        inprocess.load_adapter(engine.llm, adapter, engine.adapter, version)
        engine.adapter = adapter
    else:
        client, previous, limit = engine.client, engine.model, run.backend_config.transfer_timeout

        def work() -> None:
            client.pause(limit)
            client.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}, limit)
            if engine.updates:
                client.post("/v1/unload_lora_adapter", {"lora_name": previous}, limit)
            client.post("/update_weight_version", {"new_version": str(version)}, limit)
            client.resume(limit)

        on_main(run, work)
        engine.model = name
    if engine.updates and run.rank == 0:
        shutil.rmtree(engine.folder / f"update-{engine.updates - 1}")


# ---------------------------------------------------------------- completions
