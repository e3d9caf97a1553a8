"""Rewards that pay the rows' own answers less than rubbish: a cost taken for a score, a weight with the wrong sign."""

import json

import pytest
from ft_grpo.config import GRPOConfig

from ft_host.data import load_tokenizer, prompt_row
from ft_host.data.load import open_train
from ft_host.diagnostics.rules.data_rewards import RULES
from ft_host.monitor.reward_check import check_rewards
from ft_host.testing.rules import Told, findings

FUNCTIONS = """
def exact(completions, answer=None, completion=None, **_):
    return [float(a == b) for a, b in zip(completions, completion or answer)]

def cost(completions, answer, **_):
    return [float(a != b) for a, b in zip(completions, answer)]

def leak(completions, answer, **_):
    return [-0.5 * (a == b) for a, b in zip(completions, answer)]

def extra(completions, answer, **_):
    return [float(len(b) - len(a)) for a, b in zip(completions, answer)]

def brevity(completions, **_):
    return [-len(a) for a in completions]

def constant(completions, **_):
    return [0.3 for _ in completions]

def lines(completions, **_):
    return [float("####" in a) for a in completions]
"""


@pytest.fixture
def found(tiny, tmp_path):
    """What is found of a run with these rewards, as {reward: finding}."""
    (tmp_path / "rewards.py").write_text(FUNCTIONS)

    def measure(*names, weights=(), whole=False, talk=False):
        rows = [{"prompt": f"what is {n}?", "answer": f"{n + 40}"} for n in range(8)]
        if whole:
            rows = [row | {"completion": f"I add both, which makes\n#### {row['answer']}"} for row in rows]
        if talk:
            roles = {"prompt": "user", "completion": "assistant"}
            rows = [
                row | {name: [{"role": role, "content": row[name]}] for name, role in roles.items()} for row in rows
            ]
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        fields = {
            "model": str(tiny / "model"),
            "dataset": str(tmp_path / "prompts.jsonl"),
            "reward": [f"{tmp_path / 'rewards.py'}:{name}" for name in names],
            "reward_weights": list(weights),
        }
        config = GRPOConfig(**fields)
        tokenizer = load_tokenizer(config)
        facts = check_rewards(config, open_train(config), lambda row: prompt_row(row, tokenizer, config))
        told = [rule for rule in RULES if rule.code == "DATA010"]
        return {each.cause: each for each in findings(told, Told(facts=facts, config=fields), GRPOConfig)}

    return measure


def test_a_cost_taken_for_a_score(found):
    (each,) = found("cost").values()
    assert each.message.startswith("Reward cost gives the row's own answer less than each of the wrong ones")
    assert each.remedies[0].patch == {"reward_weights": [-1.0]} and each.severity == "error"
    assert found("cost", weights=[-1.0]) == {}


def test_weights_with_the_wrong_sign(found):
    told = found("exact", "brevity", weights=[-2.0, 0.001])
    assert set(told) == {"exact"}  # brevity doesn't read the answer: what it is for isn't known
    assert "Reward exact, with its weight of -2, gives" in told["exact"].message
    assert told["exact"].remedies[0].patch == {"reward_weights": [2.0, 0.001]}


def test_of_rows_with_whole_completions_it_is_known_without_the_answer(found):
    short = found("brevity", whole=True)["brevity"]
    assert short.severity == "warning" and short.remedies[0].patch == {}  # it isn't to pay for length
    told = found("lines", "exact", weights=[-1.0, -1.0], whole=True)
    assert {name: each.remedies[0].patch for name, each in told.items()} == {
        "lines": {"reward_weights": [1.0, 1.0]},
        "exact": {"reward_weights": [1.0, 1.0]},
    }


def test_a_completion_of_messages_is_a_whole_one_too(found):
    (each,) = found("constant", whole=True, talk=True).values()
    assert "is 0.3 for the data's own answers as for empty and random text" in each.message
    assert found("constant") == {}  # rows with an answer alone: it may want it in another form


def test_what_another_reward_outweighs_is_left_alone(found):
    assert found("exact", "leak") == {}
    assert found("exact", "cost") == {}  # they cancel, which is another trouble
    assert set(found("leak", "cost")) == {"leak", "cost"}


def test_a_reward_for_brevity_that_reads_the_answer_is_not_turned(found):
    assert found("extra") == {}
