"""Who is installed, and the plugins of one run. The distributions are made in a temporary folder on sys.path."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import warnings

import pytest

import ft_host
from ft_host.config import RunConfig
from ft_host.diagnostics.collect import installed_rules, own_diagnostics
from ft_host.errors import ConfigError, PluginBroken, PluginNotFound, UsageError
from ft_host.registry import (
    FtExperimentalWarning,
    backend_config_class,
    catalog,
    check_requirements,
    config_class,
    find,
    load,
    method_of,
    methods_for,
    plugins_named,
    reference,
    session,
    warn_if_experimental,
    wrappers,
)
from ft_host.registry import session as session_function
from ft_host.registry.check import check
from ft_host.registry.metadata import read_headers
from ft_host.registry.trace import shape
from ft_host.testing.distributions import make_distribution

METHOD = """
from ft_host import hookimpl

@hookimpl
def ft_prepare(row, tokenizer, config):
    return {"input_ids": [row["n"]] * 3, "length": 3}

@hookimpl
def ft_collate(rows):
    return {"ids": [row["input_ids"] for row in rows]}

@hookimpl
def ft_loss(batch):
    return len(batch["ids"])
"""
CONFIG = """
from dataclasses import dataclass
from ft_host.config import RunConfig, option

@dataclass(kw_only=True)
class Config(RunConfig):
    strength: float = option(0.5, "How strong.")
"""
BACKEND = """
from ft_host import hookimpl

@hookimpl
def ft_generate(requests):
    return [len(requests)]
"""
RULES = """
from ft_host import hookimpl
from ft_host.diagnostics import Rule

@hookimpl
def ft_rules():
    return [
        Rule(code="ALPHA001", title="t", stage="train", needs=("loss",), test=lambda view: False,
             message=lambda view: "m", when="w", why="y", remedy="r", source="own")
    ]
"""
BETA = ["Development Status :: 4 - Beta"]


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder in which distributions can be installed, in front of the real ones."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delenv("FT_HOST_PLUGINS", raising=False)
    monkeypatch.delenv("FT_HOST_BLOCK", raising=False)
    catalog.cache_clear()
    yield folder
    catalog.cache_clear()


def make_method(site, name, package, *, method=METHOD, config=CONFIG, requires=("ft-host>=0.1,<2",), **others):
    """A distribution ft-NAME with the method NAME in PACKAGE."""
    return make_distribution(
        site,
        others.pop("distribution", f"ft-{name}"),
        entry_points=others.pop(
            "entry_points",
            {"ft_host.methods": {name: f"{package}.method"}, "ft_host.configs": {name: f"{package}.config:Config"}},
        ),
        modules={f"{package}.method": method, f"{package}.config": config},
        requires=requires,
        classifiers=others.pop("classifiers", BETA),
        **others,
    )


def listed(name, kind="method"):
    catalog.cache_clear()
    (info,) = [info for info in catalog() if (info.kind, info.name) == (kind, name)]
    return info


FAR = """
@dataclass(kw_only=True)
class Config:
    port: int = option(1, "A port.")

    def check(self):
        pass
