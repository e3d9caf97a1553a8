"""Tiny models, fixed completions, and runs that the tests of this package share."""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ft_sdft.config import SDFTConfig

from ft_host.testing.distributions import make_distribution
from ft_host.testing.models import save_tiny, tiny_llama, tiny_tokenizer
from ft_host.testing.rows import sentence, tiny_run

SIZE = 12  # the longest completion


def completions_of(prompt: str, count: int) -> list[list[int]]:
    """Completions of a prompt: anything that depends on its text alone. Every third is cut short."""
    noise = random.Random(prompt)
    found = []
    for index in range(count):
        size = SIZE if index % 3 == 2 else noise.randint(1, SIZE) - 1
        found.append([noise.randrange(8, 200) for _ in range(size)] + [END] * (index % 3 != 2))
    return found


END = 7  # the token that ends a turn
BACKEND = """
import random
from ft_host import hookimpl
from ft_host.generation import Completion
END, SIZE, COUNT = 7, {size}, {count}

{completions_of}

@hookimpl
def ft_generate(requests, sampling, run):
    found = []
    for request in requests:
        ids = completions_of(run.tokenizer.decode(request.prompt_ids), COUNT)[(request.number or 0) % COUNT]
        why = "stop" if ids[-1] == END else "length"
        found.append(Completion(token_ids=ids, logprobs=[-1.0] * len(ids), finish_reason=why))
    return found
"""


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("llama"), tiny_llama(), tiny_tokenizer())


@pytest.fixture(scope="session")
def rows() -> list[dict[str, Any]]:
    noise = random.Random(4)
    return [
        {"prompt": f"{sentence(noise, 8)}? ", "privileged_context": f"Such as: {sentence(noise, 9)}"} for _ in range(24)
    ]


@pytest.fixture
def make(llama: Path, tmp_path: Path) -> Callable[..., SDFTConfig]:
    """A config on rows: five steps of four completions, in order, at a learning rate and a clipping that matter."""
    given = {"max_completion_length": SIZE}
    return lambda rows, **fields: partial(tiny_run, SDFTConfig, llama, tmp_path)(rows, **(given | fields))


@pytest.fixture
def fixed() -> Callable[[str, int], list[list[int]]]:
    return completions_of


@pytest.fixture
def make_fixed(make, rows, tmp_path, monkeypatch):
    """A config whose completions are fixed, from a backend that is installed for this test."""
    from ft_host.registry.catalog import catalog

    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def made(given: list[dict] | None = None, **fields: Any) -> SDFTConfig:
        name = f"told_{len(list(site.iterdir()))}"
        monkeypatch.delitem(sys.modules, f"fake_{name}", raising=False)  # that of the test before
        source = BACKEND.format(
            size=SIZE, count=fields.get("num_generations", 1), completions_of=inspect.getsource(completions_of)
        )
        make_distribution(
            site,
            f"ft-{name}",
            entry_points={"ft_host.backends": {name: f"fake_{name}"}},
            modules={f"fake_{name}": source},
            requires=["ft-host"],
        )
        catalog.cache_clear()
        usual = {
            "backend": name,
            "per_device_train_batch_size": 8,
            "max_sampling_logp_difference": 1e3,
            "max_length": None,
        }
        return make(given or rows, **(usual | fields))

    yield made
    catalog.cache_clear()
