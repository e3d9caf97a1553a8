"""What a process of a run holds of vLLM: an engine in the process, or the way to servers; and how it is opened."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ft_host.api import ConfigError, FtHostError, RolloutConfig, WeightsFolder, base_of, precision
from ft_vllm import command, inprocess, server, weights
from ft_vllm.client import Client, Refused
from ft_vllm.config import VLLMConfig
from ft_vllm.fleet import Fleet, client_of
from ft_vllm.folder import Folder
from ft_vllm.keeper import Keeper
from ft_vllm.kept import Kept, Way
from ft_vllm.protocol import Pause
from ft_vllm.stepping import StepEngine

if TYPE_CHECKING:
    from ft_host.api import Run

KEY = "vllm"  # in run.backend_state
T = TypeVar("T")


@dataclass
class Engine:
    """A rank's connection to vLLM. `positions`: the most tokens of a prompt with its completion."""

    positions: int
    fleet: Fleet | None = None  # of servers
    keeper: Keeper | None = None  # on the main process
    servers: list[dict[str, Any]] = field(default_factory=list)  # as a rollout process is told of them
    key: str | None = None  # that the servers ask for
    llm: Any = None  # in the process
    stepping: StepEngine | None = None  # of rollouts: overlap, in the process
    adapter: Any = None  # the last adapter in the process: a LoRARequest
    folder: Path | None = None  # that adapters are written to
    folders: list[Path] = field(default_factory=list)  # to remove at the end
    updates: int = 0
    version: int | None = None  # of the last update

    @property
    def client(self) -> Client:
        return self.fleet.members[0].client

    @property
    def started(self) -> server.Server | None:
        return None if self.keeper is None else self.keeper.kept[0].server


def opened(run: Run) -> Engine:
    """Return the run's engine. All ranks must call it at once the first time."""
    if KEY not in run.backend_state:
        config = run.backend_config
        if not isinstance(config, VLLMConfig):
            raise ConfigError(f"backend_config: expected the fields of vllm, found {type(config).__name__}")
        if config.mode == "server" and config.python is None and not config.found:
            raise ConfigError(
                "backend_config: only teacher_url is set, so vLLM can score tokens but not generate; set python or"
                " url too"
            )
        if keeps_cache(run) and sends_adapter(run):
            raise ConfigError(
                "recompute_cache: false can't be with an adapter that vLLM loads anew: what runs would go on with the"
                " old one; set backend_config.lora: merged"
            )
        run.backend_state[KEY] = in_process(config, run) if config.mode == "inprocess" else of_servers(config, run)
    return run.backend_state[KEY]


def rollouts_of(run: Run) -> str:
    return run.config.rollouts if isinstance(run.config, RolloutConfig) else "sync"


def keeps_cache(run: Run) -> bool:
    return rollouts_of(run) != "sync" and not run.config.recompute_cache


# ---------------------------------------------------------------- in the process


def in_process(config: VLLMConfig, run: Run) -> Engine:
    if run.world_size > 1:
        raise ConfigError(
            f"backend_config.mode: inprocess is for runs of one process, this one has {run.world_size}: vLLM would take"
            " the processes of the trainer for its own; mode: server serves all of them"
        )
    if rollouts_of(run) == "async":
        raise ConfigError(
            "backend_config.mode: inprocess is an engine of the trainer's process, and rollouts: async samples outside"
            " of it; set mode: server, or rollouts: overlap"
        )
    run.say("starting vLLM in this process")
    llm = inprocess.start(config, served(config, run, "direct"))
    folder, made = adapter_folder(config, run)
    return Engine(positions=llm.llm_engine.model_config.max_model_len, llm=llm, folder=folder, folders=made)


# ---------------------------------------------------------------- servers


def of_servers(config: VLLMConfig, run: Run) -> Engine:
    """Start or find the servers and set up the weight transfer on the main process; all ranks send requests
    afterwards.
    """
    waits = rollouts_of(run) != "sync"
    for name in ("start_timeout", *(["recovery_timeout"] if waits else [])):
        seconds = getattr(config, name)
        if run.world_size > 1 and seconds >= run.config.ddp_timeout:
            raise ConfigError(
                f"backend_config.{name}: {seconds:g} seconds, but the other processes of the run give up after"
                f" {run.config.ddp_timeout} (ddp_timeout)"
            )
    if rollouts_of(run) == "async" and config.recovery_timeout >= run.config.rollout_timeout / 4:
        raise ConfigError(
            f"backend_config.recovery_timeout: {config.recovery_timeout:g} seconds, but a rollout process that samples"
            f" nothing for {run.config.rollout_timeout / 4:g} (a quarter of rollout_timeout) is taken for hung; "
            "expected less"
        )
    own: dict[str, Any] = {"folders": []}

    def begin() -> dict[str, Any]:
        keeper = keeper_of(config, run, own["folders"])
        keeper.open()
        own["keeper"] = keeper
        warn_open(keeper, run)
        return {
            "servers": [{"url": each.url, "log": told_path(each.server.log)} for each in keeper.kept],
            "model": keeper.kept[0].server.model,
            "positions": min(each.server.positions for each in keeper.kept),
            "key": keeper.kept[0].client.key,
        }

    found = on_main(run, begin)
    if run.rank == 0:
        clients = [each.client for each in own["keeper"].kept]
    else:
        clients = [client_of(each["url"], None, found["key"], config.timeout) for each in found["servers"]]
    # A synchronous run ends where the others are gone too: a server that is begun anew gets its weights with the next
    # update. The others wait for it.
    deadline = "recovery_timeout" if waits else "health_period"
    fleet = Fleet(clients, config, found["model"], run.say, keeps=keeps_cache(run), deadline=deadline)
    fleet.watch()
    if "keeper" in own:
        own["keeper"].watch(fleet)
    folder, made = on_main(run, lambda: adapter_folder(config, run))
    own["folders"] += made
    return Engine(
        positions=found["positions"], fleet=fleet, servers=found["servers"], key=found["key"], folder=folder, **own
    )


