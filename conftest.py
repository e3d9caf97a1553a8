"""What all tests of this repository need before torch is imported."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # processes that wait for each other leave the cores to others
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several: a thread each, and what they start
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# What the entry point of ft_host.testing.pytest_plugin loads; here for an installation that is older than it.
pytest_plugins = ["ft_host.testing.fixtures"]


def _not_needed(descriptor: int) -> None:
    """Tests kill processes, never the machine: what was written is there. Commands that they start do it."""


os.fsync = _not_needed
seen = 0  # modules, when the garbage collector was last told to leave out what there is


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """Leave what modules hold out of garbage collection: with torch and transformers a full one takes a quarter of a
    second."""
    global seen
    if len(sys.modules) > seen + 200:
        gc.collect()
        gc.freeze()
        seen = len(sys.modules)
    return (yield)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nightly", action="store_true", help="also what takes long and repeats what other tests show")
    parser.addoption("--kills", type=int, default=10, help="how often tests/test_kills.py kills runs")
    parser.addoption("--kills-seed", type=int, default=0, help="of the moments at which it does")
    parser.addoption("--pretended-device", action="store_true", help="in the place of CUDA; tests/device/README.md")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked `nightly`, or of a parametrised test the cases that the mark names."""
    if config.getoption("--nightly"):
        return
    later = [item for item in items if any(_is_for_later(item, mark) for mark in item.iter_markers("nightly"))]
    if later:
        config.hook.pytest_deselected(items=later)
        items[:] = [item for item in items if item not in later]


def _is_for_later(item: pytest.Item, mark: pytest.Mark) -> bool:
    case = item.name.removesuffix("]").partition("[")[2]
    return not mark.args or case in mark.args


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--pretended-device"):  # before accelerate and transformers ask what there is
        from device import pretended

        pretended.start()
