"""Run folders read back, and the pages and tables made of them."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from ft_host.cli import compare as compare_command
from ft_host.cli import report as report_command
from ft_host.cli import runs as runs_command
from ft_host.errors import UsageError
from ft_host.report import RunUnreadable, find_runs, read_run, write_comparison, write_report
from ft_host.report.chart import Line, chart
from ft_host.report.ticks import log_ticks, tick_labels, ticks
from ft_host.rundir import format as fmt
from ft_host.rundir.folder import RunFolder
from ft_host.rundir.series import Series, smooth, thin
from ft_host.testing.runs import made_finding, make_run
from ft_host.training import finish

HOSTILE = "<script>alert(1)</script><img src=http://x.invalid/a.png>\"'&</pre></td> a\x00b\x1b\ud800"
HARMLESS = "<script>alert(1)</script><img src=http://x.invalid/a.png>\"'&</pre></td> a\ufffdb\ufffd\ufffd"
VOID = {"meta", "link", "br", "hr"}


class Page(HTMLParser):
    """Parses a page strictly: every tag closed by its own end, in order. Holds its text, tags and attributes."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID | {"path"}, f"<{tag}/> is no void element"
        self.note(tag, attrs)

    def handle_starttag(self, tag, attrs):
        assert tag not in VOID
        self.note(tag, attrs)
        self.open.append(tag)

    def note(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> repeats an attribute"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def rewrite(folder: Path, **fields) -> None:
    """Change fields of run.json; None as Ellipsis removes one."""
    info = json.loads((folder / "run.json").read_text())
    info.update(fields)
    info = {key: value for key, value in info.items() if value is not ...}
    (folder / "run.json").write_text(json.dumps(info))


def append(folder: Path, name: str, *lines) -> None:
    with (folder / name).open("a") as file:
        file.writelines(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)


# ---------------------------------------------------------------- reading


def test_a_finished_run_is_read_whole(tmp_path):
    record = read_run(make_run(tmp_path / "sums", steps=120, eval_steps=40))
    assert (record.name, record.method, record.status, record.steps) == ("sums", "sft", "finished", 120)
    assert list(record.evals["eval_loss"].steps) == [0, 40, 80, 120]
    assert len(record.train["loss"]) == 120
    assert record.tokens == 120 * 3100
    assert record.epoch == pytest.approx(3.0)
    assert record.checkpoints == [120]
    assert record.has_model and not record.problems
    assert "num_tokens" not in record.train and "kind" not in record.train


def test_the_made_run_is_one_that_the_host_itself_opens(tmp_path):
    folder = RunFolder.open(make_run(tmp_path / "sums", steps=10, eval_steps=5))
    assert folder.manifest["method"] == "sft"
    assert [line["step"] for line in folder.read("metrics.jsonl") if line["kind"] == "eval"] == [0, 5, 10]


def test_what_the_host_writes_for_nan_is_read_as_nan(tmp_path):
    run = make_run(tmp_path / "run", steps=3, eval_steps=None)
    RunFolder(run).append("metrics.jsonl", {"kind": "train", "step": 4, "loss": math.nan, "grad_norm": math.inf})
    append(run, "metrics.jsonl", '{"kind": "train", "step": 5, "loss": null, "grad_norm": -Infinity}\n')
    record = read_run(run)
    assert math.isnan(record.train["loss"].values[3]) and math.isnan(record.train["loss"].values[4])
    assert list(record.train["grad_norm"].values[3:]) == [math.inf, -math.inf]
    assert not record.problems
    page = page_of(run)
    assert "training: NaN or infinite at 2 steps, first at 4" in page.text


def test_a_torn_last_line_loses_only_itself(tmp_path):
    run = make_run(tmp_path / "run", steps=30, eval_steps=10, status="running", planned_steps=60)
    append(run, "metrics.jsonl", '{"kind": "train", "step": 31, "lo')
    append(run, "samples.jsonl", '{"step": 30, "pro')
    record = read_run(run)
    assert record.steps == 30 and len(record.train["loss"]) == 30
    assert [problem.split(":")[0] for problem in record.problems] == [
        "metrics.jsonl, line 35",
        "samples.jsonl, line 17",
    ]
    assert all("cut off" in problem for problem in record.problems)
    assert "metrics.jsonl, line 35: cut off" in page_of(run).text


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    run = make_run(tmp_path / "run", steps=3, eval_steps=None)
    append(
        run,
        "metrics.jsonl",
        "oops\n",
        [1],
        {"kind": "odd", "step": 3},
        {"kind": "train", "step": 4, "loss": 1.5, "note": "text"},
    )
    record = read_run(run)
    assert record.train["loss"].last == 1.5
    assert record.problems[0].startswith("metrics.jsonl, line 4: Expecting value")
    assert record.problems[1] == "metrics.jsonl, line 5: expected an object, found list"
    assert "kind 'odd'" in record.problems[2]
    assert record.problems[3] == "metrics.jsonl: 1 values of note that are not numbers"


def test_steps_done_again_after_a_resume_replace_those_of_before(tmp_path):
    run = make_run(tmp_path / "run", steps=20, eval_steps=10)
    append(run, "metrics.jsonl", {"kind": "train", "step": 15, "loss": 9.0}, {"kind": "train", "step": 16, "loss": 8.0})
    record = read_run(run)
    assert record.steps == 16
    assert list(record.train["loss"].steps) == [float(step) for step in range(1, 17)]
    assert list(record.train["loss"].values[-2:]) == [9.0, 8.0]
    assert list(record.evals["eval_loss"].steps) == [0, 10]  # that of step 20 is gone with its step


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"format": 2}, "has format 2, this ft-host reads 1"),
        ({"status": "sleeping"}, "status is 'sleeping'"),
        ({"config": [1]}, "config is [1], expected dict"),
        ({"method": ...}, "lacks method"),
        ({"created": "yesterday"}, "created: Invalid isoformat string"),
    ],
)
def test_a_run_json_that_cannot_be_used_says_why(tmp_path, fields, reason):
    run = make_run(tmp_path / "run", steps=2, eval_steps=None)
    rewrite(run, **fields)
    with pytest.raises(RunUnreadable, match=re.escape(reason)) as caught:
        read_run(run)
    assert str(run / "run.json") in str(caught.value)


