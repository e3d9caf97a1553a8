"""Fields by the names that they had in earlier versions: everywhere, with a warning that has the new name."""

from __future__ import annotations

import dataclasses
import inspect
import json
import pickle
import warnings
from dataclasses import dataclass

import pytest
from ft_grpo.config import GRPOConfig
from ft_sft.config import SFTConfig

from ft_host.cli import train as train_command
from ft_host.cli.train import old_names_caught
from ft_host.config import RunConfig, option, recorded
from ft_host.config import resolve as resolving
from ft_host.config.fields import fields_of
from ft_host.config.old_names import RenamedField, of_record, old_names
from ft_host.config.run import OLD_NAMES
from ft_host.config.schema import schema
from ft_host.diagnostics.engine import Engine
from ft_host.diagnostics.replay import diagnose
from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.view import View
from ft_host.errors import ConfigError
from ft_host.generation import Sampling
from ft_host.rundir.record import read_run
from ft_host.testing.invariants import lines, run_in
from ft_host.testing.runs import make_run
from ft_host.training.evaluate import eval_sampling

NEW = {
    "window": ("data_window", 20),
    "temperature": ("eval_temperature", 0.5),
    "top_p": ("eval_top_p", 0.9),
    "top_k": ("eval_top_k", 7),
    "parent": ("parent_run", "runs/before"),
    "select": ("rules_select", ["NUM"]),
    "ignore": ("rules_ignore", ["OPT008"]),
    "locked": ("locked_fields", ["seed"]),
    "timeout": ("ddp_timeout", 60),
}
GIVEN = ["--model", "org/model", "--dataset", "org/data"]


@dataclass(kw_only=True)
class Own(RunConfig):
    """A method without rollouts that has a temperature of its own."""

    temperature: float = option(2.0, "Of the loss.")


def told(old: str) -> str:
    return f"{old} is called {NEW[old][0]} now"


def test_the_table_is_that_of_the_options():
    assert {old: new for old, (new, _) in NEW.items()} == OLD_NAMES == old_names(SFTConfig)
    kept = {"temperature", "top_p", "top_k"}  # which say how rollouts are sampled
    assert old_names(GRPOConfig) == {old: new for old, new in OLD_NAMES.items() if old not in kept}
    assert old_names(Own) == {old: new for old, new in OLD_NAMES.items() if old != "temperature"}
    assert not OLD_NAMES.keys() & fields_of(SFTConfig).keys()


@pytest.mark.parametrize("old", NEW)
def test_a_keyword_and_an_attribute(old):
    new, value = NEW[old]
    with pytest.warns(RenamedField, match=f"SFTConfig: {told(old)}") as caught:
        config = SFTConfig(**{old: value})
    assert caught[0].filename == __file__
    assert getattr(config, new) == value and old not in vars(config)
    with pytest.warns(RenamedField, match=told(old)) as caught:
        assert getattr(config, old) == value
    assert caught[0].filename == __file__
    with pytest.warns(RenamedField, match=told(old)):
        setattr(config, old, value)
    assert old not in vars(config)
    with pytest.raises(ConfigError, match=f"SFTConfig: {told(old)}, and both are given"):
        SFTConfig(**{old: value, new: value})


