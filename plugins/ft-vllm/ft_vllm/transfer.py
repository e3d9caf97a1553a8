"""The trainer's side of giving weights to servers: `gloo`, `nccl`, `ipc`, `folder`. None of them needs vLLM here.

Each is a function or two in a table: one makes the link with a server, the other moves the pieces of one update. What
is around it (pause, start, finish, resume) is the same for all. `folder` moves no pieces: the server is told where the
files are.
"""

from __future__ import annotations

import base64
import contextlib
import pickle
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from queue import Full, Queue
from typing import Any

import torch
import torch.distributed as dist

from ft_host.api import ConfigError, FtHostError
from ft_vllm.client import Client
from ft_vllm.protocol import Pause, updating
from ft_vllm.tasks import Task
from ft_vllm.weights import PIECE, Manifest, Named


@dataclass
class Link:
    """The way to a server's workers. `group`: what the kind of transfer sends with, of its own kind each."""

    kind: str
    client: Client
    timeout: float  # seconds that an update may take
    device: torch.device
    group: Any = None
    store: Any = None


Pieces = Iterator[list[Named]]


def open_link(kind: str, client: Client, *, workers: int, address: str, timeout: float, device: torch.device) -> Link:
    """Meet the server's `workers`. `address`: this machine's, as they reach it."""
    link = Link(kind, client, timeout, device)
    OPENERS[kind](link, workers, address)
    return link


def send(link: Link, manifest: Manifest, pieces: Pieces, version: int, pause: Pause) -> None:
    """One update: the server is paused and its cache cleared before, and goes on after. Raises FtHostError with the
    reason; the server can't be used then."""
    with updating(link.client, version, pause, link.timeout):
        SENDERS[link.kind](link, manifest, pieces)


def send_all(
    links: list[Link], manifest: Manifest, pieces: Pieces, version: int, pause: Pause
) -> list[FtHostError | None]:
    """Send the same weights to several servers, each in a thread of its own, and return what went wrong with each. Goes
    through all `pieces`, whatever happens. A piece is sent to all before the next one is gathered."""
    feeds: list[Queue[list[Named] | None]] = [Queue(maxsize=1) for _ in links]
    tasks = [Task(send, link, manifest, iter(feed.get, None), version, pause) for link, feed in zip(links, feeds)]

    def put(piece: list[Named] | None) -> None:
        for task, feed in zip(tasks, feeds):
            while not task.done():
                with contextlib.suppress(Full):  # the one before is being sent
                    feed.put(piece, timeout=0.05)
                    break

    for piece in pieces:
        put(piece)
    put(None)
    return [task.failure(2 * link.timeout) for task, link in zip(tasks, links)]


def close_link(link: Link) -> None:
    """Let go of the server: of one that goes on, tell it to let go of us. After a transfer that failed one side may
    still wait for the other."""
    with contextlib.suppress(FtHostError):  # it has ended, which is as good
        link.client.post("/shutdown_weight_transfer_engine", timeout=5)
    if isinstance(link.group, dist.ProcessGroupGloo):
        link.group.abort()
    link.group = link.store = None


# ---------------------------------------------------------------- gloo: bytes over TCP, from any device


def open_gloo(link: Link, workers: int, address: str) -> None:
    patience = timedelta(seconds=link.timeout)
    listening = socket.create_server((address, 0))  # on this address alone; torch by itself would listen on all
    port = listening.getsockname()[1]
    store = dist.TCPStore(
        address, port, workers + 1, True, patience, wait_for_workers=False, master_listen_fd=listening.detach()
    )
    there = {"address": address, "port": port, "world_size": workers + 1, "timeout": link.timeout}

    def here() -> None:
        link.store = store
        link.group = gloo_group(store, 0, workers + 1, address, patience)

    both(link, "/init_weight_transfer_engine", {"init_info": there}, here)


def gloo_group(store: dist.Store, rank: int, size: int, address: str, patience: timedelta) -> dist.ProcessGroupGloo:
    """As in engines.py, which can't be imported without vLLM."""
    store = dist.PrefixStore("ft-vllm", store)
    if not address.startswith("127."):
        return dist.ProcessGroupGloo(store, rank, size, patience)
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    options._timeout = patience
    return dist.ProcessGroupGloo(store, rank, size, options)


def send_gloo(link: Link, manifest: Manifest, pieces: Pieces) -> None:
    options = dist.BroadcastOptions()
    options.rootRank = options.rootTensor = 0
    update = described(manifest) | {"buckets": manifest.bounds}
    with asked(link, "/update_weights", {"update_info": update}) as until:
        for piece in pieces:
            work = link.group.broadcast([flat(piece).cpu()], options)
            until(work.is_completed)
            work.wait()


# ---------------------------------------------------------------- nccl: from GPU to GPUs, vLLM's own engine


def open_nccl(link: Link, workers: int, address: str) -> None:
    """A communicator of torch's own NCCL; vLLM's workers are told its id. They add up one number first, to see that it
    works."""
    nccl = needs_gpu(link)
    identity = nccl.unique_id()
    there = {
        "nccl_unique_id_b64": base64.b64encode(identity).decode(),
        "rank_offset": 1,
        "world_size": workers + 1,
        "packed": True,
        "packed_buffer_size_bytes": PIECE,
        "packed_num_buffers": 2,
    }

    def here() -> None:
        with torch.cuda.device(link.device):
            link.group = nccl.init_rank(workers + 1, identity, 0)
            one = torch.ones(1, device=link.device)
            nccl.all_reduce([one], [one], streams=[torch.cuda.current_stream()], comms=[link.group])
            torch.cuda.current_stream().synchronize()

    both(link, "/init_weight_transfer_engine", {"init_info": there}, here)