"""


def make_far(site, *, config=FAR, **configs):
    """A distribution ft-far with the backend `far`, whose config is in a module of its own."""
    entries = {"ft_host.backends": {"far": "fake_far.backend"}}
    configs = configs or {"far": "fake_far.config:Config"}
    made = f"from dataclasses import dataclass\nfrom ft_host.config import option\n{config}\n"
    return make_distribution(
        site,
        "ft-far",
        entry_points=entries | {"ft_host.configs": configs},
        requires=("ft-host>=0.1,<2",),
        modules={"fake_far.backend": BACKEND, "fake_far.config": made},
        classifiers=BETA,
    )


# ---------------------------------------------------------------- the catalog


def test_a_method_is_described_by_its_metadata_and_not_imported(site):
    make_method(site, "alpha", "fake_alpha", summary="A method", version="0.3.1")
    info = find("method", "alpha")
    assert (info.kind, info.name, info.distribution, info.version) == ("method", "alpha", "ft-alpha", "0.3.1")
    assert (info.stability, info.state, info.problem, info.notes) == ("experimental", "ok", None, ())
    assert (info.value, info.config) == ("fake_alpha.method", "fake_alpha.config:Config")
    assert (info.requires, info.requires_host, info.compatible) == (("ft-host>=0.1,<2",), "<2,>=0.1", True)
    assert info.summary == "A method"
    assert info.location == str(site / "fake_alpha" / "method.py")
    assert reference(info) == "ft-alpha:alpha"
    assert not [name for name in sys.modules if name.startswith("fake_alpha")]


def test_what_really_is_installed_is_listed():
    catalog.cache_clear()
    known = {(info.kind, info.name): info.distribution for info in catalog()}
    assert known["backend", "transformers"] == "ft-host"
    assert known["method", "sft"] == "ft-sft"


def test_the_catalog_is_scanned_once(site):
    make_method(site, "alpha", "fake_alpha")
    first = catalog()
    make_method(site, "beta", "fake_beta")
    assert catalog() is first
    assert listed("beta").name == "beta"


@pytest.mark.parametrize(
    "classifier, version, stability, disagreement",
    [
        ("3 - Alpha", "0.2.0", "experimental", None),
        ("4 - Beta", "0.2.0", "experimental", None),
        ("4 - Beta", "1.2.0", "experimental", "says stable"),
        ("5 - Production/Stable", "1.0.0", "stable", None),
        ("5 - Production/Stable", "0.9.0", "stable", "says experimental"),
        ("6 - Mature", "3.1", "stable", None),
        ("7 - Inactive", "0.4", "deprecated", None),
        (None, "0.1.0", "experimental", None),
        (None, "1.0.0", "experimental", "says stable"),
    ],
)
def test_stability_is_the_classifier_and_must_agree_with_the_version(
    site, classifier, version, stability, disagreement
):
    classifiers = [f"Development Status :: {classifier}"] if classifier else []
    make_method(site, "alpha", "fake_alpha", version=version, classifiers=classifiers)
    info = listed("alpha")
    assert info.stability == stability
    assert info.state == "ok"
    if disagreement is None:
        assert info.notes == ()
    else:
        assert len(info.notes) == 1 and version in info.notes[0] and disagreement in info.notes[0]


@pytest.mark.parametrize(
    "requirement, compatible",
    [
        ("ft-host", True),
        ("ft-host>=0.1,<2", True),
        ("ft_host (>=0.1)", True),
        ("FT.Host[test]>=0.1", True),
        ("ft-host<0.1", False),
        ("ft-host>=7", False),
        ("ft-host>=7; python_version < '3'", True),
        ("ft-host>=7; extra == 'next'", True),
        ("ft-hostess>=7", True),
        ("ft-host-extras>=7", True),
    ],
)
def test_compatibility_is_the_requirement_on_the_host(site, requirement, compatible):
    make_method(site, "alpha", "fake_alpha", requires=["torch>=2", requirement])
    info = listed("alpha")
    assert info.compatible is compatible
    assert info.state == ("ok" if compatible else "incompatible")
    if not compatible:
        with pytest.raises(PluginBroken) as caught:
            find("method", "alpha")
        message = str(caught.value)
        assert "ft-alpha 0.1.0" in message and ft_host.__version__ in message
        assert requirement.removeprefix("ft-host") in message
        with pytest.raises(PluginBroken):
            load(info)
    elif ">=0.1" not in requirement:
        assert any("Requires-Dist" in note for note in info.notes)


def test_a_requirement_on_the_host_that_cannot_be_read_is_a_problem(site):
    make_method(site, "alpha", "fake_alpha", requires=["ft-host>=zero"])
    info = listed("alpha")
    assert info.state == "broken" and "'ft-host>=zero'" in info.problem


@pytest.mark.parametrize(
    "line, problem",
    [
        ("alpha =", "it is empty"),
        ("alpha", "it is empty"),
        ("alpha = :method", "expected package.module"),
        ("alpha = fake_alpha method", "expected package.module"),
        ("alpha = fake-alpha.method", "expected package.module"),
        ("alpha = fake_alpha.", "expected package.module"),
        ("alpha = fake_alpha.method:plugin", "expected package.module"),
        ("alpha = fake_nowhere.method", "no module fake_nowhere"),
        ("alpha = fake_alpha.nowhere", "no module fake_alpha.nowhere"),
        ("alpha = fake_alpha.method.deeper", "fake_alpha.method is a module, not a package"),
        ("alpha = fake_alpha.method\nalpha = fake_alpha.config", "occurs twice"),
    ],
)
def test_a_bad_entry_point_is_listed_with_its_problem(site, line, problem):
    text = f"[ft_host.methods]\n{line}\n[ft_host.configs]\nalpha = fake_alpha.config:Config\n"
    make_method(site, "alpha", "fake_alpha", entry_points=text)
    infos = [info for info in catalog() if info.name == "alpha"]
    assert infos and all(info.state == "broken" and problem in info.problem for info in infos)
    with pytest.raises(PluginBroken, match="ft-alpha 0.1.0"):
        find("method", "alpha")
    assert not [name for name in sys.modules if name.startswith("fake_")]


@pytest.mark.parametrize(
    "configs, problem",
    [
        ("[ft_host.configs]\nalpha =", "its config: bad entry point: it is empty"),
        ("[ft_host.configs]\nalpha = fake_alpha.config", "expected package.module:Class"),
        ("[ft_host.configs]\nalpha = fake_alpha.conf:Config", "no module fake_alpha.conf"),
    ],
)
def test_a_method_without_a_config_is_a_problem(site, configs, problem):
    make_method(site, "alpha", "fake_alpha", entry_points=f"[ft_host.methods]\nalpha = fake_alpha.method\n{configs}\n")
    info = listed("alpha")
    assert info.state == "broken" and problem in info.problem


@pytest.mark.parametrize("value", ["fake_alpha.method", "fake_alpha", "fake_alpha.method [extra]"])
def test_a_method_s_name_is_written_once(site, value):
    """Its config and its rules are the modules beside it."""
    modules = {
        "fake_alpha": METHOD,
        "fake_alpha.method": METHOD,
        "fake_alpha.config": CONFIG,
        "fake_alpha.rules": RULES,
    }
    make_distribution(
        site,
        "ft-alpha",
        entry_points={"ft_host.methods": {"alpha": value}},
        modules=modules,
        requires=("ft-host>=0.1,<2",),
        classifiers=BETA,
    )
    info, rules = listed("alpha"), listed("alpha", kind="diagnostics")
    assert (info.state, info.config, info.implied) == ("ok", "fake_alpha.config", False)
    assert (rules.state, rules.value, rules.implied) == ("ok", "fake_alpha.rules", True)
    assert rules.location.endswith("rules.py")
    assert not [name for name in sys.modules if name.startswith("fake_")]
    found = config_class("alpha")
    assert found.__name__ == "Config" and "fake_alpha.method" not in sys.modules
    assert method_of(found) == info
    assert [each.result for each in check([info, rules], timeout=30, at_once=2)] == ["ok", "ok"]
    assert own_diagnostics(info) == [rules]
    assert [rule.code for rule, label in installed_rules("alpha")[0] if label == "ft-alpha 0.1.0"] == ["ALPHA001"]


def test_entry_points_come_before_what_is_beside_the_method(site):
    other = CONFIG.replace("class Config", "class Other")
    make_distribution(
        site,
        "ft-alpha",
        entry_points={
            "ft_host.methods": {"alpha": "fake_alpha.method"},
            "ft_host.configs": {"alpha": "fake_alpha.other:Other"},
            "ft_host.diagnostics": {"watcher": "fake_alpha.rules"},
        },
        modules={"fake_alpha.method": METHOD, "fake_alpha.config": CONFIG, "fake_alpha.other": other,
                 "fake_alpha.rules": RULES},
        requires=("ft-host>=0.1,<2",),
    )  # fmt: skip
    info = listed("alpha")
    assert info.config == "fake_alpha.other:Other" and config_class(info).__name__ == "Other"
    assert [each.name for each in catalog() if (each.kind, each.distribution) == ("diagnostics", "ft-alpha")] == [
        "watcher"
    ]
    assert own_diagnostics(info) == []


def test_a_module_called_rules_that_has_no_hook_is_no_plugin(site):
    make_distribution(
        site,
        "ft-alpha",
        entry_points={"ft_host.methods": {"alpha": "fake_alpha.method"}},
        modules={"fake_alpha.method": METHOD, "fake_alpha.config": CONFIG, "fake_alpha.rules": "LIMIT = 3\n"},
    )
    assert listed("alpha").state == "ok" and own_diagnostics(listed("alpha")) == []


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["Only"], "Only"),
        (["Base", "Config"], "Config"),
        (["Base", "SimPOConfig"], "SimPOConfig"),
        (
            ["One", "Two"],
            "fake_simpo.config has 2 classes that extend RunConfig: One, Two; expected one, or one called",
        ),
        ([], "fake_simpo.config has 0 classes that extend RunConfig; expected one"),
    ],
)
def test_which_class_of_the_module_is_the_config(site, names, chosen):
    head, _, _ = CONFIG.partition("@dataclass")
    text = head + "".join(f"@dataclass(kw_only=True)\nclass {name}(RunConfig):\n    pass\n\n\n" for name in names)
    make_distribution(
        site,
        "ft-simpo",
        entry_points={"ft_host.methods": {"sim-po": "fake_simpo.method"}},
        modules={"fake_simpo.method": METHOD, "fake_simpo.config": text},
    )
    if chosen in names:
        assert config_class("sim-po").__name__ == chosen
        assert method_of(config_class("sim-po")).name == "sim-po"
    else:
        with pytest.raises(PluginBroken, match=re.escape(chosen)):
            config_class("sim-po")
        assert "fake_simpo.config" in sys.modules


@pytest.mark.parametrize("value", ["fake_alpha.method", "fake_alone"])
def test_no_config_beside_the_method(site, value):
    modules = {"fake_alpha.method": METHOD, "fake_alone": METHOD}
    make_distribution(site, "ft-alpha", entry_points={"ft_host.methods": {"alpha": value}}, modules=modules)
    info = listed("alpha")
    assert info.state == "broken" and info.problem == (
        f"has no config: ft_host.configs has no entry point 'alpha', and there is no module config beside {value}"
    )


def test_a_config_without_a_method_and_an_unknown_group_are_listed(site):
    make_distribution(
        site,
        "ft-odd",
        entry_points="[ft_host.configs]\nalpha = fake_odd:Config\n[ft_host.method]\nbeta = fake_odd\n",
        modules={"fake_odd": ""},
        requires=["ft-host"],
    )
    assert "no method of this name" in listed("alpha").problem
    assert "'ft_host.method' is unknown" in listed("beta", kind="unknown").problem


def test_a_backend_may_have_a_config(site):
    make_far(site)
    info = listed("far", kind="backend")
    assert (info.state, info.problem, info.config) == ("ok", None, "fake_far.config:Config")
    assert [each.name for each in catalog() if each.distribution == "ft-far"] == ["far"]  # the config is no plugin
    assert backend_config_class(info)().port == 1
    assert "fake_far.config" in sys.modules and "fake_far.backend" not in sys.modules
    assert backend_config_class(find("backend", "transformers")) is None
    assert [each.result for each in check([info], timeout=30, at_once=1)] == ["ok"]


def test_a_config_goes_with_the_backend_of_its_name(site):
    make_far(site, near="fake_far.config:Config")
    assert listed("far", kind="backend").config == ""
    problem = listed("near").problem
    assert "no method of this name in ft_host.methods (nor a backend in ft_host.backends, nor diagnostics" in problem


@pytest.mark.parametrize(
    "config, problem",
    [
        ("class Config:\n    port: int = 1", "fake_far.config:Config is not a class decorated with @dataclass"),
        ("def Config():\n    pass", "fake_far.config:Config is not a class decorated with @dataclass"),
        (FAR.replace("check", "checks"), "fake_far.config:Config has no method check"),
        ("class Other:\n    pass", "fake_far.config:Config does not exist: no 'Config'"),
        ("import fake_absent", "the config of the backend 'far' failed to import: ModuleNotFoundError"),
    ],
)
def test_a_backend_s_config_that_is_none_is_refused(site, config, problem):
    make_far(site, config=config)
    info = find("backend", "far")
    with pytest.raises(PluginBroken, match=problem):
        backend_config_class(info)
    (outcome,) = check([info], timeout=30, at_once=1)
    assert outcome.result == "broken" and "ft-far 0.1.0" in outcome.cause and problem in outcome.cause


def test_an_entry_point_of_a_backend_s_config_that_leads_nowhere_is_a_problem(site):
    make_far(site, far="fake_far.configs:Config")
    info = listed("far", kind="backend")
    assert info.state == "broken" and "its config: bad entry point" in info.problem


def test_files_of_other_distributions_that_cannot_be_read_hide_nothing(site):
    make_method(site, "alpha", "fake_alpha")
    make_distribution(site, "garbled", entry_points="[console_scripts]\nno equals sign\n")
    (make_distribution(site, "latin") / "entry_points.txt").write_bytes(b"[x]\na = caf\xe9\n")
    (make_distribution(site, "bare") / "METADATA").unlink()
    nameless = make_distribution(
        site, "ft-bare", entry_points={"ft_host.diagnostics": {"delta": "fake_bare"}}, modules={"fake_bare": ""}
    )
    (nameless / "METADATA").unlink()
    assert listed("alpha").state == "ok"
    assert listed("delta", kind="diagnostics").problem == "its METADATA has no name or no version"


def test_a_shadowed_version_is_not_listed(site, tmp_path, monkeypatch):
    make_method(site, "alpha", "fake_alpha", version="0.1.0")
    front = tmp_path / "front"
    make_method(front, "alpha", "fake_alpha", version="0.2.0", distribution="FT_alpha")
    monkeypatch.syspath_prepend(str(front))
    assert listed("alpha").version == "0.2.0"


def test_headers_are_read_up_to_the_description():
    text = "Name: ft-x\nSummary: one\n  two\nClassifier: a\nclassifier: b\n\nName: not a header\n"
    assert read_headers(text) == {"name": ["ft-x"], "summary": ["one\ntwo"], "classifier": ["a", "b"]}


def test_the_environment_allows_and_blocks_by_distribution(site, monkeypatch):
    make_method(site, "alpha", "fake_alpha")
    make_method(site, "beta", "fake_beta")

    monkeypatch.setenv("FT_HOST_BLOCK", "FT_Alpha , other")
    assert (listed("alpha").state, listed("beta").state) == ("blocked", "ok")
    with pytest.raises(PluginNotFound, match="ft-alpha 0.1.0 offers it and is blocked by .* FT_HOST_BLOCK"):
        find("method", "alpha")

    monkeypatch.delenv("FT_HOST_BLOCK")
    monkeypatch.setenv("FT_HOST_PLUGINS", "ft-alpha")
    assert (listed("alpha").state, listed("beta").state) == ("ok", "blocked")
    with pytest.raises(PluginNotFound, match="FT_HOST_PLUGINS"):
        load(listed("beta"))

    monkeypatch.setenv("FT_HOST_PLUGINS", "")
    assert (listed("alpha").state, listed("beta").state) == ("blocked", "blocked")
    assert listed("transformers", kind="backend").state != "blocked"  # part of the host, not a plugin of anybody's

    monkeypatch.setenv("FT_HOST_BLOCK", "ft-host")
    assert listed("transformers", kind="backend").state == "blocked"


# ---------------------------------------------------------------- from a name to a plugin


def test_an_unknown_name_lists_what_is_installed_and_guesses_among_that_only(site):
    make_method(site, "alpha", "fake_alpha")
    with pytest.raises(PluginNotFound) as caught:
        find("method", "alhpa")
    message = str(caught.value)
    assert caught.value.exit_code == 4
    assert "did you mean 'alpha'" in message and "alpha (ft-alpha 0.1.0)" in message
    assert "pip" not in message
    with pytest.raises(PluginNotFound, match="'alpha' is a method of ft-alpha 0.1.0"):
        find("backend", "alpha")
    with pytest.raises(PluginNotFound, match="did you mean 'ft-alpha:alpha'"):
        find("method", "ft-other:alpha")


def test_two_distributions_with_one_name_are_told_apart_by_distribution(site, monkeypatch):
    make_method(site, "alpha", "fake_alpha")
    make_method(site, "alpha", "fake_rival", distribution="rival")
    ours, theirs = [info for info in catalog() if info.name == "alpha"]
    assert (ours.state, theirs.state) == ("conflict", "conflict")
    assert "rival also offers the method 'alpha'" in ours.problem and "ft-alpha:alpha selects" in ours.problem
    with pytest.raises(UsageError) as caught:
        find("method", "alpha")
    assert caught.value.exit_code == 2
    assert "ft-alpha:alpha" in str(caught.value) and "rival:alpha" in str(caught.value)
    assert find("method", "ft-alpha:alpha") is ours
    assert find("method", "Rival:alpha") is theirs
    assert load(theirs).__name__ == "fake_rival.method"
    assert "fake_alpha" not in sys.modules

    monkeypatch.setenv("FT_HOST_BLOCK", "rival")
    catalog.cache_clear()
    assert find("method", "alpha").distribution == "ft-alpha"


def test_a_rival_that_is_broken_still_makes_the_name_ambiguous(site):
    make_method(site, "alpha", "fake_alpha")
    make_method(site, "alpha", "fake_rival", distribution="rival", requires=["ft-host>=9"])
    with pytest.raises(UsageError, match="rival:alpha"):
        find("method", "alpha")  # or an upgrade of the rival would change what a run file means
    assert find("method", "ft-alpha:alpha").distribution == "ft-alpha"
    with pytest.raises(PluginBroken, match="rival 0.1.0"):
        find("method", "rival:alpha")


@pytest.mark.parametrize(
    "source, cause",
    [
        ("import torch_of_tomorrow", "ModuleNotFoundError: No module named 'torch_of_tomorrow'"),
        ("def", "SyntaxError: invalid syntax"),
        ("raise ValueError('one\\ntwo')", "ValueError: one"),
        ("raise SystemExit(0)", "SystemExit: 0"),
    ],
)
def test_a_plugin_that_fails_to_import_names_itself_and_the_cause(site, source, cause):
    make_method(site, "alpha", "fake_alpha", method="\n" + source)
    with pytest.raises(PluginBroken) as caught:
        load(find("method", "alpha"))
    message = str(caught.value)
    assert caught.value.exit_code == 3
    file = str(site / "fake_alpha" / "method.py")
    assert message.startswith(f"ft-alpha 0.1.0 ({file}): the method 'alpha' failed to import: {cause}")
    assert message.endswith(f"({file}, line 2)")
    assert caught.value.__cause__ is not None
    assert config_class("alpha")().strength == 0.5  # its config is a module of its own


def test_the_config_class_is_loaded_without_the_method(site):
    make_method(site, "alpha", "fake_alpha")
    assert issubclass(config_class("alpha"), RunConfig)
    assert "fake_alpha.config" in sys.modules and "fake_alpha.method" not in sys.modules


@pytest.mark.parametrize(
    "config, problem",
    [
        ("class Config: pass", "to extend ft_host.config.RunConfig"),
        ("def Config(): pass", "to extend ft_host.config.RunConfig"),
        ("from ft_host.config import RunConfig\nclass Config(RunConfig):\n    x: int = 1", "not decorated with @datac"),
        ("Conf = 1", "does not exist: no 'Config'"),
        ("1/0", "the config of the method 'alpha' failed to import: ZeroDivisionError: division by zero"),
    ],
)
def test_a_config_that_is_no_config_is_refused(site, config, problem):
    make_method(site, "alpha", "fake_alpha", config=config)
    with pytest.raises(PluginBroken, match=problem) as caught:
        config_class("alpha")
    assert "ft-alpha 0.1.0" in str(caught.value)


def test_the_method_of_a_config_class_is_known_without_naming_it(site):
    make_method(site, "alpha", "fake_alpha")
    config = config_class("alpha")
    assert method_of(config).name == "alpha"

    class Narrower(config):
        pass

    assert method_of(Narrower).name == "alpha"
    assert "fake_alpha.method" not in sys.modules
    with pytest.raises(PluginNotFound, match=r"alpha \(fake_alpha.config:Config\)"):
        method_of(RunConfig)


def test_who_takes_rows_of_a_format_is_asked_of_configs_and_a_broken_one_says_nothing(site):
    takes = CONFIG.replace("    strength", '    formats = ("preference",)\n    strength')
    make_method(site, "alpha", "fake_alpha", config=takes)
    make_method(site, "beta", "fake_beta", config="raise SystemExit(3)")
    make_method(site, "gamma", "fake_gamma", config=takes.replace('"preference"', '"preferences"'))
    assert "alpha" in methods_for("preference") and not {"beta", "gamma"} & set(methods_for("preference"))
    assert methods_for("stepwise") == []
    assert "fake_alpha.method" not in sys.modules
    with pytest.raises(PluginBroken, match="Config.formats has 'preferences'; did you mean preference"):
        config_class("gamma")


def test_one_config_of_two_methods_asks_for_the_name(site):
    both = "alpha = {0}\nbeta = {0}\n"
    text = f"[ft_host.methods]\n{both}[ft_host.configs]\n{both}"
    lines = text.split("[ft_host.configs]")
    text = lines[0].format("fake_alpha.method") + "[ft_host.configs]" + lines[1].format("fake_alpha.config:Config")
    make_method(site, "alpha", "fake_alpha", entry_points=text)
    with pytest.raises(UsageError, match="several methods: ft-alpha:alpha, ft-alpha:beta"):
        method_of(config_class("alpha"))


def test_experimental_methods_warn_and_stable_ones_do_not(site):
    make_method(site, "alpha", "fake_alpha")
    make_method(site, "beta", "fake_beta", version="1.0", classifiers=["Development Status :: 5 - Production/Stable"])
    with pytest.warns(FtExperimentalWarning, match="ft-alpha 0.1.0: the method 'alpha' is experimental"):
        warn_if_experimental(find("method", "alpha"))
    assert issubclass(FtExperimentalWarning, FutureWarning)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_experimental(find("method", "beta"))


def test_a_file_is_not_called_experimental(tmp_path):
    """Who runs it has it before their eyes."""
    (tmp_path / "mine.py").write_text("")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_experimental(find("method", str(tmp_path / "mine.py")))


def test_required_plugins_are_checked_against_installed_versions(site):
    make_method(site, "alpha", "fake_alpha", version="0.3")
    check_requirements([])
    check_requirements(["ft-alpha>=0.1,<1", "ft_alpha", "ft-nowhere>=1; python_version < '3'"])
    with pytest.raises(PluginBroken, match=r"required_plugins\[1\]: 'ft-alpha>=1': ft-alpha 0.3 is installed"):
        check_requirements(["ft-host", "ft-alpha>=1"])
    with pytest.raises(PluginNotFound, match="ft-nowhere is not installed"):
        check_requirements(["ft-nowhere"])
    with pytest.raises(ConfigError, match=r"required_plugins\[0\]: 'ft-alpha=>1' is not a requirement"):
        check_requirements(["ft-alpha=>1"])
    with pytest.raises(ConfigError, match="names an extra or a URL"):
        check_requirements(["ft-alpha[server]"])
    assert "fake_alpha" not in sys.modules


# ---------------------------------------------------------------- a method in a file


@pytest.fixture
def local(site, tmp_path, monkeypatch):
    """A folder with a method in a file; sys.path as before afterwards."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = tmp_path / "local"
    folder.mkdir()
    (folder / "fake_local.py").write_text(METHOD + CONFIG)
    return folder


