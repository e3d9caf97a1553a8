"""Against the real vLLM, in the environment that environment/make.sh makes. Skipped where FT_VLLM_PYTHON isn't set.

A server takes about 40 seconds to start on two cores, so that tests of one model share one.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from ft_vllm import backend
from ft_vllm.config import VLLMConfig

from ft_host.folder import RunFolder
from ft_host.generation import Request, Sampling
from ft_host.testing.generation import generating_run
from ft_host.testing.models import save_tiny, tiny_llama, tiny_moe, tiny_qwen, tiny_tokenizer

PYTHON = os.environ.get("FT_VLLM_PYTHON")
INPROCESS = os.environ.get("FT_VLLM_INPROCESS") == "1"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="FT_VLLM_PYTHON isn't set: the Python of an environment with vLLM"),
]
MODELS = {"tied": tiny_qwen, "untied": tiny_llama, "experts": tiny_moe}
HEADS = {"head_dim": 32}  # the smallest that vLLM computes on a CPU
PROMPTS = [[(7 * row + 13 * place) % 200 + 20 for place in range(5 + row)] for row in range(6)]
EXACT = 1e-4  # nats: float32 on both sides, which differ by round-off alone


def opened_run(tmp_path: Path, model, fields: dict, **config):
    """A run whose policy is `model`, and whose vLLM reads it from a folder."""
    folder = save_tiny(tmp_path / "model", model)
    limits = {} if fields.get("mode") == "inprocess" else {"start_timeout": 300.0, "timeout": 120.0}
    config = VLLMConfig(**{"max_num_seqs": 32, **limits, **fields})
    config.check()
    run = generating_run(model, tiny_tokenizer(), backend=backend)
    run.config.model = str(folder)
    run.config.progress = "none"
    run.folder = RunFolder(tmp_path)
    run.backend_config, run.backend_state = config, {}
    return run


@pytest.fixture
def make(tmp_path):
    runs = []

    def made(model, **fields):
        runs.append(opened_run(tmp_path, model, fields))
        return runs[-1]

    yield made
    for run in runs:
        backend.ft_close(run)


def logps(model, prompt: list[int], tokens: list[int], temperature: float = 1.0) -> torch.Tensor:
    """(N,) log-probs of a completion by transformers' own forward pass."""
    ids = torch.tensor([prompt + tokens])
    with torch.no_grad():
        logits = model.eval()(ids).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]


def difference(run, sampling: Sampling, prompts=PROMPTS) -> float:
    """The largest difference of log-probs between vLLM and the policy, over what vLLM samples."""
    completions = run.generate([Request(prompt_ids=prompt) for prompt in prompts], sampling)
    worst = 0.0
    for prompt, completion in zip(prompts, completions, strict=True):
        assert len(completion.token_ids) == len(completion.logprobs)
        theirs = logps(run.policy.model, prompt, completion.token_ids, sampling.temperature or 1.0)
        worst = max(worst, (theirs - torch.tensor(completion.logprobs)).abs().max().item())
    return worst
