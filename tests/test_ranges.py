"""Usual ranges of fields, relations between them, and what they make of a finding."""

from __future__ import annotations

import dataclasses

import pytest

from ft_host import registry
from ft_host.config import RunConfig, Usual
from ft_host.config.fields import fields_of
from ft_host.diagnostics.collect import suspects_of
from ft_host.diagnostics.engine import Engine
from ft_host.diagnostics.rules import relations
from ft_host.testing.rules import Told, findings

METHODS = [info.name for info in registry.catalog() if info.kind == "method" and info.distribution.startswith("ft-")]


def note(config, facts=None, kind=RunConfig, suspects=()):
    """What CFG010 says of a run: {field: (severity, patch of its first remedy)}."""
    told = Told(config=config, facts=facts or {"plan/device": "cpu"})
    found = findings(relations.RULES, told, kind, suspects)
    return {each.cause: (each.severity, each.remedies[0].patch) for each in found if each.state == "open"}


# ---------------------------------------------------------------- the ranges themselves


@pytest.mark.parametrize("method", METHODS)
def test_a_default_is_within_its_range(method):
    config_class = registry.config_class(method)
    config = dataclasses.asdict(config_class())
    for field in fields_of(config_class).values():
        for usual in field.usual:
            values = field.default if isinstance(field.default, list) else [field.default]
            if usual.applies(config):
                assert not any(usual.side(value) for value in values), f"{field.name} is {field.default}: {usual.words}"


@pytest.mark.parametrize("method", METHODS)
def test_a_remedy_of_a_range_is_within_it(method):
    for field in fields_of(registry.config_class(method)).values():
        for usual in field.usual:
            new = field.default if usual.new is None else usual.new
            assert new is None or not usual.side(new), f"{field.name}: {new} isn't {usual.words}"


@pytest.mark.parametrize("method", METHODS)
def test_default_settings_are_noted_by_nothing(method):
    config_class = registry.config_class(method)
    config = dataclasses.asdict(config_class())
    engine = Engine(
        [], config, strict=True, suspects=suspects_of(config_class, registry.find("method", method), "transformers")
    )
    for facts in ({"plan/total_steps": 30}, {"plan/total_steps": 5000, "model/parameters": 7_000_000_000}):
        engine.record_facts(facts)
        assert engine.view.suspects == []


def test_a_range_must_say_where_it_is_from_and_what_it_explains():
    with pytest.raises(ValueError, match="source is empty"):
        Usual(low=1)
    with pytest.raises(ValueError, match="neither low nor high"):
        Usual(source="paper")
    with pytest.raises(ValueError, match="'sadness' is no symptom"):
        Usual(high=1, above=("sadness",), source="paper")


def test_sides_and_words():
    usual = Usual(low=1e-8, high=0.5, off=(0.0,), source="paper")
    assert [usual.side(value) for value in (0.0, 1e-9, 1e-8, 0.5, 0.6, None, True)] == [0, -1, 0, 0, 1, 0, 0]
    assert usual.words == "1e-8 to 0.5"
    assert Usual(low=4, source="x").words == "at least 4" and Usual(high=0.3, source="x").words == "at most 0.3"


def test_a_range_of_some_runs_applies_to_those():
    usual = Usual(high=1, only={"loss_type": ("sigmoid", "ipo")}, source="x")
    assert usual.applies({"loss_type": ["sft", "sigmoid"]}) and usual.applies({"loss_type": "ipo"})
    assert not usual.applies({"loss_type": ["sft"]}) and not usual.applies({})
