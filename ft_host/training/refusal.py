"""A run that is refused before its first step leaves in its folder what another needs to mend it: the config, what is
known of it as facts, and findings. The next run may begin in that folder, and takes its place."""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import TYPE_CHECKING, Any

from ft_host.diagnostics.collect import HOST
from ft_host.diagnostics.engine import Engine
from ft_host.diagnostics.rules import RULES
from ft_host.errors import FtHostError, UsageError
from ft_host.rundir.folder import RunFolder, write_text
from ft_host.rundir.manifest import new_manifest
from ft_host.rundir.opening import new_folder, parent_for
from ft_host.training.failure import facts_of, first_line, keep_traceback, where
from ft_host.training.finish import report_of
from ft_host.util import devices
from ft_host.util.jsonl import json_line
from ft_host.util.text import now

if TYPE_CHECKING:
    from ft_host.config import RunConfig
    from ft_host.monitor.watch import Monitor
    from ft_host.registry import PluginInfo


def refuse(
    told: FtHostError,
    error: BaseException,
    config: RunConfig,
    origins: dict[str, str],
    chosen: list[PluginInfo],
    watch: Monitor | None,
    folder: RunFolder | str,
) -> RunFolder | None:
    """Write down why a run was refused that has no run.json yet, and say in the message where. `told` is what people
    read, `error` what it is made of; the first of `chosen` is the method. `folder`: the run's, or where it would be.

    Returns the folder, owned. None where that is another run's, which stays as it is, or nothing can be written.
    """
    try:
        if isinstance(folder, str):
            folder = new_folder(folder, chosen[0].name)
    except UsageError:
        return None
    except OSError as problem:
        _unwritten(problem)
        return None
    try:
        _write(told, config, origins, chosen, watch, folder)
    except OSError as problem:
        _unwritten(problem)
        return folder
    trace = keep_traceback(error, folder.path, 0, None)
    lines = [str(told), where(folder)] + ([] if trace is None else [f"traceback: {trace}"])
    told.args = ("\n".join(lines),)
    report_of(folder)
    return folder


def _unwritten(problem: OSError) -> None:
    """The error itself is what the user must see: that it can't be written down is only told."""
    print(f"why the run is refused could not be written down: {first_line(problem)}", file=sys.stderr)


def _write(
    told: FtHostError,
    config: RunConfig,
    origins: dict[str, str],
    chosen: list[PluginInfo],
    watch: Monitor | None,
    folder: RunFolder,
) -> None:
    """Write run.json first: whatever happens then, the folder says what it holds."""
    device = devices.chosen(config.use_cpu).type
    processes = int(os.environ.get("WORLD_SIZE", config.num_processes))
    facts = facts_of(told, 0)
    if watch is None:  # the plugins can't be loaded, and so their rules can't
        engine = Engine([(rule, HOST) for rule in RULES], dataclasses.asdict(config))
        findings = engine.record_facts(facts)
    else:
        watch.record_facts(facts, quiet=True)  # the error itself is printed
        engine, findings = watch.engine, watch.unwritten
    fields: dict[str, Any] = {
        "status": "refused",
        "finished": now(),
        "error": str(told),
        "parent": parent_for(config, folder),
        "facts": engine.view.facts,
        "facts_told": engine.told,
        "diagnostics": {"rules": len(engine.rules), "skipped": engine.skipped()},
    }
    folder.update(**new_manifest(config, origins, chosen, device, processes) | fields)
    lines = [json_line(finding.as_dict(engine.config)) for finding in findings]
    write_text(folder.path / "findings.jsonl", "".join(lines))