def keeper_of(config: VLLMConfig, run: Run, folders: list[Path]) -> Keeper:
    """The servers of the run, not yet started. `folders` gets what is to be removed at the end."""
    kind = transfer_of(config, run)
    adapters, rollouts = sends_adapter(run), rollouts_of(run)
    what = served(config, run, kind)
    folder = None
    if kind == "folder" and not adapters:
        folder = Folder(weights_folder(config, run))
        folders.append(folder.folder.path)
    pause = {
        "wait": Pause(),
        "abort": Pause("abort", True, config.health_timeout),
        "keep": Pause("keep", False, config.health_timeout),
    }["wait" if rollouts == "sync" else "keep" if keeps_cache(run) else "abort"]
    way = Way(
        config=config,
        kind=None if adapters else kind,
        device=run.device,
        pause=pause,
        folder=folder,
        copies=rollouts != "sync",
    )
    if config.found:
        return Keeper(way, [Kept(way, url.rstrip("/"), None) for url in config.found])
    log = run.folder.path / "vllm.log" if config.log is None else Path(config.log)
    count = "vLLM" if config.servers == 1 else f"{config.servers} servers of vLLM"
    run.say(f"starting {count} with {config.python}; output goes to {log}")
    launches = server.launches(config, what, log, server.key_for(config.host))
    return Keeper(way, [Kept(way, launch.url, launch) for launch in launches])


def warn_open(keeper: Keeper, run: Run) -> None:
    """Say where a server that was found lets anybody change its weights."""
    for each in keeper.kept:
        host = each.client.address[0]
        if each.launch is not None or server.is_loopback(host):
            continue
        try:
            Client(each.url, server.PROMPT, key="").get("/weight_info")
        except Refused:
            continue
        run.say(
            f"vLLM at {each.url} asks for no key on its routes for weights: whoever reaches it may change the model; "
            "`ft-host serve` starts servers that do",
            "warning",
        )


def served(config: VLLMConfig, run: Run, kind: str) -> command.Served:
    revision = run.config.model_revision if base_of(run.config.model) == run.config.model else None
    return command.Served(
        **server.known_model(base_of(run.config.model)),
        revision=revision,
        trust_remote_code=run.config.trust_remote_code,
        dtype=dtype_of(config, run),
        on_gpu=run.device.type != "cpu",
        transfer=kind,
        lora_rank=weights.check_adapter(run.policy) if sends_adapter(run) else None,
    )


def dtype_of(config: VLLMConfig, run: Run) -> str:
    """The type that an engine of the run's own computes in, as vLLM calls it."""
    trainers = {"no": run.config.dtype or "float32", "bf16": "bfloat16", "fp16": "float16"}
    return trainers[precision(run.config, run.device)] if config.dtype == "auto" else config.dtype


def computes_in(config: VLLMConfig, run: Run) -> torch.dtype | None:
    """The type that the engine computes in; None where that isn't known, as of servers that the run has found."""
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return None if config.found else types.get(dtype_of(config, run))


def transfer_of(config: VLLMConfig, run: Run) -> str:
    if config.transfer != "auto":
        return config.transfer
    if run.device.type != "cuda":
        return "gloo"
    if config.devices is not None or config.found:
        return "nccl"
    return "ipc" if config.servers == 1 else "gloo"


def sends_adapter(run: Run) -> bool:
    return run.backend_config.lora == "adapter" and weights.adapted(run.policy)


def adapter_folder(config: VLLMConfig, run: Run) -> tuple[Path | None, list[Path]]:
    """Where adapters are written, and what of it is to be removed at the end."""
    if not sends_adapter(run):
        return None, []
    folder = Path(tempfile.mkdtemp(prefix="ft-vllm-adapters-", dir=config.adapter_folder)).resolve()
    return folder, [folder]


def weights_folder(config: VLLMConfig, run: Run) -> WeightsFolder:
    """Where weights are written: in `weights_folder`, else in this machine's memory or in the run's folder."""
    if config.weights_folder is None:
        size = sum(parameter.nbytes for parameter in run.policy.parameters())
        return WeightsFolder.made(run.folder.path, 3 * size)  # whole, whole again, and changes
    place = Path(config.weights_folder)
    if not place.is_dir():
        raise ConfigError(f"backend_config.weights_folder: {place} is no folder; expected one that the servers see too")
    return WeightsFolder(Path(tempfile.mkdtemp(prefix=f"{run.folder.path.name}-", dir=place)).resolve())


def told_path(log: Path | None) -> str | None:
    return None if log is None else str(log.resolve())


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
