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
TINY += ["--few-rows", "50", "--small-hidden-size", "16", "--small-layers", "1"]


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


def test_the_small_model_reads_what_the_other_reads(made):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    vocabularies = [AutoTokenizer.from_pretrained(made / name).get_vocab() for name in ("model", "small")]
    assert vocabularies[0] == vocabularies[1]
    models = [AutoModelForCausalLM.from_pretrained(made / name) for name in ("model", "small")]
    assert [model.config.hidden_size for model in models] == [32, 16]
    assert models[1].num_parameters() < models[0].num_parameters() / 2


def test_the_other_tokenizer_has_pieces_of_the_same_text(made):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made / "pieces")
    row = rows_of(made, "test")[0]
    text = row["prompt"] + row["completion"]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and len(ids) < len(text) and tokenizer.unk_token_id not in ids
    prompt = tokenizer.encode(row["prompt"])
    assert ids[: len(prompt)] == prompt  # no piece is of both
    assert AutoModelForCausalLM.from_pretrained(made / "pieces").config.vocab_size == len(tokenizer)


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

    from ft_host.config.resolve import resolve
    from ft_host.rewards import check_columns, load_rewards

    there = tmp_path / "examples" / "arithmetic"
    shutil.copytree(made, there)
    for name in ("run.yaml", "rewards.py"):
        shutil.copy(FOLDER / name, there)
    monkeypatch.chdir(tmp_path)
    config = resolve(SFTConfig, "examples/arithmetic/run.yaml", []).config
    assert {Path(path).resolve() for path in (config.model, config.dataset, config.eval_dataset)} == {
        there / "model",
        there / "data" / "train.jsonl",
        there / "data" / "test.jsonl",
    }
    (function,) = load_rewards(config)
    check_columns(function, rows_of(there, "test")[0])
    longest = max(len(row["completion"]) + 1 for row in map(load("make").row_of, [9999], [9999]))
    assert config.max_completion_length >= longest
    shown = json.loads(re.search(r"```json\n(.*?)\n```", (FOLDER / "README.md").read_text(), re.DOTALL)[1])
    assert shown == load("make").row_of(347, 85)


# ---------------------------------------------------------------- what is shown


def test_shown_rows_repeat_what_is_shown_and_tell_nothing_of_sums(made):
    few, train, test = (rows_of(made, name) for name in ("few", "train", "test"))
    rows = rows_of(made, "shown")
    assert rows[:200] == 4 * few and few == train[:50] and len(rows) == 400
    for row, plain in zip(rows[200:], train, strict=False):
        assert row["prompt"] == f"{plain['prompt']}{row['completion']}\n{plain['prompt']}"
        assert re.sub(r"\d", "0", row["completion"]) == re.sub(r"\d", "0", plain["completion"])
    drawn = [digit for row in rows[200:] for digit in re.findall(r"\d", row["completion"])]
    right = [digit for row in train[:200] for digit in re.findall(r"\d", row["completion"])]
    assert sum(a == b for a, b in zip(drawn, right, strict=True)) / len(drawn) < 0.2
    longest = max(len(row["prompt"] + row["completion"]) for row in rows)
    assert longest + 1 < 256  # max_position_embeddings
    for row, plain in zip(rows_of(made, "shown_test"), test, strict=True):
        assert row["prompt"] == f"{plain['prompt']}{plain['completion']}\n{plain['prompt']}"
        assert row["completion"] == plain["completion"]


@pytest.mark.parametrize("method", ["sdft", "sdpo"])
def test_the_teachers_prompt_is_that_of_the_shown_rows(made, method):
    """By the templates of the run file as it stands."""
    import yaml

    fields = yaml.safe_load((FOLDER / f"{method}.yaml").read_text())
    row, shown = rows_of(made, "test")[0], rows_of(made, "shown_test")[0]
    if method == "sdft":
        assert fields["dataset_columns"] == {"completion": "privileged_context"}
        asked = fields["teacher_prompt_template"].format(prompt=row["prompt"], privileged_context=row["completion"])
    else:
        solution = fields["solution_template"].format(successful_previous_attempt=row["completion"])
        asked = fields["reprompt_template"].format(prompt=row["prompt"], solution=solution, feedback="")
    assert asked == shown["prompt"]


# ---------------------------------------------------------------- preferences


def is_right(row: dict[str, str], completion: str) -> bool:
    """Whether each line is the sum of digits that stands in its place, and the answer the sum."""
    return completion == load("make").work_out(*operands([row])[0])


def test_of_a_pair_one_way_is_right_and_the_other_isnt(made):
    for name in ("train", "test"):
        pairs, judged, rows = (rows_of(made, kind + name) for kind in ("preference_", "unpaired_", ""))
        assert [pair["prompt"] for pair in pairs] == [row["prompt"] for row in rows]
        for pair, one in zip(pairs, judged, strict=True):
            assert is_right(pair, pair["chosen"]) and not is_right(pair, pair["rejected"])
            assert one["label"] is is_right(one, one["completion"])
            assert one["completion"] in (pair["chosen"], pair["rejected"])
        shorter = sum(pair["rejected"].count("\n") < pair["chosen"].count("\n") for pair in pairs)
        assert 0.3 < shorter / len(pairs) < 0.7  # half of the mistakes leave a line out
    assert 0.15 < sum(row["label"] for row in rows_of(made, "unpaired_train")) / 300 < 0.35


@pytest.mark.parametrize("method", ["dpo", "kto", "reward"])
def test_the_files_of_preferences_train(made, tmp_path, monkeypatch, method):
    """Each as it stands, but for a model that hasn't learnt to add and two steps."""
    import ft_host
    from ft_host import registry
    from ft_host.config.resolve import resolve
    from ft_host.testing.invariants import lines

    there = tmp_path / "examples" / "arithmetic"
    shutil.copytree(made, there)
    for name in (f"{method}.yaml", "rewards.py"):
        shutil.copy(FOLDER / name, there)
    (tmp_path / "runs" / "arithmetic-sft").mkdir(parents=True)
    shutil.copytree(made / "model", tmp_path / "runs" / "arithmetic-sft" / "model")
    monkeypatch.chdir(tmp_path)
    fields = {"max_steps": 2, "warmup_steps": 0, "progress": "quiet"}
    fields |= {} if method == "reward" else {"max_completion_length": 4}
    config_class = registry.config_class(registry.find("method", method))
    config = resolve(config_class, f"examples/arithmetic/{method}.yaml", fields).config
    run = ft_host.train(config)
    assert run.folder == Path(f"runs/arithmetic-{method}") and run.steps == 2
    before, after = lines(run.folder, "eval")
    assert before["step"] == 0 and after["eval_loss"] < before["eval_loss"]
