"""Imports each plugin in a separate process: `ft-host plugins --check`.

A plugin may hang, exit, print or crash the interpreter during import; none of that affects the caller.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ft_host.registry.catalog import PluginInfo
from ft_host.registry.lookup import reference

POLL = 0.02  # seconds


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of importing a plugin. `result` is "ok", "broken", "incompatible" or "blocked"."""

    result: str
    cause: str | None  # one line; None if ok
    seconds: float
    notes: tuple[str, ...] = ()  # worth saying, but no reason to refuse


@dataclass(kw_only=True)
class _Child:
    index: int
    process: subprocess.Popen
    answer: Path
    errors: Path
    started: float = field(default_factory=time.perf_counter)


def check(
    plugins: list[PluginInfo], *, timeout: float, at_once: int, told: Callable[[int], None] = lambda done: None
) -> list[Outcome]:
    """Import each plugin and check its config and hooks, `at_once` at a time, each for at most `timeout` seconds.

    Plugins that metadata already rules out are not imported. `told` is called with the number done so far. Returns
    outcomes in the order of `plugins`.
    """
    outcomes: dict[int, Outcome] = {}
    waiting = []
    for index, info in enumerate(plugins):
        if info.state in ("blocked", "incompatible", "broken"):
            outcomes[index] = Outcome(result=info.state, cause=info.problem, seconds=0.0)
        else:
            waiting.append(index)
    children: list[_Child] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            while waiting or children:
                while waiting and len(children) < at_once:
                    index = waiting.pop(0)
                    children.append(_start(index, plugins[index], Path(folder)))
                for child in list(children):
                    outcome = _finished(child, timeout)
                    if outcome is not None:
                        outcomes[child.index] = outcome
                        children.remove(child)
                        told(len(outcomes))
                time.sleep(POLL)
        finally:
            for child in children:  # only after Ctrl-C: a child in its own session doesn't receive it
                _kill(child)
    return [outcomes[index] for index in range(len(plugins))]


def _start(index: int, info: PluginInfo, folder: Path) -> _Child:
    answer, errors = folder / f"{index}.json", folder / f"{index}.err"
    # The child finds the same modules as this process, in the same order (-P: nothing before them).
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with errors.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, info.kind, reference(info), str(answer)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=environment,
            start_new_session=True,
        )
    return _Child(index=index, process=process, answer=answer, errors=errors)


def _finished(child: _Child, timeout: float) -> Outcome | None:
    seconds = time.perf_counter() - child.started
    code = child.process.poll()
    if code is None:
        if seconds < timeout:
            return None
        _kill(child)
        return Outcome(result="broken", cause=f"its import took longer than {timeout:g} s", seconds=seconds)
    if child.answer.exists():
        cause, notes = json.loads(child.answer.read_text(encoding="utf-8"))
        return Outcome(result="broken" if cause else "ok", cause=cause, seconds=seconds, notes=tuple(notes))
    errors = child.errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended the interpreter with exit code {code}"
    return Outcome(
        result="broken", cause=f"its import {ended}" + (f": {errors[-1]}" if errors else ""), seconds=seconds
    )


def _kill(child: _Child) -> None:
    if os.name == "posix":
        os.killpg(child.process.pid, signal.SIGKILL)  # and everything that the plugin started
    else:
        child.process.kill()
    child.process.wait()


def _main(kind: str, name: str, answer: str) -> None:
    """In the child process: import the plugin and write the first line of its error, or null, and notes."""
    from ft_host.config.fields import fields_of
    from ft_host.errors import FtHostError
    from ft_host.registry.lookup import backend_config_class, config_class, diagnostics_config_class, find
    from ft_host.registry.session import validate

    cause, notes = None, []
    try:
        info = find(kind, name)
        if kind == "method":
            fields_of(config_class(info))
        if kind == "backend":
            backend_config_class(info)
        if kind == "diagnostics":
            diagnostics_config_class(info)
        if "torch" in sys.modules:
            notes.append(f"its config, {info.config}, imports torch, for which --help and every refusal then wait")
        validate(info)
    except FtHostError as err:
        cause = str(err).splitlines()[0]
    Path(answer).write_text(json.dumps([cause, notes]), encoding="utf-8")
    os._exit(0)  # skips atexit handlers and threads that the import may have left


if __name__ == "__main__":
    _main(*sys.argv[1:])
