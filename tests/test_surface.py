"""What a package promises, as data, and what a change of it asks of the version."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest

from ft_host import registry
from ft_host.config import RunConfig, option
from ft_host.surface import changes, host_surface, package_surface, verdict
from ft_host.surface.compare import MAJOR, MINOR, takes
from ft_host.surface.shapes import described, fields
from ft_host.surface.verdict import since


@dataclasses.dataclass(kw_only=True)
class Old(RunConfig):
    rate: float = option(0.5, "A share.", ge=0, le=1)
    kind: str = option("a", "A kind.", choices=("a", "b"))
    names: list[str] = option([], "Names.")
    room: int | None = option(None, "Room.", ge=1)


def made(**given) -> dict:
    """The surface of a method whose class has other fields in place of `given`, or none where it is None."""
    kept = {each.name: (each.type, each) for each in dataclasses.fields(Old) if each.name not in given}
    own = {name: kept[name] for name in ("rate", "kind", "names", "room") if name in kept}
    new = [(name, *pair) for name, pair in (own | {k: v for k, v in given.items() if v}).items()]
    hints = {"rate": float, "kind": str, "names": list[str], "room": int | None}
    new = [(name, hints[name] if isinstance(kind, str) else kind, field) for name, kind, field in new]
    cls = dataclasses.make_dataclass("New", new, bases=(RunConfig,), kw_only=True)
    return {"format": 1, "method": {"one": {"base": "RunConfig", "fields": fields(cls, beyond=RunConfig)}}}


BEFORE = made()
# What is done to the class, the part of the version that must rise, and what is said of it.
FIELDS = {
    "gone": ({"rate": None}, MAJOR, "rate: is gone"),
    "another default": (
        {"rate": (float, option(0.4, "A share.", ge=0, le=1))},
        MAJOR,
        "its default is 0.4, and was 0.5",
    ),
    "another type": ({"rate": (str, option("0.5", "A share."))}, MAJOR, "takes less than it did, or another type"),
    "a tighter bound": ({"rate": (float, option(0.5, "A share.", gt=0, le=1))}, MAJOR, "takes less"),
    "a wider bound": ({"rate": (float, option(0.5, "A share.", ge=0, le=2))}, MINOR, "takes more"),
    "a choice less": ({"kind": (str, option("a", "A kind.", choices=("a",)))}, MAJOR, "takes less"),
    "a choice more": ({"kind": (str, option("a", "A kind.", choices=("a", "b", "c")))}, MINOR, "takes more"),
    "any text": ({"kind": (str, option("a", "A kind."))}, MINOR, "takes more"),
    "no longer unset": ({"room": (int, option(8, "Room.", ge=1))}, MAJOR, "takes less"),
    "also a share": ({"room": (float | None, option(None, "Room.", ge=1))}, MINOR, "takes more"),
    "one text or several": ({"names": (list[str] | int, option([], "Names."))}, MAJOR, "takes less"),
    "required": ({"names": (list[str], option([], "Names.", required=True))}, MAJOR, "must be set now"),
    "another one": ({"more": (int, option(1, "More."))}, MINOR, "more: is new (minor)"),
    "one that must be set": ({"more": (str, option("", "More.", required=True))}, MAJOR, "is new, and must be set"),
    "renamed": (
        {"rate": None, "share": (float, option(0.5, "A share.", ge=0, le=1, was=("rate",)))},
        MINOR,
        "rate: is called share; its old name works",
    ),
    "renamed, with another default": (
        {"rate": None, "share": (float, option(0.4, "A share.", ge=0, le=1, was=("rate",)))},
        MAJOR,
        "share: its default is 0.4",
    ),
    "another name": (
        {"rate": (float, option(0.5, "A share.", ge=0, le=1, aliases=("r",)))},
        MINOR,
        "also answers to r",
    ),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_change_of_a_field_is_told_with_what_it_asks_of_the_version(name):
    given, needs, said = FIELDS[name]
    found = changes(BEFORE, made(**given))
    assert found[0].needs == needs and any(said in str(each) for each in found), found


def test_words_are_no_change():
    assert changes(BEFORE, made(rate=(float, option(0.5, "Said otherwise.", ge=0, le=1)))) == []


@pytest.mark.parametrize("part", ["formats", "metrics"])
def test_names_that_are_gone_break_somebody_and_new_ones_do_not(part):
    old, more = {"method": {"one": {part: ["a", "b"]}}}, {"method": {"one": {part: ["a", "b", "c"]}}}
    assert [(each.needs, each.path) for each in changes(old, more)] == [(MINOR, f"method/one/{part}/c")]
    assert [(each.needs, each.what) for each in changes(more, old)] == [(MAJOR, "is gone")]


def test_a_column_that_is_gone_and_one_that_rows_must_have_break_somebody():
    def columns(needs: list[str], reads: list[str]) -> dict:
        return {"method": {"one": {"columns": {"needs": needs, "reads": reads}}}}

    before = columns(["context"], ["hint"])
    assert [str(each) for each in changes(before, columns(["context"], []))] == [
        "method/one/columns/hint: is gone (major)"
    ]
    assert [str(each) for each in changes(before, columns(["context", "hint"], []))] == [
        "method/one/columns/needs/hint: rows must have it now (major)"
    ]
    assert changes(before, columns([], ["context", "hint"])) == []
    assert [each.needs for each in changes(before, columns(["context"], ["hint", "more"]))] == [MINOR]


def test_what_is_going_to_go_is_new_once_and_goes_no_sooner_than_it_was_said():
    def surface(*found: dict) -> dict:
        return {"deprecations": list(found)}

    one = {"kind": "module", "old": "a.b", "new": "a.c", "why": "", "since": "1.1.0", "removed_in": "2.0.0"}
    said = "deprecations/a.b: the module is deprecated and goes in 2.0.0: a.c is its name now (minor)"
    assert [str(each) for each in changes(surface(), surface(one))] == [said]
    assert changes(surface(one), surface(one | {"removed_in": "3.0"})) == []
    sooner = changes(surface(one), surface(one | {"removed_in": "1.9.0"}))
    assert [str(each) for each in sooner] == ["deprecations/a.b: goes in 1.9.0, and was to go in 2.0.0 (major)"]
    assert [str(each) for each in changes(surface(one), surface())] == ["deprecations/a.b: is gone (module) (major)"]


def test_a_hook_a_rule_a_method_that_is_gone():
    whole = package_surface("ft-dpo")
    for path in (("hooks", "ft_step"), ("rules", "DPO001"), ("columns",)):
        less = copy.deepcopy(whole)
        place = less["method"]["dpo"]
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]
        if path == ("columns",):
            assert changes(whole, less) == []  # it needs none
        else:
            assert [(each.path, each.needs) for each in changes(whole, less)] == [
                ("method/dpo/" + "/".join(path), MAJOR)
            ]
    none = whole | {"method": {}}
    assert [(each.path, each.what) for each in changes(whole, none)] == [("method/dpo", "is gone")]


def one(a, b=1, *, c="x"):
    """What is compared below."""


SIGNATURES = {
    "an argument less": (lambda a, *, c="x": 0, MAJOR, "no longer takes b"),
    "one more that may be left out": (lambda a, b=1, *, c="x", d=2: 0, MINOR, "takes d"),
    "one more that must be given": (lambda a, b=1, *, c="x", d: 0, MAJOR, "takes d, which must be given"),
    "another default": (lambda a, b=2, *, c="x": 0, MAJOR, "b is 2 by default, and was 1"),
    "no default": (lambda a, b, *, c="x": 0, MAJOR, "b must be given now"),
    "by keyword alone": (lambda a, *, b=1, c="x": 0, MAJOR, "b is keyword-only"),
    "in another order": (lambda b, a=1, *, c="x": 0, MAJOR, "in another order"),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    other, needs, said = SIGNATURES[name]
    old, new = ({"doors": {"ft_host.api": {"one": described(each)}}} for each in (one, other))
    found = changes(old, new)
    assert found[0].needs == needs and any(said in each.what for each in found), found


def test_a_class_is_compared_by_its_members_too():
    class Before:
        def go(self, far: int = 1) -> None: ...

    class After:
        def go(self) -> None: ...

    Before.__module__ = After.__module__ = "ft_host.made"
    old, new = ({"doors": {"ft_host.api": {"Walker": described(each)}}} for each in (Before, After))
    assert [str(each) for each in changes(old, new)] == ["doors/ft_host.api/Walker/go: no longer takes far (major)"]


def test_bounds_and_choices():
    assert takes({"type": "number"}, {"type": "integer"}) and not takes({"type": "integer"}, {"type": "number"})
    assert takes({"type": "number", "minimum": 0}, {"type": "number", "exclusiveMinimum": 0})
    assert not takes({"type": "number", "exclusiveMinimum": 0}, {"type": "number", "minimum": 0})
    inner = {"type": "array", "items": {"type": "string", "enum": ["a"]}}
    assert takes({"type": "array", "items": {"type": "string"}}, inner) and not takes(
        inner, {"type": "array", "items": {"type": "string"}}
    )


DISTRIBUTIONS = sorted({info.distribution for info in registry.catalog()} - {"ft-host"})


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_surface_of_each_package_is_json_and_has_what_is_installed(distribution):
    found = package_surface(distribution)
    assert json.loads(json.dumps(found, allow_nan=False)) == found and changes(found, found) == []
    here = [info for info in registry.catalog() if info.distribution == distribution and info.kind == "method"]
    assert sorted(found["method"]) == sorted(info.name for info in here)
    for method in found["method"].values():
        assert {"ft_prepare", "ft_collate", "ft_loss"} <= set(method["hooks"]) and method["rules"] and method["fields"]


def test_the_surface_of_the_host():
    from ft_host.cli.contract import commands

    found = host_surface(commands())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["hooks"]["ft_loss"] == ["batch", "model", "run"]
    assert found["doors"]["ft_host.api"]["mean"] == {
        "function": {"total": {"kind": "positional or keyword"}, "count": {"kind": "positional or keyword"}}
    }
    assert "--resume" in found["commands"]["train"] and found["exit_codes"]["UsageError"] == 2
    assert {"run.json", "checkpoints/", "metrics.jsonl", "stacks.txt"} <= set(found["run_folder"]["files"])
    assert "OPT001" in found["rules"] and "learning_rate" in found["fields"] and "reward" in found["rollout_fields"]
    assert changes(found, found) == []
    assert found["checkpoint"]["files"][-1] == "state/" and "position" in found["checkpoint"]["progress"]
    assert "loss" in found["metrics"] and "rewards/*/mean" in found["rollout_metrics"]
    old = {(each["kind"], each["old"]): each["new"] for each in found["deprecations"]}
    assert old["field", "timeout"] == "ddp_timeout" and old["module", "ft_host.loop"] == "ft_host.training.loop"
    assert old["name", "ft_host.run.Drop"] == "ft_host.types.Drop"
    assert old["keyword", "ft_host.types.ModelSpec.ahead"] == "precompute"


def test_what_the_host_promised_with_0_9_is_kept():
    from ft_host.cli.contract import commands

    root = Path(__file__).parents[1]
    released = json.loads((root / "contracts" / "ft-host-0.9.0.json").read_text(encoding="utf-8"))
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    assert verdict(released, host_surface(commands()), changelog).as_text() == ""


def test_the_sections_of_a_changelog_since_a_release():
    text = "# Changes\n\nWords.\n\n## 0.5.0\n\nfive\n\n## 0.4.0\n\nfour\n\n## 0.3.0\n\nthree\n"
    assert since(text, "0.3.0").split() == ["five", "four"] and since(text, "0.4").split() == ["five"]
    assert since(text, "0.5.0").split() == ["five"] and since("# Changes\n", "0.1.0") == ""


def test_the_command(capsys, tmp_path):
    from ft_host.cli import main

    assert main(["contract", "ft-orpo"]) == 0
    text = capsys.readouterr().out
    (tmp_path / "old.json").write_text(text)
    assert main(["contract", "ft-orpo", "--against", str(tmp_path / "old.json")]) == 0
    assert capsys.readouterr().out == f"nothing has changed since {json.loads(text)['version']}\n"
    older = json.loads(text)
    older["method"]["orpo"]["fields"]["gamma"] = {"type": "number", "default": 1.0, "required": False}
    (tmp_path / "older.json").write_text(json.dumps(older))
    assert main(["contract", "ft-orpo", "--against", str(tmp_path / "older.json")]) == 6
    refused = "method/orpo/fields/gamma: is gone; the top section of its changelog doesn't name gamma"
    assert capsys.readouterr().out == f"method/orpo/fields/gamma: is gone (major)\n\nrefused:\n{refused}\n"
    assert main(["contract", "ft-orpo", "--against", str(tmp_path / "older.json"), "--json"]) == 6
    assert json.loads(capsys.readouterr().out) == [
        {
            "path": "method/orpo/fields/gamma",
            "what": "is gone",
            "needs": "major",
            "refused": "the top section of its changelog doesn't name gamma",
        }
    ]
    (tmp_path / "odd.json").write_text("[]")
    for words, said in (
        (["ft-opro"], "did you mean ft-orpo?"),
        (["ft-ppo", "--against", str(tmp_path / "old.json")], "is the contract of ft-orpo, and this is ft-ppo"),
        (["ft-ppo", "--against", str(tmp_path / "odd.json")], "is no contract"),
        (["ft-ppo", "--against", str(tmp_path / "none.json")], "can't read"),
    ):
        assert main(["contract", *words]) != 0
        assert said in capsys.readouterr().err
