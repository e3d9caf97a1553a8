"""Checks about metadata: each catches a package that is wrong in this way, and a right one passes."""

from __future__ import annotations

import pytest
from conformance.wrong import Wrong, assert_caught, failures, installed

from ft_host._version import __version__
from ft_host.testing.conformance.check import FAILED, LEFT_OUT
from ft_host.testing.conformance.checks import metadata
from ft_host.testing.conformance.project import blocks, runs_in
from ft_host.testing.conformance.run import Suite

PROJECT = {"file": "pyproject.toml"}
WRONG = [
    Wrong(**PROJECT, name="another prefix", old='name = "ft-', new='name = "of-', fails="metadata-names"),
    Wrong(
        **PROJECT,
        name="a plugin of another name",
        old='$name = "$package',
        new='other = "$package',
        fails="metadata-names",
        also=("metadata-readme",),
    ),
    Wrong(
        **PROJECT,
        name="a distribution of another name",
        old='name = "ft-',
        new='name = "ft-the-',
        fails="metadata-names",
    ),
    Wrong(
        **PROJECT,
        name="a module that isn't there",
        old='"$package.method"',
        new='"$package.methods"',
        fails="metadata-entry-points",
    ),
    Wrong(
        **PROJECT,
        name="a class that isn't there",
        old="[tool.setuptools.packages",
        new='[project.entry-points."ft_host.configs"]\n$name = "$package.config:Nope"\n\n[tool.setuptools.packages',
        fails="metadata-entry-points",
    ),
    Wrong(**PROJECT, name="stable below 1.0", old="3 - Alpha", new="5 - Production/Stable", fails="metadata-version"),
    Wrong(
        **PROJECT, name="alpha above 1.0", old='version = "0.1.0"', new='version = "1.1.0"', fails="metadata-version"
    ),
    Wrong(**PROJECT, name="no status", old='"Development Status :: 3 - Alpha"', new="", fails="metadata-version"),
    Wrong(
        **PROJECT,
        name="two states",
        old='"Development Status :: 3 - Alpha"',
        new='"Development Status :: 3 - Alpha", "Development Status :: 4 - Beta"',
        fails="metadata-version",
    ),
    Wrong(**PROJECT, name="no version", old='version = "0.1.0"', new='version = "latest"', fails="metadata-version"),
    Wrong(
        **PROJECT,
        name="no host",
        old='dependencies = ["ft-host',
        new='dependencies = ["numpy',
        fails="metadata-host-range",
    ),
    *(
        Wrong(
            **PROJECT,
            name=f"ft-host{found}",
            old="dependencies = [",
            new=f'dependencies = ["ft-host{found}"]\nno = [',
            fails="metadata-host-range",
        )
        for found in ("", ">=0.4", "<1", ">=0.4,<99", ">=0.4,<1.12", "~=0.4.1", ">=0.4,<2,==0.9.*", ">=98,<99")
    ),
    Wrong(
        **PROJECT,
        name="bounds with a slip of the pen",
        old="dependencies = [",
        new='dependencies = ["ft-host>=0,4"]\nno = [',
        fails="metadata-host-range",
        also=("metadata-entry-points",),
    ),
    Wrong(**PROJECT, name="no licence", old="license =", new="licence =", fails="metadata-licence"),
    Wrong(**PROJECT, name="no summary", old="description =", new="headline =", fails="metadata-summary"),
    Wrong(
        **PROJECT,
        name="a summary that says nothing",
        old='description = "',
        new='description = "The method $name."\nheadline = "',
        fails="metadata-summary",
    ),
    Wrong(
        file="README.md",
        name="a README without a run",
        old="ft-$name\nft-host train",
        new="ft-$name\nft-host rules",
        fails="metadata-readme",
    ),
    Wrong(
        file="README.md",
        name="a run of another method",
        old="ft-$name\nft-host train $name",
        new="ft-$name\nft-host train sft",
        fails="metadata-readme",
    ),
    Wrong(
        file="README.md",
        kind="backend",
        name="a run without the backend",
        old=" --backend $name",
        new="",
        fails="metadata-readme",
    ),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_it_is_caught(wrong, tmp_path):
    assert_caught(metadata.CHECKS, wrong, tmp_path)


@pytest.mark.parametrize("kind", ["offline", "pairs", "rollouts", "backend", "diagnostics"])
def test_a_right_one_passes(kind, tmp_path):
    assert failures(metadata.CHECKS, None, kind, tmp_path) == []


def test_every_check_has_a_wrong_package():
    assert {check.id for check in metadata.CHECKS} == {wrong.fails for wrong in WRONG}


def test_bounds_on_the_major_version_in_other_spellings(tmp_path):
    major, minor = __version__.split(".")[:2]
    for number, found in enumerate((f">={major}.{minor},<{int(major) + 1}.0.0,!={major}.999", f"~={major}.{minor}")):
        new = f'dependencies = ["ft-host{found}"]\nno = ['
        wrong = Wrong(**PROJECT, name=found, old="dependencies = [", new=new, fails="")
        assert failures(metadata.CHECKS, wrong, "offline", tmp_path / str(number)) == []


def test_what_is_installed_may_be_older_than_its_sources(tmp_path):
    with installed("offline", tmp_path, lambda files: files) as name:
        file = tmp_path / "site" / "pyproject.toml"
        file.write_text(file.read_text().replace('version = "0.1.0"', 'version = "0.2.0"'))
        checks = [check for check in metadata.CHECKS if check.id == "metadata-version"]
        [found] = Suite(f"ft-{name}", tmp_path / "suite").run(checks)
    assert (found.result, found.said) == (
        FAILED,
        "installed with the version '0.1.0', and pyproject.toml has '0.2.0'; install it again",
    )


def test_a_method_in_one_file_has_no_metadata(tmp_path):
    file = tmp_path / "my_method.py"
    file.write_text("from ft_host.api import RunConfig as Config\n")
    found = Suite(str(file), tmp_path / "suite").run(metadata.CHECKS)
    assert {each.result for each in found} == {LEFT_OUT}


def test_runs_in_a_readme():
    text = """
```sh
pip install ft-x && ft-host train x --model a \\
    --dataset 'b c' > log   # the first
$ ft-host train x run.yaml
ft-host rules
```
```python
ft-host train no
```
"""
    assert list(runs_in(text)) == [["x", "--model", "a", "--dataset", "b c"], ["x", "run.yaml"]]
    assert len(list(blocks(text, "python"))) == 1
