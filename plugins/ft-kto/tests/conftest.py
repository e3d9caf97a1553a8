"""Tiny models, rows and configs that the tests of this package share."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ft_kto.config import KTOConfig
from ft_kto.method import digest, rotation

from ft_host.testing import rounds, sentence, tiny_run


@pytest.fixture(scope="session")
def judged() -> list[dict[str, Any]]:
    """Completions marked good or bad; each prompt has one. Of five steps of four, one has good ones only, one bad ones
    only, and the policy of the first step learns to say more of everything, so that its KL is above nought."""
    noise = random.Random(4)
    return [
        {"prompt": f"{sentence(noise, 8)}? ", "completion": sentence(noise, 10), "label": noise.random() < 0.6}
        for _ in range(40)
    ]


@pytest.fixture(scope="session")
def pairs() -> list[dict[str, Any]]:
    noise = random.Random(1)
    return [
        {"prompt": f"{sentence(noise, 8)}? ", "chosen": sentence(noise, 10), "rejected": sentence(noise, 10)}
        for _ in range(20)
    ]


@pytest.fixture(scope="session")
def chats() -> list[dict[str, Any]]:
    """Judged turns of conversations of one or two rounds, some with a system message."""
    noise = random.Random(2)
    rows = []
    for index in range(20):
        messages = [{"role": "system", "content": sentence(noise, 4)}] if index % 3 == 0 else []
        messages += rounds(noise, noise.randint(0, 1), 6)
        messages.append({"role": "user", "content": sentence(noise, 6)})
        said = [{"role": "assistant", "content": sentence(noise, 8)}]
        rows.append({"prompt": messages, "completion": said, "label": noise.random() < 0.5})
    return rows


@pytest.fixture
def make(llama: Path, tmp_path: Path) -> Callable[..., KTOConfig]:
    """A config: five steps of four rows, in order, at a learning rate and a clipping that matter."""
    return partial(tiny_run, KTOConfig, llama, tmp_path)


@pytest.fixture
def by_hand() -> Callable[[KTOConfig, list[dict[str, Any]]], dict[str, float]]:
    return _by_hand


def tokens_of(config: KTOConfig, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Prompt and completion of each row as token ids; the completion is where the tokens part."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.model)
    found = []
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"]
        first = next(at for at, token in enumerate(ids) if at == len(prompt) or token != prompt[at])
        found.append({"prompt": ids[:first], "completion": ids[first:], "label": row["label"]})
    return found


def _by_hand(config: KTOConfig, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Every number of a step at the first weights, from the full logits of one sequence after the other."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(config.model)
    frozen = AutoModelForCausalLM.from_pretrained(config.ref_model)

    def logits(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
        return model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]

    def log_prob(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
        logs = logits(model, prompt, completion).log_softmax(-1)
        return logs[range(len(completion)), completion].sum()

    tokens = tokens_of(config, rows)
    paired = rotation([(digest(row["prompt"]), digest(row["completion"])) for row in tokens])
    with torch.no_grad():
        apart = [
            log_prob(model, row["prompt"], tokens[other]["completion"])
            - log_prob(frozen, row["prompt"], tokens[other]["completion"])
            for row, other in zip(tokens, paired, strict=True)
        ]
    kl = max(0.0, float(sum(apart)) / len(apart))
    losses, found = [], {"chosen": [], "rejected": []}
    entropy = []
    for row in tokens:
        own = log_prob(model, row["prompt"], row["completion"])
        with torch.no_grad():
            ratio = own - log_prob(frozen, row["prompt"], row["completion"])
            scores = logits(model, row["prompt"], row["completion"])
            logs = scores.log_softmax(-1)
        entropy.append(-(logs.exp() * logs).sum(-1))
        away = config.beta * (own - own.detach() + ratio - kl)
        weight = config.desirable_weight if row["label"] else config.undesirable_weight
        losses.append(weight * (1 - torch.sigmoid(away if row["label"] else -away)))
        values = (float(own.detach()), config.beta * float(ratio), scores.mean(-1))
        found["chosen" if row["label"] else "rejected"].append(values)
    loss = sum(losses) / len(losses)
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    out = {"loss": float(loss.detach()), "grad_norm": float(norm), "kl": kl}
    out["entropy"] = float(torch.cat(entropy).mean())
    for name, values in found.items():
        out[f"logps/{name}"] = sum(value[0] for value in values) / len(values)
        out[f"rewards/{name}"] = sum(value[1] for value in values) / len(values)
        out[f"logits/{name}"] = float(torch.cat([value[2] for value in values]).mean())
    out["rewards/margins"] = out["rewards/chosen"] - out["rewards/rejected"]
    return out
