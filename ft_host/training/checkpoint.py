"""Checkpoints: complete or absent, and checked before they are used.

    checkpoints/step-N/
        model/         safetensors; loads with `from_pretrained` (not with FSDP2, where the weights are in state/)
        state/         torch.distributed.checkpoint: optimizer, auxiliary models that follow the policy or are trained
                       with it, and with FSDP2 the weights; any number of ranks
        rng-R.json     random states of rank R
        buffer-R.json  of a run with rollouts: what rank R has of the last one
        progress.json  step, data position, the method's state
        files.json     size and checksum of every file above, and of itself

A checkpoint is written beside its place and renamed. `files.json` is written last, so that a damaged checkpoint is
recognised. torch.distributed.checkpoint keeps its index, and values that aren't tensors, as pickles: `state_reader`
reads them, and nothing in them is executed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from ft_host.contract.generation import check_state
from ft_host.distributed.processes import is_sharded
from ft_host.errors import FtHostError
from ft_host.models import save_whole
from ft_host.models.load import decoder_layers
from ft_host.models.shards import reshard, whole_state
from ft_host.rundir.checkpoints import INDEX, checksum, index_of, put
from ft_host.rundir.folder import write_json
from ft_host.training.state_reader import StatePlanner, StateReader, refusals
from ft_host.util.disk import disk_problem
from ft_host.util.ranks import everywhere
from ft_host.util.seeds import random_states, seed_all, set_random_states

if TYPE_CHECKING:
    from ft_host.run import Run
    from ft_host.training.loop import Progress

PROGRESS = ("step", "world_size", "state", "progress")  # what progress.json holds

# ---------------------------------------------------------------- files


def _flush(*paths: Path) -> None:
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# ---------------------------------------------------------------- saving and loading


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Silence DCP's warning about running without process groups, as one process does."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


@contextlib.contextmanager
def _together(run: Run, doing: str) -> Iterator[None]:
    """Raise an error of one rank on all, so that none waits for the others."""
    problem, cause = None, None
    try:
        yield
    except (Exception, dcp.api.CheckpointException) as error:  # safetensors and DCP wrap a full disk in their own
        cause = error
        of_ranks = error.failures if isinstance(error, dcp.api.CheckpointException) else {}
        what = disk_problem([error, *(each for each, _ in of_ranks.values())], run.folder.path)
        problem = f"{doing}: {what or f'{type(error).__name__}: {error}'}"
    problems = [text for text in run.gather(problem) if text]
    if problems:
        raise everywhere(FtHostError(problems[0])) from cause


def save(run: Run, optimizer: torch.optim.Optimizer, progress: Progress, buffer: dict[str, Any] | None = None) -> Path:
    """Write checkpoints/step-N; `buffer` is this rank's rows of a rollout. All ranks must call it. Raises FtHostError
    if it can't be written; earlier checkpoints stay as they are."""
    check_state(run.plugins, run.state)
    place = run.folder.checkpoints / f"step-{run.step}"
    aside = run.folder.checkpoints / f".step-{run.step}.tmp"
    doing, renamed = f"checkpoint at step {run.step} could not be written", None
    try:
        with _together(run, doing):
            if run.accelerator.is_main_process:
                shutil.rmtree(aside, ignore_errors=True)
                (aside / "state").mkdir(parents=True)
        with _together(run, doing):
            state: dict[str, Any] = {"optimizer": get_optimizer_state_dict(run.policy, optimizer)}
            if is_sharded(run.config, run.world_size):
                state["model"] = get_model_state_dict(run.policy, options=_options(run))
            else:
                state |= learners(run)
            state |= followers(run)
            with _alone():
                dcp.save(state, checkpoint_id=aside / "state", no_dist=run.world_size == 1)
            if not is_sharded(run.config, run.world_size) and run.accelerator.is_main_process:
                save_whole(run.policy, run.tokenizer, run.config, aside / "model")
            write_json(aside / f"rng-{run.rank}.json", random_states(), words=False)
            if buffer is not None:
                write_json(aside / f"buffer-{run.rank}.json", buffer, indent=None, words=False)
        with _together(run, doing):
            if run.accelerator.is_main_process:
                values = (run.step, run.world_size, run.state, dataclasses.asdict(progress))
                written = dict(zip(PROGRESS, values, strict=True))
                write_json(aside / "progress.json", written, words=False)
                files = sorted(path for path in aside.rglob("*") if path.is_file())
                write_json(aside / INDEX, index_of({p.relative_to(aside).as_posix(): checksum(p) for p in files}))
                _flush(*aside.rglob("*"), aside)
                renamed = put(aside, place)
                _flush(run.folder.checkpoints)
    except BaseException:  # the second Ctrl-C too: a half one only holds space
        if run.accelerator.is_main_process:
            shutil.rmtree(aside, ignore_errors=True)
        raise
    if run.accelerator.is_main_process:
        if renamed:
            run.say(renamed, "warning")
        run.folder.update(saved=run.step)
        run.folder.kept.trust(place)
        try:
            run.folder.kept.rotate(run.config.save_total_limit)
        except OSError as error:  # the new checkpoint is there, so the run goes on
            run.say(f"an old checkpoint could not be deleted: {error.strerror} ({error.filename})", "warning")
    return place


