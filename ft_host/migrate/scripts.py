"""The fields that a Python script gives to TRL's config, trainer and adapter. The script is read and never run, so that
what it computes can only be told. Imports nothing heavy."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ft_host.config.builtin_rewards import BUILTIN
from ft_host.errors import UsageError
from ft_host.migrate.forms import LOADED
from ft_host.migrate.sources import Found

CALLED = re.compile(r"(?P<method>[A-Z][A-Za-z0-9]*?)(?P<what>Config|Trainer|Arguments)")
NOT_METHODS = ("Script", "Model", "Training", "Lora", "BitsAndBytes", "Peft", "Generation", "Auto", "DatasetMixture")
# peft's names, with those that TRL's command line has for them, and peft's own defaults, which aren't TRL's.
LORA = {
    "r": "lora_r",
    "target_modules": "lora_target_modules",
    "target_parameters": "lora_target_parameters",
    "modules_to_save": "lora_modules_to_save",
    "bias": "lora_bias",
    "task_type": "lora_task_type",
}
OF_PEFT = {"lora_r": 8, "lora_alpha": 8, "lora_dropout": 0.0}
BITS = {"bnb_4bit_use_double_quant": "use_bnb_nested_quant"}
COMPUTED_IN = "products of quantised weights are in the type of the run (bf16, fp16)"
OF_TRAINER = {  # arguments of a trainer that are fields
    "model": "model_name_or_path",
    "ref_model": "ref_model",
    "reward_funcs": "reward_funcs",
    "reward_model": "reward_model",
    "value_model": "value_model",
    "teacher_model": "teacher_model_name_or_path",
}
OTHERS = ("args", "config", "peft_config", "processing_class", "tokenizer", "data_collator", "quantization_config")
BY_TOKENS = "it goes by the tokens of a text there; the turns are found from the chat template"
BUILDERS = ("json", "csv", "parquet", "text")  # a data set of files


def read_script(path: Path) -> Found:
    """The keywords of the calls that make a config, an adapter, a trainer and a data set. Names that stand for one
    literal are followed. What isn't written out is told, not run."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: can't be read as Python: {error}") from error
    reader = Reader(path, tree)
    for call, name in calls(tree):
        reader.call(call, name)
    if not reader.found.values:
        raise UsageError(
            f"{path}: found no call of a config or trainer of TRL's; where a parser makes them, give the command line"
        )
    if "dataset_name" not in reader.found.values and reader.loaded:  # a trainer that is made elsewhere
        reader.load(reader.loaded[0], "dataset_name", "dataset_train_split", f"{path}:{reader.loaded[0].lineno}")
    return reader.found


