"""Weights as files, which `transfer: folder` writes and vLLM's workers read.

A version of the weights is a folder with `manifest.json` and the files that it names. The manifest has `version`,
`base` (the version before, or None where all weights are there), `files` (name to sha256), and `tensors`, how many the
model has. A file is safetensors: NAME, or NAME.places and NAME.values, which go into the flat tensor as it was in the
version `base`.

Read in vLLM's processes: imports neither ft_host nor vLLM.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load


def read_version(
    folder: Path, held: dict[str, torch.Tensor], version: int | None
) -> tuple[dict[str, torch.Tensor], int]:
    """Weights after a version, and its number. `held` and `version` are those before; they are as they were where this
    raises: RuntimeError for a file that isn't what was written, LookupError for changes of another version."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if manifest["base"] is not None and manifest["base"] != version:
        raise LookupError(f"needs the whole: {folder} changes version {manifest['base']}, and here is {version}")
    read: dict[str, torch.Tensor] = {}
    for name, checksum in manifest["files"].items():
        data = (folder / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != checksum:
            raise RuntimeError(f"{folder / name} isn't what was written: its checksum is another one")
        read |= load(data)
    new = dict(held) if manifest["base"] is not None else {}
    for name, tensor in read.items():
        if name.endswith(".places"):
            changed = name.removesuffix(".places")
            new[changed] = held[changed].clone()
            new[changed].view(-1)[tensor.long()] = read[f"{changed}.values"]
        elif not name.endswith(".values"):
            new[name] = tensor
    if len(new) != manifest["tensors"]:
        raise RuntimeError(f"{folder} leads to {len(new)} tensors; its manifest says {manifest['tensors']}")
    return new, manifest["version"]
