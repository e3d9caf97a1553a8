"""Weights of which each rank keeps its own rows from the moment they are read, so that no rank ever holds all of them.

transformers' loader does the reading: it names, converts and casts one parameter at a time, and reports what is missing
or doesn't fit, as for a whole model. torch calls a hook for each parameter that a module is given; ours puts a DTensor
in its place, which holds the rows that `fully_shard` would give this rank. So a rank holds its rows and the parameter
that is being read (of a mixture, the experts of a layer). Files are mapped into memory: other ranks' rows are only read
where weights are held in another type than the file's, or converted.

What has no rows in a file (a new head) is whole on every rank, as are modules that were made whole again because they
are changed before the model is sharded. `take` and `put` move rows over `fully_shard`, which makes DTensors of its own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard
from torch.nn.modules.module import register_module_parameter_registration_hook

READ_AHEAD = "HF_DEACTIVATE_ASYNC_LOAD"  # transformers' variable: else its threads read parameters before they are cut
LOADED = "_is_hf_initialized"  # transformers' mark of a parameter that came from a file


def world_mesh(device: torch.device) -> DeviceMesh:
    """Return the mesh of all ranks, in one dimension."""
    return init_device_mesh(device.type, (torch.distributed.get_world_size(),))


@contextlib.contextmanager
def cut_when_loaded(device: torch.device) -> Iterator[None]:
    """Inside this block, parameters that transformers loads from files are cut to this rank's rows, on `device`. All
    ranks must load the same model."""
    mesh = world_mesh(device)

    def cut(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or isinstance(parameter, DTensor) or LOADED not in vars(parameter) or not parameter.dim():
            return None
        return _cut(parameter, mesh, device)

    before = os.environ.get(READ_AHEAD)
    os.environ[READ_AHEAD] = "1"
    hook = register_module_parameter_registration_hook(cut)
    try:
        yield
    finally:
        hook.remove()
        del os.environ[READ_AHEAD]
        if before is not None:
            os.environ[READ_AHEAD] = before


def _cut(parameter: nn.Parameter, mesh: DeviceMesh, device: torch.device) -> nn.Parameter:
    whole, rank = parameter.detach(), mesh.get_local_rank()
    chunks = whole.chunk(mesh.size())  # fewer than ranks where there are few rows
    own = chunks[rank] if rank < len(chunks) else whole[:0]
    rows = own.to(device, copy=True).contiguous()
    sharded = DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride())
    cut = nn.Parameter(sharded, requires_grad=parameter.requires_grad)
    vars(cut)[LOADED] = True
    return cut


def is_cut(model: nn.Module) -> bool:
    """Return whether some of a model's weights are this rank's rows alone, and it isn't sharded yet."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters()) and not any(
        isinstance(module, FSDPModule) for module in model.modules()
    )


def held_bytes(parameter: torch.Tensor) -> int:
    """Return the bytes of a parameter that this process holds."""
    return (parameter.to_local() if isinstance(parameter, DTensor) else parameter).nbytes


def make_whole(modules: Iterable[nn.Module]) -> None:
    """Give these modules whole parameters of their own, on the CPU of every rank. All ranks must call it. Tied modules
    stay tied if all are among them. Does nothing to what is whole."""
    made: dict[int, nn.Parameter] = {}
    for module in modules:
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not isinstance(parameter, DTensor):
                continue
            if id(parameter) not in made:
                whole = parameter.detach().full_tensor().cpu()
                made[id(parameter)] = nn.Parameter(whole, requires_grad=parameter.requires_grad)
            setattr(module, name, made[id(parameter)])


# ---------------------------------------------------------------- over fully_shard

Taken = list[tuple[nn.Module, str, nn.Parameter]]


def take(model: nn.Module) -> Taken:
    """Put empty parameters in the place of a model's rows; return the rows. Shared ones stay shared."""
    taken: Taken = []
    empty: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor):
                shape = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
                empty.setdefault(id(parameter), nn.Parameter(shape, requires_grad=parameter.requires_grad))
                taken.append((module, name, parameter))
    for module, name, parameter in taken:
        setattr(module, name, empty[id(parameter)])
    return taken


def put(taken: Taken) -> None:
    """Give a sharded model the rows that `take` returned. They aren't copied, unless peft made other parts of them."""
    made: dict[int, nn.Parameter] = {}
    for module, name, rows in taken:
        if id(rows) not in made:
            ours = module.get_parameter(name)
            assert isinstance(ours, DTensor) and isinstance(rows, DTensor)
            local = rows.detach().redistribute(placements=ours.placements).to_local()
            sharded = DTensor.from_local(
                local, ours.device_mesh, ours.placements, run_check=False, shape=ours.shape, stride=ours.stride()
            )
            made[id(rows)] = nn.Parameter(sharded, requires_grad=ours.requires_grad)
        setattr(module, name, made[id(rows)])


# ---------------------------------------------------------------- sharded models


@contextlib.contextmanager
def root_whole(model: nn.Module) -> Iterator[None]:
    """Inside this block, the weights of a sharded model's root (embeddings, norm, head) are whole, so that the
    transformers model within can be called by itself. Its first forward must have been; all ranks must enter it."""
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        reshard(model)


def reshard(model: nn.Module) -> None:
    """Free whole weights. A backward pass does this by itself.

    After an evaluation the root's weights would stay whole, and a state dict would hold other parameters than the
    optimizer. Does nothing to a model that isn't sharded.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole_state(model: nn.Module, leave_out: Collection[str] = ()) -> dict[str, torch.Tensor]:
    """Return the whole weights and buffers of a sharded model but for those left out, by name, on the CPU of the first
    rank; nothing on others. All ranks must call it. One tensor at a time is whole on the others."""
    reshard(model)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name in leave_out:
            continue
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if not torch.distributed.get_rank():
            state[name] = whole.cpu()
    return state


def graph_leaves(model: nn.Module) -> dict[str, int]:
    """Return the identity of the tensor that stands for each trained parameter in the graph of a forward, by name. Of a
    sharded model these are its whole weights, which are gathered, a group at a time: all ranks must call it."""
    leaves = {name: id(parameter) for name, parameter in model.named_parameters() if parameter.requires_grad}
    for prefix, module in model.named_modules():
        if isinstance(module, FSDPModule):
            module.unshard()
            for name, parameter in module.named_parameters(prefix):
                if name in leaves and not isinstance(parameter, DTensor):
                    leaves[name] = id(parameter)
            module.reshard()
    return leaves
