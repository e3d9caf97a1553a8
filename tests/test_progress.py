"""What a run prints and sends while it goes on."""

import sys
from enum import Enum
from types import ModuleType, SimpleNamespace

import pytest

from ft_host.config import RolloutConfig
from ft_host.config.options import TRACKERS
from ft_host.diagnostics import Finding, Remedy
from ft_host.distributed import trackers as trackers_of
from ft_host.distributed.trackers import begin_trackers, check_trackers, chosen, end_trackers
from ft_host.errors import ConfigError
from ft_host.rundir.manifest import before_and_after
from ft_host.training.progress import Bar, Lines, Trackers


def entries(count=6, every=4):
    """Train lines; every fourth step begins with a rollout, and logs what it earned."""
    for step in range(1, count + 1):
        line = {
            "kind": "train",
            "step": step,
            "epoch": 0.1,
            "loss": 0.25,
            "grad_norm": 1.0,
            "learning_rate": 1e-4,
            "perf/tokens_per_second": 900.0,
        }
        earned = {"reward": step / 10, "kl": 0.01, "completions/mean_length": 20.0 + step}
        yield line | (earned if step % every == 1 else {})


@pytest.fixture
def run():
    sent = []

    def log(values, step):
        sent.append((step, values))

    return SimpleNamespace(config=RolloutConfig(logging_steps=2), accelerator=SimpleNamespace(log=log), sent=sent)


def test_lines_keep_what_the_last_rollout_earned(run, capsys):
    lines = Lines(6)
    for entry in entries():
        lines.ft_log(entry=entry, run=run)
    said = capsys.readouterr().err.splitlines()
    middle = "loss 0.25  grad_norm 1  learning_rate 0.0001"
    assert [line.split("  900 tokens/s")[0] for line in said] == [
        f"step 2/6  reward 0.1  {middle}  kl 0.01  completions/mean_length 21",
        f"step 4/6  reward 0.1  {middle}  kl 0.01  completions/mean_length 21",
        f"step 6/6  reward 0.5  {middle}  kl 0.01  completions/mean_length 25",
    ]


def test_the_bar_shows_the_reward_where_there_is_one(run, capsys):
    bar = Bar(6, 0)
    for entry in entries(2):
        bar.ft_log(entry=entry, run=run)
    assert bar.bar.postfix == "reward 0.1, loss 0.25, 900 tokens/s"
    bar.bar.close()
    plain = Bar(6, 0)
    plain.ft_log(entry={"kind": "train", "step": 1, "loss": 0.5, "perf/tokens_per_second": 10.0}, run=run)
    assert plain.bar.postfix == "loss 0.5, 10 tokens/s"
    plain.bar.close()


def test_trackers_get_what_was_logged_with_a_step_that_is_not_sent(run):
    trackers = Trackers()
    for entry in entries():
        trackers.ft_log(entry=entry, run=run)
    trackers.ft_log(entry={"kind": "eval", "step": 6, "eval_loss": 1.0, "note": "text"}, run=run)
    assert [(step, values.get("reward")) for step, values in run.sent] == [(2, 0.1), (4, None), (6, 0.5), (6, None)]
    assert run.sent[-1][1] == {"eval_loss": 1.0} and "kind" not in run.sent[0][1]


def finding(code, severity, **fields):
    remedies = [Remedy(why="Lower learning_rate")]
    return Finding(
        code=code,
        title="It is bad",
        severity=severity,
        stage="train",
        message="Very bad.",
        why="y",
        remedies=remedies,
        evidence=[],
        cause=None,
        plugin="ft-host 0.4.0",
        **fields,
    )


