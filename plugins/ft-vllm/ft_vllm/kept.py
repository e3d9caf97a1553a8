"""One server of a run, as the main process sees it: how it is started or found, and what is done to give it weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ft_host.api import FtHostError
from ft_vllm import server as servers
from ft_vllm import transfer
from ft_vllm.client import Client
from ft_vllm.folder import Folder
from ft_vllm.protocol import Pause, updating
from ft_vllm.server import Launch, Server
from ft_vllm.tasks import Task
from ft_vllm.weights import Manifest, Named

if TYPE_CHECKING:
    from ft_vllm.config import VLLMConfig


@dataclass(frozen=True, kw_only=True)
class Way:
    """How weights get to servers. `kind` is that of the transfer, None for adapters; `folder` is that of transfer:
    folder. `copies`: whether the main process keeps a copy of what it has sent."""

    config: VLLMConfig
    kind: str | None
    device: torch.device
    pause: Pause
    folder: Folder | None = None
    copies: bool = False


@dataclass(frozen=True, kw_only=True)
class Update:
    """What was sent last, and can be sent again: an adapter (its name and folder), the files of transfer: folder, or a
    copy in main memory."""

    version: int
    adapter: tuple[str, Path] | None = None
    path: Path | None = None
    manifest: Manifest | None = None
    copies: list[list[Named]] | None = None

    @property
    def again(self) -> bool:
        return self.adapter is not None or self.path is not None or self.copies is not None


class Kept:
    """`launch`: how it is started; None for one that runs already. `has`: the version that it was given; None: all is
    to be sent. `working`: a thread that starts it anew, or gives it weights."""

    def __init__(self, way: Way, url: str, launch: Launch | None):
        self.way, self.launch = way, launch
        self.server = Server(url=url, log=None if launch is None else launch.log)
        key = None if launch is None else launch.key
        self.client = Client(url, way.config.timeout, lambda: servers.circumstances(self.server), key)
        self.link: transfer.Link | None = None
        self.has: int | None = None
        self.adapter: str | None = None  # that it has loaded
        self.problem = ""
        self.failed_starts = 0  # in a row
        self.working: Task | None = None

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def free(self) -> bool:
        return self.working is None or self.working.done()

    @property
    def ended(self) -> bool:
        process = self.server.process
        return self.launch is not None and (process is None or process.poll() is not None)

    def answers(self) -> bool:
        try:
            self.client.version(self.way.config.health_timeout)
        except FtHostError:
            return False
        return True

    def is_another(self) -> bool:
        """Whether another process has taken its place: it answers, and its weights aren't those that it was given."""
        try:
            return self.client.version(self.way.config.health_timeout) != str(self.has)
        except FtHostError:
            return False

    # ------------------------------------------------------------ beginning and end

    def open(self) -> None:
        """Start it, or find it, and open the way for weights."""
        if self.launch is not None:
            self.launch.start(self.server)
        self.meet()

    def meet(self) -> None:
        """Learn what the server is, and open the way for weights; one that was open before is closed."""
        if self.link is not None:
            transfer.close_link(self.link)
        self.has = self.adapter = self.link = None
        servers.attach(self.server, self.client)
        way = self.way
        if way.kind is not None:
            self.link = transfer.open_link(
                way.kind,
                self.client,
                workers=self.server.workers,
                address=way.config.trainer_address,
                timeout=way.config.transfer_timeout,
                device=way.device,
            )

    def close(self) -> None:
        servers.stop(self.server)
        if self.link is not None:
            transfer.close_link(self.link)

    # ------------------------------------------------------------ weights

    def reached(self, first: bool, well: bool) -> bool:
        """Whether it can take weights. After a failure both sides begin anew; `first`: there was nothing before. A
        server that isn't `well` is asked first, so that nobody waits for one that hangs."""
        if not self.free or self.ended:
            return False
        if not well and not self.answers():
            self.problem = self.problem or f"vLLM at {self.url} doesn't answer"
            self.has = None
            return False
        if first or self.has is not None:
            return True
        try:
            self.meet()
        except FtHostError as error:
            self.problem = str(error)
            return False
        return True

    def give(self, update: Update) -> None:
        """Send what was sent before."""
        if update.adapter is not None:
            self.load(*update.adapter, update.version)
        elif update.path is not None:
            self.read(update.path, update.version)
        else:
            assert update.copies is not None and self.link is not None  # it can be sent again, and the way is open
            transfer.send(self.link, update.manifest, iter(update.copies), update.version, self.way.pause)
        self.has, self.problem = update.version, ""

    def read(self, path: Path, version: int) -> None:
        """Have it read files; all of the weights where it can't use those of changes."""
        assert self.link is not None and self.way.folder is not None  # of this kind of transfer
        with updating(self.client, version, self.way.pause, self.link.timeout):
            try:
                transfer.read_folder(self.link, path)
            except FtHostError:  # it hasn't the version before, or a file is damaged
                transfer.read_folder(self.link, self.way.folder.whole())

    def load(self, name: str, folder: Path, version: int) -> None:
        """Have it load an adapter in place of the one that it has."""
        client, limit, pause = self.client, self.way.config.transfer_timeout, self.way.pause
        client.pause(pause.seconds or limit, pause.mode, pause.clear_cache)
        if self.adapter != name:
            client.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}, limit)
            if self.adapter is not None:
                client.post("/v1/unload_lora_adapter", {"lora_name": self.adapter}, limit)
        self.adapter = name
        client.post("/update_weight_version", {"new_version": str(version)}, limit)
        client.resume(limit)


def copied(pieces: transfer.Pieces, copies: list[list[Named]] | None) -> transfer.Pieces:
    """The pieces, each of which is also added to `copies`."""
    for piece in pieces:
        if copies is not None:
            copies.append([(name, tensor.detach().to("cpu", copy=True)) for name, tensor in piece])
        yield piece
