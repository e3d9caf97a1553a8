"""Weights through a folder (`weights_folder`): written by the trainer, read by the process that samples.

A reader that missed a version raises FtHostError; `WeightsFolder.whole` then writes the last one once more, whole,
without the other ranks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

from ft_host.distributed.processes import on_main
from ft_host.errors import FtHostError
from ft_host.models.shards import reshard
from ft_host.models.weights_folder import INDICES, MANIFEST, PIECE, Named, WeightsFolder, checksum
from ft_host.util.text import QUOTED, nearest

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ft_host.models.policy import Policy


# ---------------------------------------------------------------- which tensors


def trained_tensors(policy: Policy) -> list[Named]:
    """Return what training changes, by the names that the transformers model has for it: trained parameters (of LoRA
    those of the adapter) and buffers that are saved. What is frozen never changes, and the reader loads it by itself.
    """
    from peft import PeftModel

    model, adapted = policy.causal_lm, isinstance(policy.model, PeftModel)
    saved = model.state_dict().keys()
    every = _base_changed(policy)
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad or every]
    buffers = [] if adapted else [(name, buffer) for name, buffer in model.named_buffers() if name in saved]
    return [*trained, *buffers]


def gathered_pieces(policy: Policy) -> Iterator[list[Named]]:
    """Yield `trained_tensors`, whole, some at a time. All ranks must go through it where the policy is sharded."""
    reshard(policy)  # a forward may have left its weights whole, in the type that it computes in
    piece: list[Named] = []
    size = 0
    for name, weight in trained_tensors(policy):
        weight = weight.detach()
        weight = weight.full_tensor() if isinstance(weight, DTensor) else weight
        piece.append((name, weight))
        size += weight.nbytes
        if size > PIECE:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _base_changed(policy: Policy) -> bool:
    """Return whether the adapter was taken off the base's weights when it was made (PiSSA, OLoRA and others): the
    reader's base must be this one to the bit."""
    from peft import LoraConfig, PeftModel

    if not isinstance(policy.model, PeftModel):
        return False
    settings = policy.model.peft_config["default"]
    assert isinstance(settings, LoraConfig), "the host makes no other adapter"
    made = str(settings.init_lora_weights).lower()
    return made not in ("true", "false", "gaussian", "eva", "orthogonal")


# ---------------------------------------------------------------- writing


@dataclass
class Publisher:
    """Publishes the policy's weights from all ranks of a run; the main rank alone writes.

    `pieces` goes through the weights, gathering sharded ones, on all ranks alike.
    """

    folder: WeightsFolder
    accelerator: Accelerator
    pieces: Callable[[], Iterator[list[Named]]]

    def publish(self, version: int) -> Path | None:
        """Write the weights of that optimizer step; return their folder, None on other ranks than the main one. All
        ranks must call it. Every gather is complete before anything is written, and a failure of the main rank is
        raised on all, as FtHostError."""
        main = self.accelerator.is_main_process
        failed: Exception | None = None
        if main:
            self.folder.begin()
        for piece in self.pieces():
            if main and failed is None:
                try:
                    self.folder.take(piece)
                except Exception as error:  # the others are gathering: it is told when they are done
                    failed = error

        def write() -> None:
            if failed is not None:
                raise failed
            self.folder.write(version)

        on_main(self.accelerator, write)
        return self.folder.path / f"version-{version}" if main else None


# ---------------------------------------------------------------- reading


@dataclass(frozen=True)
class Published:
    """What a version's folder holds, checked. `values` and `indices` by name; no indices: all values are there."""

    place: Path
    version: int
    base: int | None
    tensors: dict[str, dict[str, Any]]
    values: dict[str, torch.Tensor]
    indices: dict[str, torch.Tensor]

    def apply(self, named: Iterable[Named]) -> None:
        """Copy the values into tensors of the same names, in place. Raises FtHostError, before anything is changed,
        where they aren't those that were published."""
        ours = dict(named)
        for name, found in self.tensors.items():
            if name not in ours:
                raise FtHostError(f"{self.place}: has the tensor {name}, which isn't here{nearest(name, ours, QUOTED)}")
            dtype, shape = str(ours[name].dtype).removeprefix("torch."), list(ours[name].shape)
            if (found["dtype"], found["shape"]) != (dtype, shape):
                raise FtHostError(
                    f"{self.place}: {name} is {found['dtype']} of shape {found['shape']}; expected {dtype} of {shape}"
                )
        missing = ours.keys() - self.tensors.keys()
        if missing:
            raise FtHostError(f"{self.place}: lacks the tensor {min(missing)}")
        with torch.no_grad():
            for name, values in self.values.items():
                target = ours[name]
                if name in self.indices:
                    target.put_(self.indices[name].to(target.device, torch.int64), values.to(target.device))
                else:
                    target.copy_(values)


def read_published(place: Path, have: int | None) -> Published:
    """Read a version's folder into memory and check it. Raises FtHostError, which names the file, for one that is not
    whole or not as it was written, and for changes on another version than the reader has."""
    from safetensors.torch import load

    manifest = _manifest(place)
    base = manifest["base"]
    if base is not None and base != have:
        there = "none" if have is None else f"version {have}"
        raise FtHostError(f"{place}: holds what changed since version {base}, and the sampler has {there}")
    values: dict[str, torch.Tensor] = {}
    indices: dict[str, torch.Tensor] = {}
    for name, expected in manifest["files"].items():
        data = _read(place / name)
        if len(data) != expected["bytes"]:
            raise FtHostError(f"{place / name}: has {len(data)} bytes; expected {expected['bytes']}")
        if checksum(data) != expected["checksum"]:
            raise FtHostError(
                f"{place / name}: its checksum is {checksum(data)}; expected {expected['checksum']}: the file isn't as "
                "it was written"
            )
        for key, tensor in load(data).items():
            if key.endswith(INDICES):
                indices[key.removesuffix(INDICES)] = tensor
            else:
                values[key] = tensor
    return Published(place, manifest["version"], base, manifest["tensors"], values, indices)


def load_published(policy: Policy, place: Path, have: int | None) -> int:
    """Give the policy the weights of a version's folder, in place; return the version. Raises as `read_published` and
    `Published.apply` do."""
    published = read_published(place, have)
    published.apply(trained_tensors(policy))
    return published.version


def _manifest(place: Path) -> dict[str, Any]:
    data = _read(place / MANIFEST)
    try:
        return json.loads(data)
    except ValueError as error:
        raise FtHostError(f"{place / MANIFEST} is damaged: {error}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FtHostError(f"{path} can't be read: {error.strerror}") from error
