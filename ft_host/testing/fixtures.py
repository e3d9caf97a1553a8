"""Fixtures for tests of plugins. pytest loads them in a project that names ft-host in its pyproject.toml (see
`ft_host.testing.pytest_plugin`), and elsewhere with `pytest_plugins = ["ft_host.testing.fixtures"]` in a conftest.py.

Every test uses `accelerate_forgets` and `cache_of_its_own`: state in the process or in the cache must not reach the
next test.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def accelerate_forgets() -> Iterator[None]:
    """accelerate keeps its state per process, and transformers' TrainingArguments (TRL's configs) write environment
    variables that it reads."""
    before = {name: value for name, value in os.environ.items() if name.startswith("ACCELERATE_")}
    yield
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        del os.environ[name]
    os.environ.update(before)
    if "accelerate.state" in sys.modules:
        from ft_host.testing.parity import forget_accelerate

        forget_accelerate()


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs keep for later runs is kept for those of one test."""
    monkeypatch.setenv("FT_HOST_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama with the tiny tokenizer."""
    from ft_host.testing.models import save_tiny, tiny_llama

    return save_tiny(tmp_path_factory.mktemp("llama"), tiny_llama())


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that isn't quite `llama`: as its reference it is another from the first step on."""
    import torch

    from ft_host.testing.models import save_tiny, tiny_llama

    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(1.3)
        model.model.layers[0].mlp.down_proj.weight.mul_(0.5)
    return save_tiny(tmp_path_factory.mktemp("reference"), model)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """AssertionError where a run loads a model: what this test is about is refused before."""

    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("ft_host.training.build.load_policy", loaded)
    monkeypatch.setattr("ft_host.models.aux_models.load_frozen", loaded)


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that has failed is tried again at once."""
    monkeypatch.setattr("ft_host.scheduling.failures.LONGEST", 0.01)


@pytest.fixture
def install_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """`install_plugin(name, **what)` installs a distribution for this test, as `make_distribution` makes it, and gives
    its .dist-info folder."""
    from ft_host.registry.catalog import catalog
    from ft_host.testing.distributions import make_distribution

    site = tmp_path / "site-of-the-test"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    modules: set[str] = set()

    def install(name: str, *args: Any, **what: Any) -> Path:
        modules.update(what.get("modules") or {})
        made = make_distribution(site, name, *args, **what)
        catalog.cache_clear()
        return made

    yield install
    tops = {module.partition(".")[0] for module in modules}
    for module in [name for name in sys.modules if name.partition(".")[0] in tops]:
        del sys.modules[module]  # the next test may install others by these names
    catalog.cache_clear()


@pytest.fixture
def fixed_backend(install_plugin: Callable[..., Path]) -> Callable[..., str]:
    """`fixed_backend(**what)` installs a backend for this test whose completions are fixed, and gives its name. `what`
    is that of `ft_host.testing.backend_source`; the module `fake_NAME` has its `ASKED`."""
    from ft_host.testing.backends import backend_source

    numbers = itertools.count()

    def install(*args: Any, **what: Any) -> str:
        name = f"told_{next(numbers)}"
        install_plugin(
            f"ft-{name}",
            entry_points={"ft_host.backends": {name: f"fake_{name}"}},
            modules={f"fake_{name}": backend_source(*args, **what)},
            requires=["ft-host"],
        )
        return name

    return install
