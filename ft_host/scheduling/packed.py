"""Rollouts as files: what JSON can hold, with its long lists of numbers as arrays, so that a token takes some bytes.

What is read is equal to what was written, value by value: floats become float32 only where that changes none of them. A
file is one of safetensors and carries its own checksum.

    json     the value, as compressed JSON; a list in an array is {"": [array, begin, count]} in it, one whose whole
             numbers are all the same {"": ["same", value, count]}, and a dict that has a key "" {"": ["dict", items]}
    int32, int64, float32, float64, bool    the lists of that kind, one after the other; equal ones once
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ft_host.errors import DataError

FORMAT = "1"
SHORT = 8  # numbers; shorter lists stay in JSON


class _Arrays:
    """Lists of numbers, gathered by kind."""

    def __init__(self) -> None:
        self.parts: dict[str, list[np.ndarray]] = {}
        self.sizes: dict[str, int] = {}
        self.known: dict[tuple[str, bytes], list[Any]] = {}

    def add(self, values: np.ndarray) -> dict[str, Any]:
        """Return what stands in JSON in place of a list."""
        kind = values.dtype.name
        key = (kind, values.tobytes())
        if key not in self.known:
            begin = self.sizes.get(kind, 0)
            self.parts.setdefault(kind, []).append(values)
            self.sizes[kind] = begin + len(values)
            self.known[key] = [kind, begin, len(values)]
        return {"": self.known[key]}


def array_of(values: list[Any]) -> np.ndarray | None:
    """Return a list of numbers as the smallest array that holds each as it is; None for anything else."""
    kinds = set(map(type, values))
    if kinds == {bool}:
        return np.array(values, dtype=np.bool_)
    if kinds == {int}:
        try:
            whole = np.array(values, dtype=np.int64)
        except OverflowError:
            return None
        small = whole.astype(np.int32)
        return small if np.array_equal(small, whole) else whole
    if kinds == {float}:
        exact = np.array(values, dtype=np.float64)
        with np.errstate(over="ignore"):
            small = exact.astype(np.float32)
        return small if np.array_equal(small, exact, equal_nan=True) else exact
    return None


def _pack(value: Any, arrays: _Arrays) -> Any:
    if isinstance(value, dict):
        packed = {key: _pack(item, arrays) for key, item in value.items()}
        return {"": ["dict", list(packed.items())]} if "" in packed else packed
    if isinstance(value, (list, tuple)):
        values = array_of(list(value)) if len(value) >= SHORT else None
        if values is None:
            return [_pack(item, arrays) for item in value]
        if values.dtype.kind in "bi" and (values == values[0]).all():
            return {"": ["same", values[0].item(), len(values)]}
        return arrays.add(values)
    return value


def _unpack(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if "" not in value:
        return {key: _unpack(item, arrays) for key, item in value.items()}
    kind, *rest = value[""]
    if kind == "dict":
        return {key: _unpack(item, arrays) for key, item in rest[0]}
    if kind == "same":
        return [rest[0]] * rest[1]
    begin, count = rest
    return arrays[kind][begin : begin + count].tolist()


def _checksum(tensors: dict[str, np.ndarray]) -> str:
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(np.ascontiguousarray(tensors[name]).view(np.uint8), zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"


def write_packed(path: Path, value: Any) -> None:
    """Write what JSON can hold, aside, and rename it. Raises TypeError for a value that JSON can't hold, OSError where
    it can't be written."""
    arrays = _Arrays()
    text = json.dumps(_pack(value, arrays), ensure_ascii=False).encode("utf-8", "surrogatepass")
    tensors = {kind: np.concatenate(parts) for kind, parts in arrays.parts.items()}
    tensors["json"] = np.frombuffer(zlib.compress(text, 1), dtype=np.uint8)
    aside = path.with_name(f".{path.name}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(save(tensors, metadata={"format": FORMAT, "checksum": _checksum(tensors)}))
            file.flush()
            os.fsync(file.fileno())
        aside.rename(path)
    except BaseException:
        aside.unlink(missing_ok=True)  # a half one holds space that may be what is lacking
        raise


def read_packed(path: Path) -> Any:
    """Undo of `write_packed`. Raises DataError, which names the file, where it isn't as it was written."""
    try:
        with safe_open(path, framework="np") as file:
            told = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} can't be read: {error}") from error
    if told.get("format") != FORMAT:
        raise DataError(f"{path} has format {told.get('format')!r}, expected {FORMAT!r}: another ft-host wrote it")
    if told.get("checksum") != _checksum(tensors) or "json" not in tensors:
        raise DataError(f"{path} is damaged: it doesn't match its checksum")
    text = zlib.decompress(tensors.pop("json").tobytes()).decode("utf-8", "surrogatepass")
    return _unpack(json.loads(text), tensors)
