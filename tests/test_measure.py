"""Facts about data before a model is loaded, on rows with known answers and in a real small run."""

from __future__ import annotations

import dataclasses
import json

import pytest

from ft_host.errors import DataError
from ft_host.rundir.folder import RunFolder
from ft_host.training.launch import train


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


def test_completions_that_are_only_an_end_token_are_counted(config, tmp_path):
    """A lone end token is a supervised row all the same."""
    rows = [
        {"prompt": f"what is {n}?", "completion": ["", "  ", f" it is {n}"][n % 3 if n < 12 else 2]} for n in range(40)
    ]
    finished = train(dataclasses.replace(config, max_steps=1, dataset=write(tmp_path / "rows.jsonl", rows)))
    found = facts_of(finished)
    assert found["data/unsupervised_rows"] == 0 and found["data/empty_completions"] == 8 / 40
    assert "DATA014" in {each["code"] for each in finished.findings}


def measured(config, method, rows):
    """Facts about `rows`, prepared and collated by a method."""
    import importlib
    from functools import partial

    from ft_host.data import Source, load_tokenizer
    from ft_host.data.load import open_train
    from ft_host.monitor.data_stats import data_facts

    hooks = importlib.import_module(f"ft_{method}.method")
    tokenizer, whole = load_tokenizer(config), dataclasses.replace(config, max_length=None)
    source = open_train(config)
    assert isinstance(source, Source) and source.num_rows == len(rows)
    prepare, uncut = (
        partial(lambda row, of: hooks.ft_prepare(row=row, tokenizer=tokenizer, config=of), of=each)
        for each in (config, whole)
    )
    return data_facts(source, None, prepare, uncut, hooks.ft_collate, tokenizer, config)


def test_pairs_of_a_preference_method(tiny, tmp_path):
    from ft_dpo.config import DPOConfig

    rows = [{"prompt": f"what is {n}?", "chosen": " it is so, and so on", "rejected": " no"} for n in range(9)]
    rows.append({"prompt": "what?", "chosen": " the same", "rejected": " the same"})
    config = DPOConfig(model=str(tiny / "model"), dataset=write(tmp_path / "pairs.jsonl", rows))
    found = measured(config, "dpo", rows)
    assert found["data/identical_pairs"] == found["data/dropped_rows"] == 0.1
    assert found["data/chosen_longer"] == 1 and found["data/length_ratio"] > 1.5
    assert found["data/eos_rows"] == 1


def test_labels_of_kto(tiny, tmp_path):
    from ft_kto.config import KTOConfig

    rows = [{"prompt": f"what is {n}?", "completion": " it is so", "label": n < 3} for n in range(10)]
    config = KTOConfig(model=str(tiny / "model"), dataset=write(tmp_path / "labels.jsonl", rows))
    found = measured(config, "kto", rows)
    assert (found["data/desirable"], found["data/undesirable"]) == (3, 7)


def test_rewards_are_tried_on_right_and_wrong_answers(tiny, tmp_path):
    from ft_grpo.config import GRPOConfig

    from ft_host.data import load_tokenizer, prompt_row
    from ft_host.data.load import open_train
    from ft_host.monitor.reward_check import check_rewards

    (tmp_path / "rewards.py").write_text(
        "def right(completions, completion, **columns):\n"
        "    return [float(a == b) for a, b in zip(completions, completion)]\n"
        "def constant(completions, **columns):\n    return [1.0] * len(completions)\n"
        "def broken(completions, **columns):\n    raise ValueError('no')\n"
        "def endless(completions, **columns):\n    return [float('nan')] * len(completions)\n"
    )
    rows = [{"prompt": f"what is {n}?", "completion": f" it is {n}"} for n in range(4)]
    names = ("right", "constant", "broken", "endless")
    config = GRPOConfig(
        model=str(tiny / "model"),
        dataset=write(tmp_path / "prompts.jsonl", rows),
        reward=[f"{tmp_path / 'rewards.py'}:{name}" for name in names],
    )
    tokenizer = load_tokenizer(config)
    found = check_rewards(config, open_train(config), lambda row: prompt_row(row, tokenizer, config))
    assert found["data/reward/right/spread"] == 1 and found["data/reward/right/failed"] == 0
    assert found["data/reward/constant/spread"] == 0
    assert found["data/reward/broken/failed"] == 1
    assert found["data/reward/endless/not_finite"] == 1 and found["data/reward/endless/failed"] == 0
