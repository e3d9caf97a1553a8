"""`ft-host data`: rows as the model sees them, and counts."""

import json
import re
import subprocess
import sys

import pytest

from ft_host import registry
from ft_host.cli.data import run
from ft_host.cli.paint import painted, pieces, side_by_side, wrapped
from ft_host.errors import ConfigError, DataError, UsageError
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
        (["sft", config, "--dry-run"], "takes none of --resume, --replay and --dry-run"),
        (["sft", config, "--allow-changed", "model"], "doesn't take --allow-changed"),
    ):
        with pytest.raises(UsageError, match=said):
            run(argv)
    (tmp_path / "other.yaml").write_text("method: dpo\n")
    with pytest.raises(ConfigError, match="other.yaml:1: method: the file is for dpo, the command line says sft"):
        run(["sft", str(tmp_path / "other.yaml"), "--model", "m", "--dataset", "d"])
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


# ---------------------------------------------------------------- preference rows

# A method as packages are, in a file: what is learnt is read off its batches.
METHOD = """
from ft_host import hookimpl
from ft_host.batch import Batch, IGNORE, Segment, flat_batch
from ft_host.config import RunConfig as Config
from ft_host.data import fit_length, preference_row, tokenize_completions, unpaired_rows
from ft_host.run import Drop, ModelSpec

NAMES = {names}

@hookimpl
def ft_models(config):
    return {models}

@hookimpl
def ft_prepare(row, tokenizer, config):
    return [prepared(each, tokenizer, config) for each in {rows}]

def prepared(found, tokenizer, config):
    prompt, completions = tokenize_completions(found, tokenizer, NAMES)
    prompt, completions, cut = fit_length(prompt, completions, config)
    made = {{name + "_ids": ids for name, ids in zip(NAMES, completions)}}
    kept = {{name: found[name] for name in ("label", "margin", "implicit_prompt") if name in found}}
    return made | kept | {{
        "prompt_ids": prompt, "length": len(prompt) + sum(map(len, completions)), "truncated": bool(cut),
        "cut": {{part if part == "prompt" else NAMES[part]: count for part, count in cut.items()}},
    }}

@hookimpl
def ft_collate(rows, tokenizer, config) -> Batch:
    segments, row = [], rows[0]
    prompt = [Segment(input_ids=row["prompt_ids"], labels=[IGNORE] * len(row["prompt_ids"]), row=0)]
    segments += prompt if row["prompt_ids"] else []
    parent = 0 if segments else None
    for number, name in enumerate(NAMES):
        ids = row[name + "_ids"]
        labels = [IGNORE] * len(ids) if {scored} else ids
        segments.append(Segment(input_ids=ids, labels=labels, row=number, parent=parent))
    return flat_batch(segments, num_rows=len(NAMES))

@hookimpl
def ft_loss(model, batch, run): ...
"""
PAIR_METHOD = {
    "names": ("chosen", "rejected"),
    "models": {},
    "rows": "[preference_row(row, tokenizer)]",
    "scored": False,
}
JUDGED_METHOD = {"names": ("completion",), "models": None, "rows": "unpaired_rows(row, tokenizer)", "scored": False}
SCORED_METHOD = PAIR_METHOD | {"models": '{"policy": ModelSpec(head="reward")}', "scored": True}


@pytest.fixture
def shown(tmp_path, capsys, monkeypatch):
    """What `ft-host data` says of rows with a method, in a terminal of so many columns."""
    chat_tokenizer().save_pretrained(tmp_path / "m")
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(name, method, rows, *flags, columns=100):
        monkeypatch.setenv("COLUMNS", str(columns))
        (tmp_path / f"{name}.py").write_text(METHOD.format(**method))
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert (
            run(
                [
                    str(tmp_path / f"{name}.py"),
                    "--model",
                    str(tmp_path / "m"),
                    "--dataset",
                    str(tmp_path / "a.jsonl"),
                    "--train-sampling-strategy",
                    "sequential",
                    *flags,
                ]
            )
            == 0
        )
        sys.modules.pop(name)
        registry.plugins_named.cache_clear()
        return capsys.readouterr().out

    return call


ROWS = [
    {"prompt": "The quick", "chosen": " brown fox jumps over the lazy dog." * 2 + " 漢字 🙂", "rejected": " dog\nfox"},
    {"chosen": "It is 42", "rejected": "It is 12"},
    {"prompt": "a", "chosen": "b", "rejected": "The dog and the fox"},
]


def size(text):
    return len(chat_tokenizer()(text)["input_ids"])


