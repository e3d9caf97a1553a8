"""From raw rows to a batch: what is kept, cut, dropped and refused, and a prompt that two completions share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ft_dpo.config import DPOConfig
from ft_dpo.losses import LOSSES
from ft_dpo.method import ft_collate, ft_prepare, log_prob_sums, pairs_of

import ft_host
from ft_host.api import IGNORE, DataError, Drop, RowError, Segment, flat_batch
from ft_host.testing import RunFolder, first_step, run_in, tiny_tokenizer

CONFIG = DPOConfig()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_texts(tokenizer):
    row = ft_prepare({"prompt": "apples?", "chosen": " three", "rejected": " a dog"}, tokenizer, CONFIG)
    end = [tokenizer.eos_token_id]
    assert row == {
        "prompt_ids": ids(tokenizer, "apples?"),
        "chosen_ids": ids(tokenizer, " three") + end,
        "rejected_ids": ids(tokenizer, " a dog") + end,
        "length": len(ids(tokenizer, "apples? three a dog")) + 2,
        "truncated": False,
        "cut": {},
        "implicit_prompt": False,
    }


def test_tokens_and_implicit_prompt(tokenizer):
    row = ft_prepare({"chosen_ids": [5, 6, 7, 8], "rejected_ids": [5, 6, 9]}, tokenizer, CONFIG)
    assert (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) == ([5, 6], [7, 8], [9])
    assert row["implicit_prompt"]


@pytest.mark.parametrize(
    ("mode", "kept", "cut"),
    [
        ("keep_start", ([10, 11, 12], [20, 21], [30, 31]), {"chosen": 1, "rejected": 2}),
        ("keep_end", ([12], [20, 21, 22], [30, 31, 32, 33]), {"prompt": 2}),
    ],
)
def test_truncation(tokenizer, mode, kept, cut):
    given = {"prompt_ids": [10, 11, 12], "chosen_ids": [20, 21, 22], "rejected_ids": [30, 31, 32, 33]}
    row = ft_prepare(given, tokenizer, DPOConfig(max_length=5, truncation_mode=mode))
    assert (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) == kept
    assert row["cut"] == cut and row["truncated"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a?", "chosen": " dog", "rejected": " dog"}, "chosen and rejected are the same"),
        ({"prompt": "a?", "chosen": "", "rejected": " dog"}, "empty completion"),
        ({"prompt": "a?", "chosen": " dog", "rejected": "  "}, "empty completion"),
        (
            {
                "prompt": [{"role": "user", "content": "a"}],
                "chosen": [{"role": "assistant", "content": "b"}],
                "rejected": [],
            },
            "empty completion",
        ),
        (
            {"prompt_ids": [5], "chosen_ids": [6, 7, 8, 9, 10], "rejected_ids": [6, 7, 8, 11]},
            "chosen and rejected are the same within max_length",
        ),
        ({"prompt_ids": [5, 6, 7, 8], "chosen_ids": [9], "rejected_ids": [10]}, "the prompt alone fills max_length"),
    ],
)
def test_dropped(tokenizer, row, reason):
    found = ft_prepare(row, tokenizer, DPOConfig(max_length=4))
    assert isinstance(found, Drop) and found == reason


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "chosen": "b"}, "rejected"),
        ({"question": "a", "better": "b", "worse": "c"}, "dataset_columns"),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, "rejected"),
        ({"prompt": "a", "chosen": "b", "rejected": [{"role": "assistant", "content": "c"}]}, "rejected"),
        ({"chosen_ids": [1, 2], "rejected_ids": [1, 100000]}, "rejected_ids"),
    ],
)
def test_refused(tokenizer, row, said):
    with pytest.raises(RowError, match=said):
        ft_prepare(row, tokenizer, CONFIG)


def test_bad_rows_in_a_run(make, rows):
    """A bad row ends the run with file and line; identical pairs are counted."""
    same = [row | {"rejected": row["chosen"]} for row in rows[:2]]
    folder = run_in(make([*rows, *same], max_steps=-1, num_train_epochs=1), "counted")
    said = [event["text"] for event in RunFolder(folder).read("events.jsonl")]
    assert "2 rows were left out: chosen and rejected are the same" in said
    with pytest.raises(DataError, match="rows.jsonl, line 25: found the columns prompt, chosen; expected"):
        ft_host.train(make([*rows, {"prompt": "a", "chosen": "b"}], max_steps=-1, num_train_epochs=1))


# ---------------------------------------------------------------- batches

PAIRS = [
    {"prompt_ids": [10, 11, 12], "chosen_ids": [20, 21, 22], "rejected_ids": [30]},
    {"prompt_ids": [], "chosen_ids": [40, 41], "rejected_ids": [50, 51, 52, 53]},
]


def test_batch(tokenizer):
    batch = ft_collate(PAIRS, tokenizer, DPOConfig(ld_alpha=0.25))
    assert batch.input_ids.tolist() == [10, 11, 12, 20, 21, 22, 30, 40, 41, 50, 51, 52, 53]
    assert batch.parents == [-1, 0, 0, -1, -1] and batch.num_rows == 4
    assert batch.targets.tolist() == [20, 21, 22, 30, 41, 51, 52, 53]
    assert batch.sources.tolist() == [2, 3, 4, 2, 7, 9, 10, 11]
    assert batch.rows.tolist() == [0, 0, 0, 1, 2, 3, 3, 3]
    assert batch.counts == {"pairs": 2, "tokens": 8, "chosen_tokens": 4, "rejected_tokens": 4}
    assert batch.columns["chosen_lengths"].tolist() == [3, 2] and batch.columns["rejected_lengths"].tolist() == [1, 4]
    # the shorter completion of the first pair has 1 token, that of the second 1 that something predicts
    assert batch.columns["ld_weights"].tolist() == [1, 0.25, 0.25, 1, 1, 1, 0.25, 0.25]
    assert set(batch.columns) == {"chosen_lengths", "rejected_lengths", "ld_weights"}


def test_log_prob_sums_by_hand(tokenizer):
    logp = torch.tensor([-1.0, -2.0, -4.0, -3.0, -0.5, -8.0, -16.0, -32.0])
    plain = log_prob_sums(logp, ft_collate(PAIRS, tokenizer, CONFIG))
    assert [each.tolist() for each in plain] == [[-7, -0.5], [-3, -56]]
    weighted = log_prob_sums(logp, ft_collate(PAIRS, tokenizer, DPOConfig(ld_alpha=0.25)))
    assert [each.tolist() for each in weighted] == [[-2.5, -0.5], [-3, -20]]


def test_no_rows(make, rows):
    """A rank without pairs takes part with a loss of 0 whose backward reaches the model."""
    run, _ = first_step(make(rows, loss_type=["sigmoid", "aot_unpaired", "sft"]), "dpo")
    hook = run.plugins.hook
    batch = hook.ft_collate(rows=[], tokenizer=run.tokenizer, config=run.config)
    assert batch.counts["pairs"] == 0
    run.totals = {"pairs": 4, "chosen_tokens": 20}
    loss = hook.ft_loss(model=run.model, batch=batch, run=run).divide(run.totals)
    loss.backward()
    assert loss.item() == 0
    assert any(parameter.grad is not None for parameter in run.policy.parameters())


@pytest.mark.parametrize("name", ["sigmoid", "ipo", "sft"])
def test_a_shared_prompt_is_exact(make, rows, name):
    """Two completions as children of one prompt, and each with a prompt of its own: equal loss and gradient."""
    run, prepared = first_step(make(rows, loss_type=name), "dpo")
    shared = ft_collate(prepared, run.tokenizer, run.config)
    segments = []
    for index, row in enumerate(prepared):
        for offset, completion in enumerate(("chosen_ids", "rejected_ids")):
            prompt, answer = row["prompt_ids"], row[completion]
            segments.append(
                Segment(input_ids=prompt + answer, labels=[IGNORE] * len(prompt) + answer, row=2 * index + offset)
            )
    whole = flat_batch(segments, num_rows=2 * len(prepared), columns=shared.columns, counts=shared.counts)
    assert len(shared.input_ids) < len(whole.input_ids) and all(row["prompt_ids"] for row in prepared)
    found = []
    for batch in (shared, whole):
        reference = torch.linspace(-30.0, -20.0, len(prepared))
        batch.columns |= {"ref_chosen_logps": reference, "ref_rejected_logps": reference.flip(0)}
        run.policy.zero_grad()
        pairs = pairs_of(run.policy(batch, want=("logp",))["logp"], batch, run.config)
        loss = LOSSES[name](pairs, run.config).sum()
        loss.backward()
        found.append((loss.item(), torch.cat([each.grad.flatten() for each in run.policy.parameters()])))
    (loss, gradient), (other, expected) = found
    assert loss == pytest.approx(other, rel=1e-6)
    assert (gradient - expected).norm() <= 1e-6 * expected.norm()
