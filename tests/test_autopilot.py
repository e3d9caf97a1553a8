"""The autopilot: what it changes, what it never changes, where it goes on, and what it says it did."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ft_host.autopilot.attempts import Attempt, Autopilot, Change, Verdict, is_good
from ft_host.autopilot.choosing import candidates
from ft_host.autopilot.judging import judge
from ft_host.autopilot.lineage import AS_GOOD, BETTER, NO_BETTER
from ft_host.report import read_run
from ft_host.testing.runs import make_run

CONFIG = {"learning_rate": 0.01, "beta": 0.1, "dataset": "rows.jsonl", "max_steps": 100, "model": "m"}


def finding(code: str = "OPT003", patch=(("learning_rate", 0.002),), **fields) -> dict:
    remedies = [
        {
            "rank": 1,
            "why": "Lower it",
            "applicability": "unsafe",
            "from_start": False,
            "expected": "",
            "patch": [{"op": "replace", "path": f"/{name}", "from": None, "value": value} for name, value in patch],
        }
    ]
    return {
        "code": code,
        "fingerprint": code,
        "state": "open",
        "severity": "warning",
        "first_step": 40,
        "muted_by": None,
        "message": "up",
        "remedies": remedies,
    } | fields


def flight(tmp_path: Path, *findings: dict, locked: tuple[str, ...] = (), values=None, change=None) -> Autopilot:
    made = Autopilot(folder=tmp_path, method="sft", config=CONFIG, budget=4, locked=list(locked))
    values = {"learning_rate": 0.01} if values is None else values
    made.attempts.append(
        Attempt(number=1, folder=str(tmp_path / "attempt-1"), values=values, change=change, findings=list(findings))
    )
    return made


def chosen(made: Autopilot):
    return made.choose(made.attempts[-1])


# ---------------------------------------------------------------- what is changed


def test_the_first_remedy_that_is_a_change_of_the_config_is_taken(tmp_path):
    values, change = chosen(flight(tmp_path, finding()))
    assert values == {"learning_rate": 0.002}
    assert change.patch == {"learning_rate": [0.01, 0.002]} and change.finding == "OPT003"
    assert change.checkpoint is None  # there is none


def test_an_error_comes_before_a_warning_and_what_began_earlier_first(tmp_path):
    late = finding("OPT008", (("learning_rate", 0.005),), first_step=60)
    early = finding("OPT006", (("learning_rate", 0.004),), first_step=20)
    assert chosen(flight(tmp_path, late, early))[1].finding == "OPT006"
    assert chosen(flight(tmp_path, early, late | {"severity": "error"}))[1].finding == "OPT008"


@pytest.mark.parametrize(
    "found",
    [
        finding(severity="info"),
        finding(state="cleared", severity="info"),
        finding(state="cleared", muted_by="NUM001"),
        finding(state="muted", muted_by="NUM001"),
        finding(patch=()),
        finding(patch=(("dataset", "other.jsonl"),)),
        finding(patch=(("learning_rate", 0.002), ("model", "n"))),
    ],
    ids=["info", "an info that has passed", "passed, and of another", "muted", "no patch", "data", "model"],
)
def test_what_it_leaves_alone(tmp_path, found):
    assert chosen(flight(tmp_path, found)) is None


def test_a_locked_field_is_left_alone_and_the_next_remedy_taken(tmp_path):
    found = finding()
    found["remedies"].append(finding(patch=(("beta", 0.5),))["remedies"][0] | {"rank": 2})
    assert chosen(flight(tmp_path, found, locked=("learning_rate",)))[0] == {"learning_rate": 0.01, "beta": 0.5}


def test_nothing_is_tried_twice(tmp_path):
    made = flight(tmp_path, finding(patch=(("beta", 0.5),)), values={"beta": 0.1})
    made.attempts.append(
        Attempt(
            number=2,
            folder=str(tmp_path / "attempt-2"),
            values={"beta": 0.5},
            change=None,
            findings=[finding(patch=(("beta", 0.5),)), finding("X001", (("beta", 0.1),))],
        )
    )
    assert chosen(made) is None


def test_what_did_not_help_is_taken_further_each_time(tmp_path):
    before = Change(finding="OPT003", message="", remedy="", patch={"learning_rate": [0.05, 0.01]}, checkpoint=None)
    made = flight(tmp_path, finding(), change=before)
    assert chosen(made)[0] == {"learning_rate": 0.0004}  # divided by 5, then by 25
    other = flight(tmp_path, finding("DPO001"), change=before)
    assert chosen(other)[0] == {"learning_rate": 0.002}


# ---------------------------------------------------------------- where it goes on


def losses(folder: Path, values: list[float]) -> None:
    rows = [{"kind": "train", "step": step, "loss": value} for step, value in enumerate(values, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_checkpoint_is_good_where_what_followed_it_was(tmp_path):
    folder = make_run(tmp_path / "attempt-1", steps=60, eval_steps=None)
    losses(folder, [3.0] * 10 + [2.0] * 20 + [9.0] * 30)
    record = read_run(folder)
    assert is_good(record, 20) and is_good(record, 25)
    assert not is_good(record, 30)  # its weights gave the 9.0 of step 31
    assert not is_good(record, 60)  # nothing is known of what it gives


def test_it_goes_on_from_the_newest_good_checkpoint_before_the_trouble(tmp_path):
    folder = make_run(tmp_path / "attempt-1", steps=60, eval_steps=None)
    losses(folder, [3.0] * 10 + [2.0] * 20 + [9.0] * 30)
    for step in (10, 20, 30, 40):
        (folder / "checkpoints" / f"step-{step}").mkdir(parents=True)
    found = finding(first_step=38)
    assert chosen(flight(tmp_path, found))[1].checkpoint == str(folder / "checkpoints" / "step-20")
    assert chosen(flight(tmp_path, found | {"first_step": 15}))[1].checkpoint == str(folder / "checkpoints" / "step-10")
    found["remedies"][0]["from_start"] = True
    assert chosen(flight(tmp_path, found))[1].checkpoint is None


def test_the_best_is_by_the_held_out_metric(tmp_path):
    made = flight(tmp_path)
    made.attempts = [
        Attempt(number=n, folder="", values={}, change=None, status=status, metrics={"eval_reward": reward})
        for n, (status, reward) in enumerate([("finished", 0.4), ("finished", 0.7), ("failed", 0.9)], 1)
    ]
    made.judge()
    assert (made.best, made.metric) == (2, "eval_reward")


# ---------------------------------------------------------------- what it brought


def ended(number: int, values: dict | None = None, change: Change | None = None, **fields) -> Attempt:
    given = {"status": "finished", "steps": 100} | fields
    return Attempt(number=number, folder="", values=values or {}, change=change, **given)


def made_for(code: str = "OPT003", safe: bool = False, **patch) -> Change:
    return Change(finding=code, message="", remedy="", patch=patch, checkpoint=None, safe=safe)


SLOWER = made_for(learning_rate=[0.01, 0.002])


@pytest.mark.parametrize(
    ("base", "attempt", "kind"),
    [
        ({"metrics": {"eval_loss": 2.0}}, {"metrics": {"eval_loss": 1.5}}, BETTER),
        ({"metrics": {"eval_loss": 2.0}}, {"metrics": {"eval_loss": 2.5}}, NO_BETTER),
        ({"metrics": {"eval_loss": 2.0}}, {"metrics": {"eval_loss": 1.99}}, AS_GOOD),
        ({"metrics": {"eval_loss": 2.0}}, {"metrics": {"eval_loss": 2.01}}, NO_BETTER),
        ({"metrics": {"eval_loss": math.nan}}, {"metrics": {"eval_loss": 2.5}}, BETTER),
        ({"metrics": {"eval_loss": 2.0}}, {"metrics": {"eval_loss": math.nan}}, NO_BETTER),
        ({"metrics": {"eval_loss": 2.0}}, {"metrics": {"eval_loss": 1.0}, "status": "failed"}, NO_BETTER),
        ({"status": "failed", "steps": 5}, {"metrics": {"eval_loss": 9.0}}, BETTER),
        ({"status": "refused", "steps": 0}, {"status": "failed", "steps": 40}, BETTER),
        ({"training": {"loss": 2.0}}, {"training": {"loss": 1.0}}, BETTER),
        (
            {"metrics": {"eval_reward": 0.0, "eval_loss": 2.0}},
            {"metrics": {"eval_reward": 0.2, "eval_loss": 3.0}},
            BETTER,
        ),
    ],
    ids=[
        "lower loss",
        "higher loss",
        "as good",
        "a little worse",
        "it was not a number",
        "it is not a number",
        "it failed",
        "the other failed",
        "it got further",
        "nothing held out",
        "the reward before the loss",
    ],
)
def test_attempts_are_compared_by_what_they_ended_with(base, attempt, kind):
    one = ended(1, {"learning_rate": 0.01}, **base)
    two = ended(2, {"learning_rate": 0.002}, SLOWER, **attempt)
    assert judge(one, two).kind == kind


def test_a_loss_of_another_kind_says_nothing_about_which_is_better():
    """Of another beta the loss is another one; whether the finding is gone decides, where nothing else does."""
    changed = made_for("DPO008", beta=[100.0, 0.1])
    one = ended(1, {"beta": 100.0}, findings=[finding("DPO008")], metrics={"eval_loss": 0.1})
    two = ended(2, {"beta": 0.1}, changed, metrics={"eval_loss": 0.6})
    assert judge(one, two) == Verdict(kind=AS_GOOD)
    again = ended(2, {"beta": 0.1}, changed, metrics={"eval_loss": 0.01}, findings=[finding("DPO008")])
    assert judge(one, again) == Verdict(kind=NO_BETTER)
    one.metrics, two.metrics = {"eval_rewards/margins": 50.0}, {"eval_rewards/margins": 0.2}  # multiples of beta
    one.scale, two.scale = {"beta": 100.0}, {"beta": 0.1}
    assert judge(one, two) == Verdict(kind=BETTER, metric="eval_rewards/margins", before=0.5, after=2.0)
    told = {"eval_rewards/accuracies": 0.5}, {"eval_rewards/accuracies": 0.9}
    one.metrics, two.metrics = told
    assert judge(one, two) == Verdict(kind=BETTER, metric="eval_rewards/accuracies", before=0.5, after=0.9)


class Scripted(Autopilot):
    """An autopilot whose runs are made up: `ends(values)` gives an attempt's held-out loss and its findings."""

    def _train(self, attempt, file, say):
        loss, found = self.ends(attempt.values)
        stopped = {each["code"] for each in found} & set(self._stops(attempt))
        attempt.status, attempt.exit_code = ("interrupted", 5) if stopped else ("finished", 0)
        attempt.steps, attempt.metrics, attempt.findings = 10 if stopped else 100, {"eval_loss": loss}, found


