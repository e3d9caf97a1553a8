"""The engine of rollouts that don't wait, over two servers whose faults are known (fake_vllm.py, in this process)."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from ft_vllm import connecting
from ft_vllm.config import VLLMConfig
from ft_vllm.flights import CHUNK
from ft_vllm.sampling import seed_of

from ft_host.api import BackendGone, ConfigError, DataError, EnginePlace, Piece, Request, Sampling
from ft_host.testing import tiny_tokenizer

PATIENCE = 20.0  # seconds that a test waits before it fails; what it waits for takes far less
SAMPLING = Sampling(max_new_tokens=40, seed=3)
FAST = {"health_period": 0.05, "health_timeout": 0.5, "timeout": 10.0, "recovery_timeout": 30.0}


@pytest.fixture
def engine_of():
    """`engine_of(fakes, **fields)`: an engine as in a rollout process, over servers that have version 4."""
    engines = []

    def made(fakes, recompute=True, key=None, **fields):
        for fake in fakes:
            fake.state["version"] = "4"
        config = VLLMConfig(urls=[fake.url for fake in fakes], **{**FAST, **fields})
        told = {
            "servers": [{"url": fake.url, "log": None} for fake in fakes],
            "ready": [True] * len(fakes),
            "version": 4,
            "model": "the model",
            "positions": 64,
            "key": key,
            "ends": [255],
            "own_ends": [],
        }
        place = EnginePlace(
            config=SimpleNamespace(recompute_cache=recompute),
            tokenizer=tiny_tokenizer(),
            backend_config=config,
            say=lambda text, level="info": said.append(text),
            connection=told,
        )
        engines.append(connecting.engine_elsewhere(place))
        engines[-1].said = said
        return engines[-1]

    said: list[str] = []
    yield made
    for engine in engines:
        engine.close()


def collect(engine, keys, until=None) -> dict[int, list[Piece]]:
    """The pieces of requests until all have ended, or `until` says so."""
    got: dict[int, list[Piece]] = {key: [] for key in keys}
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for key, piece in engine.poll(0.05):
            got[key].append(piece)
        ended = all(pieces and (pieces[-1].finish_reason or pieces[-1].problem) for pieces in got.values())
        if ended or (until is not None and until(got)):
            return got
    raise AssertionError(f"nothing came: {got}")


def tokens_of(pieces: list[Piece]) -> list[int]:
    return [token for piece in pieces for token in piece.token_ids]


def versions_of(pieces: list[Piece]) -> list[int]:
    """As the host puts them together."""
    tokens, versions = 0, []
    for piece in pieces:
        tokens += len(piece.token_ids)
        versions[tokens - len(piece.versions) :] = piece.versions
    return versions


def wait_for(what) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)


def request(number: int, length: int = 5) -> Request:
    return Request(prompt_ids=[20 + number] * length, number=number)


def submit(engine, numbers, **fields) -> None:
    for number in numbers:
        engine.submit(number, request(number, **fields), SAMPLING)


# ---------------------------------------------------------------- tokens


def test_tokens_come_as_they_are_sampled_with_their_weights(engine_of, fakes):
    for fake in fakes:
        fake.pace = 0.005
    engine = engine_of(fakes)
    submit(engine, range(3))
    got = collect(engine, range(3))
    for number, pieces in got.items():
        assert [len(piece.token_ids) for piece in pieces][:2] == [1, CHUNK] and len(pieces) >= 3
        start = 5 * (20 + number) + seed_of(3, number) % 7
        assert tokens_of(pieces) == [(start + place) % 200 for place in range(40)]
        assert versions_of(pieces) == [4] * 40 and pieces[-1].finish_reason == "length"
        assert sum(len(piece.logprobs) for piece in pieces) == 40
    assert all(body["sampling_params"]["stop_token_ids"] == [255] for fake in fakes for body in fake.bodies)


def test_an_interruption_brings_back_what_there_is_and_goes_on_with_it(engine_of, fakes):
    for fake in fakes:
        fake.pace = 0.01
    engine = engine_of(fakes)
    submit(engine, range(4))
    got = collect(engine, range(4), until=lambda got: all(got.values()))
    engine.interrupt()
    for key, piece in engine.poll(0.0):
        assert piece.finish_reason is None and not piece.problem
        got[key].append(piece)
    assert all(fake.state["paused"] for fake in fakes) and not engine.flights.flights
    done = {number: tokens_of(pieces) for number, pieces in got.items()}
    assert all(0 < len(tokens) < 40 for tokens in done.values())
    assert engine.poll(0.05) == []

    for fake in fakes:  # what the trainer does meanwhile
        fake.state["version"] = "5"
        fake.resume()
        fake.pace = 0.0
        fake.bodies.clear()
    engine.update(5, {"model": "the model", "ready": [True, True]})
    for number, tokens in done.items():
        first = request(number)
        rest = Request(
            prompt_ids=first.prompt_ids + tokens, number=number, offset=len(tokens), max_new_tokens=40 - len(tokens)
        )
        engine.submit(10 + number, rest, SAMPLING)
    again = collect(engine, [10 + number for number in done])
    for number, tokens in done.items():
        rest = again[10 + number]
        assert len(tokens) + len(tokens_of(rest)) == 40 and versions_of(rest) == [5] * len(tokens_of(rest))
    seeds = {body["sampling_params"]["seed"] for fake in fakes for body in fake.bodies}
    assert seeds == {seed_of(3, number, len(tokens)) for number, tokens in done.items()}


def test_what_was_stopped_goes_on_where_no_update_follows(engine_of, fakes):
    for fake in fakes:
        fake.pace = 0.01
    engine = engine_of(fakes)
    submit(engine, range(2))
    collect(engine, range(2), until=lambda got: all(got.values()))
    engine.interrupt()
    engine.poll(0.0)
    submit(engine, [7, 8])
    assert all(pieces[-1].finish_reason == "length" for pieces in collect(engine, [7, 8]).values())


def test_with_the_cache_kept_requests_go_on_and_their_versions_are_told_at_the_end(engine_of, fakes):
    fake = fakes[0]
    fake.pace = 0.01
    engine = engine_of([fake], recompute=False)
    engine.submit(0, request(0), SAMPLING)
    got = collect(engine, [0], until=lambda got: len(got[0]) >= 2)
    fake.pause("keep")
    fake.state["version"] = "5"
    sampled = len(fake.bodies) and len(tokens_of(got[0]))
    fake.resume()
    engine.update(5, {"model": "the model", "ready": [True]})
    rest = collect(engine, [0])
    pieces = got[0] + rest[0]
    versions = versions_of(pieces)
    assert len(tokens_of(pieces)) == 40 == len(versions)
    turn = versions.index(5)
    assert turn >= sampled and versions == [4] * turn + [5] * (40 - turn)
    engine.submit(1, request(1), SAMPLING)
    collect(engine, [1])
    assert [body["cache_salt"] for body in fake.bodies] == ["4", "5"]  # what is kept is of other weights
    assert not any("cache_salt" in body for body in fakes[1].bodies)


def test_a_request_that_is_withdrawn_says_no_more(engine_of, fakes):
    fakes[0].pace = 0.01
    engine = engine_of(fakes[:1])
    submit(engine, [0, 1])
    collect(engine, [0, 1], until=lambda got: got[0])
    engine.withdraw(0)
    wait_for(lambda: 0 not in engine.flights.flights)
    engine.poll(0.0)
    assert tokens_of(collect(engine, [1])[1])[-1:]
    assert all(key == 1 for key, _ in engine.poll(0.0))


def test_a_prompt_without_room_and_another_model_are_refused_at_once(engine_of, fakes):
    engine = engine_of(fakes)
    with pytest.raises(DataError, match="the prompt of request 3 has 64 tokens, vLLM has room for 64"):
        engine.submit(0, request(3, length=64), SAMPLING)
    with pytest.raises(ConfigError, match="vllm has only the policy, but the teacher must generate"):
        engine.submit(1, request(3), Sampling(max_new_tokens=3, role="teacher"))


# ---------------------------------------------------------------- which server


def test_rows_of_a_prompt_go_to_one_server_and_prompts_to_the_one_with_the_fewest(engine_of, fakes):
    for fake in fakes:
        fake.pace = 0.02
    engine = engine_of(fakes)
    for prompt in range(4):
        for row in range(3):
            engine.submit(3 * prompt + row, Request(prompt_ids=[20 + prompt] * 5, number=3 * prompt + row), SAMPLING)
        wait_for(lambda count=3 * prompt + 3: sum(len(fake.bodies) for fake in fakes) == count)
    held = [[body["token_ids"][0] - 20 for body in fake.bodies] for fake in fakes]
    assert sorted(held) == [[0, 0, 0, 2, 2, 2], [1, 1, 1, 3, 3, 3]]
    pieces = collect(engine, range(12))
    served = [{piece.server for piece in pieces[3 * prompt + row]} for prompt in range(4) for row in range(3)]
    assert sorted(served[0] | served[3]) == [0, 1] and served[:6] == served[6:]  # each says whose tokens it has
    assert all(piece.seconds >= 0 for each in pieces.values() for piece in each)
    assert all(sum(piece.seconds for piece in each) > 0 for each in pieces.values())


@pytest.mark.parametrize("fault", ["half", "dies"])
def test_requests_of_a_server_that_fails_go_on_at_the_other_with_their_tokens(engine_of, fakes, fault):
    bad, good = fakes
    for fake in fakes:
        fake.pace = 0.005
    if fault == "half":
        bad.fault, bad.after = "half", 22  # closes the connection in the middle
    engine = engine_of(fakes)
    submit(engine, range(6))
    first = collect(engine, range(6), until=lambda got: all(got.values()))
    if fault == "dies":
        bad.die()
    rest = collect(engine, range(6))
    moved = [body for body in good.bodies if len(body["token_ids"]) > 5]
    assert moved
    for number in range(6):
        pieces = first[number] + rest[number]
        assert len(tokens_of(pieces)) == 40 == sum(len(piece.logprobs) for piece in pieces)
        assert versions_of(pieces) == [4] * 40
        for body in moved:
            if body["token_ids"][0] == 20 + number:  # it has what was told before, and asks for the rest
                done = body["token_ids"][5:]
                assert tokens_of(pieces)[: len(done)] == done
                assert body["sampling_params"]["max_tokens"] == 40 - len(done)
                assert body["sampling_params"]["seed"] == seed_of(3, number, len(done))


def test_a_server_that_hangs_is_left_out_and_its_requests_move(engine_of, fakes):
    bad, good = fakes
    engine = engine_of(fakes, health_timeout=1.0)
    bad.fault, bad.after = "silent", 3
    submit(engine, range(4))
    wait_for(lambda: bad.running and len(bad.bodies) == 2)
    original = bad.answer
    bad.answer = lambda method, path, query, body: (
        time.sleep(3) or {} if path == "/weight_info" else original(method, path, query, body)
    )
    got = collect(engine, range(4))
    assert all(len(tokens_of(pieces)) == 40 for pieces in got.values())
    assert sum("is left out after 3 failures" in text and bad.url in text for text in engine.said) == 1


def test_an_error_is_tried_elsewhere_and_after_three_tries_it_is_the_request_that_has_failed(engine_of, fakes):
    bad, good = fakes
    bad.fault = "500"
    engine = engine_of(fakes)
    submit(engine, range(6))
    assert all(pieces[-1].finish_reason == "length" for pieces in collect(engine, range(6)).values())
    good.fault = "500"
    engine.submit(7, request(7), SAMPLING)
    piece = collect(engine, [7])[7][-1]
    assert "500" in piece.problem and "the kernel has had enough" in piece.problem
    assert "tried 3 times" in piece.problem


def test_a_server_that_comes_back_with_other_weights_is_not_used_until_it_has_ours(engine_of, fakes, begin_fake):
    first, other = fakes
    engine = engine_of(fakes)
    submit(engine, range(2))
    collect(engine, range(2))
    port = first.server.server_address[1]
    first.die()
    back = begin_fake(port)  # as somebody starts it anew: nobody has given it weights
    submit(engine, range(2, 8))
    assert all(pieces[-1].finish_reason == "length" for pieces in collect(engine, range(2, 8)).values())
    assert back.bodies == []
    member = engine.fleet.members[0]
    wait_for(lambda: not member.well)
    back.state["version"] = "4"  # the trainer has given it the weights
    wait_for(lambda: member.well)
    submit(engine, range(8, 14))
    collect(engine, range(8, 14))
    assert back.bodies


def test_where_no_server_is_left_the_engine_ends_with_the_reasons(engine_of, fakes):
    engine = engine_of(fakes, recovery_timeout=0.3)
    for fake in fakes:
        fake.die()
    submit(engine, range(2))
    with pytest.raises(
        BackendGone, match=r"(?s)none of 2 servers could be used for 0.3 seconds .*recovery_timeout.*127.0.0.1"
    ):
        collect(engine, range(2))


def test_an_interruption_doesnt_wait_for_a_server_that_is_gone(engine_of, fakes):
    for fake in fakes:
        fake.pace = 0.01
    engine = engine_of(fakes)
    submit(engine, range(4))
    collect(engine, range(4), until=lambda got: all(got.values()))
    fakes[0].die()
    engine.interrupt()
    engine.poll(0.0)
    assert not engine.flights.flights


# ---------------------------------------------------------------- keys


def test_requests_carry_the_key_and_a_wrong_one_is_named(engine_of, fakes):
    for fake in fakes:
        fake.key = "secret"
    engine = engine_of(fakes, key="secret")
    submit(engine, [0])
    assert collect(engine, [0])[0][-1].finish_reason == "length"
    wrong = engine_of(fakes, key="other")
    submit(wrong, [0])
    with pytest.raises(ConfigError, match="401.*VLLM_API_KEY must hold the server's key"):
        collect(wrong, [0])
