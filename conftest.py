"""For an installation that is older than the entry point of ft_host.testing.pytest_plugin: what that would load."""

pytest_plugins = ["ft_host.testing.fixtures"]
