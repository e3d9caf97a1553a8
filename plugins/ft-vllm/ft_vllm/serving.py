"""The engine of `rollouts: overlap` and `async` where servers sample: requests go out as they come, and tokens come in
as they are sampled.
"""

from __future__ import annotations

import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from ft_host.api import ConfigError, FtHostError, Piece, Request, Sampling
from ft_vllm.fleet import Fleet, Member
from ft_vllm.flights import Flights
from ft_vllm.sampling import drawn, job_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedTokenizerBase

LAST = 5.0  # seconds that the last tokens may take to arrive, after the servers have stopped


class ServerEngine:
    """`ends(sampling)`: the tokens that end a completion. `positions`: the most tokens of a prompt with its completion.
    `own_fleet`: the fleet is this engine's, which tells it of new weights and closes it."""

    def __init__(
        self,
        fleet: Fleet,
        ends: Callable[[Sampling], list[int]],
        positions: int,
        tokenizer: PreTrainedTokenizerBase,
        *,
        own_fleet: bool,
    ):
        self.fleet, self.ends, self.positions, self.tokenizer = fleet, ends, positions, tokenizer
        self.own_fleet = own_fleet
        self.arrived: SimpleQueue[tuple[int, Piece]] = SimpleQueue()
        at_once = fleet.config.max_num_seqs * len(fleet.members)
        self.flights = Flights(fleet, at_once, lambda key, piece: self.arrived.put((key, piece)))
        self.stopping: list[threading.Thread] = []  # that have servers stop
        self.stopped: list[Member] = []  # servers that we have stopped, and nobody has had go on

    def submit(self, key: int, request: Request, sampling: Sampling) -> None:
        if sampling.role != "policy":
            raise ConfigError(no_model(sampling.role))
        self._go_on()
        seed = drawn() if sampling.seed is None else sampling.seed
        number = key if request.number is None else request.number
        where = f"the prompt of request {number}"
        ends = self.ends(sampling)
        job = job_of(request, sampling, ends, seed, number, self.positions, where, self.tokenizer)
        self.flights.submit(key, job)

    def poll(self, patience: float) -> list[tuple[int, Piece]]:
        if self.stopping:
            self._end_all()
        found = []
        try:
            found.append(self.arrived.get(timeout=patience) if patience > 0 else self.arrived.get_nowait())
            while True:
                found.append(self.arrived.get_nowait())
        except Empty:
            pass
        self.fleet.tell()
        if not found:
            if self.flights.fatal is not None:
                raise self.flights.fatal
            if self.flights.flights:
                self.fleet.check()
        return found

    def withdraw(self, key: int) -> None:
        self.flights.withdraw(key)

    def interrupt(self) -> None:
        """Have all servers end what runs; `poll` waits for the last tokens."""
        self.flights.stop()
        busy = [member for member in self.fleet.members if member.under_way]
        self.stopped = busy
        if self.own_fleet:
            self.fleet.updating = True  # until `update`: by then the trainer has given them weights
        for member in busy:
            thread = threading.Thread(target=self._stop, args=(member,), name="ft-vllm-stop", daemon=True)
            thread.start()
            self.stopping.append(thread)
        if not busy:
            self.stopping.append(threading.Thread())  # requests that have not been sent end too

    def update(self, version: int, weights: Any) -> None:
        """`weights`: what `ft_connect` returned; None in the trainer's process, which has told its fleet itself."""
        if self.own_fleet:
            self.fleet.expect(version, weights["model"], weights["ready"])

    def close(self) -> None:
        self.flights.close()
        if self.own_fleet:
            self.fleet.close()

    def _stop(self, member: Member) -> None:
        try:
            member.client.pause(self.fleet.config.health_timeout, "abort")
        except FtHostError:  # it can't be reached: its requests are cut off here
            for stream in list(member.streams):
                stream.cut()

    def _end_all(self) -> None:
        end = time.monotonic() + self.fleet.config.health_timeout + LAST
        for thread in self.stopping:
            if thread.ident is not None:
                thread.join(max(0.0, end - time.monotonic()))
        self.stopping = []
        self.flights.wait_ended(LAST)

    def _go_on(self) -> None:
        """Where no update has followed an interruption, or a server was left out of it: what we stopped goes on. What
        is sent there meanwhile waits."""
        stopped, self.stopped = self.stopped, []
        if self.own_fleet:
            self.fleet.updating = False
        for member in stopped:
            threading.Thread(target=self._resume, args=(member,), name="ft-vllm-resume", daemon=True).start()

    def _resume(self, member: Member) -> None:
        try:
            member.client.resume(self.fleet.config.health_timeout)
        except FtHostError as error:
            self.fleet.doubt(member, error)


def no_model(role: str) -> str:
    return f"backend: vllm has only the policy, but the {role} must generate; backend transformers can do that"
