"""`ft-host new NAME`: a package of your own that already trains."""

from __future__ import annotations

import argparse
from pathlib import Path


def run(argv: list[str]) -> int:
    from ft_host.scaffold import KINDS, new_package, package_from

    kinds = "\n".join(f"  {name:<12}{kind.about}" for name, kind in KINDS.items())
    parser = argparse.ArgumentParser(
        prog="ft-host new",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Write the package ft-NAME: pyproject.toml, a method that trains, rules, tests, README, changelog, and\n"
            "workflows that test and publish it.\n\nkinds\n" + kinds
        ),
        epilog="example: ft-host new my-method --kind pairs && pip install -e 'ft-my-method[test]' && ft-host plugins",
    )
    parser.add_argument("name", metavar="NAME", help="words of a-z and 0-9, with - between; ft- is put before it")
    begins = parser.add_mutually_exclusive_group()
    begins.add_argument("--kind", choices=KINDS, default="offline", help="default: offline")
    begins.add_argument(
        "--from",
        dest="source",
        metavar="METHOD",
        default="",
        help="begin with the source of an installed method instead",
    )
    parser.add_argument(
        "--output", metavar="FOLDER", type=Path, default=Path(), help="the folder to write it in; default: here"
    )
    options = parser.parse_args(argv)
    if options.source:
        folder = package_from(options.name, options.source, options.output)
    else:
        folder = new_package(options.name, options.kind, options.output)
    print(f"{folder}\n\n  cd {folder}\n  pip install -e '.[test]'\n  python -m pytest")
    print(f"  ft-host plugins show {folder.name}")
    return 0
