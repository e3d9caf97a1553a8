"""Several evaluation sets: each has its metrics, under transformers' names; the plain names are means over the sets."""

import dataclasses
import json

import pytest

from ft_host import train
from ft_host.data import load_tokenizer


@pytest.fixture
def two_sets(config, tiny, tmp_path):
    first, rest = (tiny / "test.jsonl").read_text().splitlines()[:1], (tiny / "test.jsonl").read_text().splitlines()[1:]
    for name, lines in (("one", first), ("rest", rest)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "rewards.py").write_text(
        "def size(completions, **columns):\n    return [float(len(c)) for c in completions]\n"
    )
    sets = {"one": str(tmp_path / "one.jsonl"), "rest": {"path": str(tmp_path / "rest.jsonl")}}
    return dataclasses.replace(
        config,
        eval_dataset=sets,
        eval_reward=[f"{tmp_path}/rewards.py:size"],
        max_completion_length=4,
        max_steps=1,
        save_steps=0,
    )


def test_each_set_has_its_metrics_and_the_plain_ones_are_means(two_sets, config, tmp_path):
    folder = train(two_sets).folder
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if line["kind"] == "eval"]
    assert [line["step"] for line in found] == [0, 1]
    for line in found:
        for metric in ("loss", "mean_token_accuracy", "reward", "rewards/size/mean", "completions/mean_length"):
            one, rest = line[f"eval_one_{metric}"], line[f"eval_rest_{metric}"]
            assert line[f"eval_{metric}"] == pytest.approx((one + rest) / 2)
        assert line["eval_one_loss"] != line["eval_rest_loss"]
    alone = dataclasses.replace(
        two_sets, eval_dataset=two_sets.eval_dataset["one"], eval_reward=[], output_dir=str(tmp_path / "alone")
    )
    lines = [json.loads(line) for line in (train(alone).folder / "metrics.jsonl").read_text().splitlines()]
    by_itself = [line for line in lines if line["kind"] == "eval"]
    assert [line["eval_loss"] for line in by_itself] == [line["eval_one_loss"] for line in found]
    assert not [name for name in by_itself[0] if name.startswith("eval_one")]
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [sample["set"] for sample in samples] == (["one"] + ["rest"] * 5) * 2
    recorded = json.loads((folder / "run.json").read_text())["data"]["eval"]
    assert [(part["name"], part["rows"]) for part in recorded["sources"]] == [("one", 1), ("rest", 5)]


def test_names_of_sets_in_reports():
    from ft_host.rundir.format import better, plain_name, title

    assert title("eval_math_loss") == ("Held-out loss of math", "per supervised token")
    assert title("eval_a_b_completions/clipped_ratio")[0] == "Held-out completions cut short of a_b"
    assert plain_name("eval_math_loss", ["eval_loss"]) == "eval_loss"
    assert (
        plain_name("eval_loss", ["eval_loss", "eval_math_loss"]) is None and plain_name("loss", ["eval_loss"]) is None
    )
    assert better("eval_math_loss") == better("eval_loss") < 0 < better("eval_math_reward")


def test_data_shows_each_set(two_sets, capsys):
    from ft_host.cli import data

    assert load_tokenizer(two_sets)
    spec = json.dumps(two_sets.eval_dataset)
    data.run(["sft", "--model", two_sets.model, "--dataset", two_sets.dataset, "--eval-dataset", spec, "--rows", "1"])
    shown = capsys.readouterr().out
    assert "evaluation (one): 1 rows of " in shown and "evaluation (rest): 5 rows of " in shown
