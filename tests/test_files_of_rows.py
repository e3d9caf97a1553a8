"""Files of rows that aren't what they seem: each is read whole, or refused by file and line, without a model."""

import bz2
import gzip
import json
import lzma
import os
import socket

import pytest

from ft_host.config import RunConfig
from ft_host.data import notes_of, open_eval, open_source, open_train
from ft_host.errors import DataError


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def numbered(count, **more):
    return [{"text": f"row {number}", **more} for number in range(count)]


def everything(source):
    return [source.read(index) for index in range(source.num_rows)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FT_HOST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize(
    "line, said",
    [
        ('{"text": "a", "text": "b"}', "the key 'text' stands twice"),
        ('{"text": "a", "x": [{"role": "user", "role": "assistant"}]}', "the key 'role' stands twice"),
        ('{"text": "half \\ud83d"}', "text has half a character"),
        ('{"text": "half \\uDE00"}', "text has half a character"),
        ('{"messages": [{"role": "user", "content": "\\ud83d"}]}', r"messages\[0\]\.content has half a character"),
        ('{"t\\ud83d": 1}', "a key has half a character"),
        ("[" * 200_000, "nested too deep"),
        ('{"text": ' + "[" * 150 + "]" * 150 + "}", "nested 151 deep"),
        ("\x00" * 40, "not JSON"),
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_a_row_that_other_readers_would_read_otherwise_is_refused_by_its_line(tmp_path, name, line, said):
    path, content = tmp_path / name, f'{{"text": "good"}}\n{line}\n'.encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(DataError, match=rf"{name}, line 2: .*{said}"):
        open_source(str(path)).read(1)
    with pytest.raises(DataError, match=rf"{name}, line 2: .*{said}"):
        list(open_source(str(path), streaming=True).stream())


def test_whole_characters_and_flat_rows_are_taken(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "\\ud83d\\ude00 \\\\ud83d", "tools": ' + json.dumps([{"a": [1]}] * 90) + "}\n")
    assert open_source(str(path)).read(0)["text"] == "😀 \\ud83d"


def test_a_json_array_names_the_row_and_its_line(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[\n {"text": "a"},\n {"text": "b",\n  "text": "c"}\n]')
    with pytest.raises(DataError, match=r"rows\.json, row 1, line 3: the key 'text' stands twice"):
        open_source(str(path))
    path.write_text('[\n {"text": "a"},\n {"text": "\\ud83d"}\n]')
    with pytest.raises(DataError, match=r"rows\.json, row 1, line 3: text has half"):
        open_source(str(path))


@pytest.mark.parametrize(
    "value, said",
    [
        ({"prompt": ["a", "b"], "completion": ["c", "d"]}, "one object of 2 columns with 2 values each"),
        ({"messages": [[{"role": "user", "content": "a"}]] * 3}, "one object of 1 columns with 3 values each"),
        ({"prompt": {"0": "a", "1": "b"}, "completion": {"0": "c", "1": "d"}}, "one object of 2 columns with 2 values"),
        ({"data": [{"text": "a"}, {"text": "b"}]}, "one object whose key 'data' holds 2 rows"),
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_columns_in_place_of_rows_are_refused(tmp_path, value, said, indent):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(value, indent=indent))
    with pytest.raises(DataError, match=rf"{said}.*expected JSON lines \(one object per line\) or an array"):
        open_source(str(path))


@pytest.mark.parametrize(
    "row",
    [{"messages": [{"role": "user", "content": "a"}] * 2, "tools": [{}, {}]}, {"input_ids": [1, 2], "labels": [1, 2]}],
)
def test_one_row_of_lists_is_a_row(tmp_path, row):
    assert everything(open_source(str(write_lines(tmp_path / "rows.jsonl", [row])))) == [row]


# ---------------------------------------------------------------- files that aren't


def test_links_pipes_and_sockets_are_called_what_they_are(tmp_path, monkeypatch):
    (tmp_path / "gone.jsonl").symlink_to("nowhere.jsonl")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with socket.socket(socket.AF_UNIX) as made:
        monkeypatch.chdir(tmp_path)  # the name of a socket may be short only
        made.bind("socket.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    for name, said in (
        ("gone", "a symbolic link to nowhere.jsonl, which isn't there"),
        ("loop", "a symbolic link that leads to itself"),
        ("pipe", "a named pipe"),
        ("socket", "a socket, expected a file"),
        ("folder", "a folder without a file of rows"),
    ):
        with pytest.raises(DataError, match=f"{name}.jsonl: {said}"):
            open_source(str(tmp_path / f"{name}.jsonl"))
    (tmp_path / "folder.jsonl" / "part-0.jsonl").symlink_to("nowhere.jsonl")
    with pytest.raises(DataError, match="part-0.jsonl: a symbolic link to"):
        open_source(str(tmp_path / "folder.jsonl"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "a.arrow"])
def test_a_pointer_of_git_lfs_is_called_one(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    for place in (tmp_path / name, tmp_path):
        with pytest.raises(DataError, match=rf"{name}: a Git LFS pointer, not the file itself"):
            open_source(str(place))


def zstd(data):
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    "kind, pack", [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstd)]
)
def test_compressed_files_are_read_by_line_and_refused_when_cut(tmp_path, kind, pack):
    rows = [{"text": os.urandom(40).hex()} for _ in range(200)]
    whole = pack("".join(json.dumps(row) + "\n" for row in rows).encode())
    path = tmp_path / f"rows.jsonl.{kind}"
    path.write_bytes(whole)
    source = open_source(str(path))
    assert everything(source) == rows and source.where(3) == f"{path}, line 4"
    assert [row for _, row in open_source(str(path), streaming=True).stream(198)] == rows[198:]
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"rows\.jsonl\.{kind}: the compressed file ends too early: it was cut"):
        open_source(str(path))
    with pytest.raises(DataError, match=rf"rows\.jsonl\.{kind}: the compressed file ends too early"):
        list(open_source(str(path), streaming=True).stream())
    path.write_bytes(b"hello, this is plain text\n" * 4)
    with pytest.raises(DataError, match=rf"rows\.jsonl\.{kind}: the compressed file"):
        open_source(str(path))
    csv = tmp_path / f"rows.csv.{kind}"
    csv.write_bytes(pack(b"text,n\na,1\nb,2\n"))
    assert everything(open_source(str(csv))) == [{"text": "a", "n": "1"}, {"text": "b", "n": "2"}]


def test_an_unpacked_copy_is_not_taken_for_other_content(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    for text in ("first", "other"):
        path.write_bytes(gzip.compress(json.dumps({"text": text}).encode(), mtime=0))
        assert everything(open_source(str(path))) == [{"text": text}]


# ---------------------------------------------------------------- folders, patterns, lists


@pytest.fixture
def mixed(tmp_path):
    """A folder with two rows in each of four formats, no name of which is a split's."""
    from datasets import Dataset

    folder = tmp_path / "mixed"
    folder.mkdir()
    write_lines(folder / "part-0.jsonl", numbered(2, part="0"))
    Dataset.from_list(numbered(2, part="1")).to_parquet(folder / "part-1.parquet")
    (folder / "part-2.csv").write_text("text,part\nrow 0,2\nrow 1,2\n")
    (folder / "part-3.jsonl.gz").write_bytes(
        gzip.compress(b'{"text": "row 0", "part": "3"}\n{"text": "row 1", "part": "3"}')
    )
    return folder


@pytest.mark.parametrize("form", ["folder", "pattern", "data_files", "mixture", "held out"])
def test_every_format_of_a_folder_is_read(mixed, form):
    config = {"model": "m", "dataset": str(mixed)}
    if form == "folder":
        source = open_source(str(mixed))
    elif form == "pattern":
        source = open_source(str(mixed / "part-*"))
    elif form == "data_files":
        source = open_source(str(mixed), data_files=["part-*.*"])
    elif form == "mixture":
        source = open_train(RunConfig(model="m", dataset=[{"path": str(mixed)}]))
    else:
        source = open_eval(RunConfig(**config, eval_dataset=str(mixed)))
    assert [row["part"] for row in everything(source)] == ["0", "0", "1", "1", "2", "2", "3", "3"]
    assert notes_of(source) == []
    if form == "folder":
        streamed = [row["part"] for _, row in open_source(str(mixed), streaming=True).stream(1)]
        assert streamed == ["0", "1", "1", "2", "2", "3", "3"]
        assert [name.rpartition("/")[2] for name in source.describe()["files"]] == [
            "part-0.jsonl",
            "part-1.parquet",
            "part-2.csv",
            "part-3.jsonl.gz",
        ]


def test_parquet_files_of_other_columns_are_read_as_they_are(tmp_path):
    from datasets import Dataset

    Dataset.from_list([{"text": "a"}]).to_parquet(tmp_path / "a.parquet")
    Dataset.from_list([{"text": "b", "more": 1}]).to_parquet(tmp_path / "b.parquet")
    source = open_source(str(tmp_path))
    assert everything(source) == [{"text": "a"}, {"text": "b", "more": 1}]
    assert source.where(1) == f"{tmp_path / 'b.parquet'} (train), row 0"
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"b\.parquet: can't be read as parquet"):
        open_source(str(tmp_path))


def test_what_a_folder_leaves_out_is_said(tmp_path):
    for name in ("train.jsonl", "more.jsonl", "test.jsonl"):
        write_lines(tmp_path / name, numbered(2, file=name))
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "README.md").write_text("x")
    (tmp_path / ".hidden.jsonl").write_text("x")
    source = open_source(str(tmp_path))
    assert {row["file"] for row in everything(source)} == {"train.jsonl"}
    assert notes_of(source) == [f"{tmp_path}: read train.jsonl; left out more.jsonl, notes.txt"]
    assert source.describe()["left_out"] == ["more.jsonl", "notes.txt"]
    assert notes_of(open_source(str(tmp_path / "*.jsonl"))) == []
    assert notes_of(open_source(str(tmp_path / "*"))) == [
        f"{tmp_path}/*: read more.jsonl, test.jsonl, train.jsonl; left out notes.txt"
    ]


def test_folders_of_splits_in_several_formats_are_refused(tmp_path):
    from datasets import Dataset

    for split in ("train", "test"):
        (tmp_path / split).mkdir()
    write_lines(tmp_path / "train" / "0.jsonl", numbered(2))
    Dataset.from_list(numbered(2)).to_parquet(tmp_path / "test" / "0.parquet")
    with pytest.raises(DataError, match=r"files of \.jsonl and \.parquet in folders of splits.*data_files"):
        open_source(str(tmp_path))


# ---------------------------------------------------------------- evaluation sets


@pytest.fixture
def two_sets(tmp_path):
    for name, count in (("math", 2), ("code", 3)):
        write_lines(tmp_path / f"{name}.jsonl", numbered(count, of=name))
    return tmp_path


@pytest.mark.parametrize(
    "spec, names",
    [
        ({"a": "math.jsonl", "b": {"path": "code.jsonl", "split": "train[:2]"}}, ["a", "b"]),
        (["math.jsonl", {"path": "code.jsonl"}, "math.jsonl"], ["math", "code", "math-2"]),
    ],
)
def test_several_evaluation_sets_have_names(two_sets, monkeypatch, spec, names):
    from ft_host.data import sets_of

    monkeypatch.chdir(two_sets)
    source = open_eval(RunConfig(model="m", dataset="x", eval_dataset=spec))
    assert list(sets_of(source)) == names
    assert [part["name"] for part in source.describe()["sources"]] == names
    assert source.num_rows == sum(part.num_rows for part in sets_of(source).values())


def test_a_set_that_can_not_be_opened_is_named(two_sets):
    sets = {"a": str(two_sets / "math.jsonl"), "b": {"path": str(two_sets / "code.jsonl"), "split": "test"}}
    with pytest.raises(DataError, match=r"eval_dataset, b: .*code\.jsonl: no split test; there is train"):
        open_eval(RunConfig(model="m", dataset="x", eval_dataset=sets))


def test_one_evaluation_set_may_be_a_mapping(two_sets):
    from ft_host.data import sets_of

    spec = {"path": str(two_sets / "code.jsonl"), "split": "train[1:]", "columns": {"of": "kind"}}
    source = open_eval(RunConfig(model="m", dataset="x", eval_dataset=spec))
    assert list(sets_of(source)) == [""] and source.read(0) == {"text": "row 1", "kind": "code"}


def test_the_revision_of_a_data_set_reaches_the_hub_and_is_recorded(monkeypatch):
    import datasets

    asked = []

    def load_dataset(path, **arguments):
        asked.append((path, arguments.get("revision")))
        return datasets.Dataset.from_list(numbered(2))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda path, name, revision=None: ["train"])
    one = open_train(RunConfig(model="m", dataset="org/one", dataset_revision="v1"))
    assert one.describe()["revision"] == "v1"
    mix = open_train(RunConfig(model="m", dataset=[{"path": "org/two", "revision": "v2"}, {"path": "org/three"}]))
    assert [part.get("revision") for part in mix.describe()["sources"]] == ["v2", None]
    open_eval(RunConfig(model="m", dataset="org/one", eval_dataset={"a": {"path": "org/four", "revision": "v4"}}))
    assert asked == [("org/one", "v1"), ("org/two", "v2"), ("org/three", None), ("org/four", "v4")]