def scripted(tmp_path: Path, ends, budget: int = 4) -> tuple[Scripted, list[str]]:
    made, said = Scripted(folder=tmp_path, method="sft", config=CONFIG, budget=budget, locked=[]), []
    made.ends = ends
    made.run({"learning_rate": 0.01, "beta": 100.0}, said.append)
    return made, said


def test_it_goes_back_from_what_is_worse_and_tells_what_was_cleared(tmp_path):
    """The rate isn't the cause, beta is: the second remedy starts from the first attempt's values."""

    def ends(values):
        found = finding()
        found["remedies"].append(finding(patch=(("beta", 0.1),))["remedies"][0] | {"rank": 2})
        right = values["beta"] == 0.1
        accuracy_free_loss = 1.0 if right else 2.0 + (values["learning_rate"] < 0.01)
        return accuracy_free_loss, [] if right else [found]

    made, said = scripted(tmp_path, ends)
    second, third = made.attempts[1:]
    assert (second.values, second.verdict.kind) == ({"learning_rate": 0.002, "beta": 100.0}, NO_BETTER)
    assert (third.base, third.values) == (1, {"learning_rate": 0.01, "beta": 0.1}) and third.verdict.adopted
    assert made.best == 3 and [each.number for each in made.cleared] == [2]
    told = json.loads((tmp_path / "autopilot.json").read_text())
    assert told["cleared"] == [{"attempt": 2, "finding": "OPT003", "patch": {"learning_rate": [0.01, 0.002]}}]
    assert "attempt 2 is no better than attempt 1 by eval_loss: 2 -> 3; back to attempt 1" in said
    assert "What was cleared" in (tmp_path / "report.html").read_text()