class Reader:
    """`given`: what each name is given, in the order of the lines, where only one of them is not made of the name."""

    def __init__(self, path: Path, tree: ast.AST) -> None:
        self.path, self.found = path, Found(command=False)
        self.given: dict[str, list[ast.expr]] = {}
        for name, value in assignments(tree):
            self.given.setdefault(name, []).append(value)
        handed = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}  # by whoever calls a function
        for name, values in list(self.given.items()):
            unknown = any(name not in names_in(value) for value in values[1:])  # which one it is
            if name in handed or unknown:
                del self.given[name]
        self.loaded = [call for call, name in calls(tree) if name == "load_dataset"]

    def call(self, call: ast.Call, name: str) -> None:
        matched, place = CALLED.fullmatch(name), f"{self.path}:{call.lineno}"
        method = matched["method"] if matched and matched["method"] not in NOT_METHODS else None
        if method and self.found.method is None:
            self.found.method = method.lower()
        if name == "LoraConfig":
            for known, value in OF_PEFT.items():
                self.found.take(known, value, "peft's default")
            self.found.take("use_peft", True, place)
            self.keywords(call, place, LORA)
        elif name == "BitsAndBytesConfig":
            self.keywords(call, place, BITS, without={"bnb_4bit_compute_dtype": COMPUTED_IN})
        elif name == "DataCollatorForCompletionOnlyLM":
            self.found.left.append(("DataCollatorForCompletionOnlyLM", ast.unparse(call), BY_TOKENS))
        elif method and matched and matched["what"] == "Trainer":
            self.trainer(call, place)
        elif matched and (matched["method"] == "Training" or method):
            self.keywords(call, place, {})

    def trainer(self, call: ast.Call, place: str) -> None:
        placed = list(call.args)
        made = self.follow(placed[0]) if placed else None
        if isinstance(made, ast.Call) and called(made).endswith("Config"):  # TRL up to 0.11 has it before the model
            del placed[0]
        given = [("model", each) for each in placed[:1]] + [(each.arg or "**", each.value) for each in call.keywords]
        for name, value in given:
            if name in ("train_dataset", "dataset"):
                self.load(value, "dataset_name", "dataset_train_split", place)
            elif name == "eval_dataset":
                self.load(value, "eval_dataset", "dataset_test_split", place)
            elif name in ("model", "ref_model", "reward_model", "value_model", "teacher_model"):
                self.model(OF_TRAINER[name], value, place)
            elif name not in OTHERS:
                self.keyword(OF_TRAINER.get(name, name), value, place)

    def model(self, name: str, value: ast.expr, place: str) -> None:
        """A model is a name, or what a call with that name loads."""
        made = self.follow(value)
        if isinstance(made, ast.Call) and called(made) == "from_pretrained" and made.args:
            self.keyword(name, made.args[0], place)
            for each in made.keywords:
                if name == "model_name_or_path" and each.arg in LOADED:
                    self.keyword(LOADED[each.arg], each.value, place)
        elif name == "model_name_or_path" and "model_name" in self.found.values:  # of TRL's config up to 0.11
            return
        elif not (name == "ref_model" and isinstance(made, ast.Constant) and made.value is None):
            self.keyword(name, value, place)

    def load(self, value: ast.expr, name: str, split: str, place: str) -> None:
        """Rows that `load_dataset` reads, or a split of them. What is done to them further is told."""
        changes, part, made = [], None, self.follow(value)
        while not (isinstance(made, ast.Call) and called(made) == "load_dataset"):
            if isinstance(made, ast.Subscript) and isinstance(made.slice, ast.Constant):
                part, made = made.slice.value, self.follow(made.value)
            elif isinstance(made, ast.Call) and isinstance(made.func, ast.Attribute):
                changes.append(made.func.attr)
                made = self.follow(made.func.value)
            else:
                self.found.computed.append(f"{name}: {ast.unparse(value)}  ({place})")
                return
        given = {each.arg: each.value for each in made.keywords}
        given |= dict(zip(("path", "name"), made.args, strict=False))
        path = self.literal(given.get("path"))
        if path in BUILDERS and "data_files" in given:
            path = self.literal(given["data_files"])
        if "split" in given:
            part = self.literal(given["split"])
        if path is None or isinstance(path, dict):
            self.found.computed.append(f"{name}: {ast.unparse(made)}  ({place})")
            return
        if name == "dataset_name" or path != self.found.value("dataset_name"):
            more = {"name": self.literal(given.get("name")), "split": part} if name == "eval_dataset" else {}
            more = {key: item for key, item in more.items() if item is not None}
            self.found.take(name, {"path": path} | more if more else path, place)
        if name == "dataset_name" and "name" in given:
            self.keyword("dataset_config", given["name"], place)
        if part is not None and (name == "dataset_name" or path == self.found.value("dataset_name")):
            self.found.take(split, part, place)
        if changes:
            said = ", ".join(f".{each}" for each in reversed(changes))
            self.found.computed.append(f"{name}: rows changed by {said}; write them to a file  ({place})")

    def keywords(
        self, call: ast.Call, place: str, names: dict[str, str], without: dict[str, str] | None = None
    ) -> None:
        for each in call.keywords:
            name = each.arg or "**"
            if without and name in without:
                self.found.left.append((name, ast.unparse(each.value), without[name]))
            else:
                self.keyword(names.get(name, name), each.value, place)

    def keyword(self, name: str, value: ast.expr, place: str) -> None:
        found = self.literal(value)
        if found is None and not (isinstance(value, ast.Constant) and value.value is None):
            self.found.computed.append(f"{name}: {ast.unparse(value)}  ({place})")
        else:
            self.found.take(name, found, place)

    def follow(self, value: ast.expr) -> ast.expr:
        """What a name is given last before the place where it stands."""
        while isinstance(value, ast.Name):
            here = value.lineno, value.col_offset
            before = [each for each in self.given.get(value.id, []) if (each.lineno, each.col_offset) < here]
            if not before:
                break
            value = before[-1]
        return value

    def literal(self, value: ast.expr | None) -> Any:
        """A value that is written out; None where it is computed. Types of torch and built-in rewards by their name."""
        if value is None:
            return None
        value = self.follow(value)
        if isinstance(value, ast.Name):
            return value.id if value.id in BUILTIN else None
        if isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name) and value.value.id == "torch":
            return f"torch.{value.attr}"
        if isinstance(value, ast.List) and value.elts:
            items = [self.literal(each) for each in value.elts]
            return None if None in items else items
        try:
            return ast.literal_eval(value)
        except (ValueError, TypeError):
            return None


def assignments(tree: ast.AST) -> list[tuple[str, ast.expr]]:
    """The names that are given a value, with it, in the order of the lines."""
    found = []
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets = [node.target]
        if len(targets) == 1 and isinstance(targets[0], ast.Name):
            found.append((targets[0].id, node.value))
    return sorted(found, key=lambda each: each[1].lineno)


def names_in(value: ast.expr) -> set[str]:
    return {node.id for node in ast.walk(value) if isinstance(node, ast.Name)}


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Calls in the order of their lines, by the last part of what is called."""
    every = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in sorted(every, key=lambda node: node.lineno):
        if called(call):
            yield call, called(call)


def called(call: ast.Call) -> str:
    if isinstance(call.func, ast.Name):
        return call.func.id
    return call.func.attr if isinstance(call.func, ast.Attribute) else ""
