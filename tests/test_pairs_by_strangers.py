"""Methods for pairs that someone writes against `ft_host.api` alone, in one file: they train, their loss is the
paper's, and the traps of pairs (no prompt, identical completions) are the host's business."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path

import pytest
import torch

import ft_host
from ft_host import registry
from ft_host.api import Drop, pair_batch, pair_means, pair_row, pair_sums, sum_by_row
from ft_host.testing.models import save_tiny, tiny_tokenizer

METHODS = Path(__file__).parent / "strangers"
PAIRS = [
    {"prompt": "what is 1 plus 2?", "chosen": " it is 3", "rejected": " it is 4, I think"},
    {"prompt": "what is 2 plus 2?", "chosen": " it is 4", "rejected": " no"},
    {"chosen": "three apples are left", "rejected": "10+1=2"},  # which begin with nothing in common
    {"prompt": "question:", "chosen": " the lazy dog", "rejected": " the quick brown fox"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "policy")


@pytest.fixture
def train(model, tmp_path):
    """Two steps of the file `name`; the first step's metrics."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))

    def trained(name: str, **fields) -> dict:
        usual = {
            "model": str(model),
            "dataset": str(tmp_path / "rows.jsonl"),
            "output_dir": str(tmp_path / f"run{len(list(tmp_path.iterdir()))}"),
            "use_cpu": True,
            "max_steps": 2,
            "save_steps": 0,
            "per_device_train_batch_size": 4,
            "train_sampling_strategy": "sequential",
            "eval_on_start": False,
            "progress": "quiet",
        }
        run = ft_host.train(registry.config_class(str(METHODS / f"{name}.py"))(**(usual | fields)))
        entries = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        steps = [entry for entry in entries if entry["kind"] == "train"]
        assert [step["step"] for step in steps] == [1, 2] and steps[1]["grad_norm"] > 0
        return steps[0]

    return trained


def log_probs(folder: Path, ids: list[int]) -> list[float]:
    """Of each token but the first, by the whole logits of one sequence."""
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([ids])).logits[0]
    return logits[:-1].log_softmax(-1)[range(len(ids) - 1), ids[1:]].tolist()


