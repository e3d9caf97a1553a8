"""`ft-host serve MODEL`: servers of a model, on which runs sample. What they are is the backend's (`ft_serve`)."""

from __future__ import annotations

import argparse
import signal
import time
from typing import Any, NoReturn

from ft_host import registry
from ft_host.config.fields import Mismatch
from ft_host.config.files import parse_inline
from ft_host.errors import ConfigError, UsageError
from ft_host.registry.backend import settings_of
from ft_host.registry.session import alone
from ft_host.util.console import show
from ft_host.util.jsonl import json_text

HELP = "Start servers of a model, for runs with rollouts to sample on, and end them with Ctrl-C."
PERIOD = 1.0  # seconds between two looks at the servers


def run(argv: list[str]) -> int:
    """Serve until a signal comes. Raises ConfigError for fields that the backend refuses, and FtHostError where servers
    can't start or go on."""
    parser = argparse.ArgumentParser(
        prog="ft-host serve",
        allow_abbrev=False,
        description=HELP,
        epilog="example: ft-host serve runs/tuned/model --servers 2 --backend-config '{python: /opt/vllm/bin/python, "
        'devices: "0,1"}\'',
    )
    parser.add_argument("model", metavar="MODEL", help="folder or hub id of the model that runs begin with")
    parser.add_argument("--servers", type=int, default=1, metavar="N", help="how many (default: 1)")
    parser.add_argument("--backend", default="vllm", help="the backend whose servers they are (default: vllm)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address that they listen on (default: 127.0.0.1). At any other they ask for a key, which is printed",
    )
    parser.add_argument(
        "--backend-config", default="{}", metavar="FIELDS", help="the backend's own fields, as JSON or YAML"
    )
    options = parser.parse_args(argv)
    if options.servers < 1:
        raise UsageError(f"--servers: {options.servers} is none; expected at least 1")
    info = registry.find("backend", options.backend)
    hook = alone(info).hook
    if not hook.ft_serve.get_hookimpls():
        raise ConfigError(f"the backend {info.name} has no servers (ft_serve): it samples in the trainer's process")
    settings = settings_of(info, fields_of(options.backend_config))
    # As Ctrl-C: the servers are to end with this command. Ctrl-C itself too, which a shell lets its jobs ignore.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    show(f"starting {options.servers} of {info.name}")
    serving = hook.ft_serve(model=options.model, servers=options.servers, host=options.host, backend_config=settings)
    with serving as served:
        for url in served.urls:
            show(f"serving {options.model} at {url}")
        show("\nin the config of a run:\n")
        show(f"backend: {info.name}\nbackend_config: {json_text(served.backend_config)}")
        for name, value in served.environment.items():
            show(f"\nand in its environment, a secret:\n\nexport {name}={value}")
        show("\nCtrl-C ends them all.")
        try:
            while True:
                time.sleep(PERIOD)
                for said in served.look():
                    show(said)
        except KeyboardInterrupt:
            show("ending the servers")
    return 0


def fields_of(text: str) -> dict[str, Any]:
    try:
        fields = parse_inline(text)
    except Mismatch as error:
        raise UsageError(f"--backend-config: {error}") from error
    if not isinstance(fields, dict):
        raise UsageError(f"--backend-config: found {text!r}; expected fields, as in '{{python: /opt/vllm/bin/python}}'")
    return fields


def interrupt(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt
