"""Runs of TRL's from its documentation and examples: each is migrated, with what becomes of each of its fields."""

from __future__ import annotations

import pytest
import yaml
from trl_runs import CASES, Case

from ft_host import registry
from ft_host.cli.migrate import called
from ft_host.migrate import read_trl, run_file, translate
from ft_host.migrate.translate import UNKNOWN, Translated


def migrated(case: Case, folder, monkeypatch) -> tuple[Translated, list[str]]:
    monkeypatch.chdir(folder)
    (folder / "nothing.yaml").write_text("learning_rate: 1.0e-5\n")
    words = [case.text]
    if case.kind != "line":
        words = [f"run.{case.kind}"]
        (folder / words[0]).write_text(case.text)
    found = read_trl(words)
    if found.method is not None:
        assert called(found.method) == case.method
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
