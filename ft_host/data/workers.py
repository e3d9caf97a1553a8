"""Worker processes that prepare rows ahead of training. The only module of data/ that imports torch."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from torch import Generator
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ft_host.errors import FtHostError

if TYPE_CHECKING:
    from ft_host.data.reader import Piece

AHEAD = 2  # pieces that each worker has ready or in progress


class _Pieces(IterableDataset):
    """`make(worker, workers)` yields the pieces of a worker.

    An error for users is passed on as an object, since DataLoader would wrap its text in a traceback.
    """

    def __init__(self, make: Callable[[int, int], Iterator[Piece]]):
        self.make = make

    def __iter__(self) -> Iterator[Piece | FtHostError]:
        info = get_worker_info()
        try:
            yield from self.make(info.id, info.num_workers)
        except FtHostError as error:
            yield error


def _start(worker: int) -> None:
    """Reset signal handlers: the training process handles Ctrl-C and SIGTERM, and fork copies its handlers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


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
    items = iter(loader)
    try:
        while True:
            try:
                item = next(items, None)
            except RuntimeError as error:
                if not str(error).startswith("DataLoader worker (pid"):  # an error of the method
                    raise
                raise FtHostError(f"a process that prepares rows has died, out of memory perhaps: {error}") from error
            if item is None:
                return
            if isinstance(item, FtHostError):
                raise item
            yield item
    finally:
        del items, loader