def test_replace_takes_an_old_name_and_the_new_ones_warn_of_nothing():
    with pytest.warns(RenamedField, match=told("select")):
        config = dataclasses.replace(SFTConfig(), select=["NUM"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dataclasses.replace(config, seed=1).rules_select == ["NUM"]
        assert pickle.loads(pickle.dumps(config)) == config
        assert dataclasses.asdict(config)["rules_select"] == ["NUM"]
        assert GRPOConfig(temperature=0.3, top_p=0.5, top_k=3).temperature == 0.3
        assert Own(temperature=3.0).temperature == 3.0 and Own().eval_temperature == 0.0
    assert "rules_select" in inspect.signature(SFTConfig).parameters
    assert "select" not in inspect.signature(SFTConfig).parameters


def test_what_never_was_a_name_is_refused_as_ever():
    with pytest.raises(TypeError, match="selected"):
        SFTConfig(selected=[])
    with pytest.raises(AttributeError, match="'SFTConfig' object has no attribute 'selected'"):
        SFTConfig().selected  # noqa: B018
    assert not hasattr(SFTConfig(), "selected")


@pytest.mark.parametrize("old", NEW)
def test_a_file(old, tmp_path):
    new, value = NEW[old]
    file = tmp_path / "run.yaml"
    file.write_text(f"model: org/model\ndataset: org/data\n{old}: {json.dumps(value)}\n")
    with pytest.warns(RenamedField, match=f"run.yaml:3: {told(old)}"):
        resolved = resolving.resolve(SFTConfig, file)
    assert getattr(resolved.config, new) == value and resolved.origins[new] == f"{file}:3"
    file.write_text(file.read_text() + f"{new}: {json.dumps(value)}\n")
    with (
        pytest.warns(RenamedField),
        pytest.raises(ConfigError, match=f"run.yaml:4: {new} is {new}, which is already set in .*run.yaml:3"),
    ):
        resolving.resolve(SFTConfig, file)


@pytest.mark.parametrize("old", NEW)
def test_a_flag(old):
    new, value = NEW[old]
    flags = [f"--{old.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    both = [f"--{new.replace('_', '-')}", *flags[1:]]
    with pytest.warns(RenamedField, match=f"{flags[0]} is called {both[0]} now"):
        resolved = resolving.resolve(SFTConfig, None, [*GIVEN, *flags])
    assert getattr(resolved.config, new) == value and resolved.origins[new] == f"flag {both[0]}"
    for one, other in ((flags, both), (both, flags)):
        with pytest.raises(ConfigError, match="are one field"), warnings.catch_warnings(action="ignore"):
            resolving.resolve(SFTConfig, None, [*GIVEN, *one, *other])


def test_values_in_python_are_told_once_and_refused_twice():
    values = {"model": "m", "dataset": "d"}
    with pytest.warns(RenamedField, match=told("timeout")):
        assert resolving.resolve(SFTConfig, None, values | {"timeout": 5}).config.ddp_timeout == 5
    with (
        pytest.raises(ConfigError, match="timeout is ddp_timeout, which is given too"),
        warnings.catch_warnings(action="ignore"),
    ):
        resolving.resolve(SFTConfig, None, values | {"ddp_timeout": 5, "timeout": 5})


def test_the_command_line_says_each_once():
    with old_names_caught() as texts:
        for _ in range(2):
            resolving.resolve(SFTConfig, None, [*GIVEN, "--select", "NUM", "--select", "OPT", "--timeout", "9"])
    assert texts == [
        "the command line: --select is called --rules-select now; the old name goes in 2.0.0",
        "the command line: --timeout is called --ddp-timeout now; the old name goes in 2.0.0",
    ]


def test_names_of_fields_that_are_values():
    with pytest.warns(RenamedField, match=f"locked_fields: {told('window')}"):
        resolved = resolving.resolve(SFTConfig, None, [*GIVEN, "--locked-fields", "window", "seed"])
    assert resolved.config.locked_fields == ["data_window", "seed"]
    with pytest.raises(ConfigError, match="there is no field data_windows.*did you mean data_window"):
        resolving.resolve(SFTConfig, None, [*GIVEN, "--locked-fields", "data_windows"])


def test_hints_and_help_have_the_new_names_only():
    with pytest.raises(ConfigError, match="did you mean --rules-select"):
        resolving.resolve(SFTConfig, None, [*GIVEN, "--rules-selec", "NUM"])
    found = schema("sft", SFTConfig)["properties"]
    assert found["timeout"]["deprecated"] and found["timeout"]["description"] == "Called ddp_timeout now."
    assert "deprecated" not in found["ddp_timeout"]
    assert "deprecated" not in schema("grpo", GRPOConfig)["properties"]["temperature"]


# ---------------------------------------------------------------- runs that were made before


def of_0_4(config: RunConfig, without: tuple[str, ...] = ()) -> dict:
    """A config as run.json of 0.4 has it."""
    back = {new: old for old, new in old_names(type(config)).items()}
    return {back.get(name, name): value for name, value in vars(config).items() if name not in without}


def test_a_recorded_config_is_read_under_the_names_of_today():
    old = of_0_4(SFTConfig(eval_temperature=0.3, ddp_timeout=7, model="m", dataset="d"))
    assert old["temperature"] == 0.3 and "eval_temperature" not in old
    resolved = recorded.resolve_resumed(SFTConfig, old, dict.fromkeys(old, "python"), "run.json", [])
    assert (resolved.config.eval_temperature, resolved.config.ddp_timeout) == (0.3, 7)
    assert set(resolved.origins) == set(fields_of(SFTConfig))
    with pytest.warns(RenamedField, match="--select is called --rules-select"):
        resolved = recorded.resolve_resumed(SFTConfig, old, {}, "run.json", ["--select", "NUM"])
    assert resolved.config.rules_select == ["NUM"]


def test_a_recorded_config_with_rollouts_keeps_what_they_are_sampled_with():
    config = GRPOConfig(model="m", dataset="d", temperature=0.3, top_p=0.5, ddp_timeout=7)
    old = of_0_4(config, without=("eval_top_p", "eval_top_k"))
    found = of_record(old, OLD_NAMES)
    assert found.keys() == OLD_NAMES.keys() - {"top_p", "top_k", "temperature"}
    now = {found.get(name, name): value for name, value in old.items()}
    assert (now["temperature"], now["top_p"], now["eval_temperature"]) == (0.3, 0.5, 0.0)
    assert GRPOConfig(**now).eval_top_p is None
    assert of_record(now, OLD_NAMES) == of_record(vars(Own()), OLD_NAMES) == {}


def test_the_folder_of_an_older_run_is_diagnosed_and_compared(tmp_path):
    folder = make_run(tmp_path / "old")
    file = folder / "run.json"
    info = json.loads(file.read_text())
    info["config"] = of_0_4(SFTConfig(**info["config"]))
    info["origins"] = dict.fromkeys(info["config"], "default") | {"select": "run.yaml:3"}
    info["config"]["select"] = ["NUM"]
    file.write_text(json.dumps(info))
    record = read_run(folder)
    assert record.config["rules_select"] == ["NUM"] and record.origins["rules_select"] == "run.yaml:3"
    assert record.config["eval_temperature"] == 0.0 and not OLD_NAMES.keys() & record.config.keys()
    assert {rule.code[:3] for rule, _ in diagnose(folder).rules} == {"NUM"}


def test_a_run_of_an_earlier_version_goes_on(config):
    """As 0.4 has written its run.json, with the losses of a run that never stopped."""
    whole = run_in(config, "whole", max_steps=3, lr_scheduler_type="constant")
    begun = run_in(config, "begun", max_steps=2, lr_scheduler_type="constant")
    file = begun / "run.json"
    info = json.loads(file.read_text())
    back = {new: old for old, new in OLD_NAMES.items()}
    info["config"] = of_0_4(type(config)(**info["config"]))
    info["origins"] = {back.get(name, name): said for name, said in info["origins"].items()}
    file.write_text(json.dumps(info))
    assert train_command.run(["--resume", str(begun), "--max-steps", "3", "--select", "NUM"]) == 0
    assert [line["loss"] for line in lines(begun)] == [line["loss"] for line in lines(whole)]
    now = json.loads(file.read_text())["config"]
    assert now["ddp_timeout"] == 1800 and now["rules_select"] == ["NUM"] and not OLD_NAMES.keys() & now.keys()


def test_the_command_line_says_it_in_a_line_of_ours(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("method: sft\nmodel: org/model\ndataset: org/data\ntemperature: 0.5\n")
    assert train_command.run([str(file), "--select", "NUM", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        f"ft-host: warning: {file}:4: temperature is called eval_temperature now; the old name goes in 2.0.0",
        "ft-host: warning: the command line: --select is called --rules-select now; the old name goes in 2.0.0",
    ]
    assert "eval_temperature: 0.5" in out and "rules_select: [NUM]" in out


# ---------------------------------------------------------------- strangers' rules


def test_a_rule_reads_and_changes_fields_by_old_names():
    view = View({"eval_temperature": 0.5, "seed": 1})
    with pytest.warns(RenamedField, match=f"a rule: {told('temperature')}"):
        assert view.config.temperature == 0.5
    assert View({"temperature": 0.9, "eval_temperature": 0.0}).config.temperature == 0.9
    with pytest.raises(AttributeError, match="no field window"):
        view.config.window  # noqa: B018
    rule = Rule(
        code="TST001", title="t", stage="train", needs=("loss",), test=lambda view: True, message=lambda view: "m",
        window=1, least=1, when="w", why="y", remedy="r", source="own",
        remedies=lambda view: [Remedy(why="wait", patch={"timeout": 60})],
    )  # fmt: skip
    engine = Engine([(rule, "test 0")], {"ddp_timeout": 5, "locked_fields": []})
    with pytest.warns(RenamedField, match=f"a remedy's patch: {told('timeout')}"):
        engine.add_metrics({"kind": "train", "step": 1, "loss": 1.0})
    (found,) = engine.findings.values()
    assert [each.patch for each in found.remedies] == [{"ddp_timeout": 60}]


# ---------------------------------------------------------------- how evaluation samples


def test_evaluation_samples_as_its_own_fields_say():
    assert eval_sampling(SFTConfig()) == Sampling(max_new_tokens=256, temperature=0.0, seed=42)
    config = SFTConfig(eval_temperature=0.7, eval_top_p=0.9, eval_top_k=3, seed=1, max_completion_length=8)
    assert eval_sampling(config) == Sampling(max_new_tokens=8, temperature=0.7, top_p=0.9, top_k=3, seed=1)


def test_evaluation_of_a_run_with_rollouts_is_greedy_and_else_as_its_training():
    config = GRPOConfig(temperature=0.7, top_p=0.8, top_k=4, min_p=0.1)
    expected = Sampling(max_new_tokens=512, temperature=0.0, top_p=0.8, top_k=4, min_p=0.1, seed=42)
    assert eval_sampling(config) == expected
    own = dataclasses.replace(config, eval_temperature=None, eval_top_p=1.0, eval_top_k=0)
    assert eval_sampling(own) == dataclasses.replace(expected, temperature=0.7, top_p=1.0, top_k=0)


def test_a_new_name_of_a_stranger_s_field_works_in_the_same_way():
    @dataclass(kw_only=True)
    class Renamed(RunConfig):
        margin: float = option(1.0, "The margin.", was=("gamma",))

    with pytest.warns(RenamedField, match="Renamed: gamma is called margin now"):
        assert Renamed(gamma=2.0).margin == 2.0
    with pytest.warns(RenamedField, match="--gamma is called --margin now"):
        assert resolving.resolve(Renamed, None, [*GIVEN, "--gamma", "3"]).config.margin == 3.0


def test_a_host_s_field_that_a_stranger_declares_anew_by_its_old_name_is_told():
    @dataclass(kw_only=True)
    class Shorter(RunConfig):
        window: int = option(100, "Rows.", group="data")

    with pytest.warns(RenamedField, match="Shorter.window: the host's field window is called data_window now"):
        fields_of(Shorter)
    assert Shorter().window == 100 and Shorter().data_window == 1000
