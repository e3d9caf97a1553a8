"""Runs of TRL's from its documentation and examples: each is migrated, with what becomes of each of its fields."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml
from trl_runs import CASES, Case

from ft_host import registry
from ft_host.cli.migrate import called
from ft_host.migrate import Found, read_trl, run_file, translate
from ft_host.migrate.translate import UNKNOWN, Translated
from ft_host.testing import forget_accelerate, lines, run_in
from ft_host.testing.beside_trl import compared, table
from ft_host.testing.fixed import fixed_where_sampled
from ft_host.testing.moved import small
from ft_host.testing.trl_side import CLASSES


def found_in(case: Case, folder, monkeypatch) -> Found:
    monkeypatch.chdir(folder)
    (folder / "nothing.yaml").write_text("learning_rate: 1.0e-5\n")
    words = [case.text]
    if case.kind != "line":
        words = [f"run.{case.kind}"]
        (folder / words[0]).write_text(case.text)
    found = read_trl(words)
    if found.method is not None:
        assert called(found.method) == case.method
    return found


def migrated(case: Case, folder, monkeypatch) -> tuple[Translated, list[str]]:
    found = found_in(case, folder, monkeypatch)
    return translate(found, registry.config_class(case.method)), found.computed


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_run_is_migrated(case, tmp_path, monkeypatch):
    made, computed = migrated(case, tmp_path, monkeypatch)
    assert tuple(name for name, *_ in made.left) == case.left
    assert not [name for name, _, why in made.left if why == UNKNOWN or why.startswith("did you mean")]
    assert tuple(said.partition(":")[0] for said in computed) == case.person
    assert tuple(said.split()[0] for said in made.missing) == case.needed
    # the text that is written says the same, and what it sets is accepted together
    written = yaml.safe_load(run_file(case.method, case.name, made, computed))
    assert written.pop("method") == case.method and written == made.values
    registry.config_class(case.method)(**made.values).check()


AT_ONCE = ("sft-old-script", "ppo-0.7")  # the others nightly
BESIDE_TRL = ("dpo-ipo", "grpo-gspo")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.nightly(*(case.name for case in CASES if case.name not in AT_ONCE))
def test_each_run_trains(case, tmp_path, monkeypatch):
    """Two steps of a tiny model, with what only a person can say made up."""
    made, _ = migrated(case, tmp_path, monkeypatch)
    config, _ = small(registry.config_class(case.method), made.values, tmp_path)
    with fixed_where_sampled(config, tmp_path) as given:
        trained = lines(run_in(config, "ours", **given))
    assert [line["step"] for line in trained] == [1, 2]
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in trained)


@pytest.mark.parametrize("case", [case for case in CASES if case.method in CLASSES], ids=lambda case: case.name)
@pytest.mark.nightly(*(case.name for case in CASES if case.name not in BESIDE_TRL))
def test_each_run_is_trls_own(case, tmp_path, monkeypatch):
    """Losses and gradient norms of two steps are those of TRL, but for what the READMEs say."""
    found = found_in(case, tmp_path, monkeypatch)
    made = translate(found, registry.config_class(case.method))
    given = {name: value for name, (value, _) in found.values.items()}
    text, same = table(*compared(case.method, made.values, given, tmp_path))
    forget_accelerate()
    assert same == case.same, text


def test_the_documentation_has_the_figures():
    text = (Path(__file__).parents[1] / "docs" / "from-trl.md").read_text(encoding="utf-8")
    whole = sum(not case.person and not case.needed for case in CASES)
    beside = [case for case in CASES if case.method in CLASSES]
    said = (
        f"{len(CASES)} runs of TRL's documentation, examples and scripts are migrated by a test; {whole} of them need "
        f"no person. All {len(CASES)} then train two steps of a tiny model. Of the {len(beside)} whose method the "
        f"installed TRL has, {sum(case.same for case in beside)} are TRL's own two steps"
    )
    assert said in " ".join(text.split())
