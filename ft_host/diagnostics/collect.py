"""The rules of a run: the host's own and those of its plugins."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pluggy

from ft_host import registry
from ft_host._version import __version__
from ft_host.config.fields import fields_of
from ft_host.diagnostics.rule import Rule, chosen
from ft_host.diagnostics.suspects import Function, Ranges
from ft_host.errors import ConfigError, PluginBroken
from ft_host.hooks import NAME, diagnostics
from ft_host.util.text import nearest

if TYPE_CHECKING:
    from ft_host.config import RunConfig

HOST = f"ft-host {__version__}"
Owned = tuple[Rule, str]  # a rule, with its distribution and version


def own_diagnostics(method: registry.PluginInfo) -> list[registry.PluginInfo]:
    """Return the diagnostics of a method: those with its name, from its distribution."""
    return [
        info
        for info in registry.catalog()
        if (info.kind, info.name, info.distribution) == ("diagnostics", method.name, method.distribution)
        and method.distribution
    ]


def diagnostics_of(method: registry.PluginInfo, config: RunConfig) -> list[registry.PluginInfo]:
    """Return the diagnostics plugins of a run: the method's own, and those that the config names. Imports nothing."""
    own = own_diagnostics(method)
    named = [registry.find("diagnostics", name) for name in config.diagnostics]
    return own + [info for info in named if info not in own]


def all_rules(plugins: pluggy.PluginManager, infos: list[registry.PluginInfo]) -> list[Owned]:
    """Return the host's rules and those of a manager's plugins; `infos` are those plugins.

    Raises PluginBroken for something that isn't a rule, or a code that two of them use.
    """
    from ft_host.diagnostics.rules import RULES

    labels = {f"{info.kind} {registry.reference(info)}": registry.label(info) for info in infos}
    owned = [(rule, HOST) for rule in RULES]
    for impl in plugins.hook.ft_rules.get_hookimpls():
        label = labels.get(impl.plugin_name, impl.plugin_name)
        owned += [(rule, label) for rule in given(impl.function, label)]
    seen: dict[str, str] = {}
    for rule, label in owned:
        if rule.code in seen:
            raise PluginBroken(f"rule {rule.code} is defined by {seen[rule.code]} and by {label}; a code has one rule")
        seen[rule.code] = label
    return owned


def given(ft_rules: Callable[[], list[Rule]], label: str) -> list[Rule]:
    """Return the result of a plugin's ft_rules. Raises PluginBroken where it isn't a list of rules."""
    try:
        rules = list(ft_rules())
    except Exception as error:
        raise PluginBroken(f"{label}: ft_rules failed: {type(error).__name__}: {error}") from error
    for rule in rules:
        if not isinstance(rule, Rule):
            raise PluginBroken(f"{label}: ft_rules returned {rule!r}; expected ft_host.diagnostics.Rule")
    return rules


def not_about(method: registry.PluginInfo, owned: list[Owned]) -> dict[str, str]:
    """Rules that aren't about a method, by code, and why: `NOT_ABOUT` in the module of its rules, or in its file. Its
    keys are codes, or beginnings of codes. Imports that module. Raises PluginBroken where it isn't that."""
    said: dict[str, str] = {}
    for info in [*own_diagnostics(method), *([] if method.distribution else [method])]:
        found = vars(registry.load(info)).get("NOT_ABOUT", {})
        where = f"{registry.label(info)} ({info.location}): NOT_ABOUT"
        if not isinstance(found, dict) or not all(isinstance(why, str) and why for why in found.values()):
            raise PluginBroken(
                f'{where} is {found!r}; expected {{code: reason}}, such as {{"OPT002": "its loss is 0"}}'
            )
        for named, why in found.items():
            codes = [rule.code for rule, _ in owned if chosen(rule.code, [named])]
            if not codes:
                near = nearest(named, [rule.code for rule, _ in owned])
                raise PluginBroken(f"{where} names {named}, which begins no rule's code{near}")
            said |= {code: f"not about {method.name}: {why}" for code in codes}
    return said


