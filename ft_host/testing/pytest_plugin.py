"""What pytest loads in every environment that has ft-host. In a project that has nothing to do with it, it does
nothing: it has no fixtures and no options, and imports nothing else.

A project has to do with it where the pyproject.toml of its root names ft-host (as a dependency, say); then
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
