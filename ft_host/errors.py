"""Every error that a person is meant to read. The class decides the exit code; the message decides whether it helps.

A message names what is at fault (file, line, row, column, field, distribution), what was expected, and, where there is
one, the nearest right name. `ft-host` prints these without a traceback (`FT_HOST_TRACEBACK=1` shows it).
"""

from __future__ import annotations


class FtHostError(Exception):
    """The run failed for a known reason. `facts`: facts about it for the run's diagnostics, so that a refusal is a
    finding too. `everywhere`: whether all processes of the run raise it, so that one of them prints it."""

    exit_code = 1
    everywhere = False

    def __init__(self, *arguments: object, facts: dict[str, object] | None = None):
        super().__init__(*arguments)
        self.facts = facts or {}


class OutOfMemory(FtHostError):
    """Memory ran out. `phase`: during what, as `ft_host.util.memory` calls it; empty for what another process
    said."""

    def __init__(self, *arguments: object, phase: str = "", facts: dict[str, object] | None = None):
        super().__init__(*arguments, facts=facts)
        self.phase = phase


class UsageError(FtHostError):
    """The command line, the config or the data is wrong."""

    exit_code = 2


class ConfigError(UsageError):
    """A field is unknown or has a value that it can't have."""


class UnknownField(ConfigError, TypeError):
    """A config class was called with a keyword that no field has: a TypeError, as Python's own is."""


class DataError(UsageError):
    """A data set, a file or a row can't be used."""


class PluginBroken(FtHostError):
    """A plugin is installed but can't be imported, or doesn't fit this host."""

    exit_code = 3


class HookError(FtHostError):
    """A hook returned what it may not. The message names the plugin and the hook, what came and what was expected."""

    exit_code = 3


class PluginNotFound(FtHostError):
    """No installed distribution offers this name."""

    exit_code = 4


class BackendGone(FtHostError):
    """What samples could not be used for longer than the run waits for it: another try would end in the same way."""


class StoppedByFinding(FtHostError):
    """The run was stopped for a finding, as `stop_on` asks, and has saved its state."""

    exit_code = 5


class Interrupted(FtHostError):
    """The run was asked to stop (Ctrl-C, SIGTERM, SIGHUP). Its message says what it can go on from."""

    exit_code = 130


class RowError(DataError):
    """Raised by `ft_prepare` for a row that can't be used; the host adds file and line and raises `DataError`.

    `column` names the column at fault where there is one.
    """

    def __init__(self, message: str, column: str | None = None):
        super().__init__(message)
        self.column = column
