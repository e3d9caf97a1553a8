"""Options of commands that aren't fields, taken off the command line."""

from __future__ import annotations

from ft_host.errors import UsageError


def take_switch(arguments: list[str], name: str) -> bool:
    found = [argument for argument in arguments if argument.replace("_", "-") == name]
    for argument in found:
        arguments.remove(argument)
    return bool(found)


def take_value(arguments: list[str], name: str, needs: str) -> str | None:
    """Take an option and its value off the arguments. Raises UsageError, which says what it `needs`, where that is
    missing.
    """
    for index, argument in enumerate(arguments):
        if argument == name:
            if index + 1 == len(arguments) or arguments[index + 1].startswith("--"):
                raise UsageError(f"{name} needs {needs}")
            del arguments[index]
            return arguments.pop(index)
        if argument.startswith(f"{name}="):
            del arguments[index]
            return argument.partition("=")[2]
    return None


def take_number(arguments: list[str], name: str, what: str, least: int = 0) -> int | None:
    """Take an option whose value is a number of `what` off the arguments. Raises UsageError."""
    text = take_value(arguments, name, f"a number of {what}")
    if text is None:
        return None
    if not text.isdecimal() or int(text) < least:
        at_least = f", at least {least}" if least else ""
        raise UsageError(f"{name}: found {text!r}, expected a number of {what}{at_least}")
    return int(text)