def test_pairs_side_by_side(shown):
    said = shown("pairs_method", PAIR_METHOD, ROWS, "--max-length=60", "--rows=2")
    lines = said.splitlines()
    prompt, chosen, rejected = size("The quick"), size(ROWS[0]["chosen"] + "</s>"), size(" dog\nfox</s>")
    total = prompt + chosen + rejected
    assert lines[0].endswith(f"a.jsonl, line 1: {total} tokens (prompt {prompt}, chosen {chosen}, rejected {rejected})")
    assert lines[1].replace("|", "") == "The quick"
    table = lines[2 : lines.index("")]
    left, right = zip(*(line.split(" │", 1) for line in table))
    assert {len(line) for line in left if line.isascii()} == {48}, "columns are of one width"
    assert left[0].strip() == f"chosen, {chosen} tokens" and right[0].strip() == f"rejected, {rejected} tokens"
    text = "".join(left[1:]).replace("|", "").replace(" ", "")
    assert text == f"«{ROWS[0]['chosen']}</s>»".replace(" ", "")
    assert right[1].strip().replace("|", "") == "« dog⏎" and right[2].strip().replace("|", "") == "fox</s>»"
    assert "line 2: " in said and "; the prompt is the common start of both" in said


def test_narrow_terminals_and_colour(shown):
    said = shown("narrow_method", PAIR_METHOD, ROWS[:1], "--rows=1", columns=79)
    assert "│" not in said
    lines = said.splitlines()
    assert lines[2].startswith("chosen, ") and lines[3].startswith("« b")
    assert lines[4].startswith("rejected, ") and lines[5].replace("|", "") == "« dog⏎"
    said = shown("colour_method", PAIR_METHOD, ROWS[:1], "--rows=1", "--color")
    assert "\x1b[32m" in said and "«" not in said
    plain = re.sub(r"\x1b\[\d+m", "", said).splitlines()
    assert plain[1] == "The quick" and plain[3].startswith(" brown fox jumps")
    assert {line.index("│") for line in plain if "│" in line and line.isascii()} <= {49}


def test_what_is_cut_and_counted_of_pairs(shown):
    said = shown("cut_method", PAIR_METHOD, ROWS, "--max-length=20", "--rows=1")
    whole = size("The quick" + ROWS[0]["chosen"] + "</s>")
    assert f"; {whole - 20} tokens of chosen cut at max_length" in said.splitlines()[0]
    assert f"truncated   33.3% of the rows (max_length 20)\n    1 × chosen ({whole - 20} tokens)" in said
    assert "in 33.3% of the pairs\n  prompt      found as the common start of both in 33.3% of the pairs" in said
    chosen = 20 - size("The quick") + size(" 42</s>") + size("b</s>")
    rejected = size(" dog\nfox</s>") + size(" 12</s>") + size("The dog and the fox</s>")
    assert (
        f"length      chosen {chosen / 3:.1f} tokens on average, rejected {rejected / 3:.1f}; chosen is longer" in said
    )
    assert "last supervised token: '</s>' in 83.3% of the completions" in said
    said = shown("ends_method", PAIR_METHOD, ROWS[:1], "--truncation-mode=keep_end", f"--max-length={whole - 1}")
    assert "; 1 token of prompt cut at max_length" in said and "    1 × prompt (1 token)" in said


def test_judged_completions_with_their_label(shown):
    rows = [{"prompt": "The quick", "completion": " fox", "label": True}, *ROWS[1:]]
    said = shown("judged_method", JUDGED_METHOD, rows, "--rows=2")
    lines = said.splitlines()
    assert lines[0].endswith("), label true") and lines[1].replace("|", "") == "The quick"
    assert re.fullmatch(r"completion, label true, \d+ tokens", lines[2])
    assert lines[3].replace("|", "") == "« fox</s>»"
    assert said.count("line 2: ") == 2 and "completion, label false" in said, "a pair is two rows"
    assert "labels      true 60.0%, false 40.0% of the rows" in said
    assert "last supervised token: '</s>' in 100.0% of the rows" in said


def test_where_a_score_is_read(shown):
    row = {"prompt": "The quick", "chosen": " fox", "rejected": " dog", "margin": 0.5}
    said = shown("scored_method", SCORED_METHOD, [row], "--rows=1")
    lines = said.splitlines()
    assert lines[0].endswith(", margin 0.5; the score is read at the marked token")
    marked = [re.findall("«(.*?)»", side) for side in lines[3].split("│")]
    assert marked == [["</s>"], ["</s>"]]
    assert "supervised" not in said
    assert "token at which the score is read: '</s>' in 100.0% of the completions" in said


def test_without_a_prompt_the_first_token_is_predicted_from_nothing(shown):
    said = shown("bare_method", PAIR_METHOD, [{"prompt": "", "chosen": "ab", "rejected": "cd"}], "--rows=1")
    lines = said.splitlines()
    assert "(prompt 0, " in lines[0] and lines[1].startswith("chosen, ")
    assert lines[2].startswith("a«b|</s>»") and lines[2].endswith("c«d|</s>»")


