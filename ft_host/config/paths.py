"""What can be known wrong about the files that a config names, before anything is loaded."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.config.builtin_rewards import BUILTIN, lacking
from ft_host.config.held_out import name_problem, named_sets, one_set
from ft_host.config.options import OPTIMIZERS
from ft_host.config.rollout import RolloutConfig
from ft_host.config.values import PATHS, optimizer_hint
from ft_host.config.words import show
from ft_host.errors import ConfigError
from ft_host.util.model_files import files_problem, no_model
from ft_host.util.text import missing, nearest, no_file

if TYPE_CHECKING:
    from ft_host.config.run import RunConfig

FLASH = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}  # with their modules
DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
# One of several data sets that are mixed, and the type of each of its parts.
MIXTURE = {
    "path": str,
    "name": str,
    "split": str,
    "data_files": (str, list, dict),
    "revision": str,
    "weight": (int, float),
    "columns": dict,
}


def path_problems(config: RunConfig, origins: dict[str, str]) -> list[tuple[str, str]]:
    """(field, what is wrong with it) for each file that isn't there, function that isn't defined, and the like."""
    found = [("model", problem) for problem in place_problems(config.model, origins.get("model", ""))]
    origin = origins.get("dataset", "")
    if isinstance(config.dataset, str):
        found += [("dataset", problem) for problem in place_problems(config.dataset, origin)]
    else:
        found += [("dataset", problem) for problem in mixture_problems(config.dataset, origin)]
    found += [("eval_dataset", problem) for problem in held_out_problems(config, origins.get("eval_dataset", ""))]
    if config.chat_template_path is not None and not Path(config.chat_template_path).exists():
        found.append(("chat_template_path", absent(config.chat_template_path, origins.get("chat_template_path", ""))))
    for reference in config.eval_reward:
        found += [("eval_reward", problem) for problem in reward_problems(reference)]
    if isinstance(config, RolloutConfig):
        for reference in config.reward:
            found += [("reward", problem) for problem in reward_problems(reference)]
        for reference in config.tools:
            found += [("tools", problem) for problem in function_problems(reference)]
        if config.environment is not None:
            found += [("environment", problem) for problem in function_problems(config.environment)]
    package = FLASH.get(config.attn_implementation or "")
    if package is not None and importlib.util.find_spec(package) is None:
        why = "isn't needed: training has an attention of its own (segment_attention); leave it out"
        found.append(("attn_implementation", f"{config.attn_implementation} isn't installed, and {why}"))
    if config.optim not in OPTIMIZERS and config.optim not in PATHS and ":" not in config.optim:
        names = f"one of {', '.join(OPTIMIZERS)}, or the import path of a class (package.module:Class)"
        said = optimizer_hint(config.optim)
        near = f"; {said}" if said else nearest(config.optim, [*OPTIMIZERS, *PATHS])
        found.append(("optim", f"found {show(config.optim)}, expected {names}{near}"))
    return found


def place_problems(place: str, origin: str) -> list[str]:
    """Return what is wrong with a folder, file or hub id, as sentences: a path that doesn't exist. Hub ids aren't
    checked."""
    special = no_file(Path(place))
    if special is not None:
        return [f"{place}: {special}"]
    if not place or "://" in place or any(letter in place for letter in "*?[") or Path(place).exists():
        return []
    is_path = place.startswith((".", "/", "~")) or place.count("/") > 1 or "\\" in place
    if not is_path and not place.lower().endswith((*DATA_SUFFIXES, ".gz", ".zst")):
        return []
    return [absent(place, origin)]


def absent(place: str, origin: str) -> str:
    """Why a path can't be used, and where the file may be instead."""
    said = missing(Path(place)).replace("no such file", "no such file or folder")
    beside = Path(origin.rpartition(":")[0]).parent / place
    if ":" in origin and beside.exists():
        said += f"; there is {beside}, but paths start from the folder that ft-host is called in"
    return f"{place}: {said}"


def mixture_problems(items: list[dict[str, Any]], origin: str) -> list[str]:
    """What is wrong with a list of data sets to mix."""
    return [problem for index, item in enumerate(items) for problem in item_problems(item, f"[{index}]", origin)]


def item_problems(item: dict[str, Any], where: str, origin: str, unused: tuple[str, ...] = ()) -> list[str]:
    """What is wrong with one data set of several. `unused`: keys that mean nothing where it stands."""
    problems = []
    keys = [key for key in MIXTURE if key not in unused]
    for key, value in item.items():
        if key not in keys:
            problems.append(f"{where}: unknown key {key}{nearest(key, keys)}; there are {', '.join(keys)}")
        elif value is not None and (isinstance(value, bool) or not isinstance(value, MIXTURE[key])):
            problems.append(f"{where}.{key}: found {show(value)}")
        elif key == "weight" and value is not None and not value > 0:
            problems.append(f"{where}.weight: found {show(value)}, expected a number above 0")
    if not item.get("path"):
        problems.append(f"{where}: has no path")
    elif isinstance(item["path"], str):
        problems += [f"{where}: {problem}" for problem in place_problems(item["path"], origin)]
    return problems


def held_out_problems(config: RunConfig, origin: str) -> list[str]:
    """What is wrong with the data sets to evaluate on."""
    spec = config.eval_dataset
    alone = one_set(spec)
    if spec is None or alone is not None:
        unused = ("weight",)
        if not isinstance(spec, dict):
            return place_problems(spec, origin) if spec else []
        return [problem.removeprefix(": ") for problem in item_problems(spec, "", origin, unused)]
    if not spec:
        return ["found nothing in it, expected a data set, or {NAME: data set}; leave the field out for none"]
    problems = []
    for name, item in named_sets(spec).items():
        bad = name_problem(name)
        if bad:
            problems.append(bad)
        elif isinstance(item, dict):
            problems += item_problems(item, name, origin, ("weight",))
        elif isinstance(item, str) and item:
            problems += [f"{name}: {problem}" for problem in place_problems(item, origin)]
        else:
            problems.append(f"{name}: found {show(item)}, expected a path or a mapping with one")
    return problems


