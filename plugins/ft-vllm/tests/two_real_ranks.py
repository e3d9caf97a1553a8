"""One of two ranks that share a real vLLM; test_real.py starts both.

python two_real_ranks.py FOLDER PYTHON STRATEGY
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from ft_vllm import backend

from conftest import run_of
from ft_host.api import Request, Sampling
from ft_host.testing import disturb, leave, shard, tiny_qwen

PROMPTS = [[(7 * row + 13 * place) % 200 + 20 for place in range(5 + row)] for row in range(9)]


def main(folder: str, python: str, strategy: str) -> None:
    torch.set_num_threads(1)
    model, twin = (tiny_qwen(head_dim=32) for _ in range(2))
    run = run_of(Path(folder) / os.environ["RANK"], model, {"python": python}, distributed_strategy=strategy)
    if strategy == "fsdp2":
        shard(run.policy, run.config)
    try:
        for version in (0, 1):
            backend.ft_sync_weights(run.policy, version, run)
            mine = [Request(prompt_ids=prompt) for prompt in PROMPTS[run.rank :: 2]]
            for request, said in zip(mine, run.generate(mine, Sampling(max_new_tokens=16, seed=3)), strict=True):
                ids = torch.tensor([request.prompt_ids + said.token_ids])
                with torch.no_grad():
                    logits = twin.eval()(ids).logits[0, len(request.prompt_ids) - 1 : -1]
                logp = logits.log_softmax(-1).gather(1, ids[0, len(request.prompt_ids) :, None])[:, 0]
                torch.testing.assert_close(logp, torch.tensor(said.logprobs), rtol=0, atol=1e-4)
                assert said.versions == [version] * len(said.token_ids)
            disturb(twin)
            with torch.no_grad():
                for name, weight in run.policy.causal_lm.named_parameters():
                    whole = twin.get_parameter(name)
                    if strategy == "fsdp2":
                        whole = torch.distributed.tensor.distribute_tensor(whole, weight.device_mesh, weight.placements)
                    weight.copy_(whole)
            run.gather(None)
    finally:
        backend.ft_close(run)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave(0)  # as `ft-host train` does: torch's threads may abort a rank that is done
