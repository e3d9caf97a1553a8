"""Weights as files, which `transfer: folder` has the host write (ft_host/models/weights_folder.py) and vLLM's workers
read.

A version of the weights is a folder with `manifest.json` and the files that it names. The manifest has `version`,
`base` (the version before, or None where all weights are there), `files` (name to bytes and checksum), and `tensors`,
all that the model has. A file is safetensors: NAME, or with `NAME:indices` the values that go into the flat tensor as
it was in the version `base`.

Read in vLLM's processes: imports neither ft_host nor vLLM.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load

INDICES = ":indices"


def read_version(
    folder: Path, held: dict[str, torch.Tensor], version: int | None
) -> tuple[dict[str, torch.Tensor], int]:
    """Weights after a version, and its number. `held` and `version` are those before; they are as they were where this
    raises: RuntimeError for a file that isn't what was written, LookupError for changes of another version."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    base = manifest["base"]
    if base is not None and base != version:
        raise LookupError(f"needs the whole: {folder} changes version {base}, and here is {version}")
    new = dict(held) if base is not None else {}
    for name, told in manifest["files"].items():
        data = (folder / name).read_bytes()
        if hashlib.blake2b(data, digest_size=16).hexdigest() != told["checksum"]:
            raise RuntimeError(f"{folder / name} isn't what was written: its checksum is another one")
        read = load(data)
        for key, tensor in read.items():
            if key.endswith(INDICES):
                changed = key.removesuffix(INDICES)
                new[changed] = held[changed].clone()
                new[changed].view(-1)[tensor.long()] = read[changed]
            elif key + INDICES not in read:
                new[key] = tensor
    if new.keys() != manifest["tensors"].keys():
        raise RuntimeError(f"{folder} leads to other tensors than its manifest names")
    return new, manifest["version"]
