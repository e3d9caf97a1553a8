"""pytest loads this module in every environment that has ft-host. In a project that doesn't use ft-host it does
nothing: it has no fixtures and no options, and imports nothing else.

A project uses it if the pyproject.toml of its root names ft-host (as a dependency, for instance); then
`ft_host.testing.fixtures` are its fixtures.
"""

from __future__ import annotations

import pytest

FIXTURES = "ft_host.testing.fixtures"


def pytest_configure(config: pytest.Config) -> None:
    if config.pluginmanager.has_plugin(FIXTURES):  # a conftest.py has asked for them
        return
    file = config.rootpath / "pyproject.toml"
    if file.is_file() and "ft-host" in file.read_text(encoding="utf-8", errors="replace"):
        config.pluginmanager.import_plugin(FIXTURES)
