"""Engines that take requests while others are under way, in the trainer's process and in a rollout process, and what
the one tells the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ft_host.api import Sampling, end_tokens
from ft_vllm.client import key_of_servers
from ft_vllm.fleet import Fleet, client_of
from ft_vllm.opening import Engine, keeps_cache, on_main, opened
from ft_vllm.serving import ServerEngine
from ft_vllm.stepping import StepEngine

if TYPE_CHECKING:
    from ft_host.api import EnginePlace, Run


def engine_here(run: Run) -> ServerEngine | StepEngine:
    """In the trainer's process."""
    engine = opened(run)

    def ends(sampling: Sampling) -> list[int]:
        return end_tokens(run.policy.causal_lm, run.tokenizer, sampling)

    if engine.fleet is not None:
        return ServerEngine(engine.fleet, ends, engine.positions, run.tokenizer, own_fleet=False)
    engine.stepping = StepEngine(engine.llm, ends, engine.positions, run.tokenizer, salted=keeps_cache(run))
    engine.stepping.adapter, engine.stepping.version = engine.adapter, engine.version
    return engine.stepping


def connection(engine: Engine, run: Run) -> dict[str, Any] | None:
    """What another process needs to send requests, and whether each server has the weights. All ranks call it."""
    if engine.fleet is None:
        return None
    has = on_main(run, lambda: engine.keeper.has())
    model, tokenizer = run.policy.causal_lm, run.tokenizer
    return {
        "servers": engine.servers,
        "ready": has,
        "version": engine.fleet.version,
        "model": engine.fleet.model,
        "positions": engine.positions,
        "key": engine.key,
        "ends": end_tokens(model, tokenizer, Sampling(max_new_tokens=1)),
        "own_ends": end_tokens(model, tokenizer, Sampling(max_new_tokens=1, stop_token_ids=[])),  # the model's
    }


def engine_elsewhere(place: EnginePlace) -> ServerEngine:
    """In a rollout process, which holds no model."""
    config, told = place.backend_config, place.connection
    key = told["key"] or key_of_servers()
    clients = [client_of(each["url"], each["log"], key, config.timeout) for each in told["servers"]]
    keeps = not place.config.recompute_cache
    fleet = Fleet(clients, config, told["model"], place.say, keeps=keeps)
    fleet.expect(told["version"], told["model"], told["ready"])
    fleet.watch()

    def ends(sampling: Sampling) -> list[int]:
        stops = sampling.stop_token_ids
        return told["ends"] if stops is None else sorted({*stops, *told["own_ends"]})

    return ServerEngine(fleet, ends, told["positions"], place.tokenizer, own_fleet=True)
