"""What importing a package does, and what its hooks look like."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

from ft_host.hooks import NAME
from ft_host.registry import load
from ft_host.registry.session import validate
from ft_host.testing.conformance.check import Check, DoesNotApply, Figures, NotMet

if TYPE_CHECKING:
    from ft_host.registry import PluginInfo
    from ft_host.testing.conformance.subject import Subject

DOORS = ("ft_host.api", "ft_host.diagnostics", "ft_host.testing")
FRONT = ("hookimpl", "train", "__version__")  # of `ft_host` itself
CPU_SECONDS, WAITED = 1.0, 10.0  # an import of ours takes a hundredth of either


# ---------------------------------------------------------------- in a process of its own


def config_without_torch(subject: Subject) -> Figures:
    configs = [_module(info.config) for info in subject.plugins if info.config]
    if not subject.distribution:
        raise DoesNotApply("a method in one file has its config beside its hooks")
    if not configs:
        raise DoesNotApply("no config")
    found = _probed(subject, {"configs": configs})
    if found["heavy"]:
        raise NotMet("; ".join(f"{module} imports {library}" for module, library in found["heavy"]))
    return {"seconds": round(found["seconds"], 3)}


def no_side_effects(subject: Subject) -> None:
    found = _probed(subject, {"modules": _modules(subject)})
    if found["changes"]:
        raise NotMet("; ".join(found["changes"]))


def quick(subject: Subject) -> Figures:
    found = _probed(subject, {"modules": _modules(subject)})
    if found["seconds"] > CPU_SECONDS or found["waited"] > WAITED:
        raise NotMet(
            f"beside the libraries that it imports, it computes for {found['seconds']:.1f} s and takes "
            f"{found['waited']:.1f} s; expected less than {CPU_SECONDS:g} s and {WAITED:g} s"
        )
    return {"seconds": round(found["seconds"], 3)}


def _module(value: str) -> str:
    return value.partition(":")[0].partition("[")[0].strip()


def _modules(subject: Subject) -> list[str]:
    values = [value for info in subject.plugins if info.state != "broken" for value in (info.config, info.value)]
    return list(dict.fromkeys(_module(value) for value in values if value))


def _probed(subject: Subject, asked: dict[str, list[str]]) -> dict[str, Any]:
    """What `ft_host.testing.conformance.probe` answers, asked once a package."""
    [what] = asked
    answer = subject.materials.folder / f"imported-{what}.json"
    if not answer.exists():
        package = _module(subject.plugin.value or subject.plugin.config).partition(".")[0]
        question, place = answer.with_suffix(".asked"), subject.materials.folder / f"imported-{what}"
        question.write_text(json.dumps(asked | {"package": package}), encoding="utf-8")
        place.mkdir(exist_ok=True)
        path = [os.path.abspath(each) for each in sys.path]
        path += [] if subject.distribution else [str(Path(subject.plugin.location).parent)]
        done = subprocess.run(
            [sys.executable, "-P", "-m", "ft_host.testing.conformance.probe", str(question), str(answer)],
            cwd=place,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if not answer.exists():
            last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
            raise NotMet(f"importing it ends the interpreter with exit code {done.returncode}: {last[0]}")
    found = json.loads(answer.read_text(encoding="utf-8"))
    if found["error"]:
        raise NotMet(f"can't be imported: {found['error']}")
    return found


# ---------------------------------------------------------------- doors


def doors(subject: Subject) -> None:
    """By the text of all modules, also inside functions and for type checkers."""
    files = sorted(subject.package.rglob("*.py")) if subject.package else [Path(subject.plugin.location)]
    top = subject.package.parent if subject.package else Path(subject.plugin.location).parent
    found = [
        f"{file.relative_to(top)}, line {line}: {what}"
        for file in files
        for line, what in past_the_doors(ast.parse(file.read_bytes()))
    ]
    if found:
        raise NotMet("; ".join(found))


def past_the_doors(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what is wrong) of each use of the host that no door offers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, _of(each.name)) for each in node.names if _inside(each.name))
        elif isinstance(node, ast.ImportFrom) and not node.level:
            module = node.module or ""
            for name in [each.name for each in node.names]:
                if module in DOORS and name != "*" and name not in importlib.import_module(module).__all__:
                    yield node.lineno, f"{module} doesn't offer {name}"
                elif module == "ft_host" and name not in FRONT and f"ft_host.{name}" not in DOORS:
                    yield node.lineno, _of(f"ft_host.{name}")
                elif _inside(module):
                    yield node.lineno, _of(module, name)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ft_host":
            if node.attr not in FRONT and f"ft_host.{node.attr}" not in DOORS:
                yield node.lineno, f"uses ft_host.{node.attr}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            named = [each.value for each in node.args if isinstance(each, ast.Constant)]
            yield from ((node.lineno, _of(each)) for each in named if isinstance(each, str) and _inside(each))


def _inside(module: str) -> bool:
    return module.startswith("ft_host.") and module not in DOORS


def _of(module: str, name: str = "") -> str:
    door = next((door for door in DOORS if name in importlib.import_module(door).__all__), None)
    return f"imports {name or 'it'} of {module}" + (f"; {door} offers it" if door else "")


# ---------------------------------------------------------------- hooks


def hooks(subject: Subject) -> None:
    for info in subject.plugins:
        validate(info)


def one_loss(subject: Subject) -> None:
    found = [name for name, _ in _answers(subject.plugin, "ft_loss")]
    if len(found) != 1:
        there = f" ({', '.join(found)})" if found else ""
        raise NotMet(f"ft_loss is answered by {len(found)} functions{there}; expected one")


def _answers(info: PluginInfo, hook: str) -> Iterator[tuple[str, FunctionType]]:
    """The functions of a plugin's module that answer a hook, without those that wrap it."""
    for name, value in vars(load(info)).items():
        mark = vars(value).get(f"{NAME}_impl") if isinstance(value, FunctionType) else None
        if mark and (mark["specname"] or name) == hook and not (mark["wrapper"] or mark["hookwrapper"]):
            yield name, value


