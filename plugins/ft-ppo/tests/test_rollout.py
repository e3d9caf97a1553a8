"""From prompts to rows: scores, completions without one, those that were cut, and those that are cut here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from ft_ppo.config import PPOConfig
from ft_ppo.method import ft_collate, ft_prepare, ft_rollout, stop_token_of

from ft_host.api import Completion, ConfigError
from ft_host.testing import Rewards, metric_values, tiny_tokenizer


@dataclass
class Answers:
    """What ft_rollout is handed, with completions and rewards that are known."""

    config: PPOConfig
    completions: list[Completion]
    values: list[list[float | None]]
    tokenizer: Any = field(default_factory=tiny_tokenizer)
    scored: list[Completion] = field(default_factory=list)

    def generate(self, rows: list[dict], generations: int) -> list[Completion]:
        assert len(rows) * generations == len(self.completions)
        return self.completions

    def reward(self, rows: list[dict], completions: list[Completion]) -> Rewards:
        self.scored = completions
        return Rewards(
            names=["a", "b"],
            weights=[1.0, 0.5],
            values=self.values,
            metrics={},
            texts=[self.tokenizer.decode(each.token_ids) for each in completions],
            extra={"seen": [len(each.token_ids) for each in completions]},
        )


def said(*token_ids: int, why: str = "stop") -> Completion:
    return Completion(token_ids=list(token_ids), logprobs=[-0.5 * token for token in token_ids], finish_reason=why)


PROMPTS = [
    {"group": index, "prompt_ids": [40, 41 + index], "prompt": f"p{index}", "columns": {}, "length": 2}
    for index in range(3)
]
SAID = [said(50, 51, 52), said(60, 61, why="length"), said(70, 71, 72, 2)]


def test_scores(make, prompts):
    run = Answers(make(prompts, missing_eos_penalty=0.75), SAID, [[1.0, 4.0], [2.0, None], [None, None]])
    found = ft_rollout(PROMPTS, run)
    assert [row["score"] for row in found.rows] == [3.0, 1.25, None]
    assert [row["sampled"] for row in found.rows] == [[True] * 3, [True] * 2, [False] * 4]
    assert [row["sampling_logps"] for row in found.rows] == [[-25.0, -25.5, -26.0], [-30.0, -30.5], []]
    assert [sample["rewards"] for sample in found.samples] == [
        {"a": 1.0, "b": 4.0},
        {"a": 2.0, "b": None},
        {"a": None, "b": None},
    ]
    assert found.samples[1]["prompt"] == "p1" and found.samples[1]["extra"] == {"seen": 2}
    told = metric_values(found.metrics)
    assert told["objective/unscored"] == 1
    assert (told["completions/mean_length"], told["completions/clipped_ratio"]) == (3.0, pytest.approx(1 / 3))

    batch = ft_collate(found.rows, run.tokenizer, run.config)
    assert batch.counts == {"rows": 3, "scored": 2, "ended": 2, "tokens": 5}
    assert batch.targets.tolist() == [50, 51, 52, 60, 61] and batch.rows.tolist() == [0, 0, 0, 1, 1]


def test_without_a_penalty_a_cut_completion_keeps_its_score(make, prompts):
    run = Answers(make(prompts), SAID, [[1.0, 0.0]] * 3)
    assert [row["score"] for row in ft_rollout(PROMPTS, run).rows] == [1.0, 1.0, 1.0]


def test_a_completion_is_cut_after_the_stop_token_and_scored_like_that(make, prompts):
    """Its first one; it counts as an end, also where the completion ran into its limit later."""
    config = make(prompts, stop_token_id=51, missing_eos_penalty=9.0)
    completions = [said(50, 51, 52, 51, why="length"), said(60, 61), said(51)]
    run = Answers(config, completions, [[1.0, 0.0]] * 3)
    rows = ft_rollout(PROMPTS, run).rows
    assert [row["completion_ids"] for row in rows] == [[50, 51], [60, 61], [51]]
    assert [each.token_ids for each in run.scored] == [[50, 51], [60, 61], [51]]
    assert [row["sampling_logps"] for row in rows] == [[-25.0, -25.5], [-30.0, -30.5], [-25.5]]
    assert [row["score"] for row in rows] == [1.0, 1.0, 1.0]


def test_a_stop_token_is_one_token(make, prompts):
    tokenizer = tiny_tokenizer()
    config = make(prompts, stop_token="?")
    assert tokenizer.decode([stop_token_of(config, tokenizer)]) == "?"
    assert stop_token_of(make(prompts), tokenizer) is None
    with pytest.raises(ConfigError, match=r"stop_token: 'zq zq' is \d tokens of this tokenizer"):
        ft_prepare({"prompt": "x"}, tokenizer, make(prompts, stop_token="zq zq"))
