"""Where rows come from: files, saved folders, folders laid out as on the hub, and mixtures."""

import gzip
import json
import pickle
from collections import Counter

import pytest

from ft_host.config import RunConfig
from ft_host.data import open_eval, open_source, open_train
from ft_host.data.order import in_proportion, permutation
from ft_host.errors import DataError


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def numbered(count, **more):
    return [{"text": f"row {number}", "number": number, **more} for number in range(count)]


def everything(source):
    return [source.read(index) for index in range(source.num_rows)]


# ---------------------------------------------------------------- files


def test_json_lines_know_their_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\n   \n{"text": "z\xc3\xbcrich", "other": 1}\n{"text": "three"}')
    source = open_source(str(path))
    assert source.num_rows == 3
    assert everything(source) == [{"text": "one"}, {"text": "zürich", "other": 1}, {"text": "three"}]
    assert [source.where(index) for index in range(3)] == [f"{path}, line {line}" for line in (1, 4, 5)]
    assert source.columns == ["text"]
    streamed = list(open_source(str(path), streaming=True).stream())
    assert streamed == [(source.where(index), source.read(index)) for index in range(3)]


def test_a_bad_line_is_named_when_it_is_read_and_not_before(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": }\n["list"]\n{"text": "d"}\n')
    source = open_source(str(path))
    assert source.read(3) == {"text": "d"}
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: not JSON: Expecting value at column 10"):
        source.read(1)
    with pytest.raises(DataError, match=r"line 3: found list .*expected an object"):
        source.read(2)
    path.write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"line 2: not UTF-8 \(byte 0xe9 at position 14\)"):
        open_source(str(path)).read(1)


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.jsonl", b"", "a.jsonl: the file is empty"),
        ("a.jsonl", b"\n \n", "no rows, only blank lines"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16"), "UTF-16; save it as UTF-8"),
        ("a.json", b"[]", "found an empty list"),
        ("a.json", b'[{"a": 1},\n {"b": }]', "a.json, line 2: not JSON"),
        ("a.json", b'{\n "a": 1\n}', "found one dict, expected JSON lines"),
        ("a.csv", b"text\n", "no rows, only the names of columns"),
        ("a.csv", b"text,text\na,b\n", "line 1: several columns are named text"),
        ("a.csv", b'text,b\na,"b\n\nc', "line 2: the record that begins here has an unclosed quote"),
        ("a.txt", b"hello", "expected a file of rows"),
    ],
)
def test_files_that_are_refused(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        open_source(str(tmp_path / name))


def test_a_missing_file_names_the_nearest(tmp_path):
    write_lines(tmp_path / "train.jsonl", numbered(1))
    with pytest.raises(DataError, match=r"no such file.*train\.jsonl"):
        open_source(str(tmp_path / "trian.jsonl"))


def test_json_array_and_json_lines_with_the_wrong_ending(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(numbered(3), indent=1))
    source = open_source(str(tmp_path / "a.json"))
    assert everything(source) == numbered(3) and source.where(2).endswith("a.json, row 2")
    write_lines(tmp_path / "b.json", numbered(3))
    assert open_source(str(tmp_path / "b.json")).where(2).endswith("b.json, line 3")


def test_csv(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('prompt,completion\n"say ""hi"",\nplease",hi\n\nb,007\nc\n', encoding="utf-8")
    source = open_source(str(path))
    assert source.num_rows == 3
    assert source.read(0) == {"prompt": 'say "hi",\nplease', "completion": "hi"}
    assert source.read(1) == {"prompt": "b", "completion": "007"}, "text stays as it is written"
    assert source.where(1) == f"{path}, line 5"
    with pytest.raises(DataError, match="line 6: found 1 fields, expected 2: prompt, completion"):
        source.read(2)
    (tmp_path / "a.tsv").write_text("a\tb\n1\t2\n")
    assert open_source(str(tmp_path / "a.tsv")).read(0) == {"a": "1", "b": "2"}


def test_parquet_gzip_and_patterns(tmp_path):
    from datasets import Dataset

    Dataset.from_list(numbered(5)).to_parquet(tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    assert everything(source) == numbered(5)
    assert source.where(3).endswith("a.parquet (train), row 3")
    streamed = open_source(str(tmp_path / "a.parquet"), streaming=True)
    assert [row["number"] for _, row in streamed.stream(3)] == [3, 4] and streamed.num_rows is None
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n{"text": "b"}\n'))
    assert everything(open_source(str(tmp_path / "b.jsonl.gz"))) == [{"text": "a"}, {"text": "b"}]
    for part in range(3):
        write_lines(tmp_path / f"part-{part}.jsonl", numbered(2, part=part))
    joined = open_source(str(tmp_path / "part-*.jsonl"))
    assert [row["part"] for row in everything(joined)] == [0, 0, 1, 1, 2, 2]
    assert joined.where(3).endswith("part-1.jsonl, line 2")
    with pytest.raises(DataError, match="no file of rows matches"):
        open_source(str(tmp_path / "none-*.jsonl"))


def test_a_source_can_go_to_another_process(tmp_path):
    source = open_source(write_lines(tmp_path / "a.jsonl", numbered(3)))
    source.read(0)
    assert pickle.loads(pickle.dumps(source)).read(2) == source.read(2)


# ---------------------------------------------------------------- folders and splits


def test_folders_saved_by_datasets(tmp_path):
    from datasets import Dataset, DatasetDict

    one = Dataset.from_list(numbered(4))
    one.save_to_disk(tmp_path / "one")
    assert everything(open_source(str(tmp_path / "one"))) == numbered(4)
    DatasetDict(train=one, test=one.select([0])).save_to_disk(tmp_path / "two")
    assert open_source(str(tmp_path / "two"), split="test").num_rows == 1
    assert open_source(str(tmp_path / "two"), split="train[50%:]").read(0)["number"] == 2
    with pytest.raises(DataError, match="no split tset; did you mean test.; there is train, test"):
        open_source(str(tmp_path / "two"), split="tset")
    streamed = open_source(str(tmp_path / "two"), streaming=True)
    assert [row["number"] for _, row in streamed.stream(1)] == [1, 2, 3]
    (tmp_path / "two" / "train" / "state.json").write_text("{")
    with pytest.raises(DataError, match="saved by `datasets`, but can't be read"):
        open_source(str(tmp_path / "two"))


def test_a_folder_with_a_file_for_each_split(tmp_path):
    write_lines(tmp_path / "train-00.jsonl", numbered(3))
    write_lines(tmp_path / "train-01.jsonl", numbered(3))
    write_lines(tmp_path / "test.jsonl", numbered(1))
    assert open_source(str(tmp_path)).num_rows == 6
    assert open_source(str(tmp_path), split="test").where(0).endswith("test.jsonl, line 1")
    assert open_source(str(tmp_path), data_files="test.jsonl").num_rows == 1


def test_a_folder_laid_out_as_on_the_hub_goes_through_datasets(tmp_path, monkeypatch):
    from datasets import Dataset

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set" / "data").mkdir(parents=True)
    for split, count in (("train", 4), ("test", 2)):
        Dataset.from_list(numbered(count)).to_parquet(tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet")
    assert everything(open_source(str(tmp_path / "set"))) == numbered(4)
    assert open_source(str(tmp_path / "set"), split="test[:1]").num_rows == 1
    streamed = open_source(str(tmp_path / "set"), streaming=True)
    assert [(where[-5:], row["number"]) for where, row in streamed.stream(2)] == [("row 2", 2), ("row 3", 3)]
    with pytest.raises(DataError, match="no split tets; did you mean test"):
        open_source(str(tmp_path / "set"), split="tets")
    config = RunConfig(model="m", dataset="x", eval_dataset=str(tmp_path / "set"))
    with pytest.raises(DataError, match="has the splits train, test; set dataset_test_split"):
        open_eval(config)


@pytest.mark.parametrize(
    "split, numbers", [("train", range(10)), ("train[:30%]", range(3)), ("train[-2:]", (8, 9)), ("train[2:4]", (2, 3))]
)
def test_a_split_can_be_cut(tmp_path, split, numbers):
    source = open_source(write_lines(tmp_path / "a.jsonl", numbered(10)), split=split)
    assert [row["number"] for row in everything(source)] == list(numbers)


def test_splits_that_a_file_has_not(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", numbered(10))
    with pytest.raises(DataError, match="no split test; there is train"):
        open_source(path, split="test")
    with pytest.raises(DataError, match=r"train\[50:\] is empty; the whole has 10 rows"):
        open_source(path, split="train[50:]")
    with pytest.raises(DataError, match="can't read the split"):
        open_source(path, split="train[a:b]")


def test_what_the_hub_does_not_give_is_said(monkeypatch, tmp_path):
    import datasets

    def offline(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'nobody/nothing' on the Hub (OfflineModeIsEnabled)\nmore")

    monkeypatch.setattr(datasets, "load_dataset", offline)  # no network in tests
    with pytest.raises(
        DataError,
        match=r"nobody/nothing: there is no such file or folder, and it "
        r"could not be loaded from the Hugging Face hub: ConnectionError: Couldn't reach .*\)$",
    ):
        open_source("nobody/nothing")


# ---------------------------------------------------------------- columns, fingerprints


def test_columns_are_renamed(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"question": "a", "answer": "b"}])
    source = open_source(path, columns={"question": "prompt", "answer": "completion"})
    assert source.columns == ["prompt", "completion"] and source.read(0) == {"prompt": "a", "completion": "b"}
    with pytest.raises(DataError, match="no column quesiton; did you mean question"):
        open_source(path, columns={"quesiton": "prompt"})
    with pytest.raises(DataError, match="would have two columns answer"):
        open_source(path, columns={"question": "answer"})
    assert open_source(path, columns={"text": "answer"}).columns == ["question", "answer"], "done already"


def test_pictures_are_refused_by_name(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": "a", "images": ["a.png"]}])
    with pytest.raises(DataError, match="the column images holds images"):
        open_source(path)
    from datasets import Dataset, Features, Image, List, Value

    table = Dataset.from_dict(
        {"text": ["a"], "photo": [[]]}, features=Features({"text": Value("string"), "photo": List(Image())})
    )
    table.save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match="the column photo holds images"):
        open_source(str(tmp_path / "set"))


def test_fingerprints_tell_contents_apart(tmp_path):
    first = open_source(write_lines(tmp_path / "a.jsonl", numbered(10)))
    same = open_source(write_lines(tmp_path / "b.jsonl", numbered(10)))
    other = open_source(write_lines(tmp_path / "c.jsonl", [*numbered(9), {"text": "row x", "number": 9}]))
    cut = open_source(str(tmp_path / "a.jsonl"), split="train[:9]")
    assert first.fingerprint == same.fingerprint
    assert len({first.fingerprint, other.fingerprint, cut.fingerprint}) == 3
    big = [{"text": "x" * 1000} for _ in range(3000)]
    before = open_source(write_lines(tmp_path / "big.jsonl", big)).fingerprint
    big[-1] = {"text": "y" * 1000}
    assert open_source(write_lines(tmp_path / "big.jsonl", big)).fingerprint != before
    assert first.describe() == {
        "path": str(tmp_path / "a.jsonl"),
        "split": "train",
        "rows": 10,
        "fingerprint": first.fingerprint,
        "columns": ["text", "number"],
    }


# ---------------------------------------------------------------- order and mixtures


def test_a_permutation_is_one_and_depends_on_its_key():
    for size in (1, 2, 3, 64, 65, 1000, 4097):
        shuffle = permutation(size, 42, 0)
        assert sorted(shuffle(position) for position in range(size)) == list(range(size))
    orders = {tuple(permutation(50, seed, epoch)(i) for i in range(50)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100
    with pytest.raises(IndexError):
        permutation(3, 1)(3)


def test_a_permutation_shuffles_well():
    # Where row 0 goes is uniform over seeds: chi-square over 10 bins, 9 degrees of freedom, 0.1 % point 27.9.
    bins = Counter(permutation(1000, seed)(0) // 100 for seed in range(5000))
    assert sum((bins[each] - 500) ** 2 / 500 for each in range(10)) < 27.9
    # Neighbours don't stay neighbours, and order is not kept: about half of the pairs are in order.
    shuffle = permutation(10_000, 7)
    order = [shuffle(position) for position in range(10_000)]
    assert sum(abs(a - b) == 1 for a, b in zip(order, order[1:])) < 15
    assert 4700 < sum(a < b for a, b in zip(order, order[1:])) < 5300


def test_in_proportion_spreads_evenly():
    kinds = "".join("ab"[kind] for kind, _ in in_proportion([6, 2]))
    assert kinds.count("a") == 6 and kinds.count("b") == 2 and "bb" not in kinds and "aaaa" not in kinds


def mixture(tmp_path, weights, sizes=(20, 100), **fields):
    items = []
    for number, (weight, size) in enumerate(zip(weights, sizes)):
        path = write_lines(tmp_path / f"mix{number}.jsonl", numbered(size, source=number))
        items.append({"path": path} | ({"weight": weight} if weight is not None else {}))
    return RunConfig(model="m", dataset=items, **fields)


def test_a_mixture_has_the_longest_epoch_in_proportion_without_a_row_twice(tmp_path):
    source = open_train(mixture(tmp_path, (1, 3)))
    assert source.num_rows == 80, "20 of the first, which is all of it, and 60 of the second"
    epochs = []
    for epoch in range(2):
        order = source.order(1, epoch, True)
        rows = [source.read(order(position)) for position in range(source.num_rows)]
        assert Counter(row["source"] for row in rows) == {0: 20, 1: 60}
        assert len({(row["source"], row["number"]) for row in rows}) == 80
        assert Counter(row["source"] for row in rows[:40])[0] in range(4, 17), "mixed, not one after the other"
        epochs.append([(row["source"], row["number"]) for row in rows])
    assert epochs[0] != epochs[1]
    seen = {number for epoch in epochs for kind, number in epoch if kind == 1}
    assert len(seen) == 100, "the second source goes on where the first epoch left it"
    again = source.order(1, 0, True)
    assert [again(position) for position in range(5)] == [source.order(1, 0, True)(position) for position in range(5)]


def test_a_mixture_in_order_is_spread_evenly(tmp_path):
    source = open_train(mixture(tmp_path, (1, 3)))
    order = source.order(1, 0, False)
    rows = [source.read(order(position)) for position in range(source.num_rows)]
    for start in range(0, 80, 8):
        assert sum(row["source"] == 0 for row in rows[start : start + 8]) == 2
    assert [row["number"] for row in rows if row["source"] == 1] == list(range(60))


def test_without_weights_every_row_comes_once(tmp_path):
    source = open_train(mixture(tmp_path, (None, None)))
    order = source.order(1, 0, True)
    assert sorted(order(position) for position in range(120)) == list(range(120)) and source.num_rows == 120
    assert source.where(20).endswith("mix1.jsonl, line 1")
    described = source.describe()
    assert described["rows"] == 120 and len(described["sources"]) == 2


def test_streams_are_mixed_by_weight_and_can_be_skipped_into(tmp_path):
    source = open_train(mixture(tmp_path, (1, 3), dataset_streaming=True, max_steps=1))
    rows = [row for _, row in source.stream()]
    assert [row["source"] for row in rows[:8]].count(0) == 2
    assert 75 <= len(rows) <= 85, "it ends when the first source has"
    assert [row for _, row in source.stream(33)] == rows[33:]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"wieght": 1}, "unknown key wieght; did you mean weight"),
        ({"weight": 0}, "weight: found 0, expected a number above 0"),
        ({"weight": 1}, "has no weight; give all of them one, or none"),
        ({"path": None}, "has no path"),
    ],
)
def test_wrong_mixtures(tmp_path, change, said):
    config = mixture(tmp_path, (None, None))
    config.dataset[0] = {**config.dataset[0], **change}
    with pytest.raises(DataError, match=said):
        open_train(config)


def test_a_source_that_is_too_small_for_its_weight(tmp_path):
    with pytest.raises(DataError, match="with these weights an epoch has no row of"):
        open_train(mixture(tmp_path, (1, 1000), sizes=(5, 10)))


def test_evaluation_data(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", numbered(10))
    assert open_eval(RunConfig(model="m", dataset=path)) is None
    assert open_eval(RunConfig(model="m", dataset="x", eval_dataset=path)).num_rows == 10
    held = RunConfig(model="m", dataset=path, dataset_train_split="train[:80%]", dataset_test_split="train[80%:]")
    assert (open_train(held).num_rows, open_eval(held).num_rows) == (8, 2)
    mixed = mixture(tmp_path, (1, 3), dataset_test_split="train[:5]")
    assert open_eval(mixed).num_rows == 10
