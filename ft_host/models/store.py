"""Values that auxiliary models computed for rows, kept on disk for the next run and for other ranks.

A folder per model: `CACHE/log-probs/MODEL/*.safetensors`, each file with keys (n, 16) and values (n, columns). A file
is written to a temporary name, renamed, and never changed, so that concurrent runs don't disturb each other. A key is a
digest of the row's token ids (which depend on data, template and truncation) and of the method's settings. `CACHE` is
$FT_HOST_CACHE, or ft-host in the user's cache folder. Deleting it costs only time. So does damaging it: each file has a
checksum of its content, and values of a file that doesn't match are computed again.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

from ft_host.distributed.processes import precision
from ft_host.models.held import frozen_dtype, keeps_wide
from ft_host.types import Row
from ft_host.util.adapters import base_of

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ft_host.config import RunConfig
    from ft_host.types import ModelSpec

Key = bytes

# The fields of a config that change a frozen model's numbers.
NUMBERS = ("load_in_8bit", "load_in_4bit", "bnb_4bit_quant_type", "use_bnb_nested_quant")


def row_key(row: Row, columns: tuple[str, ...], settings: str) -> Key:
    """Return a digest of 16 bytes of the token ids in some columns of a row, and of settings."""
    digest = hashlib.blake2b(settings.encode(), digest_size=16)
    for name in columns:
        ids = array("q", row[name])
        digest.update(f"{name} {len(ids)}".encode())
        digest.update(ids.tobytes())
    return digest.digest()


def model_key(config: RunConfig, spec: ModelSpec, device: torch.device) -> str | None:
    """Return a digest of an auxiliary model's weights and types; None for weights without identity (a hub model without
    a commit).
    """
    source = spec.source or config.model
    revision, moved = (config.model_revision, config.lora_base_model) if source == config.model else (None, None)
    weights = fingerprint(source, spec.revision or revision, moved)
    if weights is None:
        return None
    numbers = {name: getattr(config, name) for name in NUMBERS}
    numbers["dtype"] = config.dtype or str(frozen_dtype(config, device)).removeprefix("torch.")
    if keeps_wide(config, device):
        numbers["between layers"] = "float32"
    if config.resize_token_embeddings and source == config.model:
        numbers["added embeddings"] = config.seed  # which they are drawn with
    identity = json.dumps([weights, numbers, precision(config, device), spec.head], sort_keys=True)
    return hashlib.blake2b(identity.encode(), digest_size=12).hexdigest()


def fingerprint(source: str, revision: str | None, base: str | None = None) -> str | None:
    """Return a digest of a model's files (an adapter's, with those of its base), or a hub model's commit. `base`: that
    of an adapter, where it isn't the one that the adapter names."""
    place = Path(source)
    if not place.is_dir():
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(source, revision=revision)._commit_hash
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(place.glob("*")):
        if path.suffix in (".safetensors", ".bin") or path.name in ("config.json", "adapter_config.json"):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
    adapter = place / "adapter_config.json"
    if adapter.is_file():
        below = fingerprint(base_of(source, base), None)
        if below is None:
            return None
        digest.update(below.encode())
    return digest.hexdigest()


class Store:
    """Values by key, in memory, and on disk if there is a folder. `damaged`: the files that aren't used, and why."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.made = 0  # values added since it was opened
        self.damaged: list[str] = []
        self._values: dict[Key, dict[str, float]] = {}
        self._new: dict[Key, dict[str, float]] = {}
        for path in sorted(folder.glob("*.safetensors")) if folder is not None and folder.is_dir() else ():
            try:
                self._values.update(read(path))
            except Damaged as problem:
                self.damaged.append(f"{path.name} {problem}")

    def __contains__(self, key: Key) -> bool:
        return key in self._values

    def __getitem__(self, key: Key) -> dict[str, float]:
        return self._values[key]

    def put(self, values: dict[Key, dict[str, float]]) -> None:
        self._values.update(values)
        self._new.update(values)
        self.made += len(values)

    def flush(self) -> None:
        """Write new values. Only one process may call it."""
        new, self._new = self._new, {}
        if self.folder is None or not new:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        by_columns: dict[tuple[str, ...], dict[Key, dict[str, float]]] = {}
        for key, values in new.items():
            by_columns.setdefault(tuple(sorted(values)), {})[key] = values
        for columns, rows in by_columns.items():
            write(self.folder / f"{uuid.uuid4().hex}.safetensors", columns, rows)


class Damaged(Exception):
    """A file of the store isn't as it was written."""


def write(path: Path, columns: tuple[str, ...], rows: dict[Key, dict[str, float]]) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    aside = path.with_suffix(".tmp")
    keys = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), 16).copy()
    values = np.array([[row[name] for name in columns] for row in rows.values()], dtype=np.float64)
    named = json.dumps(columns)
    written = {"columns": named, "checksum": checksum(named, keys, values)}
    save_file({"keys": keys, "values": values}, aside, metadata=written)
    aside.rename(path)


def read(path: Path) -> dict[Key, dict[str, float]]:
    """Return the values of a file. Raises Damaged for one that can't be read or isn't what was written."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            written = file.metadata() or {}
            keys, values = file.get_tensor("keys"), file.get_tensor("values")
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:  # a header can say anything
        raise Damaged(f"can't be read: {error}") from error
    if "checksum" not in written:
        raise Damaged("has no checksum: it is of a version before 0.6")
    if written["checksum"] != checksum(written.get("columns", ""), keys, values):
        raise Damaged("doesn't match its checksum")
    columns = json.loads(written["columns"])
    return {key.tobytes(): dict(zip(columns, row, strict=True)) for key, row in zip(keys, values.tolist(), strict=True)}


def checksum(columns: str, keys: np.ndarray, values: np.ndarray) -> str:
    """Return a digest of what a file holds, with the shapes."""
    digest = hashlib.blake2b(f"{columns} {keys.shape} {values.shape}".encode(), digest_size=16)
    digest.update(keys.tobytes())
    digest.update(values.tobytes())
    return digest.hexdigest()
