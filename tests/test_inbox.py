"""The inbox of requests: what a failed attempt leaves, what a second one goes on with, and that equal requests are
kept apart."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from ft_host.errors import FtHostError
from ft_host.scheduling import inbox as scheduling_inbox
from ft_host.scheduling.inbox import Attempt, Inbox, Withdrawn
from ft_host.scheduling.opening import in_turn
from ft_host.scheduling.unit import Begun, Progress
from ft_host.types import Piece, Request, Sampling


class Counting:
    """An engine: each poll gives every request one token, its place in the completion, up to `length` of them."""

    def __init__(self, length=3):
        self.length, self.requests, self.withdrawn = length, {}, []

    def submit(self, key, request, sampling):
        self.requests[key] = request, request.offset

    def poll(self, patience):
        pieces = []
        for key, (request, at) in list(self.requests.items()):
            last = at + 1 == self.length
            pieces.append((key, Piece(token_ids=[at], logprobs=[-1.0], finish_reason="stop" if last else None)))
            self.requests[key] = request, at + 1
            if last:
                del self.requests[key]
        return pieces

    def withdraw(self, key):
        self.withdrawn.append(key)
        del self.requests[key]

    def interrupt(self):
        self.requests.clear()

    def close(self): ...


SAMPLING = Sampling(max_new_tokens=8, seed=5)


def opened(length=3):
    told: list[Progress] = []
    engine = Counting(length)
    return Inbox(engine, told.append, 0), engine, told


def test_nothing_is_told_of_a_failed_attempt_once_it_has_ended_and_the_next_goes_on_with_its_tokens():
    inbox, engine, told = opened()
    first = Attempt(inbox, 1, {})
    futures = [first.submit(Request(prompt_ids=[7], number=number), SAMPLING) for number in (0, 1)]
    other = Attempt(inbox, 2, {}).submit(Request(prompt_ids=[7], number=0), SAMPLING)
    inbox.step(0)
    inbox.withdraw(1)
    second = Attempt(inbox, 1, {event.key: Begun(token_ids=[0], logprobs=[-1.0], versions=[0]) for event in told[:2]})
    again = [second.submit(Request(prompt_ids=[7], number=number), SAMPLING) for number in (0, 1)]
    told.clear()
    for _ in range(3):
        inbox.step(0)
    assert all(isinstance(future.exception(), Withdrawn) for future in futures)
    assert sorted(engine.withdrawn) == [1, 2]
    assert [future.result().token_ids for future in again] == [[0, 1, 2]] * 2 == [other.result().token_ids] * 2
    mine = [event for event in told if event.unit == 1]
    assert sorted((event.key, *event.token_ids) for event in mine) == sorted(
        (event.key, token) for event in mine[:2] for token in (1, 2)
    )  # each token once


def test_requests_that_are_alike_have_tokens_of_their_own_and_the_same_names_in_a_second_attempt():
    inbox, _, told = opened(length=1)
    request = Request(prompt_ids=[7, 8], number=3)
    attempt = Attempt(inbox, 1, {})
    futures = [attempt.submit(request, SAMPLING) for _ in range(3)]
    inbox.step(0)
    keys = [event.key for event in told]
    assert len(set(keys)) == 3 and [future.result().token_ids for future in futures] == [[0]] * 3
    known = {
        key: Begun(token_ids=[n], logprobs=[-1.0], versions=[0], finish_reason="stop") for n, key in enumerate(keys)
    }
    second = Attempt(inbox, 1, known)
    assert [second.submit(request, SAMPLING).result().token_ids for _ in range(3)] == [[0], [1], [2]]


def test_tokens_that_were_sampled_after_another_prompt_are_not_used():
    inbox, _, told = opened(length=2)
    Attempt(inbox, 1, {}).submit(Request(prompt_ids=[7, 8], number=3), SAMPLING)
    inbox.step(0)
    known = {told[0].key: Begun(token_ids=[99], logprobs=[-1.0], versions=[0], finish_reason="stop")}
    changed = Attempt(inbox, 1, known).submit(Request(prompt_ids=[7, 9], number=3), SAMPLING)  # a tool said otherwise
    inbox.step(0)
    inbox.step(0)
    assert changed.result().token_ids == [0, 1]


def test_what_is_submitted_after_the_end_raises_and_does_not_wait():
    inbox, _, _ = opened()
    waits = Attempt(inbox, 1, {}).submit(Request(prompt_ids=[7], number=0), SAMPLING)
    inbox.fail(Withdrawn("the run ends"))
    late = Attempt(inbox, 2, {})
    for future in (waits, late.submit(Request(prompt_ids=[7], number=0), SAMPLING)):
        with pytest.raises(FtHostError, match="the run ends"):
            future.result(timeout=0)


def test_what_is_asked_at_once_is_begun_at_once(monkeypatch):
    """With the batches of a synchronous run, whoever is faster, the thread that asks or the engine's."""
    inbox, engine, _ = opened(length=1)
    key_of = scheduling_inbox.key_of
    monkeypatch.setattr(scheduling_inbox, "key_of", lambda *asked: time.sleep(0.002) or key_of(*asked))
    seen = []
    poll = engine.poll
    engine.poll = lambda patience: seen.append(len(engine.requests)) or poll(patience)
    requests = [Request(prompt_ids=[7], number=number) for number in range(20)]
    thread = threading.Thread(target=Attempt(inbox, 1, {}).ask, args=(requests, SAMPLING))
    thread.start()
    while thread.is_alive():
        inbox.step(0.001)
    assert seen == [20]


def test_units_of_a_run_without_staleness_ask_one_after_the_other():
    inbox, engine, _ = opened(length=3)
    seen = []
    poll = engine.poll
    engine.poll = lambda patience: seen.append(len(engine.requests)) or poll(patience)
    requests = [Request(prompt_ids=[7], number=number) for number in range(4)]
    threads = [
        threading.Thread(target=in_turn, args=(Attempt(inbox, unit, {}).ask, requests, SAMPLING)) for unit in (1, 2)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        inbox.step(0.001)
    assert seen == [4] * 6


def test_tokens_and_seconds_of_each_of_several_servers_are_added_up():
    inbox, engine, _ = opened()
    futures = [Attempt(inbox, unit, {}).submit(Request(prompt_ids=[7], number=unit), SAMPLING) for unit in (0, 1)]
    poll = engine.poll
    engine.poll = lambda patience: [
        (key, replace(piece, server=key % 2, seconds=0.5 * key)) for key, piece in poll(patience)
    ]
    for _ in range(3):
        inbox.step(0)
    assert all(future.result().token_ids == [0, 1, 2] for future in futures)
    assert inbox.servers == {1: (3, 1.5), 0: (3, 3.0)}  # the engine's keys are 1 and 2


def test_a_caller_cannot_cancel_what_the_engine_answers():
    inbox, engine, _ = opened(length=1)
    attempt = Attempt(inbox, 1, {})
    first, second = [attempt.submit(Request(prompt_ids=[7], number=number), SAMPLING) for number in (0, 1)]
    assert not first.cancel()
    inbox.step(0)
    assert first.result(0).token_ids == [0] == second.result(0).token_ids
    third = attempt.submit(Request(prompt_ids=[7], number=2), SAMPLING)
    third.cancel()
    assert attempt.end() and not attempt.end()
    with pytest.raises(Withdrawn):
        third.result(0)
    with pytest.raises(Withdrawn, match="given up"):
        attempt.submit(Request(prompt_ids=[7], number=3), SAMPLING)
    inbox.step(0)
    assert not engine.requests
