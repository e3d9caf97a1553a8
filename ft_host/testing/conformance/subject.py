"""What a check is asked about: a plugin of a package, with tiny models, rows and runs for it."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ft_host import registry
from ft_host.config import RolloutConfig, RunConfig
from ft_host.registry import PluginInfo
from ft_host.testing.conformance.declared import Declared
from ft_host.testing.conformance.rows import MAKERS as FORMATS
from ft_host.testing.conformance.rows import rows_of, with_columns
from ft_host.testing.conformance.taught import save_taught
from ft_host.testing.rows import tiny_run
from ft_host.types import Drop, Row

REWARDS = '''"""Rewards of the suite."""


def letters(completions, **columns):
    """The share of letters: what a tiny model can be paid for."""
    return [sum(letter.isalpha() for letter in text) / (len(text) + 1) for text in completions]
'''
ROLLOUTS = {"max_completion_length": 8, "temperature": 0.9}
T = TypeVar("T")


class Materials:
    """Tiny models and files in a folder, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept: dict[str, Any] = {}

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What `make` gave when it was first asked for by this name. What it raises is raised each time."""
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

    def __getitem__(self, name: str) -> str:
        """The path of `model`, `taught` (which knows the words of the rows), `teacher`, `other_teacher`, `scorer` or
        `rewards`."""
        path = self.folder / name
        if not path.exists():
            MAKERS[name](path)
        return str(path)


def _model(path: Path) -> None:
    from ft_host.testing.models import save_tiny, tiny_llama

    save_tiny(path, tiny_llama())


def _teacher(path: Path) -> None:
    """Wider than the model, with its tokens, and sure of something else."""
    from ft_host.testing.models import save_tiny, tiny_llama

    save_tiny(path, tiny_llama(seed=5, hidden_size=96))


def _other_teacher(path: Path) -> None:
    """With tokens of its own."""
    from ft_host.testing.models import other_tokenizer, save_tiny, tiny_llama

    save_tiny(path, tiny_llama(seed=5, hidden_size=96, vocab_size=200, eos_token_id=5), other_tokenizer())


def _scorer(path: Path) -> None:
    """A reward model."""
    from ft_host.testing.models import as_classifier, save_tiny, tiny_llama, tiny_tokenizer

    save_tiny(path, as_classifier(tiny_llama(seed=3)), tiny_tokenizer())


def _sampler(path: Path) -> None:
    """What backends sample: heads of 32, since some engines compute no smaller ones on a CPU."""
    from ft_host.testing.models import save_tiny, tiny_llama

    save_tiny(path, tiny_llama(head_dim=32))


def _rewards(path: Path) -> None:
    path.mkdir()
    (path / "rewards.py").write_text(REWARDS, encoding="utf-8")


MAKERS: dict[str, Callable[[Path], None]] = {
    "model": _model,
    "taught": save_taught,
    "teacher": _teacher,
    "other_teacher": _other_teacher,
    "scorer": _scorer,
    "sampler": _sampler,
    "rewards": _rewards,
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A plugin of a package. Of a check about the package, `plugin` is the first one, and `plugins` has all.

    Each check gets a folder of its own (`folder`); `materials` are shared by all checks of a package.
    """

    distribution: str  # empty for a method in one file
    plugin: PluginInfo
    plugins: tuple[PluginInfo, ...]
    package: Path | None  # the folder of its modules; None for a method in one file
    declared: Declared
    materials: Materials
    folder: Path
    against: Path | None = None  # a contract, or a wheel with one, in place of that of the last release
    recording: bool = False  # whether `--record` asks, so that there can be no record yet

    @functools.cached_property
    def config_class(self) -> type[RunConfig]:
        return registry.config_class(self.plugin)

    @property
    def samples(self) -> bool:
        """Whether the method makes its rows in rollouts."""
        return issubclass(self.config_class, RolloutConfig)

    @functools.cached_property
    def hooks(self) -> Any:
        """The hooks of the method, as a run calls them: `subject.hooks.ft_prepare(row=…)`."""
        return registry.session(self.plugin, None).hook

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats of rows that the method says it takes, most usual first. One that says nothing takes prompts, if
        it samples, or the first format of which it makes rows."""
        if self.config_class.formats:
            return self.config_class.formats
        return ("prompt-only",) if self.samples else self.once("formats", self._tried)

    def _tried(self) -> tuple[str, ...]:
        from ft_host.data import load_tokenizer

        prepare = self.hooks.ft_prepare
        for format in FORMATS:
            config = self.config(rows := rows_of(format, 2))
            tokenizer = load_tokenizer(config)
            try:
                made = [prepare(row=row, tokenizer=tokenizer, config=config) for row in rows]
            except Exception:  # whatever it makes of rows that aren't for it; if none are, checks show the error
                continue
            if not all(isinstance(row, Drop) for row in made):
                return (format,)
        return (next(iter(FORMATS)),)

    def rows(self, format: str | None = None, count: int = 24) -> list[Row]:
        """So many rows of a format, by default the most usual; with the columns that the method needs beside."""
        found = rows_of(format or self.formats[0], count)
        return with_columns(found, self.config_class.needs_columns) if self.samples else found

    def config(self, rows: list[Row] | None = None, **changes: Any) -> RunConfig:
        """A tiny run of the method: five steps of four rows, in order, on the CPU, in `folder`."""
        methods = {info.name for info in self.plugins}
        given = self._filled(self.declared.fields_of(self.plugin.name, methods))
        usual = {}
        if self.samples:
            usual = ROLLOUTS | {"reward": [f"{self.materials['rewards']}/rewards.py:letters"]}
            known = {field.name for field in dataclasses.fields(self.config_class)}
            usual |= {"num_generations": 4} if "num_generations" in known else {}
            usual = {name: value for name, value in usual.items() if name not in given}
        # a run is written beside others of the same check
        return tiny_run(
            self.config_class,
            self.materials["model"],
            self.folder,
            self.rows() if rows is None else rows,
            **(usual | given | changes),
        )

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What several checks look at, made by the first of them: a run of this plugin, say."""
        return self.materials.once(f"{self.plugin.kind} {self.plugin.name}: {name}", make)

    def _filled(self, fields: dict[str, Any]) -> dict[str, Any]:
        """With the paths of materials in the place of their names."""
        text = json.dumps(fields)
        for name in MAKERS:
            if f"{{{name}}}" in text:
                text = text.replace(f"{{{name}}}", json.dumps(self.materials[name])[1:-1])
        return json.loads(text)
