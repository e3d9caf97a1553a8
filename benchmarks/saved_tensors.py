"""What a token keeps for the backward pass, by kind of tensor: in a model's own layers, and in ft_host.models.lean.

    python benchmarks/saved_tensors.py                         Qwen3, Llama, Gemma 2 and a mixture of experts, 4 layers
    python benchmarks/saved_tensors.py --family qwen3 --shape pairs --set bf16=true use_peft=true

Counts storages, each once, by the module whose forward ran when a tensor of it was first saved. Weights and what the
head keeps are left out. Needs no GPU, and no quiet machine.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from work import made_rows, make_tokenizer

SIZES = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 128},  # the layers of benchmarks/sft.py
    "llama": {},
    "gemma2": {"head_dim": 64},
    "qwen3_moe": {"head_dim": 64, "moe_intermediate_size": 256, "num_experts": 8, "num_experts_per_tok": 4},
}
# lengths of segments, and their parents
SHAPES = {
    "rows": ([150, 90, 220, 140], [None] * 4),
    "pairs": ([245, 69, 80, 200, 90, 50], [None, 0, 0, None, 3, 3]),  # two completions of a prompt
}

WEIGHTS = "weights"


def made_model(folder: Path, family: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    tokenizer = make_tokenizer(made_rows(200), SIZES["vocab_size"])
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(family, **SIZES, **FAMILIES[family], **ends)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Running:
    """The kind of module whose forward runs: the last two parts of its name, without numbers."""

    def __init__(self, model: torch.nn.Module):
        self.stack = ["between layers"]
        for name, module in model.named_modules():
            parts = [part for part in name.split(".") if not part.isdigit()]
            if parts:
                module.register_forward_pre_hook(self._enter(".".join(parts[-2:])))
                module.register_forward_hook(self._leave)

    def _enter(self, kind: str) -> Any:
        return lambda module, given: self.stack.append(kind)

    def _leave(self, module: Any, given: Any, out: Any) -> None:
        self.stack.pop()


def is_weight(tensor: torch.Tensor) -> bool:
    """Whether it is a weight, a view of one, or autocast's copy: nothing but such operations lies before it."""
    node = tensor.grad_fn
    while node is not None and type(node).__name__ in ("TBackward0", "ToCopyBackward0", "TransposeBackward0"):
        node = node.next_functions[0][0]
    return type(node).__name__ == "AccumulateGrad"


def kept(folder: Path, shape: str, lean: bool, fields: dict[str, Any]) -> Counter[str]:
    """Bytes a token and layer that a forward keeps, by kind."""
    from transformers import AutoTokenizer

    from ft_host.batch import Segment, flat_batch
    from ft_host.config import RunConfig
    from ft_host.models import load
    from ft_host.models.lean import Found, remaking

    config = RunConfig(model=str(folder), gradient_checkpointing=False, **fields)
    tokenizer, device = AutoTokenizer.from_pretrained(folder), torch.device("cpu")
    handles: list[tuple[str, Any]] = []
    own = remaking.pack

    def pack(tensor: torch.Tensor) -> Any:
        handle = own(tensor) if lean else remaking.Kept(tensor)
        handles.append((WEIGHTS if is_weight(tensor) else running.stack[-1], handle))
        return handle

    with contextlib.ExitStack() as stack:
        if not lean:
            stack.enter_context(mock.patch.object(load, "make_lean", lambda *given: Found()))
        policy = load.load_policy(config, tokenizer, device)
        running = Running(policy.model)
        stack.enter_context(mock.patch.object(remaking, "pack", pack))
        lengths, parents = SHAPES[shape]
        generator = torch.Generator().manual_seed(0)
        segments = []
        for index, (length, parent) in enumerate(zip(lengths, parents, strict=True)):
            ids = torch.randint(3, policy.config.vocab_size, (length,), generator=generator).tolist()
            segments.append(Segment(input_ids=ids, labels=ids, row=index, parent=parent))
        batch = flat_batch(segments, num_rows=len(segments))
        with torch.autocast("cpu", torch.bfloat16, enabled=load.precision(config, device) == "bf16"):
            out = policy(batch)
        weights = {weight.untyped_storage().data_ptr() for weight in policy.parameters()}
        seen: set[int] = set()
        bytes_of: Counter[str] = Counter()
        for kind, handle in handles:
            if isinstance(handle, remaking.Kept):
                storage = handle.tensor.untyped_storage()
                if kind != WEIGHTS and storage.data_ptr() not in seen | weights:
                    seen.add(storage.data_ptr())
                    bytes_of[kind] += storage.nbytes()
        out["logp"].sum().backward()
    count = sum(lengths) * policy.config.num_hidden_layers
    return Counter({kind: size / count for kind, size in bytes_of.items()})


def table(before: Counter[str], after: Counter[str]) -> str:
    lines = ["| saved in | KiB a token and layer, own layers | lean |", "| --- | ---: | ---: |"]
    for kind, size in before.most_common():
        lines.append(f"| {kind} | {size / 1024:.2f} | {after[kind] / 1024:.2f} |")
    lines += [f"| {kind} | 0 | {size / 1024:.2f} |" for kind, size in after.most_common() if kind not in before]
    whole = before.total(), after.total()
    return "\n".join([*lines, f"| **all** | **{whole[0] / 1024:.2f}** | **{whole[1] / 1024:.2f}** |"])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="fields of the run's config")
    args = parser.parse_args(argv)
    fields = {name: yaml.safe_load(value) for name, _, value in (each.partition("=") for each in args.set)}
    for family in args.family:
        with tempfile.TemporaryDirectory() as folder:
            made_model(Path(folder), family)
            for shape in args.shape:
                before, after = (kept(Path(folder), shape, lean, fields) for lean in (False, True))
                print(f"\n{family}, {shape}{''.join(f', {each}' for each in args.set)}\n\n{table(before, after)}")


if __name__ == "__main__":
    main()
