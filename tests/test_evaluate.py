"""Held-out completions, scored: the same metrics and samples whatever the ranks."""

from __future__ import annotations

import os
import socket
import statistics
from pathlib import Path

import pytest
import torch

from ft_host.cli.train import leave
from ft_host.errors import DataError
from ft_host.generation import Request, Sampling
from ft_host.rewards import describe
from ft_host.testing.generation import generating_run
from ft_host.testing.models import tiny_gpt2
from ft_host.training.evaluate import evaluate_rewards

ROWS = [{"prompt": "a" * (i + 1), "completion": f"right {i}", "level": i} for i in range(7)]


def make_run(**fields):
    return generating_run(tiny_gpt2(), max_completion_length=6, decode_batch_size=3, **fields)


def levels(completions, level):
    return [float(each) for each in level]


def even(completions, level, log_metric, log_extra):
    log_metric("seen", len(level))
    log_extra("twice", [2 * each for each in level])
    return [1.0 if each % 2 == 0 else None for each in level]


FUNCTIONS = [describe("levels", levels), describe("even", even)]


def test_metrics_and_samples():
    run = make_run()
    metrics, samples = evaluate_rewards(run, ROWS, FUNCTIONS)
    assert metrics["eval_rewards/levels/mean"] == 3.0
    assert metrics["eval_rewards/even/mean"] == 1.0  # over the four rows that it applies to
    assert metrics["eval_reward"] == pytest.approx((21 + 4) / 7)
    assert metrics["eval_reward_std"] == pytest.approx(statistics.pstdev([1, 1, 3, 3, 5, 5, 7]))
    assert metrics["eval_seen"] == 7
    completions = run.generate(
        [Request(prompt_ids=run.tokenizer(row["prompt"])["input_ids"]) for row in ROWS],
        Sampling(max_new_tokens=6, temperature=0),
    )
    assert metrics["eval_completions/mean_length"] == sum(len(c.token_ids) for c in completions) / 7
    clipped = sum(c.finish_reason == "length" for c in completions)
    assert metrics["eval_completions/clipped_ratio"] == clipped / 7
    assert len(samples) == 5
    assert samples[1] == {
        "prompt": "aa",
        "completion": run.tokenizer.decode(completions[1].token_ids, skip_special_tokens=True),
        "reference": "right 1",
        "rewards": {"levels": 1.0, "even": None},
        "extra": {"twice": 2},
    }
    assert evaluate_rewards(run, ROWS, FUNCTIONS) == (metrics, samples)


def test_conversations_are_scored_as_messages():
    seen = {}

    def look(prompts, completions, completion_ids):
        seen.update(prompts=prompts, completions=completions, completion_ids=completion_ids)
        return [None] * len(completions)

    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi there"}]
    metrics, samples = evaluate_rewards(make_run(), [{"messages": turns}], [describe("look", look)])
    assert seen["prompts"] == [turns[:1]]
    assert [(m["role"], len(m)) for m in seen["completions"][0]] == [("assistant", 2)]
    assert seen["completions"][0][0]["content"] == samples[0]["completion"]
    assert 1 <= len(seen["completion_ids"][0]) <= 6
    assert samples[0]["prompt"] == turns[:1]
    assert samples[0]["reference"] == "hi there"
    assert "eval_reward" not in metrics  # the reward applied to no row


def test_a_column_that_is_missing_is_named():
    with pytest.raises(DataError, match=r"levels: its parameter 'level' .*columns: answer, prompt"):
        evaluate_rewards(make_run(), [{"prompt": "a", "answer": "b"}], FUNCTIONS)


# ---------------------------------------------------------------- several processes


def _rank(rank: int, port: int, folder: str) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    run = make_run(eval_temperature=1.0)
    results = [evaluate_rewards(run, rows, FUNCTIONS) for rows in (ROWS, ROWS[:1])]
    torch.save(results, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()
    leave(0)  # as a run's ranks do


def test_two_processes_give_what_one_does_even_with_one_row(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (port, str(tmp_path)), nprocs=2)
    run = make_run(eval_temperature=1.0)
    for index, rows in enumerate((ROWS, ROWS[:1])):
        metrics, samples = evaluate_rewards(run, rows, FUNCTIONS)
        for rank in range(2):
            theirs, shown = torch.load(tmp_path / f"{rank}.pt")[index]
            assert shown == samples
            logged = theirs.pop("eval_seen")  # a mean over calls: each rank calls with its own rows
            assert logged == (3.5 if index == 0 else 1)
            assert theirs == {name: value for name, value in metrics.items() if name != "eval_seen"}
