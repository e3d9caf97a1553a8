"""What a path, a hub model or a function is, as a fingerprint that run.json holds. Imports no torch.

A fingerprint is of content. A folder that was copied, moved or touched has the same one; other content of the same size
and time has another. Up to 256 MiB of a folder all bytes are read. Of larger weights the header is read, and blocks of
every tensor: a changed tensor is seen, a changed number between two blocks need not be.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WHOLE = 1 << 28  # bytes of a folder up to which everything is read
BLOCK, BLOCKS = 1 << 14, 2048
HEADER = 1 << 27  # bytes that the header of a safetensors file can't exceed
MODEL = (
    "config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)  # one of them: a model's folder
PARTS = {".safetensors", ".bin", ".gguf", ".json", ".jinja", ".model", ".tiktoken", ".txt", ".py"}  # of a model
NOT_PARTS = {"training_args.bin", "trainer_state.json", "all_results.json", "train_results.json", "eval_results.json"}
SETTINGS = ("config.json", "generation_config.json", "adapter_config.json")
# Keys of settings that say who wrote them and where from; the base of an adapter is compared by itself.
NOT_SETTINGS = ("transformers_version", "_name_or_path", "base_model_name_or_path", "peft_version")
MOST_FILES = 10_000

Fingerprint = dict[str, Any]


def of_path(path: Path, base: str | None = None) -> Fingerprint:
    """Return the fingerprint of a file or folder that exists. `base`: that of an adapter, where it isn't what the
    adapter names."""
    if path.is_file():
        return {"kind": "file", "files": {"": _mark(path, path.stat().st_size <= WHOLE)}}
    files = list(_files(path))
    whole = sum(file.stat().st_size for file in files) <= WHOLE
    found: Fingerprint = {"kind": "folder", "files": {str(p.relative_to(path)): _mark(p, whole) for p in files}}
    adapter = path / "adapter_config.json"
    if adapter.is_file():
        base = base or _settings(adapter).get("base_model_name_or_path")
        if base:
            found["base"] = of_model(str(base))
    return found


def of_model(name: str, revision: str | None = None, base: str | None = None) -> Fingerprint:
    """Return the fingerprint of a model's folder, or the commit of a hub id. None for a commit that isn't known: the
    model has not been loaded from the hub on this machine."""
    if Path(name).exists():
        return of_path(Path(name), base)
    from huggingface_hub import try_to_load_from_cache

    for file in MODEL:
        cached = try_to_load_from_cache(name, file, revision=revision) if name.count("/") <= 1 else None
        if isinstance(cached, str):
            return {"kind": "hub", "commit": Path(cached).parent.name}  # .../snapshots/COMMIT/config.json
    return {"kind": "hub", "commit": None}


def of_function(spec: str) -> Fingerprint | None:
    """Return the fingerprint of `file.py:function` or `package.module:function`: that of its file, or the version of an
    installed distribution. None where there is no such file. What the file imports isn't followed."""
    where, _, name = spec.rpartition(":")
    path = Path(where) if where.endswith(".py") else _module_file(where)
    if path is None or not path.is_file():
        return None
    if not where.endswith(".py") and _is_installed(path):
        return {"kind": "installed", "name": where.partition(".")[0], "version": _version(where.partition(".")[0])}
    return {"kind": "function", "name": name, "files": {"": _mark(path, True)}}


def differences(was: Fingerprint, now: Fingerprint) -> list[str]:
    """Return what differs between two fingerprints of one field, in words. Empty: the same content."""
    if was["kind"] != now["kind"]:
        return [f"it was a {was['kind']} and is a {now['kind']}"]
    if was["kind"] == "hub":
        return [] if was["commit"] == now["commit"] else [f"commit {was['commit']} then, {now['commit']} now"]
    if was["kind"] == "installed":
        return []  # versions are told, not refused
    said = [f"function {was['name']} then, {now['name']} now"] if was.get("name") != now.get("name") else []
    old, new = was["files"], now["files"]
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            said.append(f"{name} is gone")
        elif name not in old:
            said.append(f"{name} is new")
        elif old[name] != new[name]:
            said.append(f"{name or 'its content'} {_words(old[name])} then, {_words(new[name])} now")
    if "base" in was and "base" in now:
        said += [f"the adapter's base: {each}" for each in differences(was["base"], now["base"])]
    return said


# ---------------------------------------------------------------- parts


def _words(mark: list[Any]) -> str:
    size, digest = mark
    return f"({f'{size:,} bytes, ' if size is not None else ''}digest {digest[:8]})"


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files that count: of a model those that are loaded, of any other folder all that aren't hidden."""
    if not any((folder / name).is_file() for name in MODEL) and not any(folder.glob("*.safetensors")):
        inside = (path for path in sorted(folder.rglob("*")) if path.is_file())
        for number, path in enumerate(inside):
            if number == MOST_FILES:
                return
            if not any(part.startswith(".") for part in path.relative_to(folder).parts):
                yield path
        return
    for path in [*sorted(folder.iterdir()), *sorted(folder.glob("*/*.jinja"))]:
        if path.is_file() and path.suffix in PARTS and path.name not in NOT_PARTS and path.name[0] != ".":
            yield path


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _mark(path: Path, whole: bool) -> list[Any]:
    """Return the size of a file and a digest of its content; of settings a digest of what they say, and no size."""
    if path.name in SETTINGS and (settings := _settings(path)):
        kept = {key: value for key, value in settings.items() if key not in NOT_SETTINGS}
        for key in ("target_modules", "modules_to_save"):  # sets, written in any order
            if isinstance(kept.get(key), list):
                kept[key] = sorted(map(str, kept[key]))
        return [None, _digest(json.dumps(kept, sort_keys=True).encode())]
    size = path.stat().st_size
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        if whole or size <= BLOCK * BLOCKS:
            while block := file.read(1 << 22):
                digest.update(block)
        else:
            for start, length in _blocks(path, size):
                file.seek(start)
                digest.update(file.read(length))
    return [size, digest.hexdigest()]


def _blocks(path: Path, size: int) -> list[tuple[int, int]]:
    """Return (start, length) of the parts that are read of a large file: of safetensors the header, and three blocks of
    each tensor; of anything else blocks spread over it."""
    with path.open("rb") as file:
        head = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(head)) if path.suffix == ".safetensors" and head < HEADER else None
        except ValueError:
            header = None
    if not isinstance(header, dict):
        return [((size - BLOCK) * number // (BLOCKS - 1), BLOCK) for number in range(BLOCKS)]
    spans = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
    found = [(0, 8 + head)]
    length = BLOCK if len(spans) <= BLOCKS else BLOCK // 4
    for start, stop in spans:
        starts = {start, max(start, (start + stop - length) // 2), max(start, stop - length)}
        found += [(8 + head + begin, min(length, stop - begin)) for begin in sorted(starts)]
    return found


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _module_file(module: str) -> Path | None:
    """Return the file of a module, without importing its package."""
    first, *rest = module.split(".")
    spec = importlib.util.find_spec(first) if first else None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin else None
    for folder in spec.submodule_search_locations or ():
        place = Path(folder).joinpath(*rest)
        for path in (place / "__init__.py", place.with_suffix(".py")):
            if path.is_file():
                return path
    return None


def _is_installed(path: Path) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(path.parts)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # its distribution has another name
        return None
