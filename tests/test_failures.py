"""Prompts that fail: retries by cause, what is set aside, and what ends the run."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from ft_host.config.scheduling_fields import RETRIES
from ft_host.errors import DataError, FtHostError
from ft_host.scheduling.failures import Failures, News, SetAside, of_ranks, said
from ft_host.scheduling.unit import Begun, Failed, Unit


def failures(retries=None, **fields):
    given = {"max_set_aside": 16, "max_staleness": 1, "rollout_timeout": 1800.0}
    return Failures(SimpleNamespace(retries=RETRIES | (retries or {}), **(given | fields)))


def unit(number, epoch=0.5, **row):
    row = {"prompt": f"question {number}", "where": f"data.jsonl, line {number + 1}"} | row
    return Unit(number=number, rollout=0, step=0, rows=[row], epoch=epoch)


def failed(number, cause="environment", text="broken"):
    return Failed(unit=number, cause=cause, error=FtHostError(text))


@pytest.mark.parametrize(("cause", "retries"), [("engine", 5), ("environment", 2), ("reward", 2), ("timeout", 1)])
def test_each_cause_has_retries_of_its_own_with_longer_and_longer_pauses(monkeypatch, cause, retries):
    monkeypatch.setattr("time.time", lambda: 100.0)
    ours, one = failures(), unit(3)
    pauses = []
    for _ in range(retries):
        assert ours.take(failed(3, cause), one) == "retry"
        pauses.append(one.times["again"] - 100)
    assert pauses == [2.0**n for n in range(retries)]
    assert ours.take(failed(3, cause, "at last"), one) == "set aside"
    assert str(ours.aside[0]) == f"prompt 3 (data.jsonl, line 4; {cause}): at last"
    other = "reward" if cause != "reward" else "engine"
    assert ours.take(failed(4, other), unit(4)) == "retry"


def test_retries_are_those_of_the_config_and_pauses_have_a_bound(monkeypatch):
    monkeypatch.setattr("time.time", lambda: 0.0)
    ours, one = failures({"engine": 9, "timeout": 0}, rollout_timeout=40.0), unit(1)
    assert ours.take(failed(2, "timeout"), unit(2)) == "set aside"
    pauses = [one.times["again"] for _ in range(9) if ours.take(failed(1, "engine"), one) == "retry"]
    assert pauses == [1, 2, 4, 8, 10, 10, 10, 10, 10]


def test_the_deaths_of_an_engine_do_not_count_against_a_prompt_that_gets_further_between_them():
    """A long prompt is under way at each death of a process that others end; one that ends it gets no further."""
    ours, long, cause = failures({"engine": 2}), unit(1), unit(2)
    long.begun["0"] = Begun()
    answers = []
    for _ in range(3):
        long.begun["0"].token_ids.append(5)
        assert ours.take(failed(1, "engine"), long) == "retry"
        answers.append(ours.take(failed(2, "engine"), cause))
    assert answers == ["retry", "retry", "set aside"] and long.tries == {"engine": 1}
    assert [ours.take(failed(1, "engine"), long) for _ in range(2)] == ["retry", "set aside"]


def test_what_trying_again_cannot_mend_is_raised_as_it_is():
    error = DataError("no column")
    with pytest.raises(DataError, match="no column"):
        failures().take(Failed(unit=1, cause=None, error=error), unit(1))


def test_too_many_prompts_of_an_epoch_end_the_run_and_another_epoch_counts_anew():
    ours = failures({"reward": 0}, max_set_aside=2)
    for number, epoch in ((0, 0.1), (1, 1.0), (2, 1.1)):  # the second is the last of the first epoch
        assert ours.take(failed(number, "reward", f"error {number}"), unit(number, epoch)) == "set aside"
        ours.completed()
    with pytest.raises(FtHostError) as caught:
        ours.take(failed(3, "reward", "error 3"), unit(3, 0.9))
    assert str(caught.value) == (
        "3 prompts of epoch 1 are set aside (max_set_aside: 2): prompt 0 (data.jsonl, line 1; reward): error 0; "
        "prompt 1 (data.jsonl, line 2; reward): error 1; prompt 3 (data.jsonl, line 4; reward): error 3"
    )
    assert caught.value.facts["watch/set_aside"].endswith("error 3")


def test_prompts_that_all_fail_by_one_cause_end_the_run_long_before_the_bound():
    ours = failures({"reward": 0, "timeout": 0}, max_set_aside=1000)
    for number in range(7):
        assert ours.take(failed(number, "reward"), unit(number)) == "set aside"
        assert ours.take(failed(100 + number, "timeout"), unit(100 + number)) == "set aside"
    with pytest.raises(
        FtHostError, match="8 prompts in a row failed again and again, and none was completed: prompt 5"
    ):
        ours.take(failed(7, "reward"), unit(7))


def test_prompts_completed_in_between_show_that_it_is_the_prompts():
    ours = failures({"reward": 0}, max_set_aside=1000)
    for number in range(30):
        assert ours.take(failed(number, "reward"), unit(number)) == "set aside"
        if number % 7 == 6:
            ours.completed()


def test_without_staleness_a_step_needs_all_its_prompts():
    ours, share = failures({"environment": 1}, max_staleness=0), unit(0)
    assert ours.take(failed(0), share) == "retry"
    with pytest.raises(FtHostError, match="^broken$"):
        ours.take(failed(0), share)


def test_a_checkpoint_keeps_what_is_set_aside_on_any_number_of_ranks():
    ours = [failures({"reward": 0}) for _ in range(2)]
    for number in range(5):
        ours[number % 2].take(failed(number, "reward"), unit(number))
    ours[0].news()
    saved = json.loads(json.dumps([each.state() for each in ours]))
    again = failures()
    again.restore(of_ranks(saved, 1, 2))
    assert again.aside == ours[1].aside and again.in_a_row == {"reward": 2} and len(again.news().aside) == 2
    first, third = failures(), failures()
    first.restore(of_ranks(saved, 0, 3))
    third.restore(of_ranks(saved, 2, 3))
    assert sorted(each.number for each in first.aside) == [0, 1, 2, 3, 4] and not third.aside


def test_a_prompt_without_a_place_is_named_by_its_first_words():
    ours = failures({"reward": 0})
    words = " ".join(["word"] * 50)
    ours.take(failed(1, "reward"), unit(1, where="", prompt=[{"role": "user", "content": words}]))
    assert str(ours.aside[0]).startswith(f"prompt 1 ('{words[:60]}'; reward)")


def test_the_user_is_told_of_each_cause_once_and_of_each_prompt_set_aside():
    aside = SetAside(number=4, where="d, line 5", prompt="", epoch=1, cause="reward", text="nan")
    ranks = [
        News(failed={"engine": 3, "reward": 3}, last={"engine": "gone", "reward": "nan"}, aside=[aside]),
        News(failed={"environment": 1}, last={"environment": "no server"}, aside=[]),
    ]
    known: set[str] = set()
    assert said(ranks, known) == [
        "3 attempts at prompts failed (engine) and are tried again: gone",
        "2 attempts at prompts failed (reward) and are tried again: nan",
        "a prompt failed (environment) and is tried again: no server",
        "set aside after all its retries: prompt 4 (d, line 5; reward): nan",
    ]
    assert said([News(failed={}, last={}, aside=[])], known) == []
    again = News(failed={"engine": 1, "reward": 5}, last={"engine": "gone", "reward": "nan"}, aside=[])
    assert said([again], known) == ["a prompt failed (engine) and is tried again: gone"]
