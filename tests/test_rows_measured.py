"""What a run measures of its rows beside the sample of texts: the whole data against itself and against what is held
out, rewards tried on each row's answer, the columns that a reward reads, and the first loss."""

from __future__ import annotations

import dataclasses
import json

import pytest
from ft_grpo.config import GRPOConfig
from ft_kto.config import KTOConfig
from ft_sdpo.config import SDPOConfig

from ft_host.config import RunConfig
from ft_host.data import load_tokenizer, prompt_row
from ft_host.data.load import open_eval, open_train
from ft_host.diagnostics.rules import RULES
from ft_host.monitor.data_stats import further_facts
from ft_host.monitor.reward_check import by_row, check_rewards
from ft_host.monitor.row_overlap import compare
from ft_host.rundir.folder import RunFolder
from ft_host.testing.rules import Told, findings
from ft_host.training.launch import train

STORY = "The keeper of the lighthouse counts the ships at dawn. He writes each of them down in a long blue book."


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def compared(tiny, tmp_path, rows, held_out=None):
    fields = {"model": str(tiny / "model"), "dataset": write(tmp_path / "rows.jsonl", rows)}
    if held_out is not None:
        fields["eval_dataset"] = write(tmp_path / "held_out.jsonl", held_out)
    config = RunConfig(**fields)
    return compare(open_train(config), open_eval(config))


def told(code, facts, **config):
    (found,) = findings([rule for rule in RULES if rule.code == code], Told(config=config, facts=facts))
    return found


