"""A teacher that the backend serves, of whom the likeliest tokens of each place are known."""

from __future__ import annotations

import dataclasses
import importlib
from types import SimpleNamespace

import pytest
from ft_distill import distill
from ft_distill.config import DistillConfig, GKDConfig

from ft_host.api import ConfigError, FtHostError, Scores
from ft_host.testing import assert_same, lines, micro_batch_split, run_in, write_rows

WHOLE = 256  # all tokens
MASS = "distillation/teacher_top_k_mass"
ENTROPY = "distillation/teacher_entropy"


@pytest.fixture(params=["distill", "gkd"])
def both(request, make, backend, chats):
    """A run with a held teacher, and the same with one that is served."""
    held = make(
        DistillConfig if request.param == "distill" else GKDConfig,
        chats,
        backend=backend(),
        max_steps=3,
        max_sampling_logp_difference=1e3,
    )
    return held, lambda top, **more: dataclasses.replace(held, teacher_model_name_or_path=None, loss_top_k=top, **more)


@pytest.mark.parametrize("tail", [True, False])
def test_who_says_everything_is_the_teacher_itself(both, tail):
    held, served = both
    ours = lines(run_in(served(WHOLE, loss_add_tail=tail), "served"))
    theirs = [{name: value for name, value in line.items() if name != ENTROPY} for line in lines(run_in(held, "held"))]
    assert_same(theirs, [{name: value for name, value in line.items() if name != MASS} for line in ours], 1e-3, 2e-5)
    assert all(line[MASS] == pytest.approx(1, abs=1e-5) for line in ours)


def test_fewer_tokens_tell_less(both):
    held, served = both
    [whole] = lines(run_in(held, "held", max_steps=1))
    [ours] = lines(run_in(served(8), "served", max_steps=1))
    assert 0 < ours["distillation/divergence"] < whole["distillation/divergence"] and 0 < ours[MASS] < 1
    assert ours["distillation/teacher_agreement"] == whole["distillation/teacher_agreement"]
    assert ours["entropy"] == pytest.approx(whole["entropy"], rel=1e-5)


def test_micro_batch_split(both):
    micro_batch_split(both[1](8), rel=1e-4, abs=2e-6)


def test_each_rollout_is_scored_once(both):
    config = both[1](8)
    if isinstance(config, DistillConfig):
        config = dataclasses.replace(config, num_iterations=3)
    run_in(config, "run")
    asked = importlib.import_module(f"fake_{config.backend}").ASKED
    assert [each for each in asked if each[0] == "score"] == [("score", 8)] * (
        1 if isinstance(config, DistillConfig) else 3
    )


def test_held_out_rows_are_scored_once(make, backend, chats, tmp_path):
    held_out = str(write_rows(tmp_path / "held_out.jsonl", chats[:5]))
    fields = {"backend": backend(), "max_steps": 2, "eval_dataset": held_out, "eval_steps": 1, "lmbda": 0.0}
    served = lines(
        run_in(make(GKDConfig, chats, teacher_model_name_or_path=None, loss_top_k=WHOLE, **fields), "s"), "eval"
    )
    asked = importlib.import_module(f"fake_{fields['backend']}").ASKED
    assert [each for each in asked if each[0] == "score"] == [("score", 5)] + [("score", 8)] * 2
    held = lines(run_in(make(GKDConfig, chats, **fields), "h"), "eval")
    assert [line["eval_loss"] for line in served] == pytest.approx([line["eval_loss"] for line in held], rel=1e-3)


@pytest.mark.parametrize("method", [DistillConfig, GKDConfig])
def test_a_backend_that_serves_none(make, chats, no_model, method):
    """Known before a model is loaded."""
    config = make(method, chats, teacher_model_name_or_path=None, loss_top_k=8)
    with pytest.raises(ConfigError, match="backend: transformers has no ft_score"):
        run_in(config, "run")


# ---------------------------------------------------------------- what it says


class Told:
    """As much of a run as scoring needs."""

    def __init__(self, ids: list[list[int]], top: int = 2):
        self.config = DistillConfig(model="m", loss_top_k=top)
        self.policy = SimpleNamespace(config=SimpleNamespace(vocab_size=9))
        self.scores = Scores(
            token_ids=ids, logprobs=[[-0.1 * (place + 1) for place in range(len(each))] for each in ids]
        )

    def score(self, sequences, top):
        self.asked = sequences
        return [self.scores]


ROW = {"prompt_ids": [1, 2], "completion_ids": [3, 4, 5], "sampled": [True, False, True]}


def test_what_tools_said_is_not_taught():
    told = Told([[3, 1, 7], [4, 1], [5, 2]])
    [row] = distill.ft_annotate([ROW], told)
    assert (told.asked[0].token_ids, told.asked[0].start) == ([1, 2, 3, 4, 5], 2)
    assert row["teacher_ids"] == [[3, 1], [5, 2]]  # no more than asked for
    assert row["teacher_logps"] == [[-0.1, -0.2], [-0.1, -0.2]]


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([[3, 1], [4, 1], [5]], "loss_top_k: asked for 2 tokens of a place, and the teacher gave 1"),
        ([[3, 1], [4, 1], [5, 9]], "teacher says token 9, and m has 9: it reads other tokens; ft-gold"),
    ],
)
def test_refused(ids, said):
    told = Told(ids)
    with pytest.raises(FtHostError, match=said):
        distill.ft_annotate([ROW], told)
