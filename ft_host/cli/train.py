"""`ft-host train METHOD [CONFIG] [--field value ...]`, `ft-host train --resume RUN` and `--replay RUN`.

Everything before the import of `ft_host.training.launch` is light: a wrong command line is refused before torch is
imported.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ft_host import registry
from ft_host.cli.arguments import take_switch, take_value
from ft_host.config import paths, resolve
from ft_host.config import recorded as recorded_configs
from ft_host.config.files import ConfigFile, is_config, read_file
from ft_host.config.old_names import RenamedField
from ft_host.distributed.launcher import end_with_launcher
from ft_host.errors import PluginNotFound, StoppedByFinding, UsageError
from ft_host.util.console import show

USAGE = "ft-host train METHOD [CONFIG] [--field value ...], or ft-host train --resume|--replay RUN [--field value ...]"
HELP = """\
usage: ft-host train METHOD [CONFIG] [--field value ...] [--dry-run]
       ft-host train CONFIG [--field value ...] [--dry-run]
       ft-host train --resume RUN [--field value ...]
       ft-host train --replay RUN [--field value ...]

Trains a model. CONFIG is a YAML, TOML or JSON file; METHOD may be left out if it has a line `method: ...`. Flags
override the file. --dry-run checks everything that needs no model, and prints the config with the origin of each
value. --resume continues a stopped run from its newest whole checkpoint. With it:
  --restart               begin at step 0; logs and checkpoints so far are kept in RUN/before-restart-N
  --allow-changed FIELDS  go on though files that these fields name (model,dataset) have other content than
                          when the run began; run.json records it
  --take-over             go on though a process on another host may still train in the folder
--replay trains a new run with the config of RUN on the rollouts that it has recorded, and samples none.

`ft-host train METHOD --help` lists the fields of a method, `ft-host config METHOD` prints a CONFIG to start from.
"""


@dataclass(kw_only=True)
class Asked:
    """The command line without the fields: METHOD, CONFIG, RUN to go on with or to learn from again, and the rest."""

    method: str | None
    file: ConfigFile | None
    resume: str | None
    dry_run: bool
    help: bool
    flags: list[str]
    replay: str | None = None
    restart: bool = False
    take_over: bool = False
    allow_changed: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Ready:
    """The run to start, with everything checked that needs nothing heavy."""

    method: registry.PluginInfo
    resolved: resolve.Resolved
    resume: str | None
    renamed: list[str]  # warnings about old names of fields


def run(argv: list[str]) -> int:
    end_with_launcher()
    asked = read(argv)
    if asked.help and asked.method is None:
        print(HELP + "\n" + installed())
        return 0
    if asked.help:
        from ft_host.config.help import method_help

        print(method_help(asked.method, registry.config_class(asked.method)), end="")
        return 0
    if asked.resume is not None:
        ready = resumed(asked)
    else:
        ready = fresh(asked) if asked.replay is None else replayed(asked)
    config = ready.resolved.config
    if asked.dry_run:
        from ft_host.config.plan import dry_run

        say_warnings(ready.renamed)
        processes = int(os.environ.get("WORLD_SIZE", config.num_processes))
        label = f"{registry.label(ready.method)}, {ready.method.stability}"
        print(dry_run(asked.method or ready.method.name, label, ready.resolved, processes), end="")
        return 0
    if config.num_processes > 1 and "LOCAL_RANK" not in os.environ:
        from ft_host.distributed.spawn import spawn

        return spawn(argv, config.num_processes)
    say_warnings(ready.renamed)
    warn_once(ready.method)
    from ft_host.rundir.opening import Resuming
    from ft_host.training import launch

    finished = launch.train(
        config,
        method=registry.reference(ready.method),
        origins=ready.resolved.origins,
        resume=ready.resume,
        asked=Resuming(restart=asked.restart, take_over=asked.take_over, allow_changed=asked.allow_changed),
    )
    code = StoppedByFinding.exit_code if finished.failed else 0
    if "LOCAL_RANK" in os.environ:
        leave(code)
    return code


def leave(code: int) -> NoReturn:
    """End this rank at once when its work is done.

    torch keeps references to the process group (its DTensor caches to that of a sharded model). Its threads, still
    running when the interpreter exits, abort one rank in ten or twenty ("terminate called", torch 2.13): a finished run
    would have failed, with another exit code.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def read(argv: list[str]) -> Asked:
    """Take METHOD, CONFIG and the options that aren't fields off the command line. Raises UsageError."""
    rest = list(argv)
    wanted = {name: take_switch(rest, name) for name in ("--dry-run", "--help", "-h", "--restart", "--take-over")}
    resume = take_value(rest, "--resume", "the folder of a run, for instance --resume runs/sft-20260101-120000")
    # With --resume it is a field, which can't change.
    run = "the folder of a run whose rollouts to learn from, for instance --replay runs/mine-20260101-120000"
    replay = take_value(rest, "--replay", run) if resume is None else None
    allowed = take_value(rest, "--allow-changed", "the fields whose files may have changed, for instance model,dataset")
    places = []
    while rest and not rest[0].startswith("-") and len(places) < 2:
        places.append(rest.pop(0))
    asked = Asked(
        method=None,
        file=None,
        resume=resume,
        dry_run=wanted["--dry-run"],
        help=wanted["--help"] or wanted["-h"],
        flags=rest,
        replay=replay,
        restart=wanted["--restart"],
        take_over=wanted["--take-over"],
        allow_changed=tuple(name.strip() for name in (allowed or "").split(",") if name.strip()),
    )
    for name in ("--restart", "--take-over"):
        if wanted[name] and resume is None:
            raise UsageError(f"{name} is for a run that goes on: ft-host train --resume RUN {name}")
    for name, value in (("--resume", resume), ("--replay", replay)):
        if value is None:
            continue
        if places:
            raise UsageError(f"{name} {value}: the run knows its method and its config; unexpected {' '.join(places)}")
        return asked
    if places and not is_config(places[0]):
        asked.method = places.pop(0)
    if asked.help and asked.method is not None:
        return asked  # the fields don't depend on the file
    if places:
        asked.file = read_file(places.pop(0))
    if places:
        raise UsageError(f"unexpected {places[0]!r} after {asked.file.path}; expected {USAGE}")
    if asked.method is None and asked.file is not None:
        asked.method = asked.file.method
        if asked.method is None:
            raise UsageError(
                f"{asked.file.path} names no method; add `method: sft` to it, or use "
                f"ft-host train METHOD {asked.file.path}"
            )
    if asked.method is None and not asked.help:
        first = f"{rest[0]} comes too early; " if rest else ""
        raise UsageError(f"{first}expected {USAGE}\n{installed()}")
    return asked


