"""Facts about data before a model is loaded, on rows with known answers and in a real small run."""

from __future__ import annotations

import dataclasses
import json

import pytest

from ft_host.errors import DataError
from ft_host.folder import RunFolder
from ft_host.launch import train


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def facts_of(finished):
    return RunFolder.open(finished.folder).manifest["facts"]


def test_a_clean_run_says_nothing(config):
    finished = train(dataclasses.replace(config, max_steps=1))
    found = facts_of(finished)
    assert found["data/rows"] == found["data/measured"] == 40
    assert found["data/eos_rows"] == 1
    assert found["data/unsupervised_rows"] == found["data/duplicate_rows"] == found["data/eval_overlap_rows"] == 0
    assert found["data/truncated_rows"] == found["data/prompt_mismatch_rows"] == 0
    assert found["plan/total_steps"] == 1 and found["plan/rows_per_step"] == 8
    assert not [each for each in finished.findings if each["code"].startswith(("DATA", "CFG"))]


def test_masked_rows_are_told_of_before_the_run_is_refused(config, tmp_path, capsys):
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [-100] * 4}] * 8
    broken = dataclasses.replace(config, dataset=write(tmp_path / "masked.jsonl", rows), progress="lines")
    with pytest.raises(DataError):
        train(broken)
    said = capsys.readouterr()
    assert "DATA001" in said.out + said.err


def test_cut_rows_copies_and_leaks_are_counted(config, tmp_path):
    rows = [{"prompt": f"what is {n % 10}?", "completion": f" it is {n % 10}" + " or so" * 40} for n in range(40)]
    path = write(tmp_path / "rows.jsonl", rows)
    finished = train(dataclasses.replace(config, max_steps=1, dataset=path, eval_dataset=path, max_length=64))
    found = facts_of(finished)
    assert found["data/duplicate_rows"] == 0.75
    assert found["data/eval_overlap_rows"] == found["data/eval_overlap_prompts"] == 1
    assert found["data/truncated_rows"] == 1 and found["data/length_p50"] > 64
    codes = {each["code"] for each in finished.findings}
    assert {"DATA005", "DATA007"} <= codes
