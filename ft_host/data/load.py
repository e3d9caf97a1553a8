"""Opens what a config names as a source: a file, a folder saved by `datasets`, or a data set of the hub.

JSON lines, JSON and CSV are read by `files`; everything else by `datasets`, whose tables are memory-mapped.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.config.held_out import named_sets, one_set
from ft_host.data import files
from ft_host.data.hub import check_media, first_line, open_hub, open_saved, table_rows, why_not
from ft_host.data.places import BUILDERS, OURS, base, check_file, cut_rows, is_saved, local_files, splits_of, suffix_of
from ft_host.data.sources import Source, Stream, digest
from ft_host.data.spans import fingerprint
from ft_host.errors import DataError
from ft_host.types import Row

if TYPE_CHECKING:
    from ft_host.config import RunConfig
    from ft_host.data.mixture import MixedStream, Mixture


def open_train(config: RunConfig) -> Source | Stream | Mixture | MixedStream:
    """Open the training data of a config. Raises DataError."""
    if not isinstance(config.dataset, str):
        from ft_host.data.mixture import open_mixture

        return open_mixture(config.dataset, config, config.dataset_train_split, config.dataset_streaming)
    return open_source(
        config.dataset,
        name=config.dataset_config,
        revision=config.dataset_revision,
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
    spec = config.dataset if config.eval_dataset is None else config.eval_dataset
    alone = one_set(spec)
    if alone is not None:
        return open_held_out(alone, config)
    from ft_host.data.mixture import HeldOut

    named = {name: item if isinstance(item, dict) else {"path": item} for name, item in named_sets(spec).items()}
    found = {}
    for name, item in named.items():
        try:
            found[name] = open_held_out(item, config)
        except DataError as error:
            raise DataError(f"eval_dataset, {name}: {str(error).removeprefix('eval_dataset: ')}") from error
    return HeldOut(found)


def sets_of(source: Source | Mixture | None) -> dict[str, Source | Mixture]:
    """Return the sets of evaluation data by name; "" for one that has none."""
    from ft_host.data.mixture import HeldOut

    if source is None:
        return {}
    return source.sets if isinstance(source, HeldOut) else {"": source}


def open_held_out(item: dict[str, Any], config: RunConfig) -> Source:
    """Open one evaluation set. What `dataset` is given as name and revision holds for it if it is the same data set."""
    path, same = item["path"], item["path"] == config.dataset
    name = item.get("name") or (config.dataset_config if same else None)
    revision = item.get("revision") or (config.dataset_revision if same else None)
    split = item.get("split") or config.dataset_test_split
    if split is None:
        split = "train" if item.get("data_files") is not None else only_split(path, name, revision)
    return open_source(
        path,
        name=name,
        revision=revision,
        split=split,
        data_files=item.get("data_files"),
        columns=item.get("columns") or config.dataset_columns,
    )


def open_source(
    path: str,
    *,
    name: str | None = None,
    revision: str | None = None,
    split: str = "train",
    data_files: Any = None,
    streaming: bool = False,
    columns: dict[str, str] | None = None,
) -> Source | Stream:
    """Open a file (or a pattern of files), a folder, or a data set of the hub; `name` is the latter's configuration.

    `split` may be a slice: "train[:90%]". Raises DataError that names what was looked for and what exists.
    """
    columns = columns or {}
    found = local_files(path, split, data_files)
    if found is not None:
        source = open_files(found.files, path, split, streaming, columns)
        if Path(path).is_dir() or len(found.files) > 1 or found.left_out:
            source.files, source.left_out = [str(file) for file in found.files], found.left_out
        return source
    if "://" in path:
        kind = suffix_of(path)
        if kind not in BUILDERS:
            raise DataError(f"{path}: expected one of {', '.join(BUILDERS)}")
        options = {"sep": "\t"} if kind == ".tsv" else {}
        named = {"train": [path]}
        return open_hub(BUILDERS[kind], path, split, streaming, columns, data_files=named, **options)
    if Path(path).is_dir() and is_saved(Path(path)):
        return open_saved(path, split, streaming, columns)
    source = open_hub(path, path, split, streaming, columns, name=name, revision=revision, data_files=data_files)
    source.revision = revision
    return source


# ---------------------------------------------------------------- files on this machine


def open_files(paths: list[Path], label: str, split: str, streaming: bool, columns: dict[str, str]) -> Source | Stream:
    """Open files of one format or of several, in their order. Raises DataError that names the file at fault."""
    for path in paths:
        check_file(path)
    groups = [(key, list(group)) for key, group in itertools.groupby(paths, kind_of)]
    splits = [base(split)] if Path(label).is_dir() else ["train"]
    if len(groups) == 1 and groups[0][0] not in OURS:
        kind = suffix_of(paths[0])
        named = {splits[0]: [str(path) for path in paths]}
        return open_hub(BUILDERS[kind], label, split, streaming, columns, data_files=named)
    if streaming:
        if "[" in split:
            raise DataError(f"{label}: {split}: a stream can't be sliced; turn dataset_streaming off")
        cut_rows(split, 1, label, splits)
        key, origin = digest([fingerprint(path) for path in paths]), [str(path) for path in paths]
        source = Stream(partial(file_rows, groups), columns, label, split, key, origin)
        check_media(next(source.stream())[1], label)
        return source
    tables = [table for key, group in groups for table in tables_of(key, group)]
    table = tables[0] if len(tables) == 1 else files.Joined(tables)
    check_media(table.read(0), label)
    return Source(table, columns, label, split, cut_rows(split, len(table), label, splits))


def kind_of(path: Path) -> str:
    """Return what files must share to be opened as one table: the reader, and the columns where it asks for that."""
    builder = BUILDERS[suffix_of(path)]
    if builder in OURS:
        return builder
    import pyarrow
    import pyarrow.parquet

    try:
        if builder == "parquet":
            return f"{builder} {pyarrow.parquet.read_schema(path).remove_metadata()}"
        with pyarrow.memory_map(str(path)) as file:
            return f"{builder} {pyarrow.ipc.open_stream(file).schema.remove_metadata()}"
    except pyarrow.ArrowInvalid as error:
        if builder == "arrow":  # the other of arrow's two formats, which `datasets` tells apart
            return builder
        raise DataError(f"{path}: can't be read as {builder}: {first_line(error)}") from error


def tables_of(key: str, paths: list[Path]) -> list[Any]:
    """Return the tables of files that `kind_of` says the same of."""
    if key in OURS:
        return [open_table(path) for path in paths]
    source = open_hub(key.split()[0], str(paths[0]), "train", False, {}, data_files={"train": [str(p) for p in paths]})
    return [source.table]


def open_table(path: Path) -> files.CsvFile | files.JsonArray | files.JsonLines:
    if suffix_of(path) in files.DELIMITERS:
        return files.CsvFile(path)
    return files.JsonArray(path) if files.is_array(path) else files.JsonLines(path)


def file_rows(groups: list[tuple[str, list[Path]]], skip: int) -> Iterator[tuple[str, Row]]:
    """Yield (where, row) of several files, from row `skip` of all on. JSON lines are read without an index
    of the file.
    """
    rows = (row for key, paths in groups for row in (text_rows(paths) if key in OURS else arrow_rows(key, paths)))
    return itertools.islice(rows, skip, None)


def arrow_rows(key: str, paths: list[Path]) -> Iterator[tuple[str, Row]]:
    stream = open_hub(key.split()[0], str(paths[0]), "train", True, {}, data_files={"train": [str(p) for p in paths]})
    return stream.stream()


def text_rows(paths: list[Path]) -> Iterator[tuple[str, Row]]:
    for path in paths:
        if suffix_of(path) in files.DELIMITERS or files.is_array(path):
            table = open_table(path)
            yield from table_rows(table, range(len(table)), 0)
        else:
            yield from files.json_line_rows(path)


def only_split(path: str, name: str | None, revision: str | None) -> str:
    """Return the split of evaluation data where the config names none: "train" of a file, the only one of a
    data set.

    Raises DataError where there are several.
    """
    place = Path(path)
    if (
        place.is_file()
        or "://" in path
        or any(letter in path for letter in "*?[")
        or not place.is_dir()
        and suffix_of(path)
    ):
        return "train"
    if (place / "dataset_dict.json").is_file():
        splits = json.loads((place / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
    elif is_saved(place):
        return "train"
    elif place.is_dir() and (named := splits_of(place)):
        splits = named
    else:
        import datasets

        try:
            splits = datasets.get_dataset_split_names(path, name, revision=revision)
        except Exception as error:
            raise DataError(f"eval_dataset: {path}: {why_not(error, path, 'train')}") from error
    if len(splits) != 1:
        raise DataError(f"eval_dataset: {path} has the splits {', '.join(splits)}; set dataset_test_split")
    return splits[0]