def test_columns_of_any_name_and_a_supervised_prompt(tmp_path, capsys, monkeypatch):
    """ORPO's: the prompt is learnt from too, as a row of its own, and the columns are called otherwise."""
    chat_tokenizer().save_pretrained(tmp_path / "m")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "100")
    source = METHOD.format(**PAIR_METHOD)
    source = source.replace('"prompt_ids"', '"p"').replace('name + "_ids"', "name[0]")
    source = source.replace('[IGNORE] * len(row["p"]), row=0', 'row["p"], row=2').replace("len(NAMES))", "3)")
    (tmp_path / "orpo_method.py").write_text(source)
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    given = {"model": tmp_path / "m", "dataset": tmp_path / "a.jsonl", "rows": "1"}
    assert run([str(tmp_path / "orpo_method.py"), *(f"--{name}={value}" for name, value in given.items())]) == 0
    sys.modules.pop("orpo_method")
    registry.plugins_named.cache_clear()
    said = capsys.readouterr().out
    prompt, chosen, rejected = size(ROWS[0]["prompt"]), size(ROWS[0]["chosen"] + "</s>"), size(" dog\nfox</s>")
    lines = said.splitlines()
    assert lines[0].endswith(f"(p {prompt}, c {chosen}, r {rejected})")
    assert lines[1].replace("|", "") == "T«he quick»" or lines[1].startswith("The«"), "but for the first token"
    assert lines[2].startswith(f"c, {chosen} tokens") and "«" in lines[3]
    learnt = prompt - 1 + chosen + rejected
    assert f"supervised  {learnt / (prompt + chosen + rejected):.1%} of the tokens" in said


# ---------------------------------------------------------------- prompts

PROMPT_METHOD = """
from dataclasses import dataclass

from ft_host import hookimpl
from ft_host.batch import Batch
from ft_host.data.prompts import prompt_row
from ft_host.config.rollout import RolloutConfig, RolloutPlan

@dataclass(kw_only=True)
class Config(RolloutConfig):
    def rollout_plan(self, processes):
        return RolloutPlan(prompts=1, generations=1, steps=1, passes=1)

@hookimpl
def ft_prepare(row, tokenizer, config):
    return prompt_row(row, tokenizer, config)

@hookimpl
def ft_rollout(rows, rollout): ...

@hookimpl
def ft_collate(rows, tokenizer, config) -> Batch: ...

@hookimpl
def ft_loss(model, batch, run): ...
"""


def test_prompts_with_the_columns_that_rewards_get(tmp_path, capsys, monkeypatch):
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %} is{% endif %}"
    chat_tokenizer(template).save_pretrained(tmp_path / "m")
    monkeypatch.setattr(sys, "path", list(sys.path))
    rows = [
        {"prompt": "The quick\n", "answer": "fox\n🙂", "tests": list(range(100)), "level": None},
        {"prompt": "a"},
        {"prompt": "The dog " * 40, "answer": "too long"},
        {"prompt": [{"role": "user", "content": "Who?"}], "answer": "me"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "prompt_method.py").write_text(PROMPT_METHOD)
    (tmp_path / "rewards.py").write_text("def right(completions, answer): return [0.0 for _ in completions]\n")
    assert (
        run(
            [
                str(tmp_path / "prompt_method.py"),
                "--model",
                str(tmp_path / "m"),
                "--dataset",
                str(tmp_path / "a.jsonl"),
                "--reward",
                str(tmp_path / "rewards.py:right"),
                "--train-sampling-strategy",
                "sequential",
                "--max-length=60",
                "--rows=4",
            ]
        )
        == 0
    )
    sys.modules.pop("prompt_method")
    registry.plugins_named.cache_clear()
    said = capsys.readouterr().out
    one, two, long, chat, counts = said.split("\n\n")
    head, prompt, *columns = one.splitlines()
    assert head.endswith(f"line 1: {size(rows[0]['prompt'])} tokens") and two.splitlines()[0].endswith(
        "line 2: 1 token"
    )
    assert prompt.replace("|", "") == "The quick⏎" and "«" not in prompt, "nothing of it is supervised"
    numbers = json.dumps(rows[0]["tests"])
    assert columns == [
        "for rewards:",
        '  answer: "fox\\n🙂"',
        f"  tests: {numbers[:100]} … ({len(numbers)} characters)",
        "  level: null",
    ]
    assert len(two.splitlines()) == 2, "a row that is a prompt alone"
    assert long.endswith("line 3: dropped: the prompt is longer than max_length")
    assert chat.splitlines()[1].replace("|", "") == "Who? is" and '  answer: "me"' in chat and "prompt:" not in chat
    assert "supervised" not in said and "truncated" not in said and "cut" not in said
    assert "; a prompt has " in counts
    assert "  dropped     25.0% of the rows (max_length 60)\n    1 × the prompt is longer than max_length" in counts


def test_columns_count_cells_not_characters():
    lines = wrapped([("漢字漢", None), ("e\u0301a\n", 32), ("b", None)], 5)
    assert lines == [("漢字", 4), ("漢\x1b[32me\u0301a\x1b[0m", 4), ("b", 1)]
    assert side_by_side([("漢字", None)], [("ab\nc", None)], 13) == "漢字  │ ab\n      │ c"
