"""A run that only generates, for tests of backends and of scoring."""

from __future__ import annotations

from typing import Any

from ft_host.config import RunConfig
from ft_host.run import Run
from ft_host.testing.models import tiny_tokenizer


class Unheard(Run):
    """A run that says nothing as long as it has no folder to write into."""

    def say(self, text: str, level: str = "info") -> None:
        if self.folder is not None:
            super().say(text, level)


def generating_run(model: Any, tokenizer: Any = None, *, backend: Any = None, **fields: Any) -> Run:
    """A run on the CPU with `model` as its policy, and no folder: nothing is trained.

    `backend` is the module that implements ft_generate, the host's own where it is not given; `fields` are those of
    the config. Under torchrun's variables it is one rank of several.
    """
    import pluggy
    from accelerate import Accelerator

    from ft_host.generation import transformers
    from ft_host.hooks import NAME, generation
    from ft_host.models.policy import Policy

    plugins = pluggy.PluginManager(NAME)
    plugins.add_hookspecs(generation)
    plugins.register(backend or transformers)
    policy = Policy(model)
    config = RunConfig(model="a model", dataset="rows", **fields)
    return Unheard(
        config=config,
        folder=None,
        tokenizer=tokenizer or tiny_tokenizer(),
        plugins=plugins,
        accelerator=Accelerator(cpu=True, mixed_precision="no"),
        policy=policy,
        model=policy,
    )