def test_warnings_are_alerts_of_a_tracker_that_has_them(run):
    alerts = []
    early, late = finding("DATA001", "warning"), finding("OPT003", "warning")
    trackers = Trackers()
    run.accelerator.trackers = []
    trackers.ft_finding(finding=early, run=run)
    trackers.ft_finding(finding=finding("CFG006", "info"), run=run)
    assert not alerts, "there is no tracker yet"
    board = SimpleNamespace(
        alert=lambda **told: alerts.append((told["title"].partition(":")[0], told["level"], told["text"]))
    )
    run.accelerator.trackers = [SimpleNamespace(name="tensorboard"), SimpleNamespace(name="wandb", tracker=board)]
    trackers.ft_log(entry={"kind": "train", "step": 1, "loss": 1.0}, run=run)
    for each in (late, late, finding("OPT003", "error"), finding("OPT005", "warning", state="muted")):
        trackers.ft_finding(finding=each, run=run)
    assert [each[:2] for each in alerts] == [("DATA001", "WARN"), ("OPT003", "WARN"), ("OPT003", "ERROR")]
    assert alerts[0][2] == "Warning DATA001: Very bad. Lower learning_rate."


def test_trackio_has_alerts_where_its_version_has(run, monkeypatch):
    sent = []
    module = ModuleType("trackio")
    monkeypatch.setitem(sys.modules, "trackio", module)
    run.accelerator.trackers = [SimpleNamespace(name="trackio")]
    Trackers().ft_finding(finding=finding("OPT003", "warning"), run=run)  # an old version: nothing is sent
    module.AlertLevel = Enum("AlertLevel", ["INFO", "WARN", "ERROR"])
    module.alert = lambda title, text, level: sent.append((title, text, level))
    Trackers().ft_finding(finding=finding("OPT003", "error"), run=run)
    assert sent == [("OPT003: It is bad", "Error OPT003: Very bad. Lower learning_rate.", module.AlertLevel.ERROR)]


# ---------------------------------------------------------------- which trackers, and what they may do to a run


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_is_refused_with_its_package(name, monkeypatch):
    monkeypatch.setattr(trackers_of, "is_installed", lambda name: False)
    with pytest.raises(ConfigError, match=rf"report_to: {name} is not installed \(pip install {TRACKERS[name]}\)"):
        check_trackers([name])


def test_the_trackers_are_those_of_accelerate():
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    assert {*TRACKERS} == {*map(str, LOGGER_TYPE_TO_CLASS)}


def test_a_tracker_that_accelerate_cannot_use_is_refused(monkeypatch):
    monkeypatch.setattr(trackers_of, "is_installed", lambda name: name == "aim")
    with pytest.raises(ConfigError, match="accelerate can't use the aim that is installed"):
        check_trackers(["aim"])


def test_all_are_those_that_are_installed(monkeypatch):
    monkeypatch.setattr(trackers_of, "is_installed", lambda name: name in ("wandb", "mlflow"))
    assert chosen(["all"]) == ["wandb", "mlflow"] and chosen(["mlflow", "all", "mlflow"]) == ["mlflow", "wandb"]
    assert chosen([]) == []


def test_trackers_that_fail_at_the_beginning_or_the_end_are_reported_and_end_nothing(capsys):
    ended = []

    class Accelerator:
        log_with = ["broken", "good"]
        trackers = []

        def init_trackers(self, name):
            if self.log_with == ["broken"]:
                raise RuntimeError("no API key")
            self.trackers = [SimpleNamespace(name="good", finish=finish)]

    def finish():
        ended.append(True)
        raise OSError("no network")

    said, accelerator = [], Accelerator()
    begin_trackers(accelerator, "run", lambda text, level: said.append(text))
    assert [tracker.name for tracker in accelerator.trackers] == ["good"]
    end_trackers(accelerator, "lines")
    assert ended and accelerator.trackers == []
    assert said == ["report_to: broken can't be started (RuntimeError: no API key); the run goes on without it"]
    assert "report_to: good failed at the end (OSError: no network)" in capsys.readouterr().err


def test_the_end_of_a_run_says_how_held_out_values_have_changed():
    """Without the share of completions that a reward didn't apply to, of which findings speak."""
    share = {"eval_rewards/exact_match/none_share": 0.0}
    evals = [
        {"kind": "eval", "step": step, "eval_loss": loss, "eval_rewards/exact_match/mean": right} | share
        for step, loss, right in ((0, 2.5, 0.0), (9, 0.25, 1.0))
    ]
    assert before_and_after(evals) == [
        "loss on held-out rows: 2.5 before, 0.25 after",
        "rewards/exact_match on held-out rows: 0 before, 1 after",
    ]