def followers(run: Run) -> dict[str, Any]:
    """Return the weights of auxiliary models that follow the policy; those of others can be loaded again from their
    source."""
    return {
        f"companion {role}": companion.following() if companion.adapted else get_model_state_dict(companion.held)
        for role, companion in run.models.items()
        if companion.spec.sync_steps is not None
    }


def learners(run: Run) -> dict[str, Any]:
    """Return the weights of models that are trained inside the policy, which aren't in model/."""
    return {
        f"trained {role}": get_model_state_dict(module, options=_options(run))
        for role, module in run.policy.companions.items()
    }


def full_state(run: Run) -> dict[str, torch.Tensor]:
    """Return the whole weights of a sharded policy, on the CPU of the main process. All ranks must call it. With an
    adapter the frozen weights of decoder layers aren't gathered: nothing writes them."""
    policy, frozen = run.policy, set[str]()
    reshard(policy)
    if run.config.use_peft:
        within = {id(each) for layer in decoder_layers(policy) for each in layer.parameters() if not each.requires_grad}
        frozen = {name for name, parameter in policy.named_parameters() if id(parameter) in within}
    return whole_state(policy, frozen)


def _options(run: Run) -> StateDictOptions:
    # With LoRA the base weights are frozen and come from where they came from: only the adapter is kept.
    return StateDictOptions(ignore_frozen_params=run.config.use_peft)


def load(run: Run, optimizer: torch.optim.Optimizer, checkpoint: Path) -> dict[str, Any]:
    """Restore optimizer, random states and, if they are in state/, the weights. Returns progress.json, and as `buffers`
    the rows of each rank of a rollout.

    Weights in model/ are not loaded here: the run starts its policy from that folder. All ranks must call it.
    """
    saved = json.loads((checkpoint / "progress.json").read_text(encoding="utf-8"))
    state: dict[str, Any] = {"optimizer": get_optimizer_state_dict(run.policy, optimizer)}
    if (checkpoint / "model").is_dir():
        state |= learners(run)
    else:
        state["model"] = get_model_state_dict(run.policy, options=_options(run))
    state |= followers(run)
    with _alone(), refusals():
        reader = StateReader(checkpoint / "state")
        dcp.load(state, storage_reader=reader, planner=StatePlanner(), no_dist=run.world_size == 1)
    set_optimizer_state_dict(run.policy, optimizer, state["optimizer"])
    if "model" in state:
        set_model_state_dict(run.policy, state["model"], options=StateDictOptions(strict=not run.config.use_peft))
    for role, companion in run.models.items():
        if f"companion {role}" in state and not companion.adapted:  # whose tensors were loaded in place
            set_model_state_dict(companion.held, state[f"companion {role}"])
    for role, module in run.policy.companions.items():
        if f"trained {role}" in state:
            strict = StateDictOptions(strict=not run.config.use_peft)
            set_model_state_dict(module, state[f"trained {role}"], options=strict)
    optimizer.zero_grad(set_to_none=True)
    run.step = saved["step"]
    run.state = saved["state"]
    states = checkpoint / f"rng-{run.rank}.json"
    if saved["world_size"] == run.world_size:
        set_random_states(json.loads(states.read_text(encoding="utf-8")))
    else:  # other ranks than before: there is no state to put back, but ranks must still differ
        seed_all(run.config.seed + 1000003 * run.step + run.rank)
    files = [checkpoint / f"buffer-{rank}.json" for rank in range(saved["world_size"])]
    buffers = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
    return saved | {"buffers": buffers}
