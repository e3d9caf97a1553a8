"""The servers that a process sends requests to: which one is next, which ones are well, and what is known of others.

Each process of a run has its own `Fleet`. A server takes requests while it is well: it answers, and its weights are of
the version that it was given. A thread asks each one for its version from time to time, and at once when a request has
failed there. A server that fails three times in a row is left out for a while, and longer each time.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ft_host.api import BackendGone, FtHostError
from ft_vllm.client import Client, OtherWeights, Stream
from ft_vllm.server import tail_of

if TYPE_CHECKING:
    from ft_vllm.config import VLLMConfig

FAILURES = 3  # in a row, until a server is left out
LONGEST = 60.0  # seconds that one is left out at a time
PROMPTS = 4096  # whose server is remembered


@dataclass(eq=False)
class Member:
    """A server as seen from here. `well`: it answered when it was last asked, with the weights that it was given."""

    client: Client
    well: bool = True
    under_way: int = 0  # requests
    answered: int = 0  # requests, to the end
    failed: int = 0  # requests, over all
    in_a_row: int = 0  # requests that failed since one was answered
    missed: int = 0  # probes without an answer, in a row
    strikes: int = 0  # how often requests got it left out since one was answered
    until: float = 0.0  # it isn't asked before then
    left_out: bool = False
    reason: str = ""  # why it isn't well
    streams: set[Stream] = field(default_factory=set)

    @property
    def url(self) -> str:
        return self.client.url


class Fleet:
    """`version` and `model`: what the servers were given last, and the name under which they serve it; None as long as
    they have been given nothing. `keeps`: an update doesn't interrupt requests, so that a server may be ahead of what
    this process was told. `deadline`: the field of the seconds that requests wait while no server can be used.
    `say(text, level)` tells of servers that are left out, and used again."""

    def __init__(
        self,
        clients: list[Client],
        config: VLLMConfig,
        model: str,
        say: Callable[..., None],
        *,
        keeps: bool = False,
        deadline: str = "recovery_timeout",
    ):
        self.members = [Member(client) for client in clients]
        self.config, self.model, self.say, self.keeps = config, model, say, keeps
        self.deadline = deadline
        self.version: int | None = None
        self.updating = False  # weights are under way: nobody is asked for their version
        self.changed = threading.Condition()
        self.homes: OrderedDict[tuple[int, ...], Member] = OrderedDict()  # of prompts
        self.gone_since: float | None = None
        self.news: deque[tuple[str, str]] = deque()  # to say, from the thread that owns `say`
        self.asked = threading.Event()  # to look at once
        self.closed = False
        self.watcher: threading.Thread | None = None

    # ------------------------------------------------------------ weights

    def expect(self, version: int | None, model: str, ready: list[bool]) -> None:
        """From here on the servers that are `ready` have these weights; when the others have is found out."""
        with self.changed:
            self.version, self.model, self.updating = version, model, False
            for member, has in zip(self.members, ready, strict=True):
                if not has:
                    self._doubt(member, FtHostError(f"vLLM at {member.url} has not got the weights of step {version}"))
            self._count()
        self.asked.set()

    def same(self, found: str) -> bool:
        """Whether a server with this version has the weights that it was given."""
        if self.version is None or found == str(self.version):
            return True
        return self.keeps and found.isdigit() and int(found) > self.version

    # ------------------------------------------------------------ requests

    def take(self, prompt: list[int], avoid: Member | None, unwanted: Callable[[], bool]) -> Member | None:
        """Wait for a server that is well, and count a request there: the one with the fewest, or that of the same
        prompt, whose keys and values it has, unless it has many more. None where the request is no longer wanted.
        Raises BackendGone where there is none until the deadline."""
        with self.changed:
            while not unwanted() and not self.closed:
                usable = [member for member in self.members if member.well]
                if usable:
                    member = self._best(usable, tuple(prompt), avoid)
                    member.under_way += 1
                    return member
                self.check()
                self.asked.set()
                self.changed.wait(0.5)
            return None

    def _best(self, usable: list[Member], prompt: tuple[int, ...], avoid: Member | None) -> Member:
        others = [member for member in usable if member is not avoid] or usable
        best = min(others, key=lambda member: member.under_way)
        home = self.homes.get(prompt)
        if home in others and home.under_way - best.under_way <= max(8, self.config.max_num_seqs // 4):
            best = home
        self.homes[prompt] = best
        self.homes.move_to_end(prompt)
        if len(self.homes) > PROMPTS:
            self.homes.popitem(last=False)
        return best

    def release(self, member: Member, error: FtHostError | None = None, *, lost: bool = False) -> None:
        """A request has ended there. `lost`: the server may not be there any more, or be another one."""
        with self.changed:
            member.under_way -= 1
            if error is None:
                member.answered += 1
                member.in_a_row = member.strikes = 0
                return
            member.failed += 1
            member.in_a_row += 1
            if member.in_a_row >= FAILURES:
                member.strikes += 1
                member.in_a_row = 0
                wait = min(self.config.health_period * 2 ** (member.strikes - 1), LONGEST)
                member.until = time.monotonic() + wait
                self._leave_out(member, error)
            elif lost:
                self._doubt(member, error)
        self.asked.set()

    def check(self) -> None:
        """Raise BackendGone if no server could be used for as long as the field `deadline` says."""
        since, patience = self.gone_since, getattr(self.config, self.deadline)
        if since is not None and time.monotonic() - since >= patience:
            told = "\n".join(member.reason for member in self.members)
            one = len(self.members) == 1
            which = "the server could not be" if one else f"none of {len(self.members)} servers could be"
            raise BackendGone(
                f"{which} used for {patience:g} seconds (backend_config.{self.deadline}):\n{told}",
                facts={"watch/failed": "rollouts", "watch/failed_place": self.deadline},
            )

    def doubt(self, member: Member, error: FtHostError) -> None:
        """Send nothing there until it has answered a probe."""
        with self.changed:
            self._doubt(member, error)
        self.asked.set()

    # ------------------------------------------------------------ health

    def watch(self) -> None:
        """Begin to look after the servers, in a thread of its own."""
        self.watcher = threading.Thread(target=self._watch, name="ft-vllm-health", daemon=True)
        self.watcher.start()

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self.asked.set()
        for member in self.members:
            for stream in list(member.streams):
                stream.cut()

    def tell(self) -> None:
        """Say what has happened to servers. Called from the thread that `say` belongs to."""
        while self.news:
            self.say(*self.news.popleft())

    def _watch(self) -> None:
        while not self.closed:
            self.asked.wait(self.config.health_period)
            self.asked.clear()
            for member in self.members:
                if not self.closed and not self.updating and time.monotonic() >= member.until:
                    self.probe(member)
            if not self.closed:
                time.sleep(min(0.2, self.config.health_period))

    def probe(self, member: Member) -> None:
        """Ask a server for its version."""
        try:
            found = member.client.version(self.config.health_timeout)
            if not self.same(found):
                raise OtherWeights(
                    f"vLLM at {member.url}: its weights are of version {found!r}, not {self.version}: it waits for an"
                    " update"
                )
        except FtHostError as error:
            with self.changed:
                if self.updating:
                    return
                member.missed += 1
                if isinstance(error, OtherWeights):
                    self._doubt(member, error)
                elif member.missed >= FAILURES:
                    self._leave_out(member, error)
            return
        with self.changed:
            if member.left_out:
                self.news.append((f"vLLM at {member.url} is used again", "info"))
            member.well, member.left_out, member.missed, member.in_a_row = True, False, 0, 0
            self._count()
            self.changed.notify_all()

    def _doubt(self, member: Member, error: FtHostError) -> None:
        """Send nothing there until it has answered a probe. The first reason is the cause of those that follow."""
        if member.well:
            member.reason = str(error)
        member.well = False
        self._count()

    def _leave_out(self, member: Member, error: FtHostError) -> None:
        """As `_doubt`, and what it has goes to others."""
        self._doubt(member, error)
        if not member.left_out:
            first = member.reason.splitlines()[0]
            self.news.append((f"vLLM at {member.url} is left out after {FAILURES} failures: {first}", "warning"))
        member.left_out = True
        for stream in list(member.streams):
            stream.cut()

    def _count(self) -> None:
        if any(member.well for member in self.members):
            self.gone_since = None
        elif self.gone_since is None:
            self.gone_since = time.monotonic()


def client_of(url: str, log: str | None, key: str | None, timeout: float) -> Client:
    """For a server that another process has found or started; `log` is that of one that runs on this machine."""
    return Client(url, timeout, str if log is None else lambda: tail_of(Path(log)), key)
