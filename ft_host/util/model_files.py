"""What is wrong with the files of a model's folder: links that lead nowhere, Git LFS pointers, JSON that isn't, weights
that were cut. Reads the beginning of each file only, and loads nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

from ft_host.util.text import LFS, POINTER, no_file

# JSON that transformers, peft or this package read. Their errors don't name the file.
SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "adapter_config.json",
    "model.safetensors.index.json",
    "processor_config.json",
    "preprocessor_config.json",
)
HEADER = 100 << 20  # bytes of a safetensors header at most, as the format has it


def files_problem(folder: Path, of_weights: bool = True) -> str | None:
    """Return what is wrong with the first file of a model's folder that can't be read, with its name; None for none.
    `of_weights` False: settings alone are looked at."""
    for path in sorted(folder.iterdir()):
        weights = path.suffix == ".safetensors"
        if not (weights and of_weights or path.name in SETTINGS):
            continue
        special = no_file(path)
        if special is not None:
            return f"{path}: {special}"
        try:
            with path.open("rb") as file:
                if file.read(len(LFS)) == LFS:
                    return f"{path}: {POINTER}"
            problem = weights_problem(path) if weights else settings_problem(path)
        except OSError as error:
            return f"{path}: {error.strerror}"
        if problem is not None:
            return f"{path}: {problem}"
    return None


def settings_problem(path: Path) -> str | None:
    """Return what is wrong with a JSON file of one object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        return f"not JSON: not UTF-8 at byte {error.start}"
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} in line {error.lineno}, column {error.colno}"
    except (RecursionError, ValueError) as error:
        return f"not JSON that can be read: {error}"
    return None if isinstance(found, dict) else f"holds a {type(found).__name__}, expected an object"


def weights_problem(path: Path) -> str | None:
    """Return what is wrong with a safetensors file, by its size and its header."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > HEADER:
            return f"not safetensors ({size} bytes that don't begin with a header)"
        text = file.read(length)
    try:
        header = json.loads(text)
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError):
        cut = " (the file was cut: copy it again)" if len(text) < length else ""
        return f"not safetensors: its header can't be read{cut}"
    whole = 8 + length + max(ends, default=0)
    if size < whole:
        return f"{size} bytes of {whole}: the file was cut; copy it again"
    return None


def no_model(place: Path) -> str | None:
    """Return why a file, or a folder without safetensors, is no model that can be trained; None for a folder that may
    be one."""
    if place.is_file():
        kind = "a GGUF file, weights for inference with llama.cpp" if place.suffix == ".gguf" else "a file"
        return f"{place} is {kind}; expected a folder written by save_pretrained, with safetensors"
    names = sorted(path.name for path in place.iterdir()) if place.is_dir() else []
    packed = [name for name in names if name.endswith(".gguf")]
    if packed and not any(name.endswith(".safetensors") for name in names):
        return (
            f"{place} holds {packed[0]}, a GGUF file: weights for inference with llama.cpp, which can't be trained; "
            "expected safetensors, as the model that it was made of has them"
        )
    return None
