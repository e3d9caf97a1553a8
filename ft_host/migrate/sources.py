"""What a TRL run is given, from a command line, a YAML file, or the calls in a Python script, which is read and never
run. Imports nothing heavy."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ft_host.config.files import parse_inline, read_file
from ft_host.errors import UsageError

CONFIG = re.compile(r"(?P<method>[A-Z][A-Za-z0-9]*?)(Config|Trainer|Arguments)")
# Calls of a script whose keywords are fields: peft's, with the names that TRL's command line has for them.
LORA = {
    "r": "lora_r",
    "target_modules": "lora_target_modules",
    "modules_to_save": "lora_modules_to_save",
    "bias": "lora_bias",
}
LORA |= {"task_type": "lora_task_type"}
OF_PEFT = {"lora_r": 8, "lora_alpha": 8, "lora_dropout": 0.0}  # peft's own defaults, which aren't TRL's
# Arguments of a trainer that are fields, and those that only say how a script is put together.
OF_TRAINER = {
    "model": "model_name_or_path",
    "ref_model": "ref_model",
    "reward_funcs": "reward_funcs",
    "teacher_model": "teacher_model_name_or_path",
}
OTHERS = (
    "args",
    "config",
    "peft_config",
    "processing_class",
    "tokenizer",
    "data_collator",
    "train_dataset",
    "eval_dataset",
)
NOT_METHODS = (
    "Script",
    "Model",
    "Training",
    "Lora",
    "BitsAndBytes",
    "Peft",
    "Generation",
    "Auto",
    "Dataset",
    "Dataset Mixture",
)


@dataclass
class Found:
    """What was read: `method` as it is called there, `values` by name with the place of each, and what is computed by a
    script, so that only a person can say it."""

    method: str | None = None
    values: dict[str, tuple[Any, str]] = field(default_factory=dict)
    computed: list[str] = field(default_factory=list)

    def take(self, name: str, value: Any, place: str) -> None:
        self.values[name.replace("-", "_")] = (value, place)


def read_trl(words: list[str]) -> Found:
    """Read a YAML file, a Python script, or a command line, by what the words are. Raises UsageError where they are
    none of these, ConfigError for a file that can't be read."""
    if len(words) == 1 and Path(words[0]).suffix in (".yaml", ".yml"):
        return read_yaml(words[0])
    if len(words) == 1 and Path(words[0]).suffix == ".py":
        return read_script(Path(words[0]))
    return read_command(words[0].split() if len(words) == 1 else words)


def read_yaml(path: str) -> Found:
    read = read_file(path)
    found = Found(method=read.method)
    for name, value in read.values.items():
        found.take(name, value, read.where(name))
    return found


def read_command(words: list[str]) -> Found:
    """`trl dpo --beta 0.1 …`, also behind a launcher, or a script of TRL's in place of `trl dpo`."""
    at = next((place for place, word in enumerate(words) if word == "trl" or word.endswith(".py")), None)
    if at is None:
        raise UsageError(
            "expected a command line of TRL (trl dpo --model_name_or_path …), a YAML file or a Python script; found "
            + " ".join(words)[:80]
        )
    command = words[at] == "trl"
    method = words[at + 1 : at + 2] if command else [Path(words[at]).stem]
    found, given = Found(method=method[0] if method else None), words[at + 1 + command :]
    options: dict[str, list[str]] = {}
    name = ""
    for word in given:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            options[name] = [value] if value else []
        elif name:
            options[name].append(word)
    if "config" in options:  # the command line overrides it
        found.values |= read_yaml(options.pop("config")[0]).values
    for name, values in options.items():
        off = name.startswith("no_") and not values
        value: Any = [parse_inline(each) for each in values]
        found.take(
            name.removeprefix("no_") if off else name,
            not off if not values else value if len(value) > 1 else value[0],
            f"--{name}",
        )
    return found


def read_script(path: Path) -> Found:
    """The keywords of the calls that make a config, an adapter, a trainer and a data set. What isn't written out there
    is told, not run."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: can't be read as Python: {error}") from error
    found = Found()
    for call, name in calls(tree):
        matched = CONFIG.fullmatch(name)
        place = f"{path}:{call.lineno}"
        if matched and matched["method"] not in NOT_METHODS:
            found.method = found.method or matched["method"].lower()
        if name == "load_dataset" and call.args:
            keyword(found, "dataset_name", call.args[0], place)
            for each in call.keywords:
                if each.arg == "split":
                    keyword(found, "dataset_train_split", each.value, place)
        elif name == "LoraConfig":
            for known, value in OF_PEFT.items():
                found.take(known, value, "peft's default")
            found.take("use_peft", True, place)
            for each in call.keywords:
                keyword(found, LORA.get(each.arg or "", each.arg or ""), each.value, place)
        elif matched and matched[2] == "Trainer":
            for each in call.keywords:
                if each.arg in OF_TRAINER:
                    keyword(found, OF_TRAINER[each.arg], each.value, place)
                elif each.arg not in OTHERS:
                    keyword(found, each.arg or "", each.value, place)
        elif matched and (matched["method"] == "Training" or matched["method"] not in NOT_METHODS):
            for each in call.keywords:
                keyword(found, each.arg or "", each.value, place)
    if not found.values:
        raise UsageError(f"{path}: found no call of a config or trainer of TRL's")
    return found


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Calls in the order of their lines, by the last part of what is called."""
    every = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in sorted(every, key=lambda node: node.lineno):
        called = call.func
        if isinstance(called, ast.Name | ast.Attribute):
            yield call, called.id if isinstance(called, ast.Name) else called.attr


def keyword(found: Found, name: str, value: ast.expr, place: str) -> None:
    try:
        found.take(name, ast.literal_eval(value), place)
    except (ValueError, TypeError):
        found.computed.append(f"{name or '**'}: {ast.unparse(value)}  ({place})")
