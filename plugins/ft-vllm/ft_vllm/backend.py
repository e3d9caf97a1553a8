"""The backend `vllm`: completions by vLLM, in the trainer's process or in separate servers.

Its state is in `run.backend_state`: an `Engine`, opened by the first hook that needs it and closed by `ft_close`. Each
rank has one. With servers, the main process holds their processes and the weight transfer, and all ranks send requests;
with `rollouts: async` the rollout process does so too, by what `ft_connect` tells it.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from ft_host.api import Completion, ConfigError, Request, Sampling, Scores, Sequence, hookimpl
from ft_vllm import connecting, inprocess, opening, scoring, serve, weights
from ft_vllm.completions import ask
from ft_vllm.opening import KEY, Engine, on_main, opened, sends_adapter
from ft_vllm.sampling import jobs_of
from ft_vllm.serving import ServerEngine, no_model
from ft_vllm.stepping import StepEngine

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from ft_host.api import EnginePlace, Policy, Run, Served

TEACHER = "vllm teacher"  # in run.backend_state


@hookimpl
def ft_generate(requests: list[Request], sampling: Sampling, run: Run) -> list[Completion]:
    if sampling.role != "policy":
        raise ConfigError(no_model(sampling.role))
    engine = opened(run)
    jobs = jobs_of(requests, sampling, run, engine.positions)
    if engine.fleet is not None:
        return ask(engine.fleet, jobs, run.backend_config.max_num_seqs)
    if engine.stepping is not None:
        return engine.stepping.complete(jobs)
    return inprocess.generate(engine.llm, jobs, engine.adapter)


@hookimpl
def ft_engine(place: EnginePlace) -> ServerEngine | StepEngine:
    if place.connection is not None:
        return connecting.engine_elsewhere(place)
    assert place.run is not None  # in the trainer's process
    return connecting.engine_here(place.run)


@hookimpl
def ft_connect(run: Run) -> dict[str, Any] | None:
    return connecting.connection(opened(run), run)


@hookimpl
def ft_serve(model: str, servers: int, host: str, backend_config: Any) -> AbstractContextManager[Served]:
    return serve.serving(model, servers, host, backend_config)


@hookimpl
def ft_score(sequences: list[Sequence], top: int, run: Run) -> list[Scores]:
    config = run.backend_config
    if config.teacher_url is None:
        raise ConfigError("backend_config.teacher_url: not set, but a teacher must score tokens; see docs/vllm.md")
    if TEACHER not in run.backend_state:
        run.backend_state[TEACHER] = scoring.find(config)
    return scoring.score(run.backend_state[TEACHER], sequences, top, config.max_num_seqs)


@hookimpl
def ft_sync_weights(model: Policy, version: int, run: Run) -> None:
    engine = opened(run)
    if engine.fleet is not None:
        engine.fleet.updating = True
    try:
        if sends_adapter(run):
            sync_adapter(engine, model, version, run)
        elif engine.llm is not None:
            manifest = weights.manifest_of(model, opening.computes_in(run.backend_config, run))
            for_vllm = (pair for piece in weights.pieces(model, manifest, keep=True) for pair in piece)
            inprocess.load(engine.llm, for_vllm, version, clear_cache=not opening.keeps_cache(run))
        else:
            sync_servers(engine, model, version, run)
    finally:
        if engine.fleet is not None:
            engine.fleet.updating = False
    if engine.stepping is not None:
        engine.stepping.adapter, engine.stepping.version = engine.adapter, version
    engine.updates += 1
    engine.version = version


@hookimpl
def ft_close(run: Run) -> None:
    """End what this run has started. Called however the run ends, so it asks nothing of other ranks."""
    run.backend_state.pop(TEACHER, None)  # a server that isn't ours
    engine = run.backend_state.pop(KEY, None)
    if engine is None:
        return
    if engine.llm is not None:
        inprocess.stop(engine.llm)
    if engine.fleet is not None:
        engine.fleet.close()
    if engine.keeper is not None:
        engine.keeper.close()
    if run.rank == 0:
        for folder in engine.folders:
            shutil.rmtree(folder, ignore_errors=True)


# ---------------------------------------------------------------- weights


def sync_servers(engine: Engine, policy: Policy, version: int, run: Run) -> None:
    manifest = weights.manifest_of(policy, opening.computes_in(run.backend_config, run))
    pieces = weights.pieces(policy, manifest, keep=run.rank == 0)
    if run.rank != 0:
        for _ in pieces:  # takes part in gathering
            pass

    def work() -> list[bool]:
        try:
            engine.keeper.give(manifest, pieces, version)
        finally:
            for _ in pieces:  # the other ranks are gathering, and can't be stopped meanwhile
                pass
        return engine.keeper.has()

    engine.fleet.expect(version, engine.fleet.model, on_main(run, work))


def sync_adapter(engine: Engine, policy: Policy, version: int, run: Run) -> None:
    """Write the adapter to its own folder, and let vLLM load it under its own name."""
    name = f"update-{engine.updates}"
    folder = engine.folder / name
    weights.write_adapter(policy, folder, keep=run.rank == 0)
    if engine.llm is not None:
        from vllm.lora.request import LoRARequest

        adapter = LoRARequest(name, engine.updates + 1, str(folder))
        inprocess.load_adapter(engine.llm, adapter, engine.adapter, version)
        engine.adapter = adapter
    else:

        def work() -> list[bool]:
            engine.keeper.give_adapter(name, folder, version)
            return engine.keeper.has()

        engine.fleet.expect(version, name, on_main(run, work))
    if engine.updates and run.rank == 0:
        shutil.rmtree(engine.folder / f"update-{engine.updates - 1}", ignore_errors=True)
