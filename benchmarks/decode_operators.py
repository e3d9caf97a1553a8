"""Launches and waits of one decoded token of all rows, counted on any machine.

    python benchmarks/decode_operators.py                       36 layers, in float32, bfloat16, with LoRA
    python benchmarks/decode_operators.py --layers 2 4 --kinds lora --rows 64

A GPU runs a step of decoding about as fast as Python launches its operators. So operators are counted as torch hands
them to a device, without those that only make a view; what is replayed from a graph counts as one. Step by step, on any
device without graphs, is what a host of 0.8 launched; `replayed` is a step on CUDA. A stand-in holds the graph here
(`ft_host.testing.tape`): it replays the same operators on the same tensors.
"""

from __future__ import annotations

import argparse
from collections import Counter
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, Qwen3Config

from ft_host.generation import Sampling, decode, frames
from ft_host.generation.jobs import Job
from ft_host.generation.prompts import prefill, prompts_of
from ft_host.testing.tape import Tapes, is_view

KINDS = ("float32", "bfloat16", "mixed", "lora")
WAITS = ("_local_scalar_dense", "nonzero")


class Counted(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not is_view(func) and func is not torch.ops.aten._unsafe_view.default:
            self.calls[func._schema.name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


def model_of(kind: str, layers: int) -> Any:
    """A Qwen3 of small layers: their number decides what is launched, not their size."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "vocab_size": 300}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": layers}
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_config(Qwen3Config(**sizes, **heads), dtype=dtype)
    if kind == "lora":
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear")).get_base_model()
    return model.eval()


@contextmanager
def as_gpu(graphs: bool) -> Any:
    """The CPU as a device on which reading waits, with or without graphs."""
    before = decode.STRETCH, dict(frames.RECORDERS)
    decode.STRETCH = {}
    frames.RECORDERS |= {"cpu": Tapes} if graphs else {}
    try:
        yield
    finally:
        decode.STRETCH = before[0]
        frames.RECORDERS.clear()
        frames.RECORDERS.update(before[1])


def count(kind: str, layers: int, rows: int, graphs: bool) -> Counter[str]:
    """Return the operators of 8 tokens of all rows, with the reading of them."""
    model = model_of(kind, layers)
    mixed = torch.autocast("cpu", torch.bfloat16, kind in ("mixed", "lora"))
    with torch.no_grad(), mixed, as_gpu(graphs):
        decoder = decode.Decoder(model, Sampling(max_new_tokens=60, seed=1), rows)
        for prompt in prompts_of([Job(row, list(range(1, 9 + row % 3)), row, 60) for row in range(rows)]):
            prefill(model, [prompt])
            decoder.enter(prompt)
        decoder.leave()
        for _ in range(3):
            decoder.advance()
        if graphs and not decoder.frames.graphs:
            raise SystemExit(f"no graph was captured: {frames.way_of(model)}")
        with Counted() as counted:
            decoder.advance()
    if graphs:
        counted.calls["graph"] = frames.STEPS  # one launch for each
    return counted.calls


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[36], metavar="N")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rows", type=int, default=6, metavar="N")
    parser.add_argument("--list", action="store_true", help="print the operators too")
    args = parser.parse_args(argv)
    print("| weights | layers | step by step: launches | waits | replayed: launches | waits |")
    print("| --- |" + " --- |" * 5)
    for kind in args.kinds:
        for layers in args.layers:
            cells, lists = [kind, str(layers)], []
            for graphs in (False, True):
                calls = count(kind, layers, args.rows, graphs)
                waits = sum(calls[name] for name in WAITS)
                cells += [f"{sum(calls.values()) / frames.STEPS:.4g}", f"{(waits + 1) / frames.STEPS:.3g}"]
                lists.append(", ".join(f"{name} {number / frames.STEPS:.4g}" for name, number in calls.most_common()))
            print(f"| {' | '.join(cells)} |", flush=True)
            if args.list:
                print("\n".join(["", *lists, ""]))


if __name__ == "__main__":
    main()