def installed() -> str:
    names = [info.name for info in registry.catalog() if info.kind == "method" and info.state == "ok"]
    return f"installed methods: {', '.join(names) or 'none'}"


def fresh(asked: Asked) -> Ready:
    """Return a new run. Raises what resolving and finding plugins raise."""
    named = asked.file.method if asked.file is not None else None
    try:
        method = registry.find("method", asked.method)
    except PluginNotFound as error:
        if named != asked.method:
            raise
        raise PluginNotFound(f"{asked.file.where('method')}: {error}") from error
    with old_names_caught() as renamed:
        resolved = resolve.resolve(
            registry.config_class(method), asked.file, asked.flags, method=name_for(asked, method)
        )
    paths.check_output(resolved.config.output_dir)
    find_others(resolved.config)
    return Ready(method=method, resolved=resolved, resume=None, renamed=renamed)


def name_for(asked: Asked, method: registry.PluginInfo) -> str:
    """Return the name that a run file must have, if it names a method. One for sft is for ft-sft:sft, too."""
    named = asked.file.method if asked.file is not None else None
    return named if named in (method.name, registry.reference(method)) else asked.method


def resumed(asked: Asked) -> Ready:
    """Return a resumed run, from its run.json. Raises UsageError for a folder that isn't a run's."""
    from ft_host.rundir.owner import refuse_if_owned

    method, record, where = record_of(asked.resume)
    if os.environ.get("RANK", "0") == "0":  # under torchrun the first process may own it before another looks
        refuse_if_owned(Path(asked.resume))
    with old_names_caught() as renamed:
        resolved = recorded_configs.resolve_resumed(
            registry.config_class(method), record["config"], record["origins"], where, asked.flags
        )
    find_others(resolved.config)
    return Ready(method=method, resolved=resolved, resume=asked.resume, renamed=renamed)


def replayed(asked: Asked) -> Ready:
    """Return a new run on the rollouts of another. Raises UsageError for a folder that isn't a run's, or has none."""
    from ft_host.rundir.recorded import check_replay

    method, record, where = record_of(asked.replay)
    with old_names_caught() as renamed:
        resolved = recorded_configs.resolve_replay(
            registry.config_class(method), record["config"], record["origins"], where, asked.replay, asked.flags
        )
    config = resolved.config
    check_replay(config, registry.reference(method), int(os.environ.get("WORLD_SIZE", config.num_processes)))
    paths.check_output(config.output_dir)
    find_others(config)
    return Ready(method=method, resolved=resolved, resume=None, renamed=renamed)


def record_of(run: str) -> tuple[registry.PluginInfo, dict[str, Any], str]:
    """Return the method of a run, its run.json and where that is. Raises UsageError for a folder that isn't a run's."""
    from ft_host.rundir.folder import RunFolder

    record: dict[str, Any] = RunFolder.open(run).manifest
    where = os.path.join(run, "run.json")
    lacking = [key for key in ("reference", "config", "origins") if key not in record]
    if lacking:
        raise UsageError(f"{where} has no {', '.join(lacking)}: not written by this version of ft-host")
    # an argument of `find`: the distribution and the name, or the path of a file
    return registry.find("method", record["reference"]), record, where


def find_others(config: Any) -> None:
    """Find the other plugins that the config names, without importing them."""
    registry.check_requirements(config.required_plugins)
    registry.backend_of(config)
    registry.diagnostics_configs(config)


@contextmanager
def old_names_caught() -> Iterator[list[str]]:
    """Collect the warnings about old names of fields, each once."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RenamedField)
        yield texts
    texts += dict.fromkeys(str(each.message) for each in caught if issubclass(each.category, RenamedField))
    for each in caught:
        if not issubclass(each.category, RenamedField):
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


def warn_once(method: registry.PluginInfo) -> None:
    """Print the warning about an experimental method as a line of ours."""
    with warnings.catch_warnings(record=True) as caught:
        registry.warn_if_experimental(method)
    say_warnings([str(each.message) for each in caught])


def say_warnings(texts: list[str]) -> None:
    """Print each as a line of ours, on the first process only."""
    if os.environ.get("RANK", "0") == "0":
        for text in texts:
            show(f"ft-host: warning: {text}", sys.stderr)
