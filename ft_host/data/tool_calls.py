"""Tools and their calls as rows have them: as data, or as JSON text, as OpenAI's API gives arguments."""

from __future__ import annotations

import json
from typing import Any

from ft_host.errors import RowError
from ft_host.types import Row


def from_json(text: str, where: str, column: str) -> Any:
    """Return what a text holds as JSON. Raises RowError that names the place in it."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RowError(
            f"{where}: not JSON: {error.msg} at column {error.colno}; the text begins with {text.strip()[:40]!r}",
            column,
        ) from error
    except (ValueError, RecursionError) as error:  # a number of too many digits, brackets too deep
        raise RowError(f"{where}: not JSON that can be read: {error}", column) from error


def found(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"


def checked_calls(calls: Any, where: str, column: str) -> list[dict[str, Any]]:
    """Return the calls of a message. Arguments stay text or a mapping; text must be JSON of a mapping.

    Raises RowError.
    """
    if isinstance(calls, str):
        calls = from_json(calls, where, column)
    if not isinstance(calls, list):
        raise RowError(f"{where}: found {found(calls)}, expected a list of calls", column)
    out = []
    for number, call in enumerate(calls):
        place = f"{where}[{number}]"
        if not isinstance(call, dict):
            raise RowError(f"{place}: found {found(call)}, expected {{name, arguments}}", column)
        wrapped = isinstance(call.get("function"), dict)
        inner = call["function"] if wrapped else call
        if "name" in inner:  # a call in another form is the template's business
            inner = {**inner, "arguments": checked_arguments(inner.get("arguments"), f"{place}.arguments", column)}
        out.append({**call, "function": inner} if wrapped else inner)
    return out


def checked_arguments(arguments: Any, where: str, column: str) -> Any:
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        return {}
    value = from_json(arguments, where, column) if isinstance(arguments, str) else arguments
    if not isinstance(value, dict):
        twice = " (JSON within JSON)" if isinstance(value, str) else ""
        raise RowError(f"{where}: found {found(value)}{twice}, expected {{name: value}}, or its JSON", column)
    return arguments


def tools_of(row: Row) -> list[Any] | None:
    """Return the tools of a row: a list, or a list written as JSON. An empty list gives None, since templates take []
    for tools. A tool, and its parameters, may be JSON text too.
    """
    tools = row.get("tools")
    if isinstance(tools, str):
        tools = from_json(tools, "column tools", "tools") if tools.strip() else None
    if tools is not None and not isinstance(tools, list):
        raise RowError(f"column tools: found {found(tools)}, expected a list of functions", "tools")
    return [tool_of(tool, f"tools[{index}]") for index, tool in enumerate(tools or [])] or None


def tool_of(tool: Any, where: str) -> Any:
    if isinstance(tool, str):
        tool = from_json(tool, where, "tools")
    if not isinstance(tool, dict):
        raise RowError(f"{where}: found {found(tool)}, expected a function {{name, description, parameters}}", "tools")
    if isinstance(tool.get("function"), dict):
        return {**tool, "function": with_parameters(tool["function"], f"{where}.function")}
    return with_parameters(tool, where)


def with_parameters(function: dict[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(function.get("parameters"), str):
        return function
    parameters = from_json(function["parameters"], f"{where}.parameters", "tools")
    return {**function, "parameters": parameters}
