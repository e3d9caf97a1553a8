"""`ft-host data`: rows as the model sees them, and counts."""

import json
import subprocess
import sys

import pytest

from ft_host.cli.data import painted, pieces, run
from ft_host.errors import DataError, UsageError
from ft_host.testing.models import tiny_tokenizer
from ft_host.testing.tokenizers import chat_tokenizer


@pytest.fixture
def config(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    rows = [{"prompt": f"What is {n} + {n}?", "completion": f"It is {n + n}."} for n in range(20)]
    rows[4]["prompt"] = "very " * 60
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text(
        f"method: sft\nmodel: {tmp_path / 'm'}\ndataset: {tmp_path / 'a.jsonl'}\nmax_length: 60\n"
        "train_sampling_strategy: sequential\n"
    )
    return str(tmp_path / "run.yaml")


def test_rows_and_counts(config, capsys):
    assert run(["sft", config, "--rows", "5", "--max-length=60"]) == 0
    said = capsys.readouterr().out
    assert "a.jsonl, line 1: " in said and "a.jsonl, line 4: " in said and "a.jsonl, line 6: " not in said
    prompt, completion = said.splitlines()[1].split("«")
    assert prompt.replace("|", "") == "What is 0 + 0?"
    assert completion.endswith("|<|end|>»") and completion.replace("|", "") == "It is 0.<end>»"
    assert "line 5: dropped: no supervised token within max_length" in said
    assert "the first 20 of 20 rows in the order of training" in said
    assert "dropped     5.0% of the rows\n    1 × no supervised token within max_length" in said
    assert "last supervised token: '<|end|>' in 100.0% of the rows" in said
    assert "truncated   0.0% of the rows (max_length 60)" in said


def test_the_method_may_be_named_by_the_file_and_the_counts_be_over_fewer_rows(config, capsys):
    assert run([config, "--rows=0", "--count", "7"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("the first 7 of 20 rows") and "training would refuse this" in said


def test_colour(config, capsys):
    assert run(["sft", config, "--rows=1", "--color"]) == 0
    said = capsys.readouterr().out
    assert "\x1b[32m" in said and "\x1b[92m" in said and "«" not in said
    assert run(["sft", config, "--rows=1"]) == 0
    assert "\x1b[" not in capsys.readouterr().out, "not a terminal"


def test_pieces_of_one_character_are_shown_together():
    tokenizer = chat_tokenizer()
    ids = tokenizer("a🙂é", add_special_tokens=False)["input_ids"]
    assert len(ids) > 3
    assert [text for text, _ in pieces(ids, ids, tokenizer)] == ["a", "🙂", "é"]
    half = [-100] * 2 + ids[2:]  # supervised from the middle of a character
    assert [supervised for _, supervised in pieces(ids, half, tokenizer)][0] is False
    plain = painted(ids, [-100] + ids[1:], tokenizer, color=False)
    assert plain == "a«🙂|é»"


def test_what_is_wrong_is_refused(config, tmp_path):
    for argv, said in (
        (["sft", config, "--rows", "x"], "--rows: found 'x', expected a number of rows"),
        (["sft", config, "--dry-run"], "takes neither --resume nor --dry-run"),
    ):
        with pytest.raises(UsageError, match=said):
            run(argv)
    (tmp_path / "a.jsonl").write_text('{"chosen": "a", "rejected": "b"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 1: found the columns chosen, rejected; they look like pref"):
        run(["sft", config])


def test_help_is_light():
    code = (
        "import sys; from ft_host.cli import main; assert main(['data', '--help']) == 0\n"
        "import ft_host.data\n"
        "heavy = {'torch', 'transformers', 'datasets', 'accelerate', 'peft'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert "usage: ft-host data METHOD" in out.stdout
