"""ft-host: a small plugin host for fine-tuning language models. Importing it loads nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ft_host._version import __version__
from ft_host.hooks import hookimpl
from ft_host.util import moved

if TYPE_CHECKING:
    from ft_host.config import RunConfig
    from ft_host.types import FinishedRun

__all__ = ["__version__", "hookimpl", "train"]

moved.install()


def train(config: RunConfig) -> FinishedRun:
    """Train with the method that `config` is of, and give the finished run with its metrics.

        from ft_sft.config import SFTConfig
        run = ft_host.train(SFTConfig(model="Qwen/Qwen3-0.6B", dataset="train.jsonl"))
        run.metrics["loss"]

    Runs in this process (one of several under torchrun or accelerate launch). Raises an error of `ft_host.errors`:
    ConfigError for a field that is wrong, before anything heavy is imported.
    """
    import os

    from ft_host import registry
    from ft_host.config import paths, resolve
    from ft_host.errors import ConfigError

    origins = resolve.check(config)
    paths.check_output(config.output_dir)
    registry.check_requirements(config.required_plugins)
    if config.num_processes > 1 and "LOCAL_RANK" not in os.environ:
        raise ConfigError(
            f"num_processes: {config.num_processes} processes are started by `ft-host train`, torchrun or accelerate "
            "launch; ft_host.train runs in the process that calls it"
        )
    method = registry.method_of(type(config))
    if os.environ.get("RANK", "0") == "0":
        registry.warn_if_experimental(method)
    from ft_host.training import launch

    return launch.train(config, method=registry.reference(method), origins=origins)