def test_it_never_ends_worse_than_it_began(tmp_path):
    """Findings that are false: whatever is tried is worse than the run file as it is."""

    def ends(values):
        worse = values["learning_rate"] < 0.01
        return 2.0 + worse, [finding(patch=(("learning_rate", values["learning_rate"] / 5),))]

    made, _ = scripted(tmp_path, ends)
    assert made.best == 1 and all(not attempt.verdict.adopted for attempt in made.attempts[1:])


def test_a_later_attempt_is_stopped_only_by_errors_that_were_there_before(tmp_path):
    """The first fails at once. The second one gets further, to another error, and isn't stopped by that."""
    error = {"severity": "error"}

    def ends(values):
        if values["learning_rate"] == 0.01:
            return 5.0, [finding("NUM001", **error)]
        return 1.0, [finding("OPT009", patch=(("beta", 1.0),), **error)]

    made, _ = scripted(tmp_path, ends, budget=4)
    stops = [made._stops(attempt) for attempt in made.attempts[:3]]
    assert [each.status for each in made.attempts[:2]] == ["finished", "finished"] and made.best == 2
    assert "stop_on" not in (tmp_path / "attempt-1.yaml").read_text()
    assert "OPT009" not in (tmp_path / "attempt-2.yaml").read_text()
    assert "NUM001" in (tmp_path / "attempt-2.yaml").read_text()
    assert "OPT009" in (tmp_path / "attempt-3.yaml").read_text() and len(stops) == 3
    assert made.attempts[2].status == "interrupted"  # the same error again


