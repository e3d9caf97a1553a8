"""The recorded run of a package: one whose numbers have moved is caught, one that is as it was passes."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from conformance.wrong import Wrong, changed, installed

from ft_host.testing.conformance.check import FAILED, LEFT_OUT, PASSED
from ft_host.testing.conformance.checks import recorded
from ft_host.testing.conformance.run import Suite

[CHECK] = recorded.CHECKS
WRONG = [
    Wrong(
        name="a default that has changed since the record",
        file="config.py",
        old="        1.0,",
        new="        0.999,",
        fails="recorded-run",
    ),
    Wrong(
        name="rows that are weighted by another length since the record",
        old='sizes = [count_targets(row["labels"]) for row in rows]',
        new='sizes = [len(row["labels"]) for row in rows]',
        fails="recorded-run",
    ),
]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """What `--record` writes of a new package, with the name of its method."""
    folder = tmp_path_factory.mktemp("record")
    with installed("offline", folder, lambda files: files) as name:
        return recorded.golden(Suite(name, folder / "suite")), name


def asked(record, folder: Path, change=lambda files: files):
    """How a new package ends the check that has this record, of a method of another name."""
    found, name = record

    def with_record(files):
        [package] = {path.partition("/")[0] for path in files if path.endswith("/__init__.py")}
        return change(files) | {f"{package}/golden.json": found if isinstance(found, str) else json.dumps(found)}

    with installed("offline", folder, with_record) as here:
        site = next((folder / "site").glob("*/golden.json"))
        site.write_text(site.read_text().replace(f'"{name}"', f'"{here}"'))
        [outcome] = Suite(here, folder / "suite").run([CHECK])
    return outcome


def moved(record, change):
    """The record with its steps changed by `change(step)`."""
    found, name = copy.deepcopy(record)
    for step in found["methods"][name]["steps"]:
        change(step)
    return found, name


def test_what_is_recorded(record):
    found, name = record
    assert set(found["versions"]) == {"ft-host", "torch", "transformers"}
    steps = found["methods"][name]["steps"]
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5]
    assert set(steps[0]) == {"step", "loss", "grad_norm", "mean_token_accuracy", "num_tokens"}
    assert json.loads(json.dumps(found)) == found


def test_the_package_as_it_was_passes(record, tmp_path):
    outcome = asked(record, tmp_path)
    assert outcome.result == PASSED and outcome.figures["apart"] < 1e-6


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_it_is_caught(record, wrong, tmp_path):
    outcome = asked(record, tmp_path, changed(wrong))
    assert outcome.result == FAILED
    assert "compared with the record of ft-host" in outcome.said and "at step 1 grad_norm is" in outcome.said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda step: step.update(loss=step["loss"] * (1 + 2e-5 * step["step"])), "the loss drifts away, by"),
        (lambda step: step.update(more=1.0), "step 1 logs more in one of the two runs alone"),
        (
            lambda step: step.update(grad_norm=step["grad_norm"] * (1 + 3e-4 * (step["step"] == 3))),
            "at step 3 grad_norm",
        ),
    ],
    ids=["a drift", "another metric", "one number"],
)
def test_each_kind_of_difference_is_told(record, change, said, tmp_path):
    outcome = asked(moved(record, change), tmp_path)
    assert outcome.result == FAILED and said in outcome.said


def test_round_off_is_none(record, tmp_path):
    found = moved(record, lambda step: step.update(loss=step["loss"] * (1 + 5e-5 * (-1) ** step["step"])))
    assert asked(found, tmp_path).result == PASSED


def test_another_model_of_the_suite_leaves_it_out(record, tmp_path):
    found, name = copy.deepcopy(record)
    found["methods"][name]["model"] *= 1.001
    outcome = asked((found, name), tmp_path)
    assert outcome.result == LEFT_OUT and "record again" in outcome.said


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ("{", "can't be read: JSONDecodeError"),
        ({"format": 1, "versions": {}, "methods": {}}, "has no run of slip-"),
        ({"format": 9, "versions": {}, "methods": {}}, "has format 9, and this ft-host reads 1"),
    ],
    ids=["no JSON", "another method's", "another format"],
)
def test_a_record_that_is_of_no_use_is_told(found, said, tmp_path):
    outcome = asked((found, "slip"), tmp_path)
    assert outcome.result == FAILED and said in outcome.said and "delete it and record again" in outcome.said


def test_a_package_without_a_record_is_left_out(tmp_path):
    with installed("offline", tmp_path, lambda files: files) as name:
        [outcome] = Suite(name, tmp_path / "suite").run([CHECK])
    assert outcome.result == LEFT_OUT and "`ft-host check --record` makes it" in outcome.said


def test_a_package_without_methods_has_none(tmp_path):
    with installed("diagnostics", tmp_path, lambda files: files) as name:
        assert recorded.golden(Suite(name, tmp_path / "suite")) is None