def test_a_file_is_a_method(local, monkeypatch):
    monkeypatch.chdir(local)
    info = find("method", "./fake_local.py")
    assert (info.kind, info.name, info.distribution, info.stability) == ("method", "fake_local", "", "experimental")
    assert info.location == reference(info) == str(local / "fake_local.py")
    assert "fake_local" not in sys.modules
    assert config_class("fake_local.py")().strength == 0.5
    manager = session(info, None, [])
    assert manager.hook.ft_loss(model=None, batch={"ids": [1, 2]}, run=None) == 2
    assert method_of(config_class(info)) == info
    # Worker processes unpickle hooks by the name of their module.
    assert importlib.import_module("fake_local") is load(info)


def test_a_file_that_cannot_be_a_method_is_refused(local):
    with pytest.raises(PluginNotFound, match="there is no Python file .*did you mean '.*fake_local.py'"):
        find("method", str(local / "fake_locale.py"))
    with pytest.raises(PluginNotFound, match="there is no Python file"):
        find("method", "hub/name")
    (local / "my-method.py").write_text(METHOD)
    with pytest.raises(UsageError, match="can't be a module's name"):
        find("method", str(local / "my-method.py"))
    (local / "json.py").write_text(METHOD)
    with pytest.raises(UsageError, match="Python has another module 'json'"):
        load(find("method", str(local / "json.py")))
    (local / "fake_bare.py").write_text(METHOD)
    with pytest.raises(PluginBroken, match="fake_bare.py: has no attribute Config"):
        config_class(str(local / "fake_bare.py"))
    (local / "fake_wrong.py").write_text("\n1/0")
    with pytest.raises(PluginBroken, match="fake_wrong.py: .* ZeroDivisionError.*fake_wrong.py, line 2"):
        load(find("method", str(local / "fake_wrong.py")))


