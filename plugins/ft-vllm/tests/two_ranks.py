"""One of two ranks that share a server; test_server.py starts both.

python two_ranks.py FOLDER PYTHON STRATEGY
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from ft_vllm import backend
from ft_vllm.client import Client
from ft_vllm.sampling import seed_of

from conftest import run_of
from ft_host.api import FtHostError, Request, Sampling
from ft_host.testing import disturb, leave, shard, tiny_qwen

SAMPLING = Sampling(max_new_tokens=6, seed=3)
PROMPTS = [[(7 * row + 13 * place) % 200 + 20 for place in range(5 + row)] for row in range(9)]


def main(folder: str, python: str, strategy: str) -> None:
    torch.set_num_threads(1)
    model = tiny_qwen()
    fields = {"python": python, "start_timeout": 60.0}
    run = run_of(Path(folder) / os.environ["RANK"], model, fields, distributed_strategy=strategy)
    disturb(model)
    sums = {name: weight.double().abs().sum().item() for name, weight in model.named_parameters()}
    if strategy == "fsdp2":
        shard(run.policy, run.config)
    try:
        backend.ft_sync_weights(run.policy, 5, run)
        engine = backend.opened(run)
        received = Client(engine.client.url, 5).get("/state")["received"]
        assert {name: total for name, (_, _, total) in received.items()} == sums
        mine = PROMPTS[run.rank :: 2]
        for place, completion in enumerate(run.generate([Request(prompt_ids=prompt) for prompt in mine], SAMPLING)):
            start = sum(mine[place]) + seed_of(3, run.rank + 2 * place) % 7  # numbered as if dealt out in turn
            assert completion.token_ids[0] == start % 200
            assert completion.versions == [5] * len(completion.token_ids)
        assert (engine.started is None) == (run.rank != 0)
        run.gather(None)  # nobody asks any more
    finally:
        backend.ft_close(run)
    run.backend_config.server_env = {"FAKE": "refuses model"}
    try:
        run.generate([], SAMPLING)
    except FtHostError as error:  # on both ranks, although one alone has started it
        assert "head_dim=16" in str(error)
    else:
        raise AssertionError("a server that ends at once went unnoticed")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave(0)  # as `ft-host train` does: torch's threads may abort a rank that is done
