"""Resolves the name of a data set to its files, its splits, or a part of one."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.errors import DataError
from ft_host.util.text import missing, nearest

if TYPE_CHECKING:
    pass


BUILDERS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
PACKED = (".gz", ".zst", ".xz", ".bz2")
OURS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")  # what `files` reads
SPLIT = re.compile(r"(?P<name>[^\[\]]+?)(?:\[(?P<start>-?\d*%?):(?P<stop>-?\d*%?)\])?")


def base(split: str) -> str:
    """Return "train" for "train[:90%]"."""
    return split.partition("[")[0]


def suffix_of(path: str | Path) -> str:
    """Return ".jsonl" for "a.jsonl" and for "a.jsonl.gz"; "" for a name that isn't a file of rows."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    while suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in BUILDERS else ""


def is_saved(folder: Path) -> bool:
    """Return whether `save_to_disk` of `datasets` wrote this folder."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def no_split(split: str, splits: list[str]) -> str:
    return f"no split {base(split)}{nearest(base(split), splits)}; there is {', '.join(splits)}"


def cut_rows(split: str, size: int, label: str, splits: list[str]) -> range:
    """Return the rows that "train", "train[:90%]" or "train[100:]" means, for a split of `size` rows."""
    match = SPLIT.fullmatch(split)
    if match is None:
        raise DataError(f"{label}: can't read the split {split!r}; expected for instance train or train[:90%]")
    if match["name"] not in splits:
        raise DataError(f"{label}: {no_split(split, splits)}")

    def bound(text: str | None) -> int | None:
        if not text:
            return None
        return round(int(text[:-1]) * size / 100) if text.endswith("%") else int(text)

    rows = range(size)[bound(match["start"]) : bound(match["stop"])]
    if not rows:
        raise DataError(f"{label}: {split} is empty; the whole has {size} rows")
    return rows


def local_files(path: str, split: str, data_files: Any) -> list[Path] | None:
    """Return the files for `path`; None for a hub id, or a folder that `datasets` can read."""
    place = Path(path)
    if place.is_file():
        if not suffix_of(place):
            raise DataError(f"{path}: expected a file of rows ({', '.join(BUILDERS)}) or a folder")
        return [place]
    if "://" in path:
        return None
    if any(letter in path for letter in "*?["):
        matched = [Path(file) for file in sorted(glob.glob(path, recursive=True)) if suffix_of(file)]
        if not matched:
            raise DataError(f"{path}: no file of rows matches")
        return matched
    if not place.is_dir():
        if suffix_of(place) or path.startswith((".", "/", "~")):
            raise DataError(f"{path}: {missing(place)}")
        return None
    if is_saved(place):
        return None
    if isinstance(data_files, dict):
        if base(split) not in data_files:
            raise DataError(f"{path}: {no_split(split, list(data_files))} in data_files")
        data_files = data_files[base(split)]
    if data_files is not None:
        names = [data_files] if isinstance(data_files, str) else data_files
        return [file for name in names for file in local_files(str(place / name), split, None) or []]
    here = [file for file in sorted(place.iterdir()) if suffix_of(file)]
    named = [file for file in here if re.split(r"[-_.]", file.name)[0] == base(split)]  # train.jsonl, train-00.jsonl
    return named or None