# ---------------------------------------------------------------- a session


GUARD = """
from ft_host import hookimpl
seen = []

@hookimpl(wrapper=True)
def ft_loss(batch):
    loss = yield
    return loss * 10

@hookimpl
def ft_log(entry):
    seen.append(entry)
"""


def make_diagnostics(site, name, source=GUARD):
    make_distribution(
        site,
        f"ft-{name}",
        entry_points={"ft_host.diagnostics": {name: f"fake_{name}"}},
        modules={f"fake_{name}": source},
        requires=["ft-host"],
    )


def make_backend(site, name, source=BACKEND):
    make_distribution(
        site,
        f"ft-{name}",
        entry_points={"ft_host.backends": {name: f"fake_{name}"}},
        modules={f"fake_{name}": source},
        requires=["ft-host"],
    )


def test_a_session_holds_the_selected_plugins_and_no_other(site):
    make_method(site, "alpha", "fake_alpha")
    make_method(site, "beta", "fake_beta", method="raise RuntimeError('not selected')")
    make_backend(site, "engine")
    make_diagnostics(site, "guard")
    make_diagnostics(site, "second")

    class Sink:
        def __init__(self):
            self.entries = []

        @ft_host.hookimpl
        def ft_log(self, entry):
            self.entries.append(entry)

    sinks = [Sink(), Sink()]
    diagnostics = [find("diagnostics", "guard"), find("diagnostics", "second")]
    manager = session(find("method", "alpha"), find("backend", "engine"), diagnostics, extra=sinks)
    assert [name for name, _ in manager.list_name_plugin()] == [
        "method ft-alpha:alpha",
        "backend ft-engine:engine",
        "diagnostics ft-guard:guard",
        "diagnostics ft-second:second",
        "host Sink 0",
        "host Sink 1",
    ]
    rows = [manager.hook.ft_prepare(row={"n": n}, tokenizer=None, config=None) for n in range(2)]
    batch = manager.hook.ft_collate(rows=rows, tokenizer=None, config=None)
    assert manager.hook.ft_loss(model=None, batch=batch, run=None) == 2 * 10 * 10
    assert manager.hook.ft_generate(requests=[1, 2, 3], sampling=None, run=None) == [3]
    manager.hook.ft_log(entry={"loss": 1}, run=None)
    assert [sink.entries for sink in sinks] == [[{"loss": 1}]] * 2
    assert wrappers(manager) == [
        {"hook": "ft_loss", "plugins": ["diagnostics ft-second:second", "diagnostics ft-guard:guard"]}
    ]
    assert "fake_beta" not in sys.modules

    alone = session(find("method", "alpha"), None, [])
    assert alone is not manager and wrappers(alone) == []
    assert alone.hook.ft_loss(model=None, batch=batch, run=None) == 2


