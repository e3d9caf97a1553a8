"""From raw rows to batches: what is taken apart, cut, left out and refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from ft_kto.config import KTOConfig
from ft_kto.method import ft_collate, ft_prepare

from ft_host.api import IGNORE, ConfigError, DataError, Drop, RowError
from ft_host.testing import RunFolder, lines, run_in, save_tiny, tiny_llama, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
JUDGED = {"prompt": "two apples? ", "completion": "three apples", "label": True}


def prepare(row, **fields):
    return ft_prepare(row, TOKENIZER, KTOConfig(**fields))


def test_a_judged_completion():
    [row] = prepare(JUDGED)
    assert TOKENIZER.decode(row["prompt_ids"] + row["completion_ids"]) == "two apples? three apples<|end|>"
    assert TOKENIZER.decode(row["prompt_ids"]).startswith("two apples?")
    assert row["label"] is True and row["truncated"] is False and row["cut"] == {}
    assert row["length"] == len(row["prompt_ids"]) + len(row["completion_ids"])


def test_a_pair_is_two_rows():
    good, bad = prepare({"prompt": "two apples? ", "chosen": "three", "rejected": "a fox"})
    assert (good["label"], bad["label"]) == (True, False)
    assert TOKENIZER.decode(good["completion_ids"]).strip() == "three<|end|>"
    assert TOKENIZER.decode(bad["completion_ids"]).strip() == "a fox<|end|>"


def test_a_pair_without_a_prompt_column():
    good, bad = prepare({"chosen": "two apples? three", "rejected": "two apples? a fox"})
    assert good["prompt_ids"] == bad["prompt_ids"] and good["completion_ids"] != bad["completion_ids"]


def test_a_judged_turn():
    [row] = prepare(
        {
            "prompt": [{"role": "user", "content": "a fox"}],
            "completion": [{"role": "assistant", "content": "no"}],
            "label": False,
        }
    )
    assert TOKENIZER.decode(row["prompt_ids"]) == "<|user|>a fox<|end|><|assistant|>"
    assert TOKENIZER.decode(row["completion_ids"]) == "no<|end|>"
    assert row["label"] is False


def test_given_tokens():
    [row] = prepare({"prompt_ids": [5, 6], "completion_ids": [7], "label": False})
    assert (row["prompt_ids"], row["completion_ids"], row["label"]) == ([5, 6], [7], False)


@pytest.mark.parametrize("label", [1, 0, "true", None, 1.0])
def test_labels_that_are_not_boolean_are_refused(label):
    with pytest.raises(RowError, match="label") as refused:
        prepare(JUDGED | {"label": label})
    assert refused.value.column == "label"


def test_a_row_without_a_label_is_refused():
    with pytest.raises(RowError):
        prepare({"prompt": "two apples? ", "completion": "three"})


@pytest.mark.parametrize("completion", ["", "  "])
def test_empty_completions_are_left_out(completion):
    assert prepare(JUDGED | {"completion": completion}) == Drop("empty completion")
    assert prepare({"prompt_ids": [5], "completion_ids": [], "label": True}) == Drop("empty completion")


def test_a_pair_goes_as_a_whole():
    assert prepare({"prompt": "two", "chosen": "three", "rejected": ""}) == Drop("empty completion")
    same = prepare({"prompt": "two", "chosen": "three", "rejected": "three"})
    assert same == Drop("chosen and rejected are the same")


def test_one_token_that_nothing_predicts():
    row = {"prompt_ids": [], "completion_ids": [7], "label": True}
    assert prepare(row) == Drop("a completion of one token without a prompt, which nothing predicts")
    assert prepare(row | {"completion_ids": [7, 8]})[0]["length"] == 2


def test_long_rows():
    ids = {"prompt_ids": [5, 6, 7, 8], "completion_ids": [9, 10, 11], "label": True}
    [row] = prepare(ids, max_length=5)
    assert (row["completion_ids"], row["truncated"], row["cut"]) == ([9], True, {"completion": 2})
    assert row["uncut_ids"] == [9, 10, 11], "which is paired with other prompts"
    [row] = prepare(ids, max_length=5, truncation_mode="keep_end")
    assert (row["prompt_ids"], row["completion_ids"], row["cut"]) == ([7, 8], [9, 10, 11], {"prompt": 2})
    assert "uncut_ids" not in row
    assert isinstance(prepare(ids, max_length=4), Drop)


def test_a_batch():
    rows = [
        {"prompt_ids": [5, 6], "completion_ids": [7, 8], "label": True, "length": 4},
        {"prompt_ids": [], "completion_ids": [9, 10], "label": False, "length": 2},
    ]
    batch = ft_collate(rows, TOKENIZER, KTOConfig())
    assert batch.counts == {"rows": 2, "desirable": 1, "undesirable": 1, "tokens": 3}
    assert batch.targets.tolist() == [7, 8, 10] and batch.rows.tolist() == [0, 0, 1] and IGNORE not in batch.targets
    assert list(batch.columns) == ["labels"]
    made = ft_collate([row | {"ref_logps": -2.5, "kl": 0.5} for row in rows], TOKENIZER, KTOConfig())
    assert made.columns["ref_logps"].tolist() == [-2.5, -2.5] and made.columns["kl"].tolist() == [0.5, 0.5]
    empty = ft_collate([], TOKENIZER, KTOConfig())
    assert empty.counts == {"rows": 0, "desirable": 0, "undesirable": 0, "tokens": 0}
    assert {name: column.shape[0] for name, column in empty.columns.items()} == {"labels": 0, "ref_logps": 0, "kl": 0}


def test_what_is_left_out_is_counted(make, judged):
    rows = [row | ({"completion": ""} if index % 4 == 1 else {}) for index, row in enumerate(judged)]
    config = make(rows, max_dropped_share=0.5, max_length=45)
    folder = run_in(config, "ours")
    assert len(lines(folder)) == 5
    said = " ".join(each["text"] for each in RunFolder(folder).read("events.jsonl"))
    assert "5 rows were left out: empty completion" in said, said
    with pytest.raises(DataError, match="empty completion"):
        run_in(make(rows), "refused")


def test_a_bad_label_is_named_by_its_line(make, judged):
    rows = [dict(row) for row in judged]
    rows[2]["label"] = "good"
    with pytest.raises(DataError, match=r"rows\.jsonl, line 3: .*label"):
        run_in(make(rows), "refused")


def test_a_reference_with_another_vocabulary_is_refused(make, judged, tmp_path):
    other = save_tiny(tmp_path / "other", tiny_llama(vocab_size=200), tiny_tokenizer(200))
    with pytest.raises((ConfigError, DataError), match="vocabulary"):
        run_in(make(judged, ref_model=str(other)), "refused")
    assert not list(Path(tmp_path / "runs").glob("refused/model"))


def test_preference_rows_of_a_file(make, pairs):
    """A raw row fills a slot of the step, and gives two rows of it."""
    folder = run_in(make(pairs, max_steps=2, per_device_train_batch_size=3), "ours")
    for line in lines(folder):
        assert line["rewards/margins"] == pytest.approx(line["rewards/chosen"] - line["rewards/rejected"], abs=1e-6)
    tokens = [prepare(row) for row in pairs[:3]]
    assert lines(folder)[0]["num_tokens"] == sum(row["length"] for rows in tokens for row in rows)
