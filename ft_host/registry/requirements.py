"""Checks `required_plugins` of a config against the installed versions before anything is imported."""

from __future__ import annotations

from ft_host.errors import ConfigError, PluginBroken, PluginNotFound


def check_requirements(requirements: list[str]) -> None:
    """Check each requirement, such as "ft-sft>=0.1,<1", against the installed version.

    A requirement may name any distribution, not only plugins. Raises ConfigError for one that can't be read,
    PluginNotFound for one that isn't installed, PluginBroken for one in another version; each names all that fail for
    this reason.
    """
    if not requirements:
        return
    import importlib_metadata
    from packaging.requirements import InvalidRequirement, Requirement

    absent, wrong = [], []
    for index, text in enumerate(requirements):
        where = f"required_plugins[{index}]: {text!r}"
        try:
            requirement = Requirement(text)
        except InvalidRequirement as err:
            why = str(err).splitlines()[0]
            raise ConfigError(f"{where} is not a requirement such as 'ft-sft>=0.1,<1': {why}") from err
        if requirement.extras or requirement.url:
            raise ConfigError(f"{where} names an extra or a URL, which can't be checked; expected a name and versions")
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib_metadata.version(requirement.name)
        except importlib_metadata.PackageNotFoundError:
            absent.append(f"{where}: {requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{where}: {requirement.name} {version} is installed")
    if absent:
        raise PluginNotFound("\n".join(absent + wrong))
    if wrong:
        raise PluginBroken("\n".join(wrong))