def test_one_module_may_hold_a_method_and_its_diagnostics(site):
    entries = {
        "ft_host.methods": {"alpha": "fake_alpha.method"},
        "ft_host.configs": {"alpha": "fake_alpha.config:Config"},
        "ft_host.diagnostics": {"alpha": "fake_alpha.method"},
    }
    make_method(site, "alpha", "fake_alpha", entry_points=entries)
    manager = session(find("method", "alpha"), None, [find("diagnostics", "alpha")])
    assert len(manager.list_name_plugin()) == 1


def test_prepare_is_called_by_name_and_with_its_wrappers(site):
    make_method(site, "alpha", "fake_alpha")
    guard = GUARD.replace(
        "def ft_loss(batch):\n    loss = yield\n    return loss * 10",
        "def ft_prepare(row):\n    return {**(yield), 'seen': 1}",
    )
    make_diagnostics(site, "guard", guard)
    prepare = plugins_named("ft-alpha:alpha").hook.ft_prepare
    assert prepare(row={"n": 1}, tokenizer=None, config=None) == {"input_ids": [1, 1, 1], "length": 3}
    assert plugins_named("ft-alpha:alpha").hook.ft_prepare is prepare
    wrapped = plugins_named("ft-alpha:alpha", ("guard",)).hook.ft_prepare
    assert wrapped(row={"n": 1}, tokenizer=None, config=None)["seen"] == 1
    plugins_named.cache_clear()


