"""`ft-host config METHOD`: a config file to start from."""

from __future__ import annotations

import argparse

from ft_host import registry
from ft_host.config.starter import FORMATS, starter


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="ft-host config",
        allow_abbrev=False,
        description="Print a config file to start from: every field of the method with its meaning and its default.",
        epilog="example: ft-host config sft > run.yaml",
    )
    parser.add_argument("method", metavar="METHOD", help="a method, as listed by ft-host plugins")
    parser.add_argument("--format", choices=FORMATS, default="yaml", help="of the file (default: yaml)")
    options = parser.parse_args(argv)
    config_class = registry.config_class(options.method)
    print(starter(options.method, config_class, options.format), end="")
    return 0