def test_what_a_run_comes_to_is_told_by_its_end_and_stops_no_attempt(tmp_path):
    """The second attempt falls too, and ends far above the first."""
    fallen = [finding("OPT014", patch=(("learning_rate", 0.002),), severity="error")]
    made, _ = scripted(tmp_path, lambda values: (50 * values["learning_rate"], fallen), budget=3)
    assert made.attempts[1].status == "interrupted" and not made.attempts[1].verdict.adopted
    again = Scripted(folder=tmp_path, method="sft", config=CONFIG, budget=3, locked=[], outcomes=frozenset({"OPT014"}))
    again.ends = made.ends
    again.run({"learning_rate": 0.01, "beta": 100.0}, print)
    assert again.attempts[1].verdict.adopted


def test_no_number_goes_further_than_its_field_allows(tmp_path):
    """A fraction that helped nothing at 1.0 isn't tried at 20."""
    found = finding("PPO115", patch=(("gamma", 1.0),))
    made = flight(tmp_path, found, values={"gamma": 0.05})
    made.config = CONFIG | {"gamma": 0.05}
    made.attempts.append(
        Attempt(
            number=2, folder="x", values={"gamma": 1.0}, base=1, findings=[found], verdict=Verdict(kind=NO_BETTER),
            change=Change(finding="PPO115", message="", remedy="", patch={"gamma": [0.05, 1.0]}, checkpoint=None),
        )
    )  # fmt: skip
    assert made.choose(made.attempts[0])[0]["gamma"] == 20.0
    made.accepts = lambda patch: patch["gamma"] <= 1
    assert made.choose(made.attempts[0]) is None


def test_a_number_that_was_not_enough_goes_further_or_half_way_back(tmp_path):
    """The same finding again: once more by as much. What an attempt asks of the field that it changed is first."""
    base = ended(1, {"learning_rate": 0.01}, findings=[finding()])
    failed = ended(2, {"learning_rate": 0.002}, SLOWER, base=1, findings=[finding(patch=(("beta", 1.0),))])
    failed.verdict = Verdict(kind=NO_BETTER)
    assert [values for values, _ in candidates(base, [base, failed], CONFIG, set())] == [{"learning_rate": 0.0004}]
    half = finding("OPT005", patch=(("learning_rate", 0.0045),))
    failed.findings = [half]
    assert [values for values, _ in candidates(base, [base, failed], CONFIG, set())] == [{"learning_rate": 0.0045}]