def suspects_of(config_class: type[RunConfig], infos: list[registry.PluginInfo], backend: str) -> list[Function]:
    """What may be behind a run's symptoms: the ranges of its fields and of its backend's, the host's relations between
    fields, and `SUSPECTS` in the modules of the rules of `infos`, or in the method's file. Raises PluginBroken where
    that is no list of functions."""
    from ft_host.diagnostics.rules.relations import SUSPECTS

    found: list[Function] = [Ranges(fields_of(config_class)), *SUSPECTS]
    if backend != "transformers":
        backend_class = registry.backend_config_class(registry.find("backend", backend))
        found += [Ranges(fields_of(backend_class), "backend_config")] if backend_class is not None else []
    for info in infos:
        if info.kind != "diagnostics" and info.distribution:
            continue
        own = vars(registry.load(info)).get("SUSPECTS", [])
        if not isinstance(own, list | tuple) or not all(callable(each) for each in own):
            raise PluginBroken(
                f"{registry.label(info)} ({info.location}): SUSPECTS is {own!r}; expected a list of functions of a View"
            )
        found += own
    return found


def rules_of(infos: list[registry.PluginInfo]) -> tuple[list[Owned], list[str]]:
    """Return the host's rules and those of these plugins, outside of a run, and problems.

    A broken plugin is reported and doesn't hide the others. Imports the plugins' modules.
    """
    from ft_host.diagnostics.rules import RULES

    owned, problems = [(rule, HOST) for rule in RULES], []
    seen = {rule.code: HOST for rule in RULES}
    modules = {(info.distribution, info.value): info for info in reversed(infos)}  # two methods may share their rules
    for info in infos:
        if modules[info.distribution, info.value] is not info:
            continue
        manager = pluggy.PluginManager(NAME)
        manager.add_hookspecs(diagnostics)
        label = registry.label(info)
        try:
            manager.register(registry.load(info))
            rules = [rule for impl in manager.hook.ft_rules.get_hookimpls() for rule in given(impl.function, label)]
        except (PluginBroken, pluggy.PluginValidationError) as error:
            problems.append(str(error).splitlines()[0])
            continue
        for rule in rules:
            if rule.code in seen:
                problems.append(
                    f"{label}: its rule {rule.code} is left out, {seen[rule.code]} has a rule with this code"
                )
                continue
            seen[rule.code] = label
            owned.append((rule, label))
    return owned, problems


def installed_rules(method: str | None = None) -> tuple[list[Owned], list[str]]:
    """Return the host's rules and those of all installed diagnostics that aren't blocked, or of one `method`; and
    problems.

    Raises what `registry.find` raises for the method.
    """
    if method is not None:
        return rules_of(own_diagnostics(registry.find("method", method)))
    installed = [info for info in registry.catalog() if info.kind == "diagnostics" and info.state != "blocked"]
    unusable = [info for info in installed if info.state in ("incompatible", "broken")]
    owned, problems = rules_of([info for info in installed if info not in unusable])
    return (
        owned,
        [f"{registry.label(info)}: the diagnostics {info.name!r} {info.problem}" for info in unusable] + problems,
    )


def check_codes(owned: list[Owned], config: RunConfig) -> None:
    """Raise ConfigError for a code in the config that is no prefix of a rule's code.

    Codes of methods that aren't used are allowed if they look like codes: a file may be shared between methods.
    """
    check_chosen(owned, "rules_select", config.rules_select)
    check_chosen(owned, "rules_ignore", config.rules_ignore)
    check_chosen(owned, "stop_on", [code for code in config.stop_on if code != "patchable"])


def check_chosen(owned: list[Owned], field: str, codes: list[str]) -> None:
    """As `check_codes`, for one list of codes; `field` is the field that holds them."""
    known = [rule.code for rule, _ in owned]
    families = {code.rstrip("0123456789") for code in known}
    for code in codes:
        letters = code.rstrip("0123456789")
        if code == "ALL" or any(rule.startswith(code) for rule in known):
            continue
        if letters not in families and letters.isalpha() and letters.isupper():
            continue
        raise ConfigError(
            f"{field}: no rule has the code or the prefix {code!r}{nearest(code, known) or ''}; "
            "`ft-host rules` lists them"
        )


def selected(owned: list[Owned], select: list[str], ignore: list[str]) -> list[Owned]:
    """Return the rules that `select` names (all, where it is empty), without those that `ignore` names.

    As in linters, the longer of two prefixes that match a rule decides.
    """

    def length(code: str, codes: list[str]) -> int:
        return max((len(prefix) if prefix != "ALL" else 0 for prefix in codes if chosen(code, [prefix])), default=-1)

    wanted = select or ["ALL"]
    return [item for item in owned if length(item[0].code, wanted) > length(item[0].code, ignore)]
