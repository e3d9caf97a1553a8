"""Diagnostics as a stranger writes them: in a file or a distribution, with fields of their own, a beginning, and errors
that end no run."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from ft_host.cli import main
from ft_host.diagnostics.collect import not_about
from ft_host.diagnostics.replay import diagnose
from ft_host.diagnostics.rules import RULES
from ft_host.errors import ConfigError, PluginBroken, PluginNotFound
from ft_host.registry import catalog, config_class, diagnostics_configs, find
from ft_host.testing.distributions import make_distribution
from ft_host.training.launch import train

ROOT = Path(__file__).resolve().parent.parent
CSVLOG = """
import csv
from dataclasses import dataclass
from pathlib import Path

from ft_host.api import ConfigError, hookimpl, option
from ft_host.diagnostics import Rule


@dataclass(kw_only=True)
class Config:
    path: str = option("metrics.csv", "File to write, in the run's folder.")
    fail_at: int | None = option(None, "Step at which the sink raises an error.")

    def check(self):
        if not self.path.endswith(".csv"):
            raise ConfigError("path: expected a name that ends with .csv")


def own(run):
    config = run.diagnostics_config["{name}"]
    return config, Path(run.folder.path) / config.path


@hookimpl
def ft_start(run, resumed_from):
    path = own(run)[1]
    kept = []
    if resumed_from is not None:
        with path.open() as file:
            kept = [row for row in csv.reader(file) if int(row[0]) <= resumed_from]
    with path.open("w") as file:
        csv.writer(file).writerows(kept)


@hookimpl
def ft_log(entry, run):
    config, path = own(run)
    if entry["step"] == config.fail_at:
        raise OSError("no space left")
    if entry["kind"] == "train":
        with path.open("a") as file:
            csv.writer(file).writerow([entry["step"], entry["loss"]])


@hookimpl
def ft_rules():
    def rule(code, test):
        return Rule(code=code, title="A loss", stage="train", needs=("loss",), test=test, window=1, least=1,
                    message=lambda view: "There is a loss.", when="w", why="y", remedy="r", source="s")

    return [rule("CSV001", lambda view: view["loss"] > 0), rule("CSV002", lambda view: view["nonsense"] > 0)]
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    catalog.cache_clear()
    yield folder
    catalog.cache_clear()


@pytest.fixture
def file(tmp_path):
    """One name a test: Python keeps modules by name."""
    path = tmp_path / f"sink_{tmp_path.name}.py"
    path.write_text(CSVLOG.replace("{name}", path.stem), encoding="utf-8")
    return path


def with_file(config, file, **fields):
    given = {"diagnostics": [str(file)], "diagnostics_config": {file.stem: fields}}
    return dataclasses.replace(config, **given)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_file_with_its_fields_is_diagnostics_and_a_resumed_run_writes_no_step_twice(config, file):
    first = train(with_file(config, file, path="mine.csv"))
    found = {each["code"]: each for each in first.findings}
    assert found["CSV001"]["plugin"] == str(file)
    info = json.loads((first.folder / "run.json").read_text(encoding="utf-8"))
    (plugin,) = [each for each in info["plugins"] if each["kind"] == "diagnostics" and not each["distribution"]]
    assert plugin["location"] == str(file)
    (first.folder / "checkpoints" / "step-5").rename(first.folder / "gone")  # the steps after 4 are made again
    again = dataclasses.replace(with_file(config, file, path="mine.csv"), max_steps=6)
    train(again, resume=first.folder)
    with (first.folder / "mine.csv").open() as rows:
        assert [row[0] for row in csv.reader(rows)] == ["1", "2", "3", "4", "5", "6"]
    assert "CSV001" in {each["code"] for each in diagnose(first.folder).findings}


def test_a_sink_that_raises_is_reported_once_by_name_and_ends_no_run(config, file, capsys):
    finished = train(with_file(config, file, fail_at=3))
    assert finished.steps == 5 and not finished.failed
    told = [each for each in lines(finished.folder / "events.jsonl") if "no space left" in each["text"]]
    (event,) = told
    assert event["level"] == "warning" and event["step"] == 3
    assert event["text"] == (
        f"ft_log of the diagnostics {file} raised OSError: no space left; it is left out for the rest of the run"
    )
    with (finished.folder / "metrics.csv").open() as rows:
        assert [row[0] for row in csv.reader(rows)] == ["1", "2"]
    skipped = json.loads((finished.folder / "run.json").read_text(encoding="utf-8"))["diagnostics"]["skipped"]
    assert skipped["CSV002"].startswith("the rule failed: KeyError")
    assert "CSV001" in {each["code"] for each in finished.findings}, "its other rules are asked all the same"


