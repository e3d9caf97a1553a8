"""Worker processes that prepare rows ahead of training. The only module of data/ that imports torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from torch import Generator
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ft_host.errors import FtHostError
from ft_host.util.ranks import Failure

if TYPE_CHECKING:
    from ft_host.data.reader import Piece

AHEAD = 2  # pieces that each worker has ready or in progress


class _Pieces(IterableDataset):
    """`make(worker, workers)` yields the pieces of a worker.

    An error is passed on as an object, with its traceback in words, since DataLoader would raise one of its own.
    """

    def __init__(self, make: Callable[[int, int], Iterator[Piece]]):
        self.make = make

    def __iter__(self) -> Iterator[Piece | _Failed]:
        info = get_worker_info()
        try:
            yield from self.make(info.id, info.num_workers)
        except Exception as error:
            yield _Failed(Failure.of(error).error, traceback.format_exc())


@dataclass(frozen=True)
class _Failed:
    error: FtHostError
    trace: str


def _start(worker: int) -> None:
    """Reset signal handlers: the training process handles Ctrl-C, SIGTERM and SIGHUP, and fork copies its handlers.

    Torch's workers look after their parent only while they wait for work. One that is writing rows into a pipe, which
    the others keep open, would stay for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, name="ft-host parent watch", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is started by multiprocessing"
    parent.join()
    os._exit(1)


def _as_is(item: Any) -> Any:
    return item


def ahead(make: Callable[[int, int], Iterator[Piece]], workers: int) -> Iterator[Piece]:
    """Yield the pieces of all workers, in the order that a single worker would give. The processes end with the
    iteration.

    Raises what a worker raises, and FtHostError where one dies.
    """
    loader = DataLoader(
        _Pieces(make),
        batch_size=None,
        collate_fn=_as_is,
        num_workers=workers,
        prefetch_factor=AHEAD,
        worker_init_fn=_start,
        generator=Generator(),  # the run's random state must not depend on the number of workers
    )
    items, processes = _started(loader)
    try:
        while True:
            try:
                item = next(items, None)
            except RuntimeError as error:
                if not str(error).startswith("DataLoader worker (pid"):  # an error of the method
                    raise
                raise FtHostError(_died(processes), facts={"watch/failed": "process"}) from error
            if item is None:
                return
            if isinstance(item, _Failed):
                item.error.add_note(f"in a process that prepares rows:\n{item.trace}")
                raise item.error
            yield item
    finally:
        del items, loader


def _started(loader: DataLoader) -> tuple[Iterator[Any], list[BaseProcess]]:
    """Start the processes. torch then raises the death of one at any place of the training, through SIGCHLD; without
    that handler it is noticed where the next piece is waited for, and the state is that of the last step."""
    others = set(multiprocessing.active_children())
    handler = signal.getsignal(signal.SIGCHLD)
    items = iter(loader)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if handler is None else handler)
    return items, [process for process in multiprocessing.active_children() if process not in others]


def _died(processes: list[BaseProcess]) -> str:
    """Say which of the processes ended, and what helps."""
    for process in processes:
        code = process.exitcode
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        elif code:
            how = f"ended with exit code {code}"
        else:
            continue
        break
    else:
        return "a process that prepares rows has died"
    few = "fewer processes (dataloader_num_workers) need less memory, and 0 prepares rows in the training process"
    why = f", out of memory perhaps: {few}" if code == -signal.SIGKILL else ""
    return f"a process that prepares rows {how}{why}"
