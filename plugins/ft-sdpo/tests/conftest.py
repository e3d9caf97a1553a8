"""Tiny models, fixed completions with fixed rewards, and runs that the tests of this package share."""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ft_sdpo.config import SDPOConfig

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


def rewards_of(ids: list[int]) -> tuple[float | None, float | None]:
    """What two reward functions make of a completion: anything that depends on its tokens alone. A sum of 1 is a
    success."""
    first = (0.0, 0.5, 1.0)[sum(ids) % 3]
    return first, None if sum(ids) % 5 == 0 else 0.25 * (len(ids) % 2)


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

REWARDS = """
{rewards_of}

def first(completion_ids, **columns):
    return [rewards_of(ids)[0] for ids in completion_ids]

def second(completion_ids, **columns):
    return [rewards_of(ids)[1] for ids in completion_ids]
"""
PAYS = '''
def letters(completions, log_extra, **columns):
    """What a tiny model can be paid for, and what is said of it: of some completions nothing."""
    good = [sum(letter.isalpha() for letter in text) / (len(text) + 1) > 0.8 for text in completions]
    log_extra("feedback", [None if right or len(text) % 3 == 0 else f"{len(text)} is odd" for right, text in
                           zip(good, completions)])
    return [float(each) for each in good]
'''


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("llama"), tiny_llama(), tiny_tokenizer())


@pytest.fixture(scope="session")
def rows() -> list[dict[str, Any]]:
    noise = random.Random(4)
    return [{"prompt": f"{sentence(noise, 8)}? ", "privileged_context": f"No: {sentence(noise, 9)}"} for _ in range(24)]


@pytest.fixture
def make(llama: Path, tmp_path: Path) -> Callable[..., SDPOConfig]:
    """A config on rows: five steps of two prompts, four completions each, at a learning rate and a clipping that
    matter."""
    file = tmp_path / "pays.py"
    file.write_text(PAYS, encoding="utf-8")
    given = {
        "max_completion_length": SIZE,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "reward": [f"{file}:letters"],
    }
    return lambda rows, **fields: partial(tiny_run, SDPOConfig, llama, tmp_path)(rows, **(given | fields))


@pytest.fixture
def fixed() -> Callable[[str, int], list[list[int]]]:
    return completions_of


@pytest.fixture
def pays() -> Callable[[list[int]], tuple[float | None, float | None]]:
    return rewards_of


@pytest.fixture
def make_fixed(make, rows, tmp_path, monkeypatch):
    """A config whose completions and rewards are fixed, from a backend that is installed for this test."""
    from ft_host.registry.catalog import catalog

    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    told = tmp_path / "given.py"
    told.write_text(REWARDS.format(rewards_of=inspect.getsource(rewards_of)), encoding="utf-8")

    def made(given: list[dict] | None = None, **fields: Any) -> SDPOConfig:
        name = f"told_{len(list(site.iterdir()))}"
        monkeypatch.delitem(sys.modules, f"fake_{name}", raising=False)  # that of the test before
        source = BACKEND.format(
            size=SIZE, count=fields.get("num_generations", 4), completions_of=inspect.getsource(completions_of)
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
            "max_sampling_logp_difference": 1e3,
            "max_length": None,
            "reward": [f"{told}:first", f"{told}:second"],
        }
        return make(given or rows, **(usual | fields))

    yield made
    catalog.cache_clear()