def send_nccl(link: Link, manifest: Manifest, pieces: Pieces) -> None:
    nccl = needs_gpu(link)
    with asked(link, "/update_weights", {"update_info": described(manifest)}) as until, torch.cuda.device(link.device):
        stream = torch.cuda.current_stream()
        for piece in pieces:
            whole = flat(piece).to(link.device)
            nccl.broadcast([whole], 0, [stream], [link.group])
            until(stream.query)


def needs_gpu(link: Link) -> Any:
    import torch.cuda.nccl as nccl

    if link.device.type != "cuda":
        raise ConfigError(f"backend_config.transfer: {link.kind} needs the policy on a GPU; it is on {link.device}")
    return nccl


# ---------------------------------------------------------------- ipc: within one GPU, vLLM's own engine


def open_ipc(link: Link, workers: int, address: str) -> None:
    needs_gpu(link)
    if workers != 1:
        raise ConfigError(f"backend_config.transfer: ipc is within one GPU; the server has {workers} workers")
    link.client.post("/init_weight_transfer_engine", {"init_info": {"packed": True}}, timeout=link.timeout)


def send_ipc(link: Link, manifest: Manifest, pieces: Pieces) -> None:
    """Each piece is copied into one buffer, which the server's worker opens and reads before the next one is."""
    from torch.multiprocessing.reductions import reduce_tensor

    sizes = manifest.sizes
    room = max(sum(sizes[start:end]) for start, end in manifest.bounds)
    with torch.cuda.device(link.device):
        buffer = torch.empty(room, dtype=torch.uint8, device=link.device)
        _, handle = reduce_tensor(buffer)
        identity = str(torch.cuda.get_device_properties(link.device).uuid)
        named = base64.b64encode(pickle.dumps({identity: handle})).decode()
        for (start, end), piece in zip(manifest.bounds, pieces, strict=True):
            whole = flat(piece)
            buffer[: whole.numel()].copy_(whole)
            torch.cuda.current_stream().synchronize()
            update = described(manifest, start, end) | {"ipc_handles_pickled": named, "tensor_sizes": sizes[start:end]}
            link.client.post("/update_weights", {"update_info": update}, timeout=link.timeout)


# ---------------------------------------------------------------- folder: files that both sides see


def open_folder(link: Link, workers: int, address: str) -> None:
    link.client.post("/init_weight_transfer_engine", {"init_info": {}}, timeout=link.timeout)


def read_folder(link: Link, folder: Path) -> None:
    """Have the server read a version that is written."""
    link.client.post("/update_weights", {"update_info": {"folder": str(folder)}}, timeout=link.timeout)


OPENERS: dict[str, Callable[[Link, int, str], None]] = {
    "gloo": open_gloo,
    "nccl": open_nccl,
    "ipc": open_ipc,
    "folder": open_folder,
}
SENDERS: dict[str, Callable[[Link, Manifest, Pieces], None]] = {"gloo": send_gloo, "nccl": send_nccl, "ipc": send_ipc}


# ---------------------------------------------------------------- shared


def described(manifest: Manifest, start: int = 0, end: int | None = None) -> dict[str, Any]:
    """What vLLM must know of the weights that come."""
    part = slice(start, end)
    return {"names": manifest.names[part], "dtype_names": manifest.dtype_names[part], "shapes": manifest.shapes[part]}


def flat(piece: list[Named]) -> torch.Tensor:
    """The bytes of a piece's tensors, one after the other."""
    return torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for _, tensor in piece])


@contextlib.contextmanager
def asked(link: Link, path: str, body: Any) -> Iterator[Callable[[Callable[[], bool]], None]]:
    """Ask the server for something that it answers only once it has got what we send meanwhile.

    Gives a function that waits for our side to be done, and raises the server's error where that comes first. Leaving
    waits for the answer.
    """
    answer = Task(link.client.post, path, body, link.timeout)
    deadline = time.monotonic() + link.timeout

    def until(done: Callable[[], bool]) -> None:
        pause = 1e-4
        while not done():
            if answer.done():
                answer.result()
            if time.monotonic() > deadline:
                raise FtHostError(
                    f"{link.kind}: vLLM has not taken the weights within {link.timeout:g} seconds "
                    f"(backend_config.transfer_timeout){link.client.known()}"
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.05)

    try:
        yield until
    except (RuntimeError, ValueError, OSError) as error:
        # The transport's end of it. What the server says of the same accident, a moment later, tells more.
        answer.thread.join(5)
        if answer.error is not None:
            raise answer.error from error
        raise FtHostError(f"{link.kind}: {error}{link.client.known()}") from error
    answer.result()


def both(link: Link, path: str, body: Any, here: Callable[[], None]) -> None:
    """The server's half, by request, and ours at once, as each waits for the other."""
    with asked(link, path, body) as until:
        ours = Task(here)
        until(ours.done)
        ours.result()
