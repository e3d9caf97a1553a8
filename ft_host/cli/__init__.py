"""The command line. One module per command, imported when the command is called."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ft_host.util.signals import Signals

# name -> the module with its `run(argv) -> int`, and the command's description
COMMANDS = {
    "train": ("ft_host.cli.train", "train a model with a method, or resume or replay a run"),
    "autopilot": ("ft_host.cli.autopilot", "train in attempts, each with a remedy for the findings of the one before"),
    "diagnose": ("ft_host.cli.diagnose", "find problems of a run from its folder"),
    "explain": ("ft_host.cli.explain", "explain what a rule detects, its causes and remedies"),
    "rules": ("ft_host.cli.rules", "list the rules that check runs"),
    "patch": ("ft_host.cli.patch", "print a run file with a remedy for a run's finding"),
    "plugins": ("ft_host.cli.plugins", "list the methods, backends and diagnostics that are installed"),
    # by name, since the checks stand above the command line, which they call
    "check": ("ft_host.testing.conformance.command", "ask what a package is held to"),
    "contract": ("ft_host.cli.contract", "print what a package promises, or what has changed in it"),
    "new": ("ft_host.cli.new", "write a package of your own that already trains"),
    "migrate": ("ft_host.cli.migrate", "print a run file of this release, from an older one or from TRL"),
    "config": ("ft_host.cli.config", "print a config file to start from"),
    "schema": ("ft_host.cli.schema", "print the JSON schema of a method's config file"),
    "data": ("ft_host.cli.data", "show a few rows as the model sees them"),
    "serve": ("ft_host.cli.serve", "start servers of a model, for runs to sample on"),
    "report": ("ft_host.cli.report", "write a run's report as one HTML page"),
    "runs": ("ft_host.cli.runs", "list runs"),
    "compare": ("ft_host.cli.compare", "compare the configs and curves of runs"),
}

HELP = """\
usage: ft-host COMMAND ...

Fine-tunes language models; each method is a separate package.

commands
{commands}

`ft-host COMMAND --help` describes a command, `ft-host train METHOD --help` the fields of a method.
`ft-host --version` prints the version.

environment
  FT_HOST_PLUGINS, FT_HOST_BLOCK  distributions to use, and not to use, separated by commas
  FT_HOST_TRACE=1                 print each hook call
  FT_HOST_TRACEBACK=1             print where an error arose
"""
STDOUT = 1
INTERRUPTED = 130  # as shells report SIGINT
CLOSED_PIPE = 141  # the exit code that shells report for SIGPIPE


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code; `ft_host.errors` has those of errors."""
    whole = argv is None  # the process is this command
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] != ["train"]:
        return answered(argv)
    from ft_host.util.signals import caught, ignore

    with caught() as stop:  # from here on, before torch is imported
        code = answered(argv, stop)
    if code == INTERRUPTED and whole:  # a further Ctrl-C must not change how the interpreter ends
        ignore()
    return code


def answered(argv: list[str], stop: Signals | None = None) -> int:
    """Run a command, print the error that it ends with, and return its exit code."""
    try:
        code = dispatch(argv)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return failed("interrupted", INTERRUPTED)
    except SystemExit as left:  # raised by argparse
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and stdout_is_closed():
            return CLOSED_PIPE
        from ft_host.errors import FtHostError

        if os.environ.get("FT_HOST_TRACEBACK", "") not in ("", "0"):
            traceback.print_exc()
        if isinstance(error, FtHostError):
            return failed(f"error: {error}", error.exit_code, elsewhere=error.everywhere)
        if stop is not None and stop.asked:  # a library has made another error of it
            return failed("interrupted", INTERRUPTED)
        from ft_host.util.imports import cause

        return failed(f"error: {cause(error)}\nFT_HOST_TRACEBACK=1 prints where it arose", 1)


def failed(text: str, code: int, elsewhere: bool = False) -> int:
    """Print how a command ended and return its exit code. A rank ends at once; what all ranks raise, and what somebody
    has asked for, is printed by the first alone (`elsewhere`)."""
    rank = os.environ.get("RANK", "0")
    if rank == "0" or not (elsewhere or code == INTERRUPTED):
        from ft_host.util.console import show

        show(f"ft-host: {text}", sys.stderr)
    if "LOCAL_RANK" in os.environ:
        from ft_host.cli.train import leave

        leave(code)
    return code


def dispatch(argv: list[str]) -> int:
    """Pass the arguments to the command that they name. Raises UsageError where they name none."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        commands = "\n".join(f"  {name:<11}{about}" for name, (_, about) in COMMANDS.items())
        print(HELP.format(commands=commands), end="")
        return 0 if argv else 2
    if argv[0] in ("-V", "--version", "version"):
        from ft_host import __version__

        print(f"ft-host {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        raise unknown(argv[0])
    return importlib.import_module(COMMANDS[argv[0]][0]).run(argv[1:])


def unknown(command: str) -> Exception:
    """Return the error for an unknown command, with the likely intended one."""
    from ft_host import registry
    from ft_host.config.files import is_config
    from ft_host.errors import UsageError
    from ft_host.util.text import nearest

    methods = [info.name for info in registry.catalog() if info.kind == "method"]
    if command in methods or is_config(command):
        return UsageError(f"no command {command!r}; did you mean ft-host train {command}?")
    commands = f"; there are {', '.join(COMMANDS)}"
    return UsageError(f"no command {command!r}{nearest(command, COMMANDS) or commands}")


def stdout_is_closed() -> bool:
    """Return whether the broken pipe is our own output, as in `ft-host plugins | head`, and not a worker's.

    If so nothing more is written to it, so that Python's flush at exit doesn't complain.
    """
    import select

    poll = select.poll()
    poll.register(STDOUT, select.POLLOUT)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
    return True
