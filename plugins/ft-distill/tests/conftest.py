"""A tiny student and a teacher, fixed completions, and runs that the tests of this package share."""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ft_distill.config import DistillConfig, GKDConfig

from ft_host.testing.distributions import make_distribution
from ft_host.testing.models import save_tiny, tiny_llama, tiny_tokenizer
from ft_host.testing.rows import rounds, sentence, tiny_run

SIZE = 12  # the longest completion


def completion_of(prompt: str, place: int = 0) -> list[int]:
    """The completion of a prompt: anything that depends on its text and place alone. Every third is cut short."""
    noise = random.Random(f"{prompt}{place}")
    size = noise.choice([SIZE, *range(SIZE - 4)])
    return [noise.randrange(8, 200) for _ in range(size)] + [END] * (size < SIZE)


END = 7  # the token that ends a turn
BACKEND = """
import random
import torch
from transformers import AutoModelForCausalLM
from ft_host import hookimpl
from ft_host.generation import Completion, Scores
END, SIZE, COUNT, TEACHER, ASKED = 7, {size}, {count}, {teacher!r}, []

{completion_of}

@hookimpl
def ft_generate(requests, sampling, run):
    found = []
    ASKED.append((sampling.role, len(requests)))
    for request in requests:
        ids = completion_of(run.tokenizer.decode(request.prompt_ids), (request.number or 0) % COUNT)
        why = "stop" if ids[-1] == END else "length"
        found.append(Completion(token_ids=ids, logprobs=[-1.0] * len(ids), finish_reason=why))
    return found

@hookimpl
def ft_score(sequences, top, run):
    ASKED.append(("score", len(sequences)))
    model, found = AutoModelForCausalLM.from_pretrained(TEACHER), []
    for each in sequences:
        with torch.no_grad():
            logits = model(torch.tensor([each.token_ids])).logits[0, each.start - 1 : -1]
        best = logits.log_softmax(-1).topk(top, -1)
        found.append(Scores(token_ids=best.indices.tolist(), logprobs=best.values.tolist()))
    return found
"""


@pytest.fixture
def fixed() -> Callable[..., list[int]]:
    return completion_of


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("llama"), tiny_llama(), tiny_tokenizer())


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wider than the student, and sure of something else."""
    torch.manual_seed(5)
    model = tiny_llama(hidden_size=96)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.2)
    return save_tiny(tmp_path_factory.mktemp("teacher"), model, tiny_tokenizer())


@pytest.fixture(scope="session")
def prompts() -> list[dict[str, Any]]:
    noise = random.Random(4)
    return [{"prompt": f"{sentence(noise, 8)}? "} for _ in range(40)]


@pytest.fixture(scope="session")
def chats() -> list[dict[str, Any]]:
    noise = random.Random(2)
    return [{"messages": rounds(noise, noise.randint(1, 2), 6)} for _ in range(40)]


@pytest.fixture
def make(llama: Path, teacher: Path, tmp_path: Path) -> Callable[..., DistillConfig]:
    """A config on rows: five steps of eight completions, in order, at a learning rate and a clipping that matter."""
    usual = {
        "max_completion_length": SIZE,
        "teacher_model_name_or_path": str(teacher),
        "per_device_train_batch_size": 8,
    }

    def made(config_class: type, rows: list[dict], **fields: Any) -> DistillConfig | GKDConfig:
        return tiny_run(config_class, llama, tmp_path, rows, **(usual | fields))

    return made


@pytest.fixture
def backend(tmp_path, monkeypatch, teacher):
    """A backend whose completions are fixed and which serves the teacher, installed for this test: its name, for so
    many completions a prompt. Its ASKED says who was asked for how much."""
    from ft_host.registry.catalog import catalog

    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def installed(count: int = 1) -> str:
        name = f"told_{count}"
        if not list(site.glob(f"*{name}*")):
            monkeypatch.delitem(sys.modules, f"fake_{name}", raising=False)  # that of the test before
            source = BACKEND.format(
                size=SIZE, count=count, teacher=str(teacher), completion_of=inspect.getsource(completion_of)
            )
            make_distribution(
                site,
                f"ft-{name}",
                entry_points={"ft_host.backends": {name: f"fake_{name}"}},
                modules={f"fake_{name}": source},
                requires=["ft-host"],
            )
            catalog.cache_clear()
        return name

    yield installed
    catalog.cache_clear()
