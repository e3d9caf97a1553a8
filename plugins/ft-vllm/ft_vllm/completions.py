"""Completions of prompts from servers, many at a time, for a call that waits for all of them."""

from __future__ import annotations

from queue import Empty, SimpleQueue

from ft_host.api import Completion, FtHostError, Piece
from ft_vllm.fleet import Fleet
from ft_vllm.flights import Flights
from ft_vllm.sampling import Job


def ask(fleet: Fleet, jobs: list[Job], at_once: int) -> list[Completion]:
    """Send one request per completion, `at_once` at a time to each server; vLLM reads a prompt of several completions
    once. Raises FtHostError where one has failed, or no server can be used."""
    arrived: SimpleQueue[tuple[int, Piece]] = SimpleQueue()
    flights = Flights(fleet, at_once * len(fleet.members), lambda key, piece: arrived.put((key, piece)))
    got = [Piece(token_ids=[], logprobs=[]) for _ in jobs]
    waiting = set(range(len(jobs)))
    try:
        for key, job in enumerate(jobs):
            flights.submit(key, job)
        while waiting:
            try:
                key, piece = arrived.get(timeout=0.2)
            except Empty:
                if flights.fatal is not None:
                    raise flights.fatal from None
                fleet.tell()
                continue
            if piece.problem:
                raise FtHostError(piece.problem)
            got[key] = joined(got[key], piece)
            if piece.finish_reason is not None:
                waiting.discard(key)
    finally:
        flights.close()
        fleet.tell()
    return [completion_of(each) for each in got]


def completion_of(piece: Piece) -> Completion:
    assert piece.finish_reason is not None  # it has ended
    return Completion(
        token_ids=piece.token_ids, logprobs=piece.logprobs, finish_reason=piece.finish_reason, versions=piece.versions
    )


def joined(first: Piece, more: Piece) -> Piece:
    token_ids = first.token_ids + more.token_ids
    return Piece(
        token_ids=token_ids,
        logprobs=first.logprobs + more.logprobs,
        versions=first.versions[: len(token_ids) - len(more.versions)] + more.versions,
        finish_reason=more.finish_reason,
    )