def test_first_remedies_come_before_second_ones_and_those_of_speed_last(tmp_path):
    one, two = finding("OPT003"), finding("DPO003", patch=(("beta", 0.2),), first_step=50)
    one["remedies"].append(finding(patch=(("warmup_steps", 0.1),))["remedies"][0])
    fast = finding("PERF004", patch=(("dataloader_num_workers", 2),), first_step=1)
    fast["remedies"][0]["applicability"] = "safe"
    base = ended(1, {"learning_rate": 0.01}, findings=[fast, two, one])
    fields = [list(change.patch) for _, change in candidates(base, [base], CONFIG, set())]
    assert fields == [["learning_rate"], ["beta"], ["dataloader_num_workers"], ["warmup_steps"]]


def test_a_setting_beyond_its_usual_range_is_tried_when_nothing_else_is_left(tmp_path):
    note = finding("CFG010", (("beta", 0.1),), severity="info", first_step=0)
    passed = finding("OPT007", (("warmup_steps", 0.1),), state="cleared")
    base = ended(1, {"learning_rate": 0.01, "beta": 100.0}, findings=[note, passed, finding()])
    fields = [list(change.patch) for _, change in candidates(base, [base], CONFIG, set())]
    assert fields == [["learning_rate"], ["warmup_steps"], ["beta"]]


@pytest.mark.parametrize(("now", "new", "taken"), [(100, 40, True), (100, 200, False), (-1, 40, True)])
def test_the_number_of_steps_is_only_lowered(tmp_path, now, new, taken):
    base = ended(1, {"max_steps": now}, findings=[finding(patch=(("max_steps", new),))])
    assert bool(list(candidates(base, [base], CONFIG, set()))) == taken


# ---------------------------------------------------------------- the whole of it


def autopilot(config, folder: Path, budget: int, *flags: str, **changes) -> subprocess.CompletedProcess:
    default = type(config)()
    fields = {each.name: getattr(config, each.name) for each in dataclasses.fields(config)}
    fields = {name: value for name, value in fields.items() if value != getattr(default, name)} | changes
    del fields["output_dir"]
    file = folder.parent / "run.json"
    file.write_text(json.dumps(fields))
    command = [sys.executable, "-m", "ft_host", "autopilot", "sft", str(file), "--budget", str(budget)]
    return subprocess.run(
        [*command, "--output", str(folder), *flags],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_a_rate_that_breaks_the_weights_is_mended_and_the_lineage_told(config, tmp_path):
    """Such a rate without clipping overflows within a few steps."""
    out = tmp_path / "flight"
    done = autopilot(
        config, out, 2, learning_rate=1e15, max_grad_norm=0.0, optim="sgd", warmup_steps=2, max_steps=8, save_steps=1
    )
    told = json.loads((out / "autopilot.json").read_text())
    first, second = told["attempts"][:2]
    assert first["status"] == "failed" and "NUM001" in {each["code"] for each in first["findings"]}, done.stderr
    assert second["change"]["finding"] == "NUM001" and second["change"]["patch"]["learning_rate"] == [1e15, 2e14]
    assert json.loads((out / "attempt-2" / "run.json").read_text())["parent"] == str(out / "attempt-1")
    assert len(told["attempts"]) == 2
    page = (out / "report.html").read_text()
    assert "What was tried" in page and "NUM001" in page and "learning_rate" in page


def test_a_healthy_run_is_one_attempt(config, tmp_path):
    out = tmp_path / "flight"
    done = autopilot(config, out, 3)
    told = json.loads((out / "autopilot.json").read_text())
    assert done.returncode == 0, done.stderr
    assert len(told["attempts"]) == 1 and told["best"] == 1 and told["metric"] == "eval_loss"
    assert "best: attempt 1" in done.stdout


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((), "--budget: expected the maximum number of attempts"),
        (("--budget", "0"), "expected a number of attempts"),
        (("--budget", "2", "--lock", "learning_rat"), "learning_rate"),
    ],
)
def test_refusals(config, tmp_path, flags, says, monkeypatch):
    from ft_host.cli import main

    file = tmp_path / "run.yaml"
    file.write_text(f"method: sft\nmodel: {config.model}\ndataset: {config.dataset}\n")
    monkeypatch.chdir(tmp_path)
    errors = []
    monkeypatch.setattr("builtins.print", lambda *text, **_: errors.append(" ".join(map(str, text))))
    assert main(["autopilot", str(file), *flags]) == 2
    assert says in "\n".join(errors)
