"""A tiny run of each method of a package, with whatever host is imported: python .ci/ends.py PACKAGE_FOLDER

Uses what hosts have had since 0.9 alone, so that the same lines ask the lowest host and this one. Each method trains
three steps, is held to a checkpoint, and goes on from it; each set of rules is imported and listed.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path

import ft_host
from ft_host import registry
from ft_host.testing import as_classifier, other_tokenizer, save_tiny, tiny_llama, tiny_run, tiny_tokenizer
from ft_host.training.launch import train

ROWS = {
    "prompt": "how many apples, step by step",
    "completion": " it is a small task",
    "chosen": " it is a small task",
    "rejected": " no",
    "text": "the quick brown fox jumps over the lazy dog",
    "label": True,
}
COLUMNS = {
    "language modeling": ("text",),
    "prompt-only": ("prompt",),
    "prompt-completion": ("prompt", "completion"),
    "preference": ("prompt", "chosen", "rejected"),
    "unpaired preference": ("prompt", "completion", "label"),
}
REWARD = "def letters(completions, **columns):\n    return [float(len(text)) for text in completions]\n"


def materials(folder: Path) -> dict[str, str]:
    """The models and files that a conformance.toml may name."""
    (folder / "rewards.py").write_text(REWARD, encoding="utf-8")
    save_tiny(folder / "model", tiny_llama())
    save_tiny(folder / "teacher", tiny_llama(seed=5))
    save_tiny(folder / "other_teacher", tiny_llama(seed=5, vocab_size=200, eos_token_id=5), other_tokenizer())
    save_tiny(folder / "scorer", as_classifier(tiny_llama(seed=3)), tiny_tokenizer())
    names = ("model", "teacher", "other_teacher", "scorer")
    return {name: str(folder / name) for name in names} | {"taught": str(folder / "model"), "rewards": str(folder)}


def main(package: Path) -> None:
    project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = project["entry-points"]
    [file] = package.glob("ft_*/conformance.toml")
    told = tomllib.loads(file.read_text(encoding="utf-8")).get("config", {})
    methods = list(groups.get("ft_host.methods", {}))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        found = materials(folder)
        for method in methods:
            fields = {name: value for name, value in told.items() if name not in methods} | told.get(method, {})
            text = json.dumps(fields)
            for name, path in found.items():
                text = text.replace(f"{{{name}}}", path)
            one_run(method, folder / method, found, json.loads(text))
    for kind in ("backend", "diagnostics"):
        for name in groups.get(f"ft_host.{'backends' if kind == 'backend' else kind}", {}):
            registry.load(registry.find(kind, name))
            print(f"{project['name']}: {kind} {name} imported with ft-host {ft_host.__version__}")


def one_run(method: str, folder: Path, found: dict[str, str], fields: dict) -> None:
    config_class = registry.config_class(registry.find("method", method))
    known = {field.name for field in dataclasses.fields(config_class)}
    samples = "max_completion_length" in known and "reward" in known
    formats = config_class.formats or (("prompt-only",) if samples else ("language modeling",))
    columns = [*COLUMNS[formats[0]], *(config_class.needs_columns if samples else ())]
    rows = [{name: ROWS.get(name, "a hint") for name in columns} for _ in range(24)]
    for at, row in enumerate(rows):
        row |= {name: f"{value} {at}" for name, value in row.items() if isinstance(value, str)}
        row |= {"label": at % 2 == 0} if "label" in row else {}
    if samples:
        usual = {"reward": [f"{found['rewards']}/rewards.py:letters"], "max_completion_length": 8}
        usual |= {"num_generations": 4} if "num_generations" in known else {}
        fields = usual | fields
    folder.mkdir()
    config = tiny_run(config_class, found["model"], folder, rows, **(fields | {"max_steps": 3, "save_steps": 2}))
    run = ft_host.train(config).folder
    shutil.rmtree(run / "checkpoints" / "step-3")
    shutil.rmtree(run / "model")
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8")
    train(config, resume=run)
    assert [json.loads(line)["step"] for line in lines.splitlines()] == [1, 2, 3], lines
    print(f"{method}: 3 steps with ft-host {ft_host.__version__}, the last of them from a checkpoint too")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