@pytest.mark.parametrize("hook", ["ft_start(run)", "ft_finding(finding)"])
def test_neither_a_beginning_nor_a_finding_ends_a_run(config, tmp_path, hook):
    path = tmp_path / f"bad_{hook.partition('(')[0]}.py"
    body = f"@hookimpl\ndef {hook}:\n    raise ValueError('not now')\n"
    path.write_text(f"from ft_host.api import hookimpl\n{body}", encoding="utf-8")
    rows = [{"prompt": "a", "completion": "b"}] * 40  # copies: there is a finding
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    finished = train(dataclasses.replace(config, diagnostics=[str(path)], dataset=str(data), max_steps=2))
    told = [each["text"] for each in lines(finished.folder / "events.jsonl") if "not now" in each["text"]]
    assert len(told) == 1 and told[0].startswith(
        f"{hook.partition('(')[0]} of the diagnostics {path} raised ValueError"
    )


def test_fields_that_cannot_be_used_are_refused_by_name(config, file, site):
    stem = file.stem
    bare = file.with_name(f"bare_{stem}.py")
    bare.write_text("", encoding="utf-8")
    both = dataclasses.replace(config, diagnostics=[str(file), str(bare)])
    assert diagnostics_configs(both)[stem].path == "metrics.csv"
    for given, said in (
        ({stem: {"pth": "a.csv"}}, f"diagnostics_config: {stem}: unknown field pth; did you mean path"),
        ({stem: {"path": 3}}, f"diagnostics_config: {stem}: path: "),
        ({stem: {"path": "a.txt"}}, f"diagnostics_config: {stem}: path: expected a name that ends with .csv"),
        ({stem: 3}, f"diagnostics_config: {stem}: found 3, expected"),
        ({bare.stem: {"x": 1}}, f"diagnostics_config: the diagnostics {bare.stem} have no fields of their own"),
        ({"other": {}}, "diagnostics_config: other is none of the diagnostics that are chosen"),
    ):
        with pytest.raises(ConfigError) as caught:
            diagnostics_configs(dataclasses.replace(both, diagnostics_config=given))
        assert said in str(caught.value)
    with pytest.raises(PluginNotFound, match="no diagnostics .*: there is no Python file"):
        find("diagnostics", "./nowhere.py")


def test_a_distribution_has_its_fields_under_the_name_of_the_diagnostics(config, site):
    make_distribution(
        site,
        "ft-csvlog",
        entry_points={
            "ft_host.diagnostics": {"csvlog": "fake_csvlog"},
            "ft_host.configs": {"csvlog": "fake_csvlog:Config"},
        },
        modules={"fake_csvlog": CSVLOG.replace("{name}", "csvlog")},
        requires=["ft-host"],
    )
    catalog.cache_clear()
    (info,) = [each for each in catalog() if each.name == "csvlog"]
    assert (info.kind, info.config, info.state) == ("diagnostics", "fake_csvlog:Config", "ok")
    for name in ("csvlog", "ft-csvlog:csvlog"):
        chosen = dataclasses.replace(config, diagnostics=[name], diagnostics_config={name: {"path": "b.csv"}})
        assert diagnostics_configs(chosen)["csvlog"].path == "b.csv"
    own = {info.name: info.config for info in catalog() if info.kind == "diagnostics" and info.name == "sft"}
    assert own == {"sft": ""}, "the config of this name is the method's"


def test_a_file_is_shown_and_checked_in_a_process_of_its_own(file, tmp_path, capsys):
    assert main(["plugins", "show", str(file), "--check"]) == 0
    said = capsys.readouterr().out
    assert "diagnostics" in said and "imported in" in said and str(file) in said
    broken = tmp_path / "broken_method.py"
    broken.write_text("from ft_host.api import hookimpl\n@hookimpl\ndef ft_los(batch): pass\ndef ft_loss(b): pass\n")
    assert main(["plugins", "show", str(broken), "--check"]) == 3
    said = capsys.readouterr().out
    assert "method" in said and "broken" in said
    assert main(["plugins", "show", str(tmp_path / "none.py")]) != 0


