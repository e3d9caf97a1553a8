"""The main process' side of all servers: starting them, giving them weights, starting those anew that have ended.

A server that fails while weights are sent is left out, and gets all of them later; the others go on. Where what was
sent last can be sent again, a thread gives it to servers that lack it, without the other ranks.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ft_host.api import ConfigError, FtHostError
from ft_vllm import server as servers
from ft_vllm import transfer
from ft_vllm.kept import Kept, Update, Way, copied
from ft_vllm.tasks import Task, together
from ft_vllm.weights import Manifest, Named

if TYPE_CHECKING:
    from ft_vllm.fleet import Fleet

STARTS = 3  # in a row that fail, until a server is given up
LOOK = 1.0  # seconds between two looks at the servers


class Keeper:
    """`fleet` is this process' own, set by `watch`: it says which servers are well, and tells the run the news."""

    def __init__(self, way: Way, kept: list[Kept]):
        self.way, self.kept = way, kept
        self.last: Update | None = None
        self.lock = threading.RLock()  # held while weights are sent
        self.closed = threading.Event()
        self.fleet: Fleet | None = None

    def open(self) -> None:
        """Start the servers, or find them, all at once. Raises the first error; none of them goes on then."""
        errors = together([each.open for each in self.kept])
        if errors:
            self.close()
            raise errors[0]
        models = sorted({each.server.model for each in self.kept})
        if len(models) > 1:
            self.close()
            raise ConfigError(f"backend_config.urls: the servers serve {' and '.join(models)}; expected one model")

    def watch(self, fleet: Fleet) -> None:
        """Begin to look after the servers, in a thread of its own."""
        self.fleet = fleet
        threading.Thread(target=self._watch, name="ft-vllm-keeper", daemon=True).start()

    def close(self) -> None:
        self.closed.set()
        together([each.close for each in self.kept])

    # ------------------------------------------------------------ weights

    def give(self, manifest: Manifest, pieces: transfer.Pieces, version: int) -> None:
        """Send the policy's weights to all servers that can take them. Goes through all `pieces`, whatever happens.
        Raises FtHostError where no server has taken them."""
        way = self.way
        with self.lock:
            ready = self._ready()
            if way.folder is not None:
                path = way.folder.take(pieces, version)
                self.last = Update(version=version, path=path)
                failures = together([partial(each.read, path, version) for each in ready], all_=True)
            else:
                copies: list[list[Named]] | None = [] if way.copies else None
                links = [each.link for each in ready]
                failures = transfer.send_all(links, manifest, copied(pieces, copies), version, way.pause)
                self.last = Update(version=version, manifest=manifest, copies=copies)
            self._note(ready, failures)

    def give_adapter(self, name: str, folder: Path, version: int) -> None:
        """Have all servers load an adapter. Raises as `give` does."""
        with self.lock:
            ready = self._ready()
            self.last = Update(version=version, adapter=(name, folder))
            failures = together([partial(each.load, name, folder, version) for each in ready], all_=True)
            self._note(ready, failures)

    def has(self) -> list[bool]:
        """Which servers have what was sent last."""
        return [self.last is None or each.has == self.last.version for each in self.kept]

    def _ready(self) -> list[Kept]:
        first = self.last is None
        return [each for place, each in enumerate(self.kept) if each.reached(first, self._well(place))]

    def _note(self, ready: list[Kept], failures: list[FtHostError | None]) -> None:
        last = self.last
        assert last is not None  # it has just been sent
        for each in self.kept:
            each.has = None
        for each, failure in zip(ready, failures, strict=True):
            each.has, each.problem = (last.version, "") if failure is None else (None, str(failure))
        failed = [failure for failure in failures if failure is not None]
        if len(failed) < len(ready):
            for failure in failed:
                self._say(f"a server is left out of an update, and gets all weights later: {failure}", "warning")
        elif not last.again:
            raise failed[0] if failed else FtHostError(self._problems())
        else:
            self._wait_for_one()

    def _wait_for_one(self) -> None:
        """No server has the weights: wait until one has been started anew, or found again, and got them."""
        seconds = self.way.config.recovery_timeout
        end = time.monotonic() + seconds
        while not any(self.has()):
            if time.monotonic() > end or all(self._given_up(each) for each in self.kept) or self.closed.is_set():
                raise FtHostError(
                    f"no server has taken the weights within {seconds:g} seconds (backend_config.recovery_timeout):\n"
                    f"{self._problems()}"
                )
            self.look()
            self.closed.wait(0.2)

    # ------------------------------------------------------------ looking after servers

    def _watch(self) -> None:
        while not self.closed.wait(LOOK):
            if self.lock.acquire(blocking=False):  # else weights are being sent
                try:
                    self.look()
                finally:
                    self.lock.release()

    def look(self) -> None:
        """Begin to mend each server that has ended, hangs, or has other weights."""
        again = self.last is not None and self.last.again
        for place, kept in enumerate(self.kept):
            if not kept.free or self._given_up(kept):
                continue
            hangs = kept.launch is not None and self._left_out(place) and not kept.answers()
            if kept.ended or hangs:
                kept.has, kept.working = None, Task(self._start_anew, kept)
            elif again and (kept.has != self.last.version or (not self._well(place) and kept.is_another())):
                kept.has, kept.working = None, Task(self._give_again, kept)

    def _start_anew(self, kept: Kept) -> None:
        self._say(
            f"vLLM at {kept.url} has ended, or hangs: it is started anew\n{kept.client.known().strip()}", "warning"
        )
        try:
            servers.stop(kept.server)
            kept.open()
            kept.failed_starts = 0
        except FtHostError as error:
            kept.failed_starts += 1
            kept.problem = str(error)
            if self._given_up(kept):
                self._say(f"vLLM at {kept.url} is given up after {STARTS} starts: {error}", "error")
            return
        finally:
            if self.closed.is_set():  # the run has ended meanwhile
                servers.stop(kept.server)
        self._give_last(kept)

    def _give_again(self, kept: Kept) -> None:
        try:
            kept.meet()
        except FtHostError as error:
            kept.problem = str(error)
            return
        self._give_last(kept)

    def _give_last(self, kept: Kept) -> None:
        last = self.last
        if last is None or not last.again:
            return  # it gets what is sent next
        try:
            kept.give(last)
        except FtHostError as error:
            kept.has, kept.problem = None, str(error)
            return
        if self.fleet is not None:
            self.fleet.asked.set()

    def _given_up(self, kept: Kept) -> bool:
        return kept.failed_starts >= STARTS

    def _well(self, place: int) -> bool:
        return self.fleet is None or self.fleet.members[place].well

    def _left_out(self, place: int) -> bool:
        return self.fleet is not None and self.fleet.members[place].left_out

    def _problems(self) -> str:
        return "\n".join(each.problem or f"vLLM at {each.url} can't be used" for each in self.kept)

    def _say(self, text: str, level: str) -> None:
        if self.fleet is not None:
            self.fleet.news.append((text, level))
