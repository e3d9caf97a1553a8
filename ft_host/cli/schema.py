"""`ft-host schema METHOD`: the JSON schema of a method's config file."""

from __future__ import annotations

import argparse

from ft_host import registry
from ft_host.config.schema import schema
from ft_host.util.jsonl import json_text


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="ft-host schema",
        allow_abbrev=False,
        description="Print the JSON schema (draft 2020-12) of a method's config file, for an editor to complete it by.",
        epilog="example: ft-host schema sft > sft.schema.json",
    )
    parser.add_argument("method", metavar="METHOD", help="a method, as listed by ft-host plugins")
    options = parser.parse_args(argv)
    print(json_text(schema(options.method, registry.config_class(options.method)), indent=2))
    return 0