@pytest.mark.parametrize(
    "old, new, problem",
    [
        ("def ft_collate", "def ft_colate", r"'ft_colate', which is not a hook .* did you mean 'ft_collate'\?"),
        ("def ft_loss(batch)", "def ft_loss(batch, labels)", r"Argument\(s\) {'labels'} are declared"),
        ("@hookimpl\ndef ft_loss", "def ft_loss", "ft_loss that would never be called: .* @ft_host.hookimpl"),
        ("@hookimpl\ndef ft_loss", "def loss", "doesn't implement ft_loss; a method implements ft_prepare, ft_coll"),
        (
            "@hookimpl\ndef ft_loss(batch):",
            "@hookimpl(wrapper=True)\ndef ft_loss(batch):\n    yield",
            "doesn't implement ft_loss",
        ),
        (
            "@hookimpl\ndef ft_loss",
            "@hookimpl(specname='ft_loss')\ndef more():\n    pass\n\n@hookimpl\ndef ft_loss",
            "ft_loss is implemented 2 times",
        ),
        (
            "@hookimpl\ndef ft_loss",
            "@hookimpl\ndef ft_generate():\n    pass\n\n@hookimpl\ndef ft_loss",
            "the method 'alpha' implements ft_generate, which only a backend may",
        ),
    ],
)
def test_hooks_that_would_not_work_are_refused(site, old, new, problem):
    assert old in METHOD
    make_method(site, "alpha", "fake_alpha", method=METHOD.replace(old, new))
    with pytest.raises(PluginBroken, match=problem):
        session(find("method", "alpha"), None, [])