def test_pairs_that_are_there_the_other_way_round_too(tiny, tmp_path):
    pairs = [{"prompt": f"{n}?", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(8)]
    turned = [{**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in pairs[:2]]
    facts = compared(tiny, tmp_path, pairs + turned)
    assert facts["data/both_ways"] == 2 / 8
    assert told("DATA022", facts).severity == "warning"
    # Of three completions the middle one is better than one and worse than the other: that is no contradiction.
    ranked = [{"prompt": "?", "chosen": a, "rejected": b} for a, b in (("good", "fair"), ("fair", "bad"))]
    assert "data/both_ways" not in compared(tiny, tmp_path, ranked)


def test_completions_that_are_judged_both_ways(tiny, tmp_path):
    rows = [{"prompt": f"{n}?", "completion": "so", "label": n % 2 == 0} for n in range(8)]
    assert "data/both_ways" not in compared(tiny, tmp_path, rows)
    assert compared(tiny, tmp_path, [*rows, {**rows[0], "label": False}])["data/both_ways"] == 1 / 8


def test_held_out_rows_that_are_nearly_trained_on(tiny, tmp_path):
    rows = [{"text": STORY.replace("ships", f"ships of {n}").replace("book", f"book, the {n}th")} for n in range(20)]
    near = [{"text": row["text"].upper().replace(",", " ") + " Please answer."} for row in rows[:5]]
    facts = compared(tiny, tmp_path, rows, near)
    assert facts["data/eval_near_rows"] == 1 and facts["data/eval_overlap_rows"] == 0
    assert told("DATA031", facts).severity == "info"
    # Sentences that rows of this kind all have say nothing; the same rows with other numbers are other rows.
    other = [
        {"text": STORY.replace("ships", f"ships of {n}").replace("book", f"book, the {n}th")} for n in range(50, 55)
    ]
    assert compared(tiny, tmp_path, rows, other)["data/eval_near_rows"] == 0
    same = [{"text": f"{STORY} It is the {n}th day of the year."} for n in range(40)]
    facts = compared(tiny, tmp_path, same[:30], same[30:])
    assert facts["data/eval_near_rows"] == 0


def test_prompts_of_conversations_that_are_trained_on_with_another_answer(tiny, tmp_path):
    def talk(asked, said):
        return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}

    facts = compared(tiny, tmp_path, [talk(f"q {n}", "a") for n in range(8)], [talk("q 1", "b"), talk("q 99", "b")])
    assert facts["data/eval_overlap_prompts"] == 0.5 and facts["data/eval_overlap_rows"] == 0
    assert "50 % of the evaluation prompts" in told("DATA031", facts).message


def test_rows_that_a_method_leaves_out_are_told_of_by_reason():
    found = told("DATA015", {"data/dropped/a turn without an end": 0.25, "data/measured": 64})
    assert found.severity == "warning" and found.message.endswith("left out: a turn without an end.")
    assert told("DATA015", {"data/dropped/a turn": 0.05, "data/measured": 64}).severity == "info"


def test_pairs_that_differ_in_white_space_alone_hold_no_preference():
    facts = {"data/identical_pairs": 0.0, "data/near_identical_pairs": 0.4}
    found = told("DATA008", facts)
    assert "40 % of the pairs chosen and rejected differ in white space alone" in found.message
    assert found.remedies[0].patch == {}


# ---------------------------------------------------------------- rewards


def tried(earned):
    """Trials of rows, each with what its kinds of completion earn."""
    trials = [{"row": row, "kind": kind, "column": "answer"} for row, each in enumerate(earned) for kind in each]
    return trials, [value for each in earned for value in each.values()]


def test_rows_whose_answer_earns_nothing_are_counted_where_others_earn_one_and_the_same():
    paid, unpaid = {"right": 1.0, "wrong": 0.0}, {"right": 0.0, "wrong": 0.0}
    assert by_row(*tried([paid, paid, paid, unpaid]), lambda column: True) == {"unpaid": 0.25}
    assert by_row(*tried([paid, unpaid]), lambda column: False) == {}  # it doesn't read the answer
    assert by_row(*tried([unpaid, unpaid]), lambda column: True) == {}  # it wants another form
    assert by_row(*tried([paid, {"right": 0.4, "wrong": 0.1}]), lambda column: True) == {}  # it has degrees
    failed = {"right": None, "wrong": 0.0}
    assert by_row(*tried([paid, failed]), lambda column: True) == {"unpaid": 0.0}


def test_completions_of_the_data_that_earn_nothing_beside_answers_that_do():
    row = {"right": 1.0, "own": 0.0, "wrong": 0.0}
    assert by_row(*tried([row, row, row | {"own": 1.0}, row]), lambda column: True)["own_unpaid"] == 0.75


@pytest.fixture
def rewarded(tiny, tmp_path):
    """The facts of rewards on rows with these answers."""
    (tmp_path / "rewards.py").write_text(
        "def as_it_is(completions, answer, **_):\n    return [float(a == b) for a, b in zip(completions, answer)]\n"
        "def stripped(completions, answer, **_):\n"
        "    return [float(a.strip() == b.strip()) for a, b in zip(completions, answer)]\n"
    )

    def measure(name, answers):
        rows = [{"prompt": f"what is {n}?", "answer": answer} for n, answer in enumerate(answers)]
        config = GRPOConfig(
            model=str(tiny / "model"),
            dataset=write(tmp_path / "prompts.jsonl", rows),
            reward=[f"{tmp_path / 'rewards.py'}:{name}"],
        )
        tokenizer = load_tokenizer(config)
        found = check_rewards(config, open_train(config), lambda row: prompt_row(row, tokenizer, config))
        return {key.rpartition("/")[2]: value for key, value in found.items()}

    return measure


def test_what_rewards_pay_for(rewarded):
    plain = [f"{n + 40}" for n in range(8)]
    worked = [f"It is {n} and forty, so it makes\n#### {answer}" for n, answer in enumerate(plain)]
    found = rewarded("as_it_is", [*worked[:4], *(f"{answer} " for answer in plain[4:])])
    assert found["unpaid"] == 0 and found["only_whole"] == found["only_spaced"] == 4 / 8
    found = rewarded("stripped", ["", "  ", *plain[2:4], *(f"{answer} " for answer in plain[4:])])
    assert found["unpaid"] == 2 / 8  # an empty completion is right there
    assert found["only_spaced"] == 0


def test_the_rule_says_what_rewards_pay_for():
    def of(**shares):
        facts = {f"data/reward/exact/{name}": share for name, share in ({"unpaid": 0.0} | shares).items()}
        return findings([rule for rule in RULES if rule.code == "DATA033"], Told(facts=facts))

    assert of() == []
    assert of(unpaid=0.125)[0].severity == "info" and of(unpaid=0.5)[0].severity == "warning"
    (found,) = of(only_whole=1.0)
    assert found.severity == "warning" and "100 %" in found.message and "####" in found.remedies[0].why
    (found,) = of(own_unpaid=0.75)
    assert found.severity == "info" and "75 % of the rows tried beforehand, and pays the answer alone" in found.message
    (found,) = of(only_spaced=0.5)
    assert found.severity == "warning" and "white space" in found.message


def test_columns_that_a_reward_or_a_method_reads(tiny, tmp_path):
    rows = [{"prompt": f"what is {n}?", "tests": "" if n % 2 else f"f({n})", "note": ""} for n in range(16)]
    config = GRPOConfig(model=str(tiny / "model"), dataset=write(tmp_path / "p.jsonl", rows), reward=["r"])
    facts = further_facts(open_train(config), None, load_tokenizer(config), config, {"tests"})
    assert facts["data/blank/tests"] == 0.5 and "p.jsonl" in facts["data/said/blank/tests"]
    assert not any("note" in name or "prompt" in name for name in facts)
    assert SDPOConfig.reads_columns == ("privileged_context",) and GRPOConfig.reads_columns == ()


# ---------------------------------------------------------------- in a run


def test_a_run_tells_of_its_rows_before_it_begins(config, tmp_path):
    rows = [{"prompt": f"what is {n}?", "completion": f"what is {n}? it is {n}"} for n in range(40)]
    finished = train(dataclasses.replace(config, max_steps=1, dataset=write(tmp_path / "rows.jsonl", rows)))
    (found,) = [each for each in finished.findings if each["code"] == "DATA018"]
    assert found["severity"] == "warning" and found["first_step"] == 0 and "rows.jsonl" in found["message"]
    facts = RunFolder.open(finished.folder).manifest["facts"]
    assert facts["data/copied/completion"] == facts["data/copied_surely/completion"] == 1


def test_blank_sides_of_judged_rows_are_told_of_though_the_method_leaves_them_out(tiny, tmp_path):
    from test_measure import measured

    rows = [{"prompt": f"what is {n}?", "completion": "" if n % 3 == 0 else " so", "label": n < 8} for n in range(15)]
    config = KTOConfig(model=str(tiny / "model"), dataset=write(tmp_path / "labels.jsonl", rows))
    facts = measured(config, "kto", rows)
    assert facts["data/blank/completion"] == facts["data/dropped_rows"] == 1 / 3
    assert not any(name.startswith("data/dropped/") for name in facts)
    assert told("DATA016", facts).severity == "warning"


@pytest.mark.parametrize(
    "loss, accuracy, severity", [(5e-5, 1.0, "warning"), (5e-4, 1.0, "info"), (0.01, 0.999, "info"), (0.4, 0.9, None)]
)
def test_a_loss_that_is_next_to_0_before_any_update_is_told_at_step_1(loss, accuracy, severity):
    line = {"kind": "train", "step": 1, "loss": loss, "mean_token_accuracy": accuracy}
    found = findings([rule for rule in RULES if rule.code == "DATA032"], Told(lines=[line]))
    assert [each.severity for each in found] == ([severity] if severity else [])
    assert all(each.opened == 1 for each in found)
