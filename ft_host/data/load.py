"""Opens what a config names as a source: a file, a folder saved by `datasets`, or a data set of the hub.

JSON lines, JSON and CSV are read by `files`; everything else by `datasets`, whose tables are memory-mapped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.data import files
from ft_host.data.places import BUILDERS, OURS, base, cut_rows, is_saved, local_files, no_split, suffix_of
from ft_host.data.sources import Source, Stream, digest
from ft_host.data.spans import fingerprint
from ft_host.errors import DataError
from ft_host.types import Row
from ft_host.util.text import nearest

if TYPE_CHECKING:
    from ft_host.config import RunConfig
    from ft_host.data.mixture import MixedStream, Mixture


MEDIA = {"image", "images", "audio", "audios", "video", "videos"}


def open_train(config: RunConfig) -> Source | Stream | Mixture | MixedStream:
    """Open the training data of a config. Raises DataError."""
    if not isinstance(config.dataset, str):
        from ft_host.data.mixture import open_mixture

        return open_mixture(config.dataset, config, config.dataset_train_split, config.dataset_streaming)
    return open_source(
        config.dataset,
        name=config.dataset_config,
        split=config.dataset_train_split,
        streaming=config.dataset_streaming,
        columns=config.dataset_columns,
    )


def open_eval(config: RunConfig) -> Source | Mixture | None:
    """Open the evaluation data of a config; None where it names none. Never a stream. Raises DataError."""
    if config.eval_dataset is None and config.dataset_test_split is None:
        return None
    if config.eval_dataset is None and not isinstance(config.dataset, str):
        from ft_host.data.mixture import open_mixture

        items = [{key: item[key] for key in item if key not in ("weight", "split")} for item in config.dataset]
        return open_mixture(items, config, config.dataset_test_split, False)
    path = config.dataset if config.eval_dataset is None else config.eval_dataset
    name = config.dataset_config if path == config.dataset else None
    split = config.dataset_test_split or only_split(path, name)
    return open_source(path, name=name, split=split, columns=config.dataset_columns)


def open_source(
    path: str,
    *,
    name: str | None = None,
    split: str = "train",
    data_files: Any = None,
    streaming: bool = False,
    columns: dict[str, str] | None = None,
) -> Source | Stream:
    """Open a file (or a pattern of files), a folder, or a data set of the hub; `name` is the latter's configuration.

    `split` may be a slice: "train[:90%]". Raises DataError that names what was looked for and what exists.
    """
    columns = columns or {}
    files_found = local_files(path, split, data_files)
    if files_found is not None and all(file.suffix.lower() in OURS for file in files_found):
        return open_text(files_found, path, split, streaming, columns)
    if files_found is not None or "://" in path:
        names = [str(file) for file in files_found] if files_found is not None else [path]
        kinds = sorted({suffix_of(file) for file in names})
        if len(kinds) > 1 or kinds[0] not in BUILDERS:
            raise DataError(f"{path}: files of {' and '.join(kinds)}; expected one of {', '.join(BUILDERS)}")
        extra = {"sep": "\t"} if kinds[0] == ".tsv" else {}
        inside = base(split) if Path(path).is_dir() else "train"
        return open_hub(BUILDERS[kinds[0]], path, split, streaming, columns, data_files={inside: names}, **extra)
    if Path(path).is_dir() and is_saved(Path(path)):
        return open_saved(path, split, streaming, columns)
    return open_hub(path, path, split, streaming, columns, name=name, data_files=data_files)


# ---------------------------------------------------------------- names


# ---------------------------------------------------------------- text


def open_text(paths: list[Path], label: str, split: str, streaming: bool, columns: dict[str, str]) -> Source | Stream:
    """Open JSON lines, JSON and CSV files on this machine."""
    splits = [base(split)] if Path(label).is_dir() else ["train"]
    if streaming:
        if "[" in split:
            raise DataError(f"{label}: {split}: a stream can't be sliced; turn dataset_streaming off")
        cut_rows(split, 1, label, splits)
        source = Stream(partial(text_rows, paths), columns, label, split, digest([fingerprint(p) for p in paths]))
        check_media(next(source.stream())[1], label)
        return source
    tables = [open_table(path) for path in paths]
    table = tables[0] if len(tables) == 1 else files.Joined(tables)
    check_media(table.read(0), label)
    return Source(table, columns, label, split, cut_rows(split, len(table), label, splits))


def open_table(path: Path) -> files.CsvFile | files.JsonArray | files.JsonLines:
    if path.suffix.lower() in files.DELIMITERS:
        return files.CsvFile(path)
    return files.JsonArray(path) if files.is_array(path) else files.JsonLines(path)


def text_rows(paths: list[Path], skip: int) -> Iterator[tuple[str, Row]]:
    """Yield (where, row) of several files, from row `skip` of all on. JSON lines are read without an index
    of the file.
    """
    for path in paths:
        if path.suffix.lower() in files.DELIMITERS or files.is_array(path):
            table = open_table(path)
            rows = table_rows(table, range(len(table)), 0)
        else:
            rows = files.json_line_rows(path)
        for where, text_or_row in rows:
            if skip:
                skip -= 1
            else:
                yield where, text_or_row


def table_rows(table: Any, rows: range, skip: int) -> Iterator[tuple[str, Row]]:
    return ((table.where(index), table.read(index)) for index in rows[skip:])


def check_media(row: Row, label: str) -> None:
    """Refuse rows with images, audio or video, naming the column."""
    for name in MEDIA & set(row):
        if row[name]:
            refuse_media(name, label)


def refuse_media(name: str, label: str) -> None:
    raise DataError(f"{label}: the column {name} holds images, audio or video, which isn't supported yet; leave it out")


# ---------------------------------------------------------------- datasets


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
    table = files.Arrow(dataset, f"{label} ({base(split)})")
    if streaming:
        return Stream(partial(table_rows, table, rows), columns, label, split, table.fingerprint)
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
        dataset = datasets.load_dataset(path, split=whole, streaming=streaming, **arguments)
    except Exception as error:  # many kinds, also of the network; the message includes it
        raise DataError(f"{label}: {why_not(error, label, split)}") from error
    if not streaming:
        return from_dataset(dataset, label, split, [base(split)], False, columns)
    check_features(dataset, label)
    key = digest(label, split, sorted(arguments.items()))
    return Stream(partial(hub_rows, dataset, f"{label} ({split})"), columns, label, split, key)


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


def hub_rows(dataset: Any, label: str, skip: int) -> Iterator[tuple[str, Row]]:
    rows = dataset.skip(skip) if skip else dataset
    return ((f"{label}, row {index}", row) for index, row in enumerate(rows, skip))


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]


def only_split(path: str, name: str | None) -> str:
    """Return the split of evaluation data where the config names none: "train" of a file, the only one of a
    data set.

    Raises DataError where there are several.
    """
    place = Path(path)
    if place.is_file() or "://" in path or any(letter in path for letter in "*?[") or suffix_of(path):
        return "train"
    if (place / "dataset_dict.json").is_file():
        splits = json.loads((place / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
    elif is_saved(place):
        return "train"
    else:
        import datasets

        try:
            splits = datasets.get_dataset_split_names(path, name)
        except Exception as error:
            raise DataError(f"eval_dataset: {path}: {why_not(error, path, 'train')}") from error
    if len(splits) != 1:
        raise DataError(f"eval_dataset: {path} has the splits {', '.join(splits)}; set dataset_test_split")
    return splits[0]