def reward_problems(reference: str) -> list[str]:
    """A built-in reward, a reward function, or the folder of a reward model."""
    if reference in BUILTIN:
        problem = lacking(reference)
        return [problem] if problem else []
    if Path(reference).is_dir():
        problem = folder_problem(reference)
        return [problem] if problem else []
    if ":" not in reference and "/" in reference and not reference.endswith(".py"):
        return [f"{reference}: {missing(Path(reference)).replace('no such file', 'no such folder')}"]
    near = nearest(reference, BUILTIN) if ":" not in reference else ""
    return [problem + near for problem in function_problems(reference)]


def function_problems(reference: str) -> list[str]:
    """Return what is wrong with `file.py:function` or `package.module:function`, as sentences. A file is parsed, not
    run; of a module only its package is looked for."""
    source, colon, function = reference.rpartition(":")
    if not colon or not source or not function.isidentifier():
        return [f"found {show(reference)}, expected file.py:function or package.module:function"]
    if not source.endswith(".py"):
        package = source.partition(".")[0]
        if importlib.util.find_spec(package) is None:
            return [f"{reference}: there is no package {package} to import; a file is given with its .py"]
        return []
    if not Path(source).is_file():
        return [f"{reference}: {source}: {missing(Path(source))}"]
    try:
        tree = ast.parse(Path(source).read_text(encoding="utf-8"), filename=source)
    except SyntaxError as error:
        return [f"{source}:{error.lineno}: {error.msg}"]
    functions, others = bound(tree.body)
    if function in functions or function in others or "*" in others:
        return []
    some = f"; it defines {', '.join(functions)}" if functions else ""
    return [f"{reference}: {source} defines no function {function}{nearest(function, functions) or some}"]


def bound(nodes: Iterable[ast.AST]) -> tuple[list[str], list[str]]:
    """The names that a module binds, without what is inside functions and classes: functions, and all others."""
    functions: list[str] = []
    others: list[str] = []
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            functions.append(node.name)
        elif isinstance(node, ast.ClassDef):
            others.append(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            others += [alias.asname or alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.Name):
            others += [node.id] if isinstance(node.ctx, ast.Store) else []
        else:  # an if or try at the top level holds statements too
            inner = bound(ast.iter_child_nodes(node))
            functions += inner[0]
            others += inner[1]
    return functions, others


def was_refused(folder: str | Path) -> bool:
    """Return whether all that a folder has of a run is that it was refused before its first step: another may take its
    place."""
    try:
        record = json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or one that is damaged: what it was can't be told
        return False
    return isinstance(record, dict) and record.get("status") == "refused"


def check_output(output_dir: str) -> None:
    """Refuse a folder that holds a run already, unless that was refused before its first step. Raises ConfigError that
    says how to go on with it.

    Under torchrun only the first process looks: it may have begun the run by the time another would.
    """
    if not output_dir or os.environ.get("RANK", "0") != "0":
        return
    folder = Path(output_dir)
    special = no_file(folder)
    if special is not None:
        raise ConfigError(f"output_dir: {folder}: {special}")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output_dir: {folder} is a file, expected a folder")
    above = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".ft-host-", dir=above))
    except OSError as error:
        raise ConfigError(f"output_dir: {folder}: no folder can be made in {above}: {error.strerror}") from error
    if (folder / "run.json").exists() and not was_refused(folder):
        raise ConfigError(
            f"output_dir: {folder} holds a run; `ft-host train --resume {folder}` goes on with it, another "
            "--output-dir begins a new one"
        )


EXPECTED = "expected a sequence classifier with one label, as the training of a reward model leaves it"


PARTS = ("model", "merged")  # of a run's folder: what is in them has the run's name


def folder_problem(folder: str | Path) -> str | None:
    """Why a folder can't be a reward model, by its files; None where nothing speaks against it. Opens no weights."""
    place = Path(folder)
    problem = no_model(place) or files_problem(place, of_weights=False)
    if problem is not None:
        return problem
    files = {path.name for path in place.iterdir()}
    if "adapter_config.json" in files:
        written = json.loads((place / "adapter_config.json").read_text(encoding="utf-8"))
        if written.get("task_type") != "SEQ_CLS":
            return f"{folder} is an adapter of something else (task_type {written.get('task_type')}); {EXPECTED}"
        base = Path(str(written.get("base_model_name_or_path")))
        if base.is_absolute() and not base.is_dir():
            return f"{folder} is an adapter of {base}, which isn't there"
    elif "config.json" in files:
        written = json.loads((place / "config.json").read_text(encoding="utf-8"))
        made = ", ".join(written.get("architectures") or ["of no architecture"])
        if not made.endswith("ForSequenceClassification"):
            return f"{folder} holds a model {made}; {EXPECTED}"
        labels = len(written.get("id2label") or "ab")  # two are the default, which isn't written
        if labels != 1:
            return f"{folder} holds a {made} of {labels} labels; {EXPECTED}"
    else:
        parts = [str(place / part) for part in PARTS if (place / part).is_dir()]
        return f"{folder} has no config.json" + (f"; did you mean {' or '.join(parts)}?" if parts else f"; {EXPECTED}")
    if not any(file.endswith(".safetensors") for file in files):
        return f"{folder} holds no weights (safetensors)"
    if not any(file.startswith("tokenizer") for file in files):
        return f"{folder} has no tokenizer, and a reward model reads text with its own"
    return files_problem(place)