def test_a_folder_that_is_no_run_names_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "sft-20260302", steps=2, eval_steps=None)
    make_run(tmp_path / "runs" / "other", steps=2, eval_steps=None)
    with pytest.raises(UsageError, match=r"no such folder. Did you mean .*sft-20260302\?") as caught:
        report_command.run(["runs/sft-20260303"])
    assert "other" not in str(caught.value)
    with pytest.raises(UsageError, match=r"no run.json. Runs nearby: runs/other, runs/sft-20260302"):
        report_command.run(["runs"])
    with pytest.raises(UsageError, match="a file; expected a run's folder. Runs nearby"):
        report_command.run(["runs/other/run.json"])


# ---------------------------------------------------------------- curves


def series_of(values) -> Series:
    series = Series()
    for step, value in enumerate(values, 1):
        series.put(step, value)
    return series


def test_thinning_keeps_ends_extremes_and_gaps():
    values = [math.sin(step / 50) for step in range(10_000)]
    values[5_003], values[7_777], values[2_500] = 40.0, -30.0, math.nan
    thinned = thin(series_of(values))
    assert 400 < len(thinned) <= 510
    assert max(thinned.finite()) == 40.0 and min(thinned.finite()) == -30.0
    assert (thinned.steps[0], thinned.steps[-1]) == (1, 10_000)
    assert sum(math.isnan(value) for value in thinned.values) == 1
    assert list(thinned.steps) == sorted(set(thinned.steps))
    assert thin(series_of(values[:500])).steps == series_of(values[:500]).steps


def test_smoothing_keeps_the_start_the_level_and_the_gaps():
    flat = smooth(series_of([2.0] * 100))
    assert list(flat.values) == [2.0] * 100
    noisy = [5.0 if step % 2 else 3.0 for step in range(1000)]
    noisy[0], noisy[500] = 9.0, math.inf
    softened = smooth(series_of(noisy))
    assert softened.first == 9.0
    assert all(abs(value - 4.0) < 0.2 for value in softened.values[100:450])
    assert math.isnan(softened.values[500]) and math.isfinite(softened.values[499])
    assert smooth(series_of([1.0] * 24)) is None


@pytest.mark.parametrize("size", [25, 60, 149, 150, 1001])
def test_smoothing_is_the_mean_of_its_window_whatever_came_before(size):
    """Beside what it began with, a curve may come down to next to nothing; running sums would lose it."""
    values = [10.0 ** (1 - 40 * step / size) for step in range(size)]
    softened, half = smooth(series_of(values)), max(2, size // 50)
    for index, value in enumerate(softened.values):
        reach = min(half, index)
        window = values[index - reach : index + reach + 1]
        assert value == pytest.approx(math.fsum(window) / len(window), rel=1e-12, abs=0)
    assert "<path" in chart("grad_norm", [Line("a", "one", series_of(values))])


def test_a_chart_bears_all_that_a_float_can_be():
    """A run that diverges, or has come to rest, logs such numbers."""
    rng = random.Random(0)
    odd = [
        0.0,
        -0.0,
        5e-324,
        1e-300,
        1e-18,
        1.0,
        3.0,
        1e18,
        1e300,
        1.7e308,
        -1e300,
        -1e-18,
        math.nan,
        math.inf,
        -math.inf,
    ]
    for count in (1, 2, 24, 25, 60, 700):
        for _ in range(40):
            some = rng.sample(odd, rng.choice([1, 2, 4]))
            wide = [10.0 ** rng.uniform(-323, 308) for _ in range(count)]
            for values in ([rng.choice(some) for _ in range(count)], wide, sorted(wide), sorted(wide, reverse=True)):
                for metric in ("loss", "reward", "perf/step_time"):
                    chart(metric, [Line("a", "one", series_of(values))])


def test_a_page_that_fails_does_not_fail_the_run(tmp_path, monkeypatch):
    def fails(path):
        raise ValueError("math domain error")

    monkeypatch.setattr(finish, "write_report", fails)
    assert finish.report_of(RunFolder(tmp_path)) == "(none, by a fault of ft-host: ValueError: math domain error)"


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 1, ["0", "0.25", "0.50", "0.75", "1.00"]),
        (0.3, 3.4, ["1", "2", "3"]),
        (0, 2.2e-5, ["0", "1e-5", "2e-5"]),
        (0, 52_000, ["0", "20k", "40k"]),
        (900, 1_300, ["900", "1,000", "1,100", "1,200", "1,300"]),
    ],
)
def test_ticks_are_round_and_written_alike(low, high, labels):
    assert tick_labels(ticks(low, high)) == labels


