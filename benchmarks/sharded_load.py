"""What a rank holds in host memory at its peak while a model is loaded and sharded over 1, 2 and 4 ranks.

    python benchmarks/sharded_load.py --work runs/sharded_load

A model with random weights is written as a sharded safetensors index, in bfloat16. Ranks are processes on CPUs over
gloo. They load it as a run with `distributed_strategy: fsdp2` does, up to where the first step would be: read, cut,
shard, probe. `whole` loads it as before 0.9: all of it on every rank, then `fully_shard`.

A rank's peak is of its private memory (RssAnon of /proc), asked every 2 ms from outside, over what it had when it had
imported everything; `reading` is its peak until all rows were there. malloc gives back at once what is freed
(MALLOC_MMAP_THRESHOLD_), as it does by itself for tensors of large models. Files that are mapped into memory aren't in
it: all ranks of a machine share those pages, and the system takes them back when it needs them. On a GPU the rows that
a rank holds are in the card's memory, not the host's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MB = 1 << 20
READY, GO, READ, LOADED = "ready", "go", "read", "loaded"

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "held in float32": ("dense", {}),
    "held in bfloat16, as the files": ("dense", {"dtype": "bfloat16"}),
    "LoRA, bfloat16 base": ("dense", {"bf16": True, "use_peft": True}),
    "mixture of experts, float32": ("experts", {}),
}


# ---------------------------------------------------------------- the models


def write_models(work: Path, layers: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig

    from ft_host.testing import tiny_tokenizer

    shape = {"vocab_size": 16384, "hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    experts = {"num_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 512, "head_dim": 64}
    configs = {
        "dense": LlamaConfig(**shape, **tokens, intermediate_size=3584, num_hidden_layers=layers),
        "experts": Qwen3MoeConfig(**shape, **tokens, **experts, intermediate_size=1024, num_hidden_layers=layers),
    }
    for name, config in configs.items():
        folder = work / name
        if not (folder / "model.safetensors.index.json").is_file():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
            model.save_pretrained(folder, max_shard_size="100MB")
            tiny_tokenizer().save_pretrained(folder)


# ---------------------------------------------------------------- in each rank


def rank_main(work: Path, case: str, rank: int, ranks: int, whole: bool) -> None:
    """Load and shard, and say what it holds then. Waits at both ends for the process that measures."""
    import torch
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.fsdp import fully_shard

    from ft_host.config import RunConfig
    from ft_host.models import load_policy, shard
    from ft_host.testing import tiny_tokenizer

    name, fields = CASES[case]
    config = RunConfig(model=str(work / name), distributed_strategy="fsdp2", use_cpu=True, **fields)
    if ranks > 1:
        init_process_group("gloo", init_method=f"file://{work}/store", rank=rank, world_size=ranks)
        fully_shard(torch.nn.Linear(2, 2))(torch.ones(1, 2))  # what torch imports when it is first used
    tokenizer = tiny_tokenizer()
    print(READY, flush=True)
    assert sys.stdin.readline().strip() == GO
    started = time.perf_counter()
    policy = load_policy(config, tokenizer, torch.device("cpu"), sharded=ranks > 1 and not whole)
    print(READ, flush=True)
    if ranks > 1:
        shard(policy, config)
    seconds = time.perf_counter() - started
    held = [parameter.to_local() if ranks > 1 else parameter for parameter in policy.parameters()]
    said = {
        "whole_mb": sum(p.numel() * p.element_size() for p in policy.parameters()) / MB,
        "held_mb": sum(p.untyped_storage().nbytes() for p in held) / MB,
        "seconds": seconds,
    }
    print(LOADED, json.dumps(said), flush=True)
    sys.stdin.readline()
    if ranks > 1:
        destroy_process_group()


# ---------------------------------------------------------------- measured from outside


def private_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/{pid}/status has no RssAnon: this needs Linux")


def measure(work: Path, case: str, ranks: int, whole: bool) -> dict[str, float]:
    """Return the worst rank's peak over its start, and what it held then, in MB."""
    (work / "store").unlink(missing_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    environment["MALLOC_MMAP_THRESHOLD_"] = str(MB)
    command = [sys.executable, "-W", "ignore", __file__, "--work", str(work), "--case", case, "--ranks", str(ranks)]
    command += ["--whole"] if whole else []
    processes = [
        subprocess.Popen(
            [*command, "--rank", str(rank)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        for process in processes:
            assert process.stdout.readline().strip() == READY, f"{case}: a rank ended before it loaded anything"
            os.set_blocking(process.stdout.fileno(), False)
        starts = [private_mb(process.pid) for process in processes]
        peaks, reading = list(starts), list(starts)
        for process in processes:
            process.stdin.write(f"{GO}\n")
            process.stdin.flush()
        said: dict[int, dict[str, float]] = {}
        while len(said) < ranks:
            for index, process in enumerate(processes):
                peaks[index] = max(peaks[index], private_mb(process.pid))
                line = process.stdout.readline()
                if line.startswith(READ):
                    reading[index] = peaks[index]
                if line.startswith(LOADED):
                    said[index] = json.loads(line.removeprefix(LOADED))
                assert process.poll() is None, f"{case}: rank {index} ended with {process.poll()}"
            time.sleep(0.002)
        return {
            "peak_mb": max(peak - start for peak, start in zip(peaks, starts, strict=True)),
            "reading_mb": max(peak - start for peak, start in zip(reading, starts, strict=True)),
            **{name: max(each[name] for each in said.values()) for name in ("whole_mb", "held_mb", "seconds")},
        }
    finally:
        for process in processes:
            process.stdin.close()
        for process in processes:
            process.wait(timeout=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the models and the result")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--layers", type=int, default=12, help="of the models, where the folder has none yet")
    parser.add_argument("--case", choices=CASES, help="this one alone")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank is not None:
        rank_main(given.work, given.case, given.rank, given.ranks[0], given.whole)
        return
    given.work.mkdir(parents=True, exist_ok=True)
    write_models(given.work, given.layers)
    print("| | ranks | model, MB | rows of a rank | reading | over its rows | peak | whole: reading | peak |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    results: list[dict[str, Any]] = []
    for case in [given.case] if given.case else CASES:
        for ranks in given.ranks:
            cut, whole = (measure(given.work, case, ranks, way) for way in (False, True))
            results.append({"case": case, "ranks": ranks, "cut": cut, "whole": whole})
            cells = [
                *(f"{cut[name]:.0f}" for name in ("whole_mb", "held_mb", "reading_mb")),
                f"{cut['reading_mb'] - cut['held_mb']:.0f}",
                *(f"{each:.0f}" for each in (cut["peak_mb"], whole["reading_mb"], whole["peak_mb"])),
            ]
            print(f"| {case} | {ranks} | {' | '.join(cells)} |", flush=True)
            (given.work / "sharded_load.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
