"""Resolves the name of a data set to its files, its splits, or a part of one."""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ft_host.errors import DataError
from ft_host.util.text import LFS, POINTER, missing, nearest, no_file

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
OURS = ("json", "csv")  # what `files` reads itself
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


@dataclass(frozen=True)
class Found:
    """The files of a data set on this machine, and the names of what lies beside them and isn't read."""

    files: list[Path]
    left_out: list[str] = field(default_factory=list)


def local_files(path: str, split: str, data_files: Any) -> Found | None:
    """Return the files for `path`; None for a hub id, or a folder that `datasets` can read."""
    place = Path(path)
    special = no_file(place)
    if special is not None:
        raise DataError(f"{path}: {special}")
    if place.is_file():
        if not suffix_of(place):
            raise DataError(f"{path}: expected a file of rows ({', '.join(BUILDERS)}) or a folder")
        return Found([place])
    if "://" in path:
        return None
    if any(letter in path for letter in "*?["):
        matched = [Path(file) for file in sorted(glob.glob(path, recursive=True))]
        rows = [file for file in matched if suffix_of(file) and not file.is_dir()]
        if not rows:
            raise DataError(f"{path}: no file of rows matches")
        return Found(rows, [str(file) for file in matched if file not in rows and may_be_rows(file)])
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
        parts = [local_files(str(place / name), split, None) for name in names]
        return Found(
            [file for part in parts if part for file in part.files], [name for p in parts if p for name in p.left_out]
        )
    return in_folder(place, base(split))


def in_folder(folder: Path, split: str) -> Found | None:
    """Return the files of a split in a folder: those that it is named in, or all where no file is named after a split.

    None where splits are elsewhere: named by folders, by README.md, or in formats that are `datasets`' own. Raises
    DataError for a folder that `datasets` would read a part of.
    """
    inside = [file for file in sorted(folder.rglob("*")) if not file.is_dir() and may_be_rows(file.relative_to(folder))]
    rows = [file for file in inside if suffix_of(file)]
    if not inside:
        raise DataError(f"{folder}: a folder without a file of rows ({', '.join(BUILDERS)})")

    def without(used: list[Path]) -> list[str]:
        others = [file.relative_to(folder) for file in inside if file not in used]
        return [str(file) for file in others if not any(is_named(file, name) for name in SPLITS if name != split)]

    named = [file for file in rows if file.parent == folder and is_named(Path(file.name), split)]
    if named:
        return Found(named, without(named))
    readme = folder / "README.md"
    configured = readme.is_file() and "data_files:" in readme.read_text(encoding="utf-8", errors="replace")
    if not rows or configured:
        return None
    if not any(is_named(file.relative_to(folder), name) for file in rows for name in SPLITS):
        if split != "train":
            raise DataError(f"{folder}: {no_split(split, ['train'])}")
        return Found(rows, without(rows))
    kinds = {BUILDERS[suffix_of(file)]: suffix_of(file) for file in rows}
    if len(kinds) > 1:
        raise DataError(
            f"{folder}: files of {' and '.join(sorted(kinds.values()))} in folders of splits, of which only one format "
            f"would be read; name those of {split} in data_files"
        )
    return None


def splits_of(folder: Path) -> list[str]:
    """Return the splits that files directly in a folder are named after; "train" where no file in it is named so. Empty
    where `datasets` must say."""
    rows = [file.relative_to(folder) for file in folder.rglob("*") if suffix_of(file) and not file.is_dir()]
    rows = [file for file in rows if may_be_rows(file)]
    named = [name for name in SPLITS if any(is_named(Path(file.name), name) for file in rows if len(file.parts) == 1)]
    if named or not rows or any(is_named(file, name) for file in rows for name in SPLITS):
        return named
    return [] if (folder / "README.md").is_file() else ["train"]


# Splits and the words by which files are known to belong to them, as `datasets` has them.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# What lies beside rows and is none: descriptions, and marks of programs.
BESIDE = re.compile(
    r"(README|LICENSE|dataset_infos?\.json|_SUCCESS|.*\.(md|py|ya?ml|toml|lock|png|svg|html))", re.IGNORECASE
)


def may_be_rows(path: Path) -> bool:
    """Return whether a user who names a folder may mean this file."""
    hidden = any(part.startswith((".", "__")) and part not in (".", "..") for part in path.parts)
    return not hidden and not BESIDE.fullmatch(path.name)


def is_named(path: Path, split: str) -> bool:
    """Return whether a part of a path has the name of a split as a word: train.jsonl, my-train-00.jsonl."""
    words = "|".join(map(re.escape, SPLITS.get(split, (split,))))
    return any(re.search(rf"(?<![A-Za-z])({words})(?![A-Za-z])", part, re.IGNORECASE) for part in path.parts)


def check_file(path: Path) -> None:
    """Refuse what stands in for a file, before a reader speaks of its format. Raises DataError."""
    special = no_file(path)
    if special is not None:
        raise DataError(f"{path}: {special}")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    if head.startswith(LFS):
        raise DataError(f"{path}: {POINTER}")
    if not head:
        raise DataError(f"{path}: the file is empty")
