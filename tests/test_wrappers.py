"""Diagnostics may wrap any hook of a run: the wrappers in run.json are those that are called, in every process."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ft_host.testing import processes
from ft_host.testing.distributions import make_distribution
from ft_host.testing.invariants import lines

METHOD = """
from ft_sft.method import ft_collate, ft_loss, ft_prepare
"""
CONFIG = """
from dataclasses import dataclass

from ft_sft.config import SFTConfig


@dataclass(kw_only=True)
class WrapConfig(SFTConfig):
    pass
"""
RULES = """
import os
from ft_host import hookimpl

def called(hook):
    with open(os.environ["CALLED"], "a") as file:
        file.write(f"{hook} {__name__} {os.getpid()}\\n")

@hookimpl(wrapper=True)
def ft_prepare(row):
    called("ft_prepare")
    return (yield)

@hookimpl(wrapper=True)
def ft_collate(rows):
    called("ft_collate")
    return (yield)
"""


@pytest.fixture
def site(tmp_path) -> Path:
    """A method with diagnostics of its own, and diagnostics of another package, that both wrap two hooks."""
    folder = tmp_path / "site"
    folder.mkdir()
    make_distribution(
        folder,
        "ft-wrap",
        entry_points={
            "ft_host.methods": {"wrap": "ft_wrap.method"},
            "ft_host.configs": {"wrap": "ft_wrap.config:WrapConfig"},
            "ft_host.diagnostics": {"wrap": "ft_wrap.rules"},
        },
        requires=["ft-host"],
        modules={"ft_wrap.method": METHOD, "ft_wrap.config": CONFIG, "ft_wrap.rules": RULES},
    )
    make_distribution(
        folder,
        "ft-other",
        entry_points={"ft_host.diagnostics": {"other": "ft_other"}},
        requires=["ft-host"],
        modules={"ft_other": RULES},
    )
    return folder


def command(site: Path, called: Path, *arguments: str) -> str:
    """Run ft-host with these distributions beside what is installed."""
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "CALLED": str(called), "FT_HOST_CACHE": str(site / "cache")}
    done = processes.command(*arguments, environment=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def calls(file: Path) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """By hook, the modules whose wrappers were called, and the processes that they were called in."""
    modules: dict[str, set[str]] = {}
    processes: dict[str, set[str]] = {}
    for line in file.read_text().splitlines():
        hook, module, process = line.split()
        modules.setdefault(hook, set()).add(module)
        processes.setdefault(hook, set()).add(process)
    return modules, processes


@pytest.mark.parametrize("workers", [0, 1])
def test_the_wrappers_of_run_json_are_those_that_are_called(tiny, tmp_path, site, workers):
    called, folder = tmp_path / "called", tmp_path / "run"
    command(
        site,
        called,
        *("train", "wrap", "--model", str(tiny / "model"), "--dataset", str(tiny / "train.jsonl")),
        *("--max-steps", "2", "--use-cpu", "--diagnostics", "other", "--progress", "quiet"),
        *("--dataloader-num-workers", str(workers), "--output-dir", str(folder)),
    )
    assert len(lines(folder)) == 2
    named = {each["hook"]: each["plugins"] for each in json.loads((folder / "run.json").read_text())["wrappers"]}
    both = ["diagnostics ft-other:other", "diagnostics ft-wrap:wrap"]
    assert named == {"ft_prepare": both, "ft_collate": both}
    modules, processes = calls(called)
    assert modules == {"ft_prepare": {"ft_other", "ft_wrap.rules"}, "ft_collate": {"ft_other", "ft_wrap.rules"}}
    assert len(processes["ft_collate"]) == 1 and len(processes["ft_prepare"]) == 1 + workers


def test_and_in_ft_host_data(tiny, tmp_path, site):
    called = tmp_path / "called"
    said = command(
        site,
        called,
        *("data", "wrap", "--model", str(tiny / "model"), "--dataset", str(tiny / "train.jsonl")),
        *("--diagnostics", "other", "--rows", "1", "--count", "2", "--no-color"),
    )
    assert "the first 2 of 40 rows" in said
    modules, _ = calls(called)
    assert modules == {"ft_prepare": {"ft_other", "ft_wrap.rules"}, "ft_collate": {"ft_other", "ft_wrap.rules"}}
