"""The engine of the backend `transformers`: decodes with the run's own models, in the process that asks.

Requests that are sampled in the same way decode together, each with its own noise, ends and limit; others in lanes of
their own, which take turns. `decode_batch_size` rows are under way at a time, shared by the lanes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ft_host.contract.names import UnknownName
from ft_host.distributed.processes import check_overlap
from ft_host.errors import HookError
from ft_host.generation import Request, Sampling
from ft_host.generation.jobs import DecodedRow, Terms, end_tokens, positions_of
from ft_host.generation.lanes import BatchLane, DecodingLane
from ft_host.generation.place import answering, generating, rows_of, tell_way
from ft_host.generation.prompts import can_decode
from ft_host.types import Piece
from ft_host.util.memory import GENERATION, oom_context

if TYPE_CHECKING:
    from ft_host.run import EnginePlace

Kind = tuple[str, float, float, int, float, float]


def kind_of(sampling: Sampling) -> Kind:
    """Return what requests have in common that decode together."""
    return (
        sampling.role,
        sampling.temperature,
        sampling.top_p,
        sampling.top_k,
        sampling.min_p,
        sampling.repetition_penalty,
    )


@dataclass(frozen=True)
class Known:
    """What is known of a model before it runs."""

    ends: tuple[int, ...]
    max_positions: int | None
    decodes: bool


class TransformersEngine:
    """An `Engine` over the policy of `place.run` and its models of other roles."""

    def __init__(self, place: EnginePlace):
        run = place.run
        assert run is not None, "the backend has no servers"
        check_overlap(run.config, run.world_size)
        self.run = run
        self.lanes: dict[Kind, DecodingLane | BatchLane] = {}
        self.known: dict[tuple[str, tuple[int, ...] | None], Known] = {}  # by role and stop tokens
        self.unnumbered = 0  # requests without a number
        self.told: dict[int, int] = {}  # of each request, how many of its tokens `poll` has returned
        self.ended: list[DecodedRow] = []  # not yet returned
        self.stopped: list[tuple[int, Piece]] = []

    def submit(self, key: int, request: Request, sampling: Sampling) -> None:
        """Begin a request. Without a seed it gets one of torch's random state; without a number the next one of this
        rank. Raises DataError for a prompt that is empty or leaves no room, HookError for a role that the run lacks."""
        run, known, number = self.run, self._known(sampling), request.number
        terms = Terms(
            max_new_tokens=sampling.max_new_tokens,
            seed=int(torch.randint(2**31, ())) if sampling.seed is None else sampling.seed,
            ends=known.ends,
            max_positions=known.max_positions,
            tokenizer=run.tokenizer,
        )
        if number is None:
            number = run.rank + run.world_size * self.unnumbered
            self.unnumbered += 1
        job = terms.job(request, key, number, "the prompt")
        kind = kind_of(sampling)
        if kind not in self.lanes:
            self.lanes[kind] = DecodingLane(sampling) if known.decodes else BatchLane(sampling, known.max_positions)
        self.lanes[kind].add(job)
        self.told[key] = 0

    def poll(self, patience: float) -> list[tuple[int, Piece]]:
        """Decode for about `patience` seconds, each lane a step at least, or a batch. Models are left in the mode in
        which they were. Raises OutOfMemory; the requests are interrupted then, with what they have."""
        try:
            with oom_context(GENERATION, self.run.step + 1):
                self._work(time.perf_counter() + patience)
        except BaseException:
            self.interrupt()  # a checkpoint needs the memory, and the tokens that aren't returned yet
            raise
        return self._news()

    def withdraw(self, key: int) -> None:
        for lane in self.lanes.values():
            lane.withdraw(key)
        self.ended = [row for row in self.ended if row.job.index != key]
        self.stopped = [(other, piece) for other, piece in self.stopped if other != key]
        self.told.pop(key, None)
        self._drop_lanes()

    def interrupt(self) -> None:
        """Stop all requests and free their keys and values. Whole batches are never half done: their requests have no
        tokens."""
        rows = {row.job.index: row for lane in self.lanes.values() for row in lane.rows}
        ended = {row.job.index for row in self.ended}
        for key in [key for key in self.told if key not in ended]:
            piece = self._piece(rows[key]) if key in rows else Piece(token_ids=[], logprobs=[])
            self.stopped.append((key, piece))
            self.told.pop(key, None)
        self.lanes.clear()

    def update(self, version: int, weights: Any) -> None:
        """The weights are those of the run's policy, which has them already. Rows under way go on with their keys and
        values."""
        for lane in self.lanes.values():
            lane.forget_prompts()

    def close(self) -> None:
        """Free keys and values."""
        self.lanes.clear()

    def _known(self, sampling: Sampling) -> Known:
        role = sampling.role
        stop = None if sampling.stop_token_ids is None else tuple(sampling.stop_token_ids)
        found = self.known.get((role, stop))
        if found is None:
            try:
                with answering(self.run, role) as policy:
                    model = policy.causal_lm
                    ends = tuple(end_tokens(model, self.run.tokenizer, sampling))
                    found = Known(ends, positions_of(model), can_decode(model))
            except UnknownName as error:
                raise HookError(f"a completion of the role {role!r} is asked for: {error}") from error
            self.known[role, stop] = found
        return found

    def _work(self, deadline: float) -> None:
        run = self.run
        while self.lanes:
            for left, ((role, *_), lane) in zip(range(len(self.lanes), 0, -1), self.lanes.items(), strict=True):
                now = time.perf_counter()
                until = now + max(0.0, deadline - now) / left
                with answering(run, role) as policy, generating(run, policy):
                    lane.work(run, policy, self._places(lane), until, self.ended)
                    tell_way(run, policy.causal_lm, role)
            self._drop_lanes()
            if time.perf_counter() >= deadline:
                break

    def _places(self, lane: DecodingLane | BatchLane) -> int:
        """Return the most rows that a lane may have now: its share of those that the others leave. One that has none
        gets a row at once."""
        size = rows_of(self.run)
        taken = sum(len(other.rows) for other in self.lanes.values() if other is not lane)
        return max(1, min(size // len(self.lanes), size - taken))

    def _drop_lanes(self) -> None:
        self.lanes = {kind: lane for kind, lane in self.lanes.items() if lane.rows or lane.jobs}

    def _news(self) -> list[tuple[int, Piece]]:
        pieces, self.stopped = self.stopped, []
        running = [row for lane in self.lanes.values() for row in lane.rows]
        for row in (*self.ended, *running):
            if row.ended or len(row.tokens) > self.told[row.job.index]:
                pieces.append((row.job.index, self._piece(row)))
        self.ended.clear()
        return pieces

    def _piece(self, row: DecodedRow) -> Piece:
        """Return what a row has got since it was last asked for."""
        told = self.told[row.job.index]
        if row.ended:
            del self.told[row.job.index]
        else:
            self.told[row.job.index] = len(row.tokens)
        reason = row.finish_reason if row.ended else None
        return Piece(token_ids=row.tokens[told:], logprobs=row.logprobs[told:], finish_reason=reason)