APART = "\nNOT_ABOUT = {'OPT00': 'its loss is no loss'}\n"


def test_a_method_says_which_rules_are_not_about_it_and_why(config, tmp_path, capsys):
    """As a file, and in the module of its rules: ft-dpo says so of PRB005."""
    source = (ROOT / "tests" / "written_for_0_4" / "my_method.py").read_text(encoding="utf-8")
    path = tmp_path / "apart_method.py"
    path.write_text(source + APART, encoding="utf-8")
    mine = config_class(str(path))
    shared = {name: getattr(config, name) for name in ("model", "dataset", "max_steps", "output_dir", "progress")}
    finished = train(mine(**shared), method=str(path))
    skipped = json.loads((finished.folder / "run.json").read_text(encoding="utf-8"))["diagnostics"]["skipped"]
    assert skipped["OPT005"] == skipped["OPT001"] == "not about apart_method: its loss is no loss"
    assert diagnose(finished.folder).skipped["OPT005"] == skipped["OPT005"]
    assert main(["rules", "--method", "dpo"]) == 0
    assert "PRB005 (The first loss is that of a model that doesn't know the data) is left out: not about dpo: " in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("said", "problem"), [("['OPT002']", "expected {code: reason}"), ("{'OTP002': 'x'}", "OPT002")]
)
def test_what_is_no_rule_and_no_reason_is_refused(tmp_path, said, problem):
    path = tmp_path / f"odd_{len(said)}.py"
    path.write_text(f"NOT_ABOUT = {said}\n", encoding="utf-8")
    with pytest.raises(PluginBroken, match=problem):
        not_about(find("method", str(path)), [(rule, "host") for rule in RULES])


SIMPO = """
from dataclasses import dataclass

import torch

from ft_host.api import LossOutput, RunConfig, hookimpl, mean, option, pair_batch, pair_row, sum_by_row


@dataclass(kw_only=True)
class Config(RunConfig):
    beta: float = option(2.0, "How much a log-prob counts.", gt=0)


@hookimpl
def ft_prepare(row, tokenizer, config):
    return pair_row(row, tokenizer, config)


@hookimpl
def ft_collate(rows, tokenizer, config):
    return pair_batch(rows)


@hookimpl
def ft_loss(model, batch, run):
    rewards = run.config.beta * sum_by_row(model(batch, want=("logp",))["logp"], batch)
    chosen, rejected = rewards[0::2], rewards[1::2]
    pairs = len(chosen)
    metrics = {"rewards/chosen": mean(chosen.detach().sum(), pairs)}
    metrics["rewards/rejected"] = mean(rejected.detach().sum(), pairs)
    return LossOutput(terms={"pairs": -torch.nn.functional.logsigmoid(chosen - rejected).sum()}, metrics=metrics)
"""


def pairs_run(config, tmp_path, method, kind):
    rows = [{"prompt": f"what is {n}?", "chosen": f" it is {n}", "rejected": f" no, {n}"} for n in range(40)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    finished = train(
        kind(
            model=config.model,
            dataset=str(data),
            max_steps=1,
            output_dir=str(tmp_path / kind.__name__),
            progress="quiet",
        ),
        method=method,
    )
    facts = json.loads((finished.folder / "run.json").read_text(encoding="utf-8"))["facts"]
    return facts, {each["code"] for each in finished.findings}, finished.metrics


def test_a_run_records_its_reference_and_one_without_is_not_accused(config, tmp_path):
    """SimPO's rewards are log-probs: far from 0 in the first step, and nothing is wrong."""
    from ft_dpo.config import DPOConfig

    path = tmp_path / "simpo_file.py"
    path.write_text(SIMPO, encoding="utf-8")
    facts, codes, metrics = pairs_run(config, tmp_path, str(path), config_class(str(path)))
    assert "model/reference" not in facts and "PRB001" not in codes
    assert abs(metrics["rewards/chosen"]) > 1
    facts, codes, metrics = pairs_run(config, tmp_path, "dpo", DPOConfig)
    assert facts["model/reference"] == "the policy as the run found it" and "PRB001" not in codes
    assert metrics["rewards/chosen"] == 0