def by_hand(folder: Path) -> list[tuple[list[float], list[float], list[float]]]:
    """Of each pair: log-probs of the prompt's tokens, of the chosen and of the rejected completion's."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for row in PAIRS:
        prompt = tokenizer(row["prompt"])["input_ids"] if "prompt" in row else []
        values = [
            log_probs(folder, prompt + tokenizer(row[name])["input_ids"] + [tokenizer.eos_token_id])
            for name in ("chosen", "rejected")
        ]
        begin = max(len(prompt) - 1, 0)
        found.append((values[0][:begin], values[0][begin:], values[1][begin:]))
    return found


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_simpo_is_a_file_of_25_lines_that_trains(train, model):
    margins = [mean(chosen) - mean(rejected) for _, chosen, rejected in by_hand(model)]
    step = train("simpo")
    assert step["loss"] == pytest.approx(mean([math.log1p(math.exp(1.0 - 2.0 * each)) for each in margins]), rel=1e-5)
    assert step["rewards/accuracies"] == mean([float(each > 0) for each in margins])
    tree = ast.parse((METHODS / "simpo.py").read_text())
    lines = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    assert len(lines) <= 25
    hosts = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) if "ft_host" in node.module}
    assert hosts == {"ft_host.api"}


def test_orpo_learns_from_targets_of_two_kinds(train, model):
    def log_odds(logps: list[float]) -> float:
        return mean(logps) - math.log1p(-math.exp(mean(logps)))

    pairs = by_hand(model)
    learnt = [value for prompt, chosen, _ in pairs for value in prompt + chosen]
    odds = [log_odds(rejected) - log_odds(chosen) for _, chosen, rejected in pairs]
    step = train("orpo")
    nll, ratio = -mean(learnt), mean([math.log1p(math.exp(each)) for each in odds])
    assert step["loss"] == pytest.approx(nll + 0.1 * ratio, rel=1e-5)
    assert (step["loss/learnt"], step["loss/pairs"]) == pytest.approx((nll, 0.1 * ratio), rel=1e-5)


@pytest.mark.parametrize("name", ["simpo", "orpo"])
def test_the_split_of_a_step_changes_nothing(train, name):
    whole = train(name)
    split = train(name, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    budget = train(name, max_tokens_per_micro_batch=40)
    for key in ("loss", "grad_norm"):
        assert split[key] == pytest.approx(whole[key], rel=1e-5) and budget[key] == pytest.approx(whole[key], rel=1e-5)


# ---------------------------------------------------------------- rows and batches


def prepared(row: dict, **fields) -> dict | Drop:
    return pair_row(row, tiny_tokenizer(), registry.config_class(str(METHODS / "simpo.py"))(**fields))


def test_pairs_that_nothing_tells_apart_are_dropped():
    same = {"prompt": "a", "chosen": " the same text", "rejected": " the same text"}
    assert prepared(same) == "chosen and rejected are the same"
    long = {"prompt": "a", "chosen": " the same text", "rejected": " the same text, and more"}
    cut = 1 + len(tiny_tokenizer()(" the same")["input_ids"])
    assert prepared(long, max_length=cut) == "chosen and rejected are the same within max_length"
    assert prepared({"prompt": "a", "chosen": " ", "rejected": "b"}) == "empty completion"


def test_a_row_keeps_its_margin_and_what_was_cut():
    row = prepared({"prompt": "question:", "chosen": " yes", "rejected": " no, never", "margin": 2})
    assert row["margin"] == 2.0 and not row["truncated"]
    assert row["length"] == sum(len(row[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected"))
    cut = prepared({"prompt": "question:", "chosen": " yes", "rejected": " no, never"}, max_length=row["length"] - 3)
    assert "margin" not in cut


WITH = {"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [6], "ref": 0.5}
WITHOUT = {"prompt_ids": [], "chosen_ids": [7, 8, 9], "rejected_ids": [4, 5], "ref": 1.5}


def test_the_order_of_targets_and_their_kinds():
    """The prompt's two predictable tokens, then the completions', pair by pair; the first token of a root is nobody's
    target."""
    batch = pair_batch([WITH, WITHOUT], supervise_prompt=True, columns=("ref", "not yet"))
    assert batch.targets.tolist() == [2, 3, 4, 5, 6, 8, 9, 5]
    assert batch.rows.tolist() == [0, 0, 0, 0, 1, 2, 2, 3]
    assert batch.kinds["prompt"].tolist() == [True, True] + [False] * 6
    assert (batch.kinds["completion"] ^ batch.kinds["prompt"]).all()
    assert {name: column.tolist() for name, column in batch.columns.items()} == {"ref": [0.5, 1.5]}
    assert batch.counts == {"pairs": 2, "tokens": 6, "prompt_tokens": 2, "chosen_tokens": 4, "rejected_tokens": 2}
    values = torch.arange(1.0, 9.0)
    assert sum_by_row(values, batch).tolist() == [10.0, 5.0, 13.0, 8.0]
    assert sum_by_row(values, batch, "prompt").tolist() == [3.0, 0.0, 0.0, 0.0]
    assert [side.tolist() for side in pair_sums(values, batch, "completion")] == [[7.0, 13.0], [5.0, 8.0]]
    assert [side.tolist() for side in pair_means(values, batch, "completion")] == [[3.5, 6.5], [5.0, 8.0]]
    assert batch.to("cpu").kinds["prompt"].tolist() == batch.kinds["prompt"].tolist()


def test_without_a_supervised_prompt_all_targets_are_of_completions():
    batch = pair_batch([WITH])
    assert batch.kinds["completion"].all() and not batch.kinds["prompt"].any()
    assert batch.counts == {"pairs": 1, "tokens": 3, "chosen_tokens": 2, "rejected_tokens": 1}
    with pytest.raises(KeyError, match="promt"):
        sum_by_row(torch.ones(3), batch, "promt")


def test_a_rank_without_pairs_has_the_same_columns_and_kinds():
    batch = pair_batch([], columns=("ref",))
    assert batch.num_tokens == 0 and batch.counts["pairs"] == 0 and set(batch.kinds) == {"prompt", "completion"}
    assert [len(side) for side in pair_means(torch.zeros(0), batch)] == [0, 0]
    assert set(batch.columns) == {"ref"}