def test_an_optional_hook_may_be_unknown_to_this_host(site):
    later = METHOD + "\n@hookimpl(optionalhook=True)\ndef ft_of_a_later_host(run):\n    pass\n"
    make_method(site, "alpha", "fake_alpha", method=later)
    session(find("method", "alpha"), None, [])


def test_diagnostics_may_wrap_but_not_answer(site):
    make_method(site, "alpha", "fake_alpha")
    make_diagnostics(site, "taker", METHOD)
    make_backend(site, "idle", "")
    with pytest.raises(PluginBroken, match="the diagnostics 'taker' implements ft_prepare, which only a method may"):
        session(find("method", "alpha"), None, [find("diagnostics", "taker")])
    with pytest.raises(PluginBroken, match="ft-idle 0.1.0 .* doesn't implement ft_generate"):
        session(find("method", "alpha"), find("backend", "idle"), [])


def test_every_hook_that_one_plugin_answers_has_an_owner():
    module = sys.modules[session_function.__module__]
    owners = {}
    for spec in module.SPECS:
        for name, function in vars(spec).items():
            if name.startswith("ft_") and function.ft_host_spec["firstresult"]:
                owners[name] = re.search(r"Implemented by (?:the )?(method|backend)", inspect.getdoc(function))[1]
    assert owners == module.OWNERS


