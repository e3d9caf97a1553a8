"""What `datasets` opens: saved folders, the hub, folders laid out as on the hub, and files of its own formats."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ft_host.data import files
from ft_host.data.arrow_nulls import cleaned
from ft_host.data.places import base, cut_rows, no_split
from ft_host.data.sources import Source, Stream, digest
from ft_host.errors import DataError
from ft_host.types import Row
from ft_host.util.text import nearest

MEDIA = {"image", "images", "audio", "audios", "video", "videos"}


def table_rows(table: Any, rows: range, skip: int) -> Iterator[tuple[str, Row]]:
    return ((table.where(index), table.read(index)) for index in rows[skip:])


def check_media(row: Row, label: str) -> None:
    """Refuse rows with images, audio or video, naming the column."""
    for name in MEDIA & set(row):
        if row[name]:
            refuse_media(name, label)


def refuse_media(name: str, label: str) -> None:
    raise DataError(f"{label}: the column {name} holds images, audio or video, which isn't supported yet; leave it out")


def open_saved(path: str, split: str, streaming: bool, columns: dict[str, str]) -> Source | Stream:
    """Open a folder written by `save_to_disk`, with one data set or several splits."""
    import datasets

    try:
        saved = datasets.load_from_disk(path)
    except Exception as error:  # datasets explains what is wrong inside
        raise DataError(f"{path}: saved by `datasets`, but can't be read: {first_line(error)}") from error
    if not isinstance(saved, dict):
        splits = list(dict.fromkeys([str(saved.split or "train"), "train"]))
        return from_dataset(saved, path, split, splits, streaming, columns)
    if base(split) not in saved:
        raise DataError(f"{path}: {no_split(split, list(saved))}")
    return from_dataset(saved[base(split)], path, split, list(saved), streaming, columns)


def from_dataset(
    dataset: Any, label: str, split: str, splits: list[str], streaming: bool, columns: dict[str, str]
) -> Source | Stream:
    """Wrap a `datasets.Dataset` on this machine."""
    check_features(dataset, label)
    if not len(dataset):
        raise DataError(f"{label}: the split {base(split)} has no rows")
    rows = cut_rows(split, len(dataset), label, splits)
    table = files.Arrow(dataset, f"{label} ({base(split)})", columns)
    if streaming:
        origin = [file["filename"] for file in dataset.cache_files]
        return Stream(partial(table_rows, table, rows), columns, label, split, table.fingerprint, origin)
    return Source(table, columns, label, split, rows)


def check_features(dataset: Any, label: str) -> None:
    """Refuse images, audio or video by the types of the columns."""
    import datasets

    kinds = (datasets.Image, datasets.Audio, datasets.Video)
    for name, kind in (dataset.features or {}).items():
        if isinstance(kind, kinds) or (isinstance(kind, datasets.List) and isinstance(kind.feature, kinds)):
            refuse_media(name, label)


def open_hub(
    path: str, label: str, split: str, streaming: bool, columns: dict[str, str], **arguments: Any
) -> Source | Stream:
    """Open what `datasets.load_dataset` loads: a hub id, a folder laid out as on the hub, or files of other formats."""
    import datasets

    arguments = {key: value for key, value in arguments.items() if value is not None}
    whole = split if streaming else base(split)
    try:
        if streaming:  # as load_dataset does it; the builder knows the files
            builder = datasets.load_dataset_builder(path, **arguments)
            dataset = builder.as_streaming_dataset(split=whole)
        else:
            dataset = datasets.load_dataset(path, split=whole, **arguments)
    except Exception as error:  # many kinds, also of the network; the message includes it
        raise DataError(f"{label}: {why_not(error, label, split)}") from error
    if not streaming:
        return from_dataset(dataset, label, split, [base(split)], False, columns)
    check_features(dataset, label)
    key = digest(label, split, sorted(arguments.items()))
    origin = [str(file) for file in (builder.config.data_files or {}).get(base(split), [])]
    return Stream(partial(hub_rows, dataset, f"{label} ({split})", columns), columns, label, split, key, origin)


def why_not(error: Exception, label: str, split: str) -> str:
    """Return the message for data that `datasets` could not load."""
    reason = first_line(error)
    match = re.search(r"split.*\[(?P<names>'[^\]]*')\]", reason)
    if match is not None:
        return no_split(split, re.findall("'([^']*)'", match["names"]))
    if Path(label).exists() or "://" in label:
        return f"`datasets` can't read it: {type(error).__name__}: {reason}"
    here = f"there is no such file or folder{nearest(label, [file.name for file in Path().iterdir()])}"
    return f"{here}, and it could not be loaded from the Hugging Face hub: {type(error).__name__}: {reason}"


def hub_rows(dataset: Any, label: str, renames: dict[str, str], skip: int) -> Iterator[tuple[str, Row]]:
    rows = dataset.skip(skip) if skip else dataset
    return ((f"{label}, row {index}", cleaned(row, dataset.features, renames)) for index, row in enumerate(rows, skip))


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]
