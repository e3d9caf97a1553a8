"""The arithmetic example: its rows, its tokenizer and model, its reward. That it trains is tested with the loop."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "examples" / "arithmetic"
TINY = ["--train-rows", "300", "--test-rows", "40", "--digits", "3", "--hidden-size", "32", "--layers", "1"]


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"arithmetic_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(folder: Path, name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "data" / f"{name}.jsonl").read_text().splitlines()]


def operands(rows: list[dict[str, str]]) -> list[tuple[int, int]]:
    return [tuple(int(number) for number in row["prompt"].removesuffix("=\n").split("+")) for row in rows]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    load("make").main(["--out", str(folder), *TINY])
    return folder


def test_test_rows_use_numbers_that_training_never_sees(made):
    train, test = operands(rows_of(made, "train")), operands(rows_of(made, "test"))
    assert len(train) == 300 and len(test) == 40
    assert len(set(train)) == 300 and len(set(test)) == 40
    assert not {number for pair in train for number in pair} & {number for pair in test for number in pair}
    assert {len(str(number)) for pair in train for number in pair} == {2, 3}


def test_every_step_of_every_row_is_true(made):
    for row in rows_of(made, "train") + rows_of(made, "test"):
        a, b = operands([row])[0]
        *steps, answer = row["completion"].split("\n")
        assert answer == row["answer"] == str(a + b)
        carry = 0
        for step, place in zip(steps, range(len(str(max(a, b)))), strict=True):
            summands, total = step.split("=")
            assert sum(map(int, summands.split("+"))) == int(total)
            assert int(total) == a // 10**place % 10 + b // 10**place % 10 + carry
            carry = int(total) // 10


def test_work_out_by_hand():
    work_out = load("make").work_out
    assert work_out(347, 85) == "7+5=12\n4+8+1=13\n3+1=4\n432"
    assert work_out(95, 10) == "5+0=5\n9+1=10\n105"
    assert work_out(12, 3456) == "2+6=8\n1+5=6\n4=4\n3=3\n3468"


def test_tokenizer_and_model_load_like_any_other(made):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made / "model")
    model = AutoModelForCausalLM.from_pretrained(made / "model")
    row = rows_of(made, "train")[0]
    text = row["prompt"] + row["completion"]
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)  # a token a character
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text
    assert tokenizer.unk_token_id not in ids
    assert len({tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}) == 3
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model(input_ids=torch.tensor([ids])).logits.shape == (1, len(ids), len(tokenizer))
    assert (
        max(len(r["prompt"] + r["completion"]) for r in rows_of(made, "train")) < model.config.max_position_embeddings
    )


def test_the_same_seed_makes_the_same_files_and_another_seed_others(made, tmp_path):
    def contents(folder: Path) -> dict[str, str]:
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}

    # in a process of its own, where the hashes of strings and the imports before it are others
    command = [sys.executable, str(FOLDER / "make.py"), "--out", str(tmp_path / "again"), *TINY]
    subprocess.run(command, check=True, capture_output=True)
    assert contents(tmp_path / "again") == contents(made)
    load("make").main(["--out", str(tmp_path / "other"), *TINY, "--seed", "1"])
    first, other = contents(made), contents(tmp_path / "other")
    changed = {name for name in first if first[name] != other[name]}
    assert {"data/train.jsonl", "data/test.jsonl", "model/model.safetensors"} <= changed


def test_more_rows_than_there_are_pairs_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="raise --digits"):
        load("make").main(["--out", str(tmp_path), "--digits", "2", "--train-rows", "5000"])
    assert not list(tmp_path.iterdir())


def test_exact_match():
    exact_match = load("rewards").exact_match
    completions = ["7+5=12\n4+8+1=13\n3+1=4\n432", "432", "7+5=12\n432\n", "433", "", "7+5=12\n0432"]
    assert exact_match(completions, answer=["432"] * 6) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_the_run_file_and_the_readme_fit_the_files(made, tmp_path, monkeypatch):
    from ft_sft.config import SFTConfig

    from ft_host.rewards import check_columns, load_rewards
    from ft_host.settings import resolve

    there = tmp_path / "examples" / "arithmetic"
    shutil.copytree(made, there)
    for name in ("run.yaml", "rewards.py"):
        shutil.copy(FOLDER / name, there)
    monkeypatch.chdir(tmp_path)
    config = resolve(SFTConfig, "examples/arithmetic/run.yaml", []).config
    assert {Path(path).resolve() for path in (config.model, config.dataset, config.eval_dataset)} == {
        there / "model", there / "data" / "train.jsonl", there / "data" / "test.jsonl",
    }  # fmt: skip
    (function,) = load_rewards(config)
    check_columns(function, rows_of(there, "test")[0])
    longest = max(len(row["completion"]) + 1 for row in map(load("make").row_of, [9999], [9999]))
    assert config.max_completion_length >= longest
    shown = json.loads(re.search(r"```json\n(.*?)\n```", (FOLDER / "README.md").read_text(), re.DOTALL)[1])
    assert shown == load("make").row_of(347, 85)
