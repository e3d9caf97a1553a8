"""What a package announces as going to go: it works until then, warns once with what replaces it, and is told in help,
schema, docs and the contract."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from ft_host.api import Deprecated, RunConfig, option
from ft_host.cli.train import old_names_caught
from ft_host.config.deprecated import HOST, deprecations_of
from ft_host.config.fields import fields_of
from ft_host.config.files import read_file
from ft_host.config.help import method_help
from ft_host.config.old_names import RenamedField
from ft_host.config.resolve import resolve
from ft_host.config.schema import schema
from ft_host.errors import PluginBroken
from ft_host.migrate import current_text, leaving
from ft_host.surface.package import own_deprecations

DOCS = Path(__file__).parents[1] / "docs"
RENAMED = Deprecated(old="gamma", new="discount", since="1.2.0", removed_in="2.0.0")
GOING = Deprecated(old="warm", since="1.3.0", removed_in="2.0.0", why="warmup_steps does it")
METRIC = Deprecated(old="val/share", new="share", since="1.3.0", removed_in="1.5.0", kind="metric")
NEW = "gamma is called discount now; the old name goes in 2.0.0"
GOES = "warm is deprecated and goes in 2.0.0: warmup_steps does it"


@dataclass(kw_only=True)
class Ours(RunConfig):
    """A method of which something is going to go."""

    deprecated: ClassVar[tuple[Deprecated, ...]] = (RENAMED, GOING, METRIC)
    discount: float = option(0.9, "What the next token is worth.", ge=0, le=1)
    warm: bool = option(False, "Begin slowly.")


GIVEN = ["--model", "org/model", "--dataset", "org/data"]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: org/model\ndataset: org/data\ngamma: 0.5  # as before\nwarm: true\n", encoding="utf-8")
    return path


def test_in_a_file_it_works_and_warns_once_with_what_replaces_it(file):
    with old_names_caught() as said:
        config = resolve(Ours, file).config
    assert (config.discount, config.warm) == (0.5, True)
    assert said == [f"{file}:3: {NEW}", f"{file}:4: {GOES}"]


def test_as_a_flag_it_is_named_as_flags_are():
    with old_names_caught() as said:
        config = resolve(Ours, None, [*GIVEN, "--gamma", "0.5", "--no-warm"]).config
    assert (config.discount, config.warm) == (0.5, False)
    assert said == [
        "the command line: --gamma is called --discount now; the old name goes in 2.0.0",
        "the command line: --warm is deprecated and goes in 2.0.0: warmup_steps does it",
    ]


def test_as_a_keyword_and_an_attribute():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = Ours(gamma=0.5, warm=True)
        assert config.gamma == 0.5
    assert [str(each.message) for each in caught] == [f"Ours: {NEW}", f"Ours: {GOES}", f"Ours: {NEW}"]
    assert {each.filename for each in caught} == {__file__}


def test_what_is_not_set_is_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RenamedField)
        config = resolve(Ours, None, [*GIVEN, "--discount", "0.5"]).config
        assert dataclasses.replace(config, seed=1).discount == 0.5


def test_it_is_told_in_help_schema_and_the_contract():
    said = " ".join(method_help("ours", Ours).split())
    assert "What the next token is worth. Once gamma (until 2.0.0)." in said and f"Begin slowly. {GOES}." in said
    properties = schema("ours", Ours)["properties"]
    assert properties["gamma"]["deprecated"] and properties["warm"]["deprecated"]
    assert "deprecated" not in properties["discount"]
    assert own_deprecations(Ours) == [dataclasses.asdict(each) for each in (RENAMED, GOING, METRIC)]
    assert deprecations_of(Ours) == (*HOST, RENAMED, GOING, METRIC)


def test_docs_have_the_old_names_of_the_host_and_say_until_when():
    spec = importlib.util.spec_from_file_location("generate_config", DOCS / "generate_config.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    fields = fields_of(Ours)
    text = module.section("## Ours", [fields["discount"], fields["warm"]])
    assert "What the next token is worth. Once `gamma`, until 2.0.0. |" in text
    assert "Begin slowly. Goes in 2.0.0: warmup_steps does it. |" in text


def test_migrate_rewrites_the_file(file):
    text, changed = current_text(read_file(file), Ours)
    assert changed == {"gamma": "discount"}
    assert text == "model: org/model\ndataset: org/data\ndiscount: 0.5  # as before\nwarm: true\n"
    assert [said.partition("run.yaml:")[2] for said in leaving(read_file(file), Ours)] == [
        "4: warm is deprecated and goes in 2.0.0: warmup_steps does it"
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"old": "a", "since": "1.2", "removed_in": "2.0"}, "neither a new name"),
        ({"old": "a", "new": "b", "since": "soon", "removed_in": "2.0"}, "since is 'soon', expected a version"),
        ({"old": "a", "new": "b", "since": "1.2", "removed_in": "2.0", "kind": "feild"}, "no kind 'feild'"),
    ],
)
def test_an_entry_that_says_too_little_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        Deprecated(**given)


def test_a_new_name_that_no_field_has_is_the_mistake_of_the_package():
    @dataclass(kw_only=True)
    class Odd(RunConfig):
        deprecated: ClassVar[tuple[Deprecated, ...]] = (RENAMED,)
        discounts: float = option(0.9, "Misspelt.")

    with pytest.raises(PluginBroken, match="deprecated: gamma: there is no field discount; did you mean discounts?"):
        fields_of(Odd)
