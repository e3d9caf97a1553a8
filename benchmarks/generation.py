"""Generation alone: ft-host beside transformers' `generate`, its continuous batching, and vLLM, process by process in
turn.

    python benchmarks/generation.py                                   both workloads, five rounds
    python benchmarks/generation.py --workload group --against generate --rounds 3
    python benchmarks/generation.py --vllm-python PATH                vLLM too, in the environment of this Python

Needs Linux. A workload is 64 requests, sampled at temperature 1 in float32 by the model `small` of work.py, with the
log-prob of each token where a side gives one. No token ends a completion: each has the length that the workload says,
so that all sides make the same number of tokens. `generate` gets batches sorted by the length of their prompts, and
runs each as long as its longest completion; tokens beyond what was asked for don't count.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import work
from turns import OTHERS, QUIET, spread, wait_for_quiet
from watch import busy, status

Requests = list[tuple[list[int], int]]  # token ids of a prompt, and how many to add
Figures = dict[str, float]

BATCH = 64  # completions at a time, for whoever can be told
SMALL_BATCH = 16  # of a second `generate`, whose rows wait less for each other
SIDES = {
    "ours": "ft-host",
    "generate": f"generate, batches of {BATCH}",
    "generate-small": f"generate, batches of {SMALL_BATCH}",
    "continuous": "generate_batch (continuous batching)",
    "vllm": "vLLM, in process",
}
GOALS = {"group": {"generate": 2.0, "generate-small": 2.0}}  # tokens/s, ours to theirs


# ---------------------------------------------------------------- workloads


def group(rng: random.Random) -> Requests:
    """8 prompts of about 100 tokens, 8 completions of 64 for each."""
    return [(ids, 64) for ids in [_ids(rng, rng.randint(80, 120)) for _ in range(8)] for _ in range(8)]


def varied(rng: random.Random) -> Requests:
    """64 prompts and completions of 8 to 256 tokens."""
    return [(_ids(rng, rng.randint(8, 256)), rng.randint(8, 256)) for _ in range(64)]


def _ids(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(10, work.VOCABULARY - 10) for _ in range(length)]


WORKLOADS = {"group": group, "varied": varied}


# ---------------------------------------------------------------- one side, in its own process


def ours(folder: str) -> Callable[[Requests], int]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ft_host.generation import Request, Sampling
    from ft_host.models import attention
    from ft_host.testing.generation import generating_run

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    attention.install(model)
    model.generation_config.eos_token_id = None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = None
    run = generating_run(model, tokenizer, decode_batch_size=BATCH)

    def complete(requests: Requests) -> int:
        asked = [Request(prompt_ids=ids, max_new_tokens=count) for ids, count in requests]
        most = max(count for _, count in requests)
        return sum(len(each.token_ids) for each in run.generate(asked, Sampling(max_new_tokens=most, seed=0)))

    return complete


def generate(folder: str, size: int = BATCH) -> Callable[[Requests], int]:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    model.generation_config = GenerationConfig()

    def complete(requests: Requests) -> int:
        ordered = sorted(requests, key=lambda request: -len(request[0]))
        for at in range(0, len(ordered), size):
            batch = ordered[at : at + size]
            width = len(batch[0][0])
            most = max(count for _, count in batch)
            config = GenerationConfig(max_new_tokens=most, do_sample=True, top_k=0, pad_token_id=0)
            ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt, _ in batch])
            mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt, _ in batch])
            with torch.no_grad():
                out = model.generate(ids, attention_mask=mask, generation_config=config)
            if out.shape[1] != width + most:
                raise SystemExit(f"generate stopped after {out.shape[1] - width} of {most} tokens")
        return sum(count for _, count in requests)

    return complete


def generate_small(folder: str) -> Callable[[Requests], int]:
    return generate(folder, SMALL_BATCH)


def continuous(folder: str) -> Callable[[Requests], int]:
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    config = GenerationConfig(do_sample=True, top_k=0, eos_token_id=-1, pad_token_id=0)

    def complete(requests: Requests) -> int:
        said = 0
        with model.continuous_batching_context_manager(generation_config=config) as manager:
            for ids, count in requests:
                manager.add_request(ids, max_new_tokens=count)
            for _ in requests:
                result = manager.get_result()
                if result is None:
                    raise SystemExit("continuous batching ended early")
                said += len(result.generated_tokens)
        return said

    return complete


def vllm(folder: str) -> Callable[[Requests], int]:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine in this process, whose time is taken
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    from vllm import LLM, SamplingParams

    engine = LLM(model=folder, dtype="float32", max_model_len=1024, enforce_eager=True, max_num_seqs=BATCH, seed=0)

    def complete(requests: Requests) -> int:
        prompts = [{"prompt_token_ids": ids} for ids, _ in requests]
        sampling = [
            SamplingParams(temperature=1.0, max_tokens=count, ignore_eos=True, logprobs=0) for _, count in requests
        ]
        done = engine.generate(prompts, sampling, use_tqdm=False)
        return sum(len(each.outputs[0].token_ids) for each in done)

    return complete


MAKERS = {"ours": ours, "generate": generate, "generate-small": generate_small, "continuous": continuous, "vllm": vllm}


def one_side(spec: dict[str, Any]) -> None:
    """Complete a few other requests first, then those of the spec, and write what that took."""
    complete = MAKERS[spec["side"]](spec["model"])
    complete([(ids, min(count, 8)) for ids, count in spec["warm"]])
    Path("/proc/self/clear_refs").write_text("5")
    before, started, cpu, used = status("VmRSS"), time.perf_counter(), time.process_time(), busy()
    said = complete(spec["requests"])
    seconds, cpu, used = time.perf_counter() - started, time.process_time() - cpu, busy() - used
    asked = sum(count for _, count in spec["requests"])
    if said != asked:
        raise SystemExit(f"not the same work: {said} tokens were made, {asked} asked for")
    figures = {
        "tokens/s": said / seconds,
        "tokens/CPU second": said / cpu,
        "peak over start": status("VmHWM") - before,
        OTHERS: max(0.0, used - cpu) / seconds,
    }
    Path(spec["out"]).write_text(json.dumps(figures))


# ---------------------------------------------------------------- sides in turn


def run_side(side: str, python: str, model: Path, warm: Requests, requests: Requests) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "spec.json", Path(folder) / "out.json"
        given.write_text(
            json.dumps({"side": side, "model": str(model), "warm": warm, "requests": requests, "out": str(out)})
        )
        variables = {**os.environ, "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
        command = [python, str(Path(__file__)), "--side", str(given)]
        done = subprocess.run(command, env=variables, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{side} failed ({done.returncode}):\n{done.stderr[-3000:]}")
        return json.loads(out.read_text())


def compare(workload: str, sides: list[str], model: Path, args: argparse.Namespace) -> None:
    rounds: list[dict[str, Figures]] = []
    for number in range(args.rounds):
        rng = random.Random(number)
        warm, requests = WORKLOADS[workload](rng)[:16], WORKLOADS[workload](rng)
        seen = {}
        for side in sides:
            if args.wait:
                wait_for_quiet(args.wait)
            python = args.vllm_python if side == "vllm" else sys.executable
            seen[side] = run_side(side, python, model, warm, requests)
        rounds.append(seen)
        if args.out:
            with args.out.open("a", encoding="utf-8") as log:
                log.write(json.dumps({"workload": workload, "round": number, **seen}) + "\n")
        said = ", ".join(f"{side} {each['tokens/s']:.0f}" for side, each in seen.items())
        print(f"{workload}, round {number + 1}: {said} tokens/s", file=sys.stderr, flush=True)
    disturbed = sum(any(each[OTHERS] > QUIET for each in seen.values()) for seen in rounds)
    print(f"\n## {workload}: {args.rounds} rounds, {disturbed} of them disturbed by other processes\n")
    print(table(GOALS.get(workload, {}), sides, rounds), flush=True)


def table(goals: dict[str, float], sides: list[str], rounds: list[dict[str, Figures]]) -> str:
    """A Markdown table: medians of each side, and of ours to it within a round, each with its range."""
    keys = ("tokens/s", "tokens/CPU second", "peak over start")
    lines = ["| | tokens/s | tokens/CPU second | peak over start, MiB | ft-host / it, tokens/s | a CPU second | goal |"]
    lines.append("| --- |" + " --- |" * 6)
    for side in sides:
        own = [spread([seen[side][key] for seen in rounds]) for key in keys]
        beside, verdict = ["", ""], ""
        if side != "ours":
            ratios = [[seen["ours"][key] / seen[side][key] for seen in rounds] for key in keys[:2]]
            beside = [spread(each) for each in ratios]
            if side in goals:
                reached = statistics.median(ratios[0]) >= goals[side]
                verdict = f"at least {goals[side]:.3g}: {'met' if reached else 'missed'}"
        lines.append(f"| {SIDES[side]} | {' | '.join([*own, *beside, verdict])} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    others = [side for side in SIDES if side not in ("ours", "vllm")]
    parser.add_argument("--against", nargs="+", choices=others, default=others, help="what of transformers")
    parser.add_argument("--vllm-python", metavar="PATH", help="a Python with vLLM; without it, vLLM is left out")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each side (default: %(default)s)")
    parser.add_argument(
        "--wait",
        type=float,
        default=0,
        metavar="SECONDS",
        help="wait so long at most for a quiet machine before each process",
    )
    parser.add_argument("--out", type=Path, help="append what every round saw to this JSON lines file")
    parser.add_argument("--side", type=Path, help=argparse.SUPPRESS)  # the spec of one side: what a process is told
    args = parser.parse_args(argv)

    if args.side:
        one_side(json.loads(args.side.read_text()))
        return
    sides = ["ours", *args.against, *(["vllm"] if args.vllm_python else [])]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "small"
        work.make_model(model, "small", work.make_tokenizer(work.made_rows(2000)))
        for workload in args.workload:
            compare(workload, sides, model, args)


if __name__ == "__main__":
    main()