CHECKS: list[Check] = [
    Check(
        id="imports-config",
        title="The config is imported without torch",
        about="package",
        why="Help, refusals and the list of fields wait for what the config imports: seconds instead of tenths.",
        looks_at="The libraries that are loaded in a process of its own after the modules of the configs: torch, "
        "transformers, accelerate, datasets, peft, vllm, jax, tensorflow.",
        mend="Keep config.py to fields, import `ft_host.api` and the standard library there, and the rest in method.py "
        "or inside functions. A package whose __init__.py imports its method imports torch too.",
        test=config_without_torch,
    ),
    Check(
        id="imports-side-effects",
        title="Importing it changes nothing outside of it",
        about="package",
        why="A seed that is set moves everybody's random numbers, an environment variable changes another library, a "
        "handler prints each line twice; and it happens to whoever has the package installed and uses it once.",
        looks_at="In a process of its own, before and after the import of the package's modules: the random state of "
        "random, numpy and torch, the environment, loggers of others, filters of warnings, files in the working "
        "directory, threads and processes, defaults of torch, sys.path and handlers of signals, what is printed. What "
        "its modules import of other libraries is imported before.",
        mend="Do it inside a hook, and only to what is yours: a generator of your own, a logger of your own.",
        test=no_side_effects,
    ),
    Check(
        id="imports-time",
        title="Importing it takes no time",
        about="package",
        why="Every process of a run imports it: ranks, workers, the sampler.",
        looks_at="Seconds of the CPU for the package's own modules, after the libraries that they import: less than "
        "one; and seconds on the clock, less than ten.",
        mend="Compute or fetch it at the first use, inside a function with functools.cache.",
        test=quick,
    ),
    Check(
        id="imports-doors",
        title="It imports of the host what the three doors offer, and nothing else",
        about="package",
        why="Names behind the doors move from one minor version to the next.",
        looks_at="The import statements of all its modules, also inside functions and under TYPE_CHECKING, names after "
        "`ft_host.`, and modules imported by a string.",
        mend="Import from ft_host.api, ft_host.diagnostics or ft_host.testing. What they lack and you need is an issue "
        "of ft-host; until then, write it yourself.",
        test=doors,
    ),
    Check(
        id="imports-hooks",
        title="Its hooks are those of this host, with arguments that they have",
        about="package",
        why="A hook with a slip in its name would never be called; one with another's arguments fails in a run.",
        looks_at="The hooks of each plugin, held against their specifications as a run does: names, arguments, the "
        "decorator, those that its kind must have and those that are another's.",
        mend="docs/hooks.md has every hook with its signature. A function leaves out arguments that it doesn't use.",
        test=hooks,
    ),
    Check(
        id="imports-one-loss",
        title="A method has exactly one loss",
        about="method",
        why="Which of two is called depends on the order in which they are registered, and their values are of no one.",
        looks_at="The functions of the method's module that answer ft_loss.",
        mend="Choose among formulas inside one ft_loss, by a field such as `loss_type`.",
        test=one_loss,
    ),
]