def test_a_line_that_is_flat_but_for_round_off_has_one_tick():
    assert len(ticks(-0.09759000729485333, -0.0975900072948533)) == 1 and ticks(0.0, 0.0) == [0.0]


def test_ticks_of_steps_are_whole_and_those_of_a_log_axis_stay_inside():
    assert ticks(1, 3, wanted=8, whole=True) == [1, 2, 3]
    assert [fmt.number(tick) for tick in log_ticks(0.018, 4.1)] == ["0.03", "0.1", "0.3", "1", "3"]


def test_numbers_read_well():
    assert [fmt.number(x) for x in (0.0, 0.033284, 1234.4, 2e-5, -math.inf, math.nan, None, 3.0)] == [
        "0",
        "0.03328",
        "1,234",
        "2e-5",
        "-inf",
        "NaN",
        "–",
        "3",
    ]
    assert [fmt.count(x) for x in (950, 45_300, 1_842_432, 7e9)] == ["950", "45.3k", "1.84M", "7B"]
    assert [fmt.duration(x) for x in (0.42, 34, 221, 7500, 273_600)] == [
        "0.42 s",
        "34 s",
        "3 min 41 s",
        "2 h 05 min",
        "3 d 4 h",
    ]
    assert (fmt.change(4.0, 1.0), fmt.change(0.0, 0.9), fmt.change(2, 2)) == ("−3 (−75%)", "+0.9", "same")


# ---------------------------------------------------------------- the page of a run


def test_the_page_of_a_finished_run_says_what_came_of_what(tmp_path):
    run = make_run(tmp_path / "sums", steps=120, eval_steps=40)
    page = page_of(run)
    text = page.text
    record = read_run(run)
    for needle in (
        "sums",
        "finished",
        "Held-out reward",
        fmt.number(record.evals["eval_reward"].last),
        "3.63",
        fmt.number(record.evals["eval_loss"].last),
        "372k",
        "tokens/s",
        "1.84M",  # the result, before and after
        "learning_rate",
        "0.001",
        "flag --learning-rate",
        "run.yaml:8",
        "default",  # settings and where from
        "ft-sft",
        "experimental",
        "transformers",
        "5.23.0",
        "5f0c1d9be2a7",
        "6,400",
        "prompt, completion",
        "Add 347 and 586. Show each column.",
        "347+586+++++++++",
        "exact_match 1",
        "Reference",
        "sft is experimental",
        "ft-host train sft again.yaml",
        "pip install ft-host==0.1.0 ft-sft==0.1.0",
    ):
        assert needle in text, needle
    charts = [attrs["aria-label"] for attrs in page.all("svg")]
    assert charts[0].startswith("Loss: training from 3.") and "held out from 3.63 at step 0" in charts[0]
    assert [label.split(":")[0] for label in charts[1:]] == [
        "Held-out reward",
        "Token accuracy",
        "Entropy",
        "Held-out completion length",
        "Gradient norm",
        "Learning rate",
        "Tokens/s",
        "Supervised tokens/s",
        "Step time",
        "Peak memory",
    ]
    set_first = text.index("flag --learning-rate")
    assert set_first < text.index("fields at their defaults") < text.index("weight_decay")


def test_curves_stand_where_their_values_are(tmp_path):
    run = make_run(tmp_path / "run", steps=0, eval_steps=None)
    append(
        run,
        "metrics.jsonl",
        *({"kind": "train", "step": step, "loss": float(loss)} for step, loss in ((1, 4), (2, 2), (3, 3))),
    )
    page = page_of(run)
    line = next(attrs["d"] for attrs in page.all("path") if attrs["class"] == "line train")
    points = [tuple(map(float, point.split())) for point in re.findall(r"[ML]([\d.]+ [\d.]+)", line)]
    assert [x for x, _ in points] == [0, 500, 1000]
    top, bottom, middle = points[0][1], points[1][1], points[2][1]
    assert middle == pytest.approx((top + bottom) / 2, abs=0.1) and top < middle < bottom
    # the hidden data of the pointer's label is what was logged
    data = json.loads(next(attrs["data-chart"] for attrs in page.all("div") if "data-chart" in attrs))
    assert data["lines"] == [{"n": "training", "c": "train", "x": [1, 2, 3], "y": [4.0, 2.0, 3.0]}]