# ---------------------------------------------------------------- the trace


def test_a_trace_prints_calls_with_shapes(site, monkeypatch, capsys):
    make_method(site, "alpha", "fake_alpha")
    monkeypatch.setenv("FT_HOST_TRACE", "1")
    manager = session(find("method", "alpha"), None, [])
    rows = [manager.hook.ft_prepare(row={"n": 7}, tokenizer="t", config=RunConfig())]
    with pytest.warns(UserWarning, match="tokenizer"):  # pluggy's, of a call that leaves arguments out
        assert manager.hook.ft_collate(rows=rows) == {"ids": [[7, 7, 7]]}
    with pytest.raises(KeyError):
        manager.hook.ft_loss(model=None, batch={}, run=None)
    lines = [line.rpartition("  ")[0] or line for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "ft-host trace: ft_prepare(row={n: 7}, tokenizer='t', config=RunConfig) by method ft-alpha:alpha",
        "ft-host trace: ft_prepare -> {input_ids: list[3] of int, length: 3}",
        "ft-host trace: ft_collate(rows=list[1] of {input_ids: list[3] of int, length: 3}) by method ft-alpha:alpha",
        "ft-host trace: ft_collate -> {ids: list[1] of list[3] of int}",
        "ft-host trace: ft_loss(model=None, batch={}, run=None) by method ft-alpha:alpha",
        "ft-host trace: ft_loss -> raised KeyError: 'ids'",
    ]
    monkeypatch.setenv("FT_HOST_TRACE", "0")
    session(find("method", "alpha"), None, []).hook.ft_prepare(row={"n": 7}, tokenizer=None, config=None)
    assert capsys.readouterr().err == ""


def test_shapes_of_tensors_arrays_and_batches():
    import numpy
    import torch

    from ft_host.batch import Segment, flat_batch

    assert shape(torch.zeros(3, 4)) == "float32[3, 4]"
    assert shape(torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))) == "bfloat16[2]"
    assert shape(numpy.zeros((2, 1), dtype="int64")) == "int64[2, 1]"
    assert shape("x" * 50) == repr("x" * 37 + "...")
    batch = flat_batch([Segment(input_ids=[1, 2, 3], labels=[-100, 2, 3], row=0)], num_rows=1, counts={"tokens": 2})
    text = shape(batch)
    assert text.startswith("Batch(input_ids=int64[3], position_ids=int64[3], lengths=list[1] of int")
    assert "counts={tokens: 2}" in text
