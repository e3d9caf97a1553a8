"""`ft-host migrate`: a run file of an older release, of TRL or of axolotl, as one of this release."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ft_host import registry
from ft_host.config.files import read_file
from ft_host.errors import PluginBroken, UsageError

SOURCES = ("trl", "axolotl")


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="ft-host migrate",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Print a run file of this release: from one of an older release; with --from trl, from a command line,\n"
            "a YAML file or a Python script of TRL's; with --from axolotl, from its YAML. A script is read and never\n"
            "run. Comments say what is otherwise here, and what has no counterpart and why."
        ),
        epilog=(
            "examples: ft-host migrate old.yaml > run.yaml\n"
            "          ft-host migrate --from trl trl dpo --model_name_or_path org/model --beta 0.05 > run.yaml\n"
            "          ft-host migrate --check --from trl train.py --output run.yaml\n"
            "          ft-host migrate --from axolotl config.yml > run.yaml"
        ),
    )
    parser.add_argument(
        "--from", dest="source", choices=SOURCES, help="what the run is from; default: an older ft-host"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="with --from trl, where TRL is installed: train both for two steps, of a tiny model (or the run's, if it "
        "is a folder) on made-up rows, and compare losses",
    )
    parser.add_argument("--method", metavar="METHOD", help="where the source doesn't name it")
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the file instead of printing it")
    parser.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="FILE|COMMAND", help="a file, or a command line of TRL's"
    )
    options = parser.parse_args(in_front(argv))
    if not options.words:
        parser.error("give a file, or a command line of TRL's")
    if options.check and options.source != "trl":
        parser.error("--check: trains with TRL, so it needs --from trl")
    if options.check and importlib.util.find_spec("trl") is None:
        raise UsageError("--check: TRL isn't installed here; pip install trl, or leave --check out")
    spec: dict[str, Any] = {}
    if options.source is None:
        text, said = of_older(options.words, options.method)
    else:
        text, said, spec = of_other(options.source, options.words, options.method)
    if options.output is None:
        print(text, end="")
    elif options.output.exists():
        raise UsageError(f"--output: {options.output} exists already")
    else:
        options.output.write_text(text, encoding="utf-8")
    print(f"ft-host: {said}", file=sys.stderr)
    return checked(spec) if options.check else 0


def in_front(argv: list[str]) -> list[str]:
    """The arguments with those of this command before the words of another, which may have any."""
    found, rest, words = [], [], list(argv)
    while words:
        word = words.pop(0)
        name = word.partition("=")[0]
        if name in ("--output", "--method", "--from") and "=" not in word:
            found += [word, *words[:1]]
            words = words[1:]
        elif name in ("--output", "--method", "--from", "--check", "-h", "--help"):
            found.append(word)
        else:
            rest.append(word)
    return [*found, *rest]


def checked(spec: dict[str, Any]) -> int:
    """Train both for two steps in a process of their own. What it prints goes to stderr: stdout may be the file."""
    with tempfile.TemporaryDirectory(prefix="ft-host-migrate-") as folder:
        path = Path(folder) / "spec.json"
        path.write_text(json.dumps(spec), encoding="utf-8")
        # by name: it stands above the command line, as what tests do, and it changes its process
        return subprocess.run(
            [sys.executable, "-m", "ft_host.testing.beside_trl", str(path)], stdout=sys.stderr
        ).returncode


def of_older(words: list[str], method: str | None) -> tuple[str, str]:
    from ft_host.migrate import current_text, leaving

    if len(words) != 1:
        raise UsageError(f"expected one run file, found {' '.join(words)}; --from trl takes a command line")
    file = read_file(words[0])
    named = method or file.method
    if named is None:
        raise UsageError(f"{words[0]} doesn't say which method it is for; give --method")
    config_class = registry.config_class(named)
    text, changed = current_text(file, config_class)
    said = ", ".join(f"{old} is {new}" for old, new in changed.items())
    lines = [f"{words[0]}: {said or 'all names are those of this release'}", *leaving(file, config_class)]
    return text, "\nft-host: ".join(lines)


def of_other(source: str, words: list[str], method: str | None) -> tuple[str, str, dict[str, Any]]:
    """The text of the run file, what to say of it, and what a check needs."""
    from ft_host.migrate import read_axolotl, read_trl, run_file, translate

    found = read_trl(words) if source == "trl" else read_axolotl(words)
    named = method or (found.method and called(found.method))
    if named is None:
        raise UsageError(f"{' '.join(words)[:80]} doesn't say which method it is for; give --method")
    made = translate(found, registry.config_class(named))
    text = run_file(named, " ".join(words)[:100], made, found.computed, found.tool)
    left = f", {len(made.left)} without a counterpart" if made.left else ""
    computed = f", {len(found.computed)} computed by the script" if found.computed else ""
    said = f"{len(made.taken)} fields taken, {len(made.defaults)} defaults of {found.tool}'s set{left}{computed}"
    given = {name: value for name, (value, _) in found.values.items()}
    return text, said, {"method": named, "values": made.values, "given": given}


def called(theirs: str) -> str:
    """The method that TRL calls so: of the same name, or one whose config says so; of a script, by how its name
    begins (ppo_tldr.py)."""
    methods = [info for info in registry.catalog() if info.kind == "method" and info.state == "ok"]
    for name in (theirs, theirs.partition("_")[0].removesuffix("v2")):
        for info in methods:
            if info.name == name:
                return name
        for info in methods:
            try:
                named = registry.config_class(info).trl_names
            except PluginBroken:  # of a package that isn't asked for
                continue
            if name in named:
                return info.name
    return theirs
