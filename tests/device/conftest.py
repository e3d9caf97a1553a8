"""`on_device`: a call in a process that has the pretended device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def on_device() -> Iterator[object]:
    """`on_device(function, *args)`, and `on_device.ranks(2, function, *args)`; see `device.processes.Server`."""
    from device import build, processes

    if why := build.missing():
        pytest.skip(why)
    build.load()  # here, so that what the compiler says is said
    server = processes.Server()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the cases' models are made once, and their runs."""
    return tmp_path_factory.mktemp("device")