def test_a_page_asks_the_network_for_nothing(tmp_path):
    page = page_of(make_run(tmp_path / "run", steps=30, eval_steps=10))
    html = (tmp_path / "run" / "report.html").read_text()
    for _, attrs in page.tags:
        assert "src" not in attrs and "srcset" not in attrs
        assert attrs.get("href", "data:,") == "data:,"
    assert not re.search(r"url\(|@import|https?:", html)
    assert len(page.all("script")) == 1
    policy = next(attrs["content"] for attrs in page.all("meta") if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'") and "script-src 'sha256-" in policy


def test_nothing_that_a_run_holds_becomes_markup(tmp_path):
    run = make_run(
        tmp_path / "run",
        steps=30,
        eval_steps=10,
        status="failed",
        error=HOSTILE,
        config={"model": HOSTILE, "dataset": HOSTILE, "lr_scheduler_kwargs": {HOSTILE: [HOSTILE]}},
    )
    plugin = dict.fromkeys(("kind", "name", "distribution", "version", "stability"), HOSTILE)
    rewrite(
        run,
        plugins=[plugin],
        environment={HOSTILE: HOSTILE},
        data={"train": {HOSTILE: [{HOSTILE: HOSTILE}]}},
        parent=HOSTILE,
        wrappers=[{"hook": HOSTILE}],
        plan={"notes": [HOSTILE]},
        method=HOSTILE,
        origins={"model": HOSTILE},
    )
    append(
        run,
        "metrics.jsonl",
        *({"kind": "train", "step": step, HOSTILE: 1.0 * step} for step in (31, 32)),
        {"kind": "eval", "step": 32, HOSTILE: 1.0},
    )
    append(
        run,
        "samples.jsonl",
        {
            "step": 30,
            "prompt": [{"role": HOSTILE, "content": HOSTILE, HOSTILE: HOSTILE}],
            "completion": HOSTILE,
            "reference": HOSTILE,
            "rewards": {HOSTILE: 1.0},
        },
        {"step": 30, "prompt": {HOSTILE: HOSTILE}, "completion": None, "rewards": {"none": None}},
    )
    append(
        run,
        "events.jsonl",
        {"time": HOSTILE, "step": HOSTILE, "level": HOSTILE, "text": HOSTILE},
        {"level": "error", "text": HOSTILE},
    )
    page = page_of(run)
    assert len(page.all("script")) == 1 and not page.all("img")
    assert page.text.count(HARMLESS) > 20
    other = make_run(tmp_path / "other", steps=30, eval_steps=10)
    both = Page(write_comparison([run, other], tmp_path / "c.html").read_text())
    assert len(both.all("script")) == 1 and not both.all("img")
    assert both.text.count(HARMLESS) > 5


def test_a_failed_run_says_what_happened(tmp_path):
    run = make_run(
        tmp_path / "run",
        steps=37,
        eval_steps=50,
        status="failed",
        planned_steps=300,
        error="step 38: the loss is nan\nTraceback: line 2",
    )
    text = page_of(run).text
    assert "The run failed after step 37." in text and "step 38: the loss is nan\nTraceback: line 2" in text
    assert "of 300" in text and "The last checkpoint is from step 37." in text


def test_a_run_that_failed_before_its_first_step_has_a_page(tmp_path):
    run = make_run(tmp_path / "run", steps=0, eval_steps=None, status="failed", error="no memory")
    rewrite(run, plan=..., model=..., wrappers=..., result=...)
    text = page_of(run).text
    assert "The run failed before its first step." in text and "no memory" in text
    assert "No checkpoint was written." in text and "Curves" not in text


def test_a_stopped_run_and_one_that_runs_say_how_to_go_on(tmp_path):
    stopped = make_run(
        tmp_path / "a", steps=30, eval_steps=10, status="interrupted", error="stopped at step 30 as asked"
    )
    text = page_of(stopped).text
    assert "The run was stopped after step 30." in text and f"ft-host train --resume {stopped}" in text
    running = make_run(tmp_path / "b", steps=30, eval_steps=10, status="running", planned_steps=60)
    text = page_of(running).text
    assert (
        "This run had not ended when the page was made" in text
        and "If its process no longer exists, it was killed." in text
    )


def test_a_run_of_one_step_and_a_run_without_evaluation_have_pages(tmp_path):
    one = page_of(make_run(tmp_path / "one", steps=1, eval_steps=None))
    assert "one step" in one.text and "Measured once" in one.text and not one.all("svg")
    none = page_of(make_run(tmp_path / "none", steps=40, eval_steps=None))
    assert "Evaluation" not in none.text and "Samples" not in none.text and "Training loss" in none.text
    once = page_of(make_run(tmp_path / "once", steps=40, eval_steps=100, status="interrupted", planned_steps=300))
    assert "evaluated once, at step 0" in once.text


def test_samples_of_every_shape_are_shown(tmp_path):
    run = make_run(tmp_path / "run", steps=10, eval_steps=None)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    for step, said, reward in ((0, "", None), (10, "Me.", 1)):
        append(
            run,
            "samples.jsonl",
            {
                "step": step,
                "prompt": chat,
                "completion": said,
                "reference": None,
                "rewards": {"brief": reward},
                "extra": {"parsed": "me"},
            },
        )
    append(run, "samples.jsonl", {"step": 10, "prompt": "new", "completion": "x", "reference": chat[1:]})
    text = page_of(run).text
    for needle in (
        "Be brief.",
        "user",
        "(empty)",
        "Me.",
        "brief –",
        "brief 1",
        "parsed: me",
        "Before · step 0",
        "After · step 10",
        "Reference",
    ):
        assert needle in text, needle


def section(page: Page, title: str) -> list[str]:
    """The texts of a section of the page."""
    start = page.texts.index(title)
    titles = {"Curves", "Evaluation", "Samples", "Rollouts", "Speed and memory", "Settings"}
    end = next(at for at in range(start + 1, len(page.texts)) if page.texts[at] in titles)
    return page.texts[start + 1 : end]


def test_rollouts_are_no_samples_and_the_first_and_the_last_are_shown(tmp_path):
    run = make_run(tmp_path / "run", steps=20, eval_steps=10, rollouts=True)
    record = read_run(run)
    assert len(record.rollouts) == 10 * 8 and all("rollout" not in sample for sample in record.samples)
    page = page_of(run)
    samples = section(page, "Samples")
    assert "Before · step 0" in samples and "After · step 20" in samples
    assert not any("rollout" in text for text in samples)
    shown = section(page, "Rollouts")
    assert shown[1] == "First rollout · step 1" and "Last rollout · step 19" in shown
    last = shown[shown.index("Last rollout · step 19") :]
    prompts = [last[at + 1] for at, text in enumerate(last) if text == "Prompt"]
    assert prompts == ["Add 21 and 30.", "Add 55 and 17."]
    first_group = last[: last.index("Add 55 and 17.")]
    assert [text for text in first_group if text.startswith("rollout ")] == [
        "rollout 9: 21+30 = 51",
        "rollout 9: 21+30 = 52",
        "rollout 9: 21+30 = 54",
        "rollout 9: 21+30 = 55",
    ], "the best first"
    assert [text for text in first_group if text.startswith("advantage")] == [
        "advantage +1.5",
        "advantage -0.5",
        "advantage -0.5",
        "advantage -0.5",
    ]
    for needle in ("10 tokens", "exact_match 1", "exact_match 0", "brief 0.5", "parsed: 51"):
        assert needle in first_group, needle
    assert not any(text.startswith(f"rollout {number}:") for number in range(1, 9) for text in page.texts)


def test_a_run_with_rollouts_is_about_its_reward(tmp_path):
    run = make_run(tmp_path / "run", steps=40, eval_steps=None, rollouts=True)
    page = page_of(run)
    series = read_run(run).train["reward"]
    assert "Training reward" in page.text and "Training loss" not in page.text and "Samples" not in page.texts
    start = page.texts.index("Training reward")
    assert page.texts[start + 1 : start + 5] == [
        fmt.number(series.first),
        "→",
        fmt.number(series.recent()),
        "first rollout → mean of the last 10",
    ]
    assert [attrs["aria-label"].split(":")[0] for attrs in page.all("svg")] == [
        "Reward",
        "Reward",
        "Reward",
        "Entropy",
        "Completion length",
        "Completions cut short",
        "Groups with equal rewards",
        "Loss",
        "Gradient norm",
        "Learning rate",
        "Clipped",
        "Spread of the reward",
        "Reward",
        "Reward",
        "Tokens/s",
        "Supervised tokens/s",
        "Sampled tokens/s",
        "Step time",
        "Peak memory",
        "Rollout time",
        "Generation time",
        "Reward time",
        "Weight sync time",
        "Annotation time",
        "Training time",
    ]
    charts = [attrs["aria-label"] for attrs in page.all("svg")]
    assert charts[1].startswith("Reward: brief:") and charts[12].startswith("Reward: brief:")
    start = page.texts.index("Speed and memory")
    train = read_run(run).train
    rest = sum(train["perf/step_time"].values) - 20 * (0.25 + 0.05 + 0.02 + 0.01)
    assert page.texts[start + 1].startswith(
        f"5 s in generation, 1 s in rewards, 0.4 s in weight sync, 0.2 s in annotation, {fmt.duration(rest)} in"
        " training, "
    )
    assert "4 more" in page.texts, "what few look for is folded"


def test_a_score_takes_the_place_of_a_reward_and_one_reward_is_drawn_once(tmp_path):
    scored = make_run(tmp_path / "scored", steps=0, eval_steps=None, rollouts=True)
    once = make_run(tmp_path / "once", steps=0, eval_steps=None, rollouts=True)
    for step in range(1, 4):
        line = {"kind": "train", "step": step, "loss": 0.1, "perf/rollout_time": 1.0}
        append(scored, "metrics.jsonl", line | {"objective/scores": 0.5 * step, "objective/kl": 0.1})
        append(once, "metrics.jsonl", line | {"reward": 0.5, "rewards/right/mean": 0.5})
    info = json.loads((scored / "run.json").read_text(encoding="utf-8"))
    info["facts"] = {"plan/reward_metric": "objective/scores"}
    (scored / "run.json").write_text(json.dumps(info), encoding="utf-8")
    page = page_of(scored)
    assert "Training score" in page.text and "first step → mean of the last 3" in page.text
    assert [attrs["aria-label"].split(":")[0] for attrs in page.all("svg")][:3] == ["Score", "KL", "Loss"]
    assert [attrs["aria-label"].split(":")[0] for attrs in page_of(once).all("svg")] == [
        "Reward",
        "Loss",
        "Rollout time",
    ]


def test_faulty_rollouts_are_shown_as_they_are(tmp_path):
    run = make_run(tmp_path / "run", steps=4, eval_steps=None)
    whole = {
        "step": 1,
        "kind": "rollout",
        "rollout": 0,
        "prompt": "p",
        "completion": "c",
        "rewards": {"right": 1.0},
        "extra": {},
        "advantage": 1,
        "group": 0,
        "tokens": 1,
    }
    append(
        run,
        "samples.jsonl",
        {key: value for key, value in whole.items() if key != "advantage"} | {"completion": "no advantage"},
        whole | {"rewards": {"right": None}, "completion": [{"role": "assistant", "content": "no reward"}]},
        whole | {"advantage": "nan", "completion": ""},
        whole | {"advantage": -2e-9, "tokens": None, "completion": None, "rewards": None, "extra": None, "group": [1]},
        {"kind": "rollout", "prompt": {"b": 1, "a": [HOSTILE]}, "rewards": HOSTILE, "advantage": HOSTILE},
        '{"step": 3, "kind": "rollout", "rol',
    )
    page = page_of(run)
    shown = section(page, "Rollouts")
    assert "Samples" not in page.texts
    assert shown[1] == "First rollout · step 1" and "Last rollout · step ?" in shown
    for needle in (
        "no advantage",
        "no reward",
        "right –",
        "right 1",
        "(empty)",
        "advantage nan",
        "advantage +1",
        "advantage -2e-9",
        "1 token",
        "null",
    ):
        assert needle in shown, needle
    chips = [attrs.get("class") for attrs in page.all("span")]
    assert chips.count("chip good") == 1 and "chip bad" not in chips, "of the advantage of 1 alone"
    assert "samples.jsonl, line 6: cut off" in page.text and not page.all("img")


def test_many_prompts_of_one_rollout(tmp_path):
    run = make_run(tmp_path / "run", steps=4, eval_steps=None)
    append(
        run,
        "samples.jsonl",
        *(
            {"step": 1, "kind": "rollout", "rollout": 0, "prompt": f"prompt {group}", "completion": "c", "group": group}
            for group in range(5)
        ),
    )
    shown = section(page_of(run), "Rollouts")
    assert shown[1] == "Rollout · step 1" and shown.index("prompt 2") < shown.index("2 more") < shown.index("prompt 3")


# ---------------------------------------------------------------- findings


FOUND = [
    made_finding(),
    made_finding(state="cleared", step=52, last_step=41),  # the last line of a finding is how it ended
    made_finding(
        code="DATA007",
        title="Rows are there more than once",
        severity="info",
        stage="before",
        first_step=0,
        last_step=0,
        message="3 % of rows are there twice.",
        evidence=[{"metric": "data/duplicate_rows", "value": 0.03}],
        remedies=[
            {
                "rank": 1,
                "why": "Leave out what is doubled",
                "applicability": "display",
                "patch": [],
                "from_start": True,
                "expected": "",
            }
        ],
    ),
    made_finding(
        code="OPT009",
        title="It overfits",
        severity="error",
        first_step=50,
        last_step=50,
        message="Held-out loss rises.",
        evidence=[{"metric": "eval_loss", "value": 0.4}],
    ),
    made_finding(
        code="OPT005", title="The loss stands still", state="muted", muted_by="OPT009", message="It doesn't fall."
    ),
]


def test_findings_are_on_the_page_the_gravest_first_and_those_that_follow_folded(tmp_path):
    page = page_of(make_run(tmp_path / "run", steps=60, eval_steps=20, findings=FOUND))
    cards = [attrs["class"] for attrs in page.all("div") if (attrs.get("class") or "").startswith("finding")]
    assert cards == ["finding error", "finding info", "finding warning over", "finding warning over"]
    words = " ".join(page.text.split())
    order = [
        words.index(text)
        for text in ("OPT009: It overfits", "DATA007: Rows", "OPT003: The loss has jumped", "OPT005: ")
    ]
    assert order == sorted(order)
    for needle in (
        "Findings",
        "Held-out loss rises.",
        "steps 30 to 41 , cleared",
        "Lower learning_rate from 0.001 to 0.0002",
        "learning_rate: 0.0002",
        "1 that follow from another",
        "follows from OPT009",
        "Leave out what is doubled",
        "5.1 (mean 3.4, baseline 2.9)",
    ):
        assert needle.replace(" ,", ",") in words, needle
    assert words.count("OPT003: The loss") == 1, "each finding once, as it ended"


def test_findings_are_marked_on_the_curves_where_they_were(tmp_path):
    page = page_of(make_run(tmp_path / "run", steps=60, eval_steps=20, findings=FOUND))
    marks = {
        attrs["title"]: attrs["class"] for attrs in page.all("span") if (attrs.get("class") or "").startswith("mark")
    }
    assert marks == {"OPT003, steps 30 to 41": "mark warning", "OPT009, steps 50 to 50": "mark error"}
    (loss,) = [attrs["aria-label"] for attrs in page.all("svg") if attrs["aria-label"].startswith("Loss")]
    assert loss.endswith("; OPT003 from step 30 to 41; OPT009 from step 50 to 50"), "one that is muted isn't marked"
    bands = [attrs["class"] for attrs in page.all("path") if (attrs.get("class") or "").startswith("mark")]
    assert bands == ["mark warning", "mark error"]


def test_a_run_without_findings_has_no_section_and_no_marks(tmp_path):
    page = page_of(make_run(tmp_path / "run", steps=60, eval_steps=20))
    assert "problems that the run detected" not in page.text
    assert not [attrs for _, attrs in page.tags if "mark" in (attrs.get("class") or "").split()]


def test_nothing_in_a_finding_becomes_markup_and_a_damaged_line_is_told(tmp_path):
    hostile = made_finding(
        title=HOSTILE,
        message=HOSTILE,
        why=HOSTILE,
        severity="grave",
        fingerprint=f"OPT003:{HOSTILE}",
        evidence=[{"metric": HOSTILE, "value": HOSTILE}],
        remedies=[{"why": HOSTILE}],
    )
    folder = make_run(tmp_path / "run", steps=10, eval_steps=None, findings=[hostile])
    append(folder, "findings.jsonl", made_finding(message=7))
    page = page_of(folder)
    assert not page.all("img") and HARMLESS in page.text
    record = read_run(folder)
    assert len(record.findings) == 1 and any("a line without message" in problem for problem in record.problems)


def test_runs_counts_what_is_open_and_says_how_grave_it_is(tmp_path, capsys):
    make_run(tmp_path / "run", steps=60, eval_steps=20, findings=FOUND)
    runs_command.run([str(tmp_path)])
    assert "2 (error)" in capsys.readouterr().out


def test_a_running_run_without_metrics_is_refused(tmp_path):
    run = make_run(tmp_path / "run", steps=0, eval_steps=None, status="running", planned_steps=10)
    with pytest.raises(UsageError, match="has no metrics yet .* still running"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_a_long_run_makes_a_small_page_with_its_spike(tmp_path):
    run = make_run(tmp_path / "run", steps=6000, eval_steps=None)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    spike = json.loads(lines[4321]) | {"loss": 77.0}
    lines[4321] = json.dumps(spike)
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    page = page_of(run)
    assert (run / "report.html").stat().st_size < 400_000
    data = json.loads(next(attrs["data-chart"] for attrs in page.all("div") if "data-chart" in attrs))
    curve = data["lines"][0]
    assert len(curve["x"]) < 520 and curve["y"][curve["x"].index(4322)] == 77.0


def test_the_settings_to_do_it_again_are_a_run_file(tmp_path):
    config = {
        "learning_rate": 1e-05,
        "lr_scheduler_kwargs": {"min_lr": 1e-10, "a": "x: y"},
        "chat": "true",
        "n": None,
        "long": "line\nüber #1 😀",
    }
    page = page_of(make_run(tmp_path / "run", steps=3, eval_steps=None, config=config))
    block = next(text for text in page.texts if text.startswith("model: "))
    again = yaml.safe_load(block)
    assert {name: again[name] for name in config} == config
    assert again["warmup_steps"] == 20 and "weight_decay" not in again and "output_dir" not in again


def test_report_writes_where_told_and_over_its_own_pages_only(tmp_path, capsys):
    run = make_run(tmp_path / "run", steps=3, eval_steps=None)
    assert report_command.run([str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    target = tmp_path / "new" / "page.html"
    for _ in range(2):
        assert report_command.run([str(run), "--output", str(target)]) == 0
    assert target.read_text().startswith("<!doctype html>")
    mine = tmp_path / "notes.html"
    mine.write_text("mine")
    with pytest.raises(UsageError, match="was not written by ft-host"):
        report_command.run([str(run), "--output", str(mine)])
    with pytest.raises(UsageError, match="is a folder; expected a file name"):
        report_command.run([str(run), "--output", str(tmp_path)])
    assert mine.read_text() == "mine"
    assert not list(tmp_path.rglob(".*html*"))  # nothing left beside


# ---------------------------------------------------------------- runs


def test_runs_lists_each_with_its_state_and_damaged_ones_with_the_reason(tmp_path, capsys):
    make_run(tmp_path / "good", steps=100, eval_steps=25)
    make_run(
        tmp_path / "deep" / "stopped", steps=30, eval_steps=10, status="failed", planned_steps=90, error="out of luck"
    )
    bad = make_run(tmp_path / "bad", steps=3, eval_steps=None)
    (bad / "run.json").write_text('{"format": 1')
    lost = make_run(tmp_path / "lost", steps=3, eval_steps=None)
    (lost / "run.json").unlink()
    (tmp_path / "no-run").mkdir()
    assert runs_command.run([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].split() == [
        "RUN",
        "METHOD",
        "STATUS",
        "STEPS",
        "LOSS",
        "EVAL_LOSS",
        "EVAL_REWARD",
        "STARTED",
        "TOOK",
    ]
    rows = {line.split()[0]: line for line in lines[1:3]}
    assert set(rows) == {"good", "stopped"}
    assert " 30/90 " in rows["stopped"] and " finished " in rows["good"] and "2026-03-02 14:05" in rows["good"]
    assert "stopped: out of luck" in lines
    assert "lost is damaged: run.json is missing" in lines
    assert any(line.startswith("bad is damaged: run.json: not JSON: Expecting") for line in lines)
    assert "no-run" not in out

    assert runs_command.run([str(tmp_path), "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert set(listed) == {"good", "stopped", "bad", "lost"}
    good = listed["good"]
    assert (good["steps"], good["status"], good["duration_s"]) == (100, "finished", 86)
    record = read_run(tmp_path / "good")
    assert good["loss"] == pytest.approx(sum(record.train["loss"].values[-10:]) / 10)
    assert good["evals"]["eval_loss"] == {
        "first": record.evals["eval_loss"].first,
        "last": record.evals["eval_loss"].last,
        "best": min(record.evals["eval_loss"].values),
        "best_step": 100,
    }
    assert listed["bad"]["status"] == "damaged"


def test_the_best_evaluation_is_told_where_it_is_not_the_last(tmp_path, capsys):
    run = make_run(tmp_path / "run", steps=20, eval_steps=10)
    append(run, "metrics.jsonl", {"kind": "eval", "step": 20, "eval_loss": 3.0, "eval_reward": 0.25})
    best = read_run(run).evals["eval_loss"].best(-1)
    assert best[0] == 10
    runs_command.run([str(tmp_path)])
    out = capsys.readouterr().out
    assert f"3 ({fmt.number(best[1])})" in out and "best in brackets" in out
    assert f"best {fmt.number(best[1])} at step 10" in page_of(run).text


def test_runs_of_a_folder_without_any(tmp_path, capsys, monkeypatch):
    assert runs_command.run([str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"No runs in {tmp_path}.\n"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="runs: no such folder"):
        runs_command.run([])
    assert find_runs(make_run(tmp_path / "one", steps=1, eval_steps=None)) == [tmp_path / "one"]


# ---------------------------------------------------------------- compare


@pytest.fixture
def pair(tmp_path):
    first = make_run(tmp_path / "a", steps=60, eval_steps=20)
    second = make_run(
        tmp_path / "b", steps=60, eval_steps=20, speed=0.5, seed=1, config={"learning_rate": 3e-4, "optim": "sgd"}
    )
    rewrite(second, environment=json.loads((second / "run.json").read_text())["environment"] | {"torch": "2.12.0"})
    return first, second


def test_compare_shows_what_differs_and_nothing_else(pair, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert compare_command.run([str(run) for run in pair]) == 0
    out = capsys.readouterr().out
    table = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
    assert table["CONFIG"] == ["a", "b"]
    assert table["optim"] == ["adamw", "sgd"] and table["torch"] == ["2.13.0", "2.12.0"]
    assert "warmup_steps" not in out and "output_dir" not in out and "transformers" not in out
    last = [fmt.number(read_run(run).evals["eval_loss"].last) for run in pair]
    assert table["eval_loss"][:2] == last
    assert out.endswith("Curves: compare.html\n")
    page = Page((tmp_path / "compare.html").read_text())
    both = [attrs["aria-label"] for attrs in page.all("svg")]
    assert re.match(r"Loss: a from .* at step 60; b from .* at step 60$", both[0])
    assert {"line c0", "line c1", "dots c0", "dots c1"} <= {attrs["class"] for attrs in page.all("path")}
    for needle in ("optim", "sgd", "2.12.0", "How they ended", "No difference in findings, plugins, data."):
        assert needle in page.text, needle


def test_compare_for_programs(pair, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rewrite(pair[1], plugins=[])
    append(pair[1], "metrics.jsonl", {"kind": "train", "step": 61, "loss": math.nan})
    assert compare_command.run([*map(str, pair), "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found["differences"]["config"] == {
        "learning_rate": {"a": 0.001, "b": 0.0003},
        "optim": {"a": "adamw", "b": "sgd"},
    }
    assert found["differences"]["plugins"]["method sft"] == {"a": "ft-sft 0.1.0"}
    assert [run["name"] for run in found["runs"]] == ["a", "b"]
    record = read_run(pair[0])
    assert found["runs"][0]["metrics"]["eval_reward"] == record.evals["eval_reward"].last
    assert found["runs"][0]["metrics"]["loss"] == pytest.approx(record.train["loss"].recent())
    assert found["runs"][1]["metrics"]["loss"] is None
    assert not (tmp_path / "compare.html").exists()


def test_compare_refuses_what_it_cannot_compare(pair, tmp_path):
    first = str(pair[0])
    with pytest.raises(UsageError, match="2 to 8 runs to compare, found 1"):
        compare_command.run([first])
    with pytest.raises(UsageError, match="the same run as"):
        compare_command.run([first, str(tmp_path / "b" / ".." / "a")])
    with pytest.raises(UsageError, match=r"no such folder. Did you mean .*/a"):
        compare_command.run([first, str(tmp_path / "aa")])
    empty = [make_run(tmp_path / name, steps=0, eval_steps=None, status="running") for name in "xy"]
    with pytest.raises(UsageError, match="none of .* has metrics yet"):
        write_comparison(empty, tmp_path / "c.html")
    # one without metrics beside one with them is a comparison of settings
    page = Page(write_comparison([first, empty[0]], tmp_path / "c.html").read_text())
    assert "eval_steps" in page.text and "Loss" in page.text


def test_runs_of_one_name_are_told_apart_and_runs_without_difference_say_so(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [make_run(tmp_path / place / "run", steps=30, eval_steps=None) for place in ("here", "there")]
    compare_command.run([*map(str, runs), "--output", "c.html"])
    out = capsys.readouterr().out
    assert out.startswith("No difference in config, plugins, data, environment or findings.")
    assert "here/run" in out and "there/run" in out and Path("c.html").is_file()


# ---------------------------------------------------------------- weight


def test_reading_and_reporting_load_nothing_heavy(pair, tmp_path):
    code = f"""
import sys
from ft_host.cli import compare, report, runs
report.run([{str(pair[0])!r}])
runs.run([{str(tmp_path)!r}])
compare.run([{str(pair[0])!r}, {str(pair[1])!r}, "--output", {str(tmp_path / "c.html")!r}])
print(sorted({{"torch", "transformers", "accelerate", "datasets", "peft", "numpy"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
