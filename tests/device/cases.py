"""Runs of every method that take a second, by name, and what the tests do with them on the device."""

from __future__ import annotations

import contextlib
import dataclasses
import pkgutil
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from device import pretended
from device.waits import Place
from ft_host.config import RunConfig
from ft_host.errors import OutOfMemory
from ft_host.models.lean import Found, make_lean
from ft_host.rundir.folder import RunFolder
from ft_host.testing import (
    as_classifier,
    as_if_killed,
    lines,
    other_tokenizer,
    preference_texts,
    resume_in,
    rounds,
    run_in,
    save_tiny,
    sentence,
    tiny_llama,
    tiny_moe,
    tiny_run,
    write_rows,
)
from ft_host.testing.parity import forget_accelerate
from ft_host.training.loop import train_step
from ft_host.util.transfer import to_device

PAYS = '''
def letters(completions, **columns):
    """The share of letters in what a model says."""
    return [sum(letter.isalpha() for letter in text) / (len(text) + 1) for text in completions]


def mostly(completions, **columns):
    """1 where most of it is letters."""
    return [float(share > 0.6) for share in letters(completions)]
'''
CONFIGS = {
    "sft": "ft_sft.config:SFTConfig",
    "dpo": "ft_dpo.config:DPOConfig",
    "kto": "ft_kto.config:KTOConfig",
    "reward": "ft_reward.config:RewardConfig",
    "grpo": "ft_grpo.config:GRPOConfig",
    "rloo": "ft_rloo.config:RLOOConfig",
    "ppo": "ft_ppo.config:PPOConfig",
    "distill": "ft_distill.config:DistillConfig",
    "gkd": "ft_distill.config:GKDConfig",
    "gold": "ft_gold.config:GOLDConfig",
    "sdft": "ft_sdft.config:SDFTConfig",
    "sdpo": "ft_sdpo.config:SDPOConfig",
    "orpo": "ft_orpo.config:ORPOConfig",
    "simpo": "ft_simpo.config:SimPOConfig",
    "online dpo": "ft_online_dpo.config:OnlineDPOConfig",
    "bon": "ft_bon.config:BestOfNConfig",
}
LORA = {"use_peft": True, "learning_rate": 1e-2}
TEACHER = {"teacher_model_name_or_path": "{teacher}"}
REFERENCE = {"ref_model": "{teacher}"}  # another model: of two equal ones, rewards are round-off
PAID = {"reward": ["{pays}:letters"], "per_device_train_batch_size": 8}
# As many heads of keys as of queries: where they are shared, the CPU rounds their gradients elsewhere.
BF16 = {"model": "{even}", "bf16": True}
GROUPS = PAID | {"num_generations": 4}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {}),
    "sft packed": ("sft", {"packing": True, "max_length": 40, "gradient_checkpointing": True}),
    "sft lora": ("sft", LORA | {"lora_dropout": 0.1}),
    "sft rectangle": ("sft", {"segment_attention": "none"}),
    "sft flex": ("sft", {"segment_attention": "flex"}),
    "sft experts": ("sft", {"model": "{experts}", "bf16": True}),
    "sft noise": ("sft", {"neftune_noise_alpha": 5.0}),
    "dpo": ("dpo", REFERENCE),
    "dpo flex": ("dpo", REFERENCE | {"segment_attention": "flex", "precompute_ref_log_probs": False}),
    "dpo live": ("dpo", REFERENCE | LORA | {"precompute_ref_log_probs": False}),
    "dpo synchronised": ("dpo", {"sync_ref_model": True, "ref_model_sync_steps": 1}),
    "kto": ("kto", {}),
    "reward": ("reward", {}),
    "grpo": ("grpo", GROUPS),
    "grpo kl": ("grpo", GROUPS | {"beta": 0.1, "num_iterations": 2, "repetition_penalty": 1.1}),
    "grpo paid by a model": ("grpo", GROUPS | {"reward": ["{scorer}"]}),
    "rloo": ("rloo", GROUPS | {"beta": 0.1}),
    "ppo": ("ppo", PAID | {"num_ppo_epochs": 2}),
    "distill": ("distill", TEACHER),
    "gkd": ("gkd", TEACHER),
    "gold": ("gold", {"teacher_model_name_or_path": "{stranger}"}),
    "sdft": ("sdft", {}),
    "sdpo": ("sdpo", GROUPS | {"reward": ["{pays}:mostly"], "distillation_weight": 0.5}),
    "orpo": ("orpo", {}),
    "simpo": ("simpo", {"cpo_alpha": 1.0}),
    "online dpo": ("online dpo", GROUPS | REFERENCE),
    "bon": ("bon", GROUPS),
    "sft experts in float32": ("sft", {"model": "{experts}"}),
    "sft experts balanced": ("sft", {"model": "{experts}", "bf16": True, "router_aux_loss_coef": 0.1}),
    "grpo experts": ("grpo", GROUPS | {"model": "{experts}", "bf16": True}),
    "grpo experts in float32": ("grpo", GROUPS | {"model": "{experts}"}),
    "grpo overlap": ("grpo", GROUPS | {"rollouts": "overlap"}),
    "grpo overlap of nothing": ("grpo", GROUPS | {"rollouts": "overlap", "max_staleness": 0}),
    "sft lora in bf16": ("sft", LORA | BF16),
}
ALSO_IN_BF16 = [
    *("sft", "sft packed", "sft flex", "sft rectangle", "dpo", "dpo live", "dpo flex", "kto", "reward", "orpo"),
    *("simpo", "grpo", "grpo kl", "rloo", "ppo", "distill", "gkd", "gold", "sdft", "sdpo", "online dpo", "bon"),
]
CASES |= {f"{case} in bf16": (CASES[case][0], CASES[case][1] | BF16) for case in ALSO_IN_BF16}

# Of runs on two ranks: the strategy and the case.
RANKS = {
    "ddp": ("ddp", "sft"),
    "fsdp2": ("fsdp2", "sft"),
    "ddp in bf16": ("ddp", "sft in bf16"),
    "fsdp2 in bf16": ("fsdp2", "sft in bf16"),
    "ddp dpo": ("ddp", "dpo"),
    "fsdp2 dpo": ("fsdp2", "dpo"),
    "ddp grpo": ("ddp", "grpo"),
}


def models(folder: Path) -> dict[str, str]:
    """Folders of the models that cases name, made once in `folder`, and of the reward function."""
    made = {
        "policy": lambda to: save_tiny(to, tiny_llama()),
        "teacher": lambda to: save_tiny(to, tiny_llama(seed=5, hidden_size=96)),
        "stranger": lambda to: save_tiny(
            to, tiny_llama(seed=5, hidden_size=96, vocab_size=200, eos_token_id=5), other_tokenizer()
        ),
        "scorer": lambda to: save_tiny(to, as_classifier(tiny_llama(seed=3))),
        "even": lambda to: save_tiny(to, tiny_llama(num_key_value_heads=4)),
        "experts": lambda to: save_tiny(to, tiny_moe()),
    }
    for name, save in made.items():
        if not (folder / name).is_dir():
            save(folder / name)
    (folder / "pays.py").write_text(PAYS, encoding="utf-8")
    return {name: str(folder / name) for name in made} | {"pays": str(folder / "pays.py")}


def rows_of(method: str) -> list[dict[str, Any]]:
    noise = random.Random(4)
    if method in ("dpo", "reward", "kto", "orpo", "simpo"):
        return preference_texts()
    if method in ("gkd", "gold"):
        return [{"messages": rounds(noise, noise.randint(1, 2), 6)} for _ in range(24)]
    return [
        {
            "prompt": f"{sentence(noise, 8)}? ",
            "completion": sentence(noise, 12),
            "privileged_context": f"Such as: {sentence(noise, 9)}",
        }
        for _ in range(24)
    ]


def config_of(case: str, folder: Path, **changes: Any) -> RunConfig:
    """The config of a case: two steps, an evaluation and a checkpoint, float32, on the device, in `folder`. Models are
    two folders above it."""
    method, fields = CASES[case]
    config_class = pkgutil.resolve_name(CONFIGS[method])
    known = {field.name for field in dataclasses.fields(config_class)}
    named = models(folder.parents[1])

    def filled(value: Any) -> Any:
        if isinstance(value, str):
            return value.format(**named)
        return [filled(each) for each in value] if isinstance(value, list) else value

    given = {"model": "{policy}", "use_cpu": False, "bf16": False, "max_steps": 2, "segment_attention": "sdpa"}
    rows = rows_of(method)
    given["eval_dataset"] = str(write_rows(folder / "held-out.jsonl", rows[-4:]))
    given |= {"max_completion_length": 12} if "max_completion_length" in known else {}
    given = {key: filled(value) for key, value in (given | fields | changes).items()}
    return tiny_run(config_class, given.pop("model"), folder, rows, **given)


# ---------------------------------------------------------------- what is called on the device


# What a run is at, for the log of waits, and the function that is it.
UNITS = (
    ("forward", "ft_host.training.step.loss_of"),  # and the host's part of the loss, of one micro-batch
    ("backward", "accelerate.Accelerator.backward"),
    ("step", "ft_host.training.loop.train_step"),  # the rest of an optimizer step
    ("rows", "ft_host.training.loop.next_step"),  # annotated, with the statistics of the step; a rollout's
    ("generation", "ft_host.run.Run.generate"),
    ("evaluation", "ft_host.training.evaluate.evaluate_loss"),
    ("checkpoint", "ft_host.training.checkpoint.save"),
    ("generation", "ft_host.scheduling.local.Local.events"),
    ("generation", "ft_host.scheduling.local.Local.generate"),
    ("loading", "ft_host.models.aux_models.load_frozen"),
    ("loading", "ft_host.models.load_frozen"),
)


@contextlib.contextmanager
def units() -> Iterator[None]:
    """In the block the log knows what a run is at."""
    with contextlib.ExitStack() as stack:
        for unit, target in UNITS:
            stack.enter_context(mock.patch(target, pretended.within(unit, pkgutil.resolve_name(target))))
        yield


@dataclass(frozen=True)
class Trained:
    """What a run left: its lines of metrics, of steps and of evaluations; and what it waited for, on the device
    (`Log.most_by_place`)."""

    lines: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    waits: dict[str, dict[Place, int]]


def trained(case: str, folder: Path, **changes: Any) -> Trained:
    """Train a case."""
    return run_of(config_of(case, folder, **changes))


def run_of(config: RunConfig) -> Trained:
    forget_accelerate()
    with units(), pretended.log() as log:
        found = run_in(config, "run")
    return Trained(lines(found), lines(found, "eval"), log.most_by_place())


def run_of_rank(config: RunConfig) -> tuple[Trained, str | None]:
    """The same as one of several ranks; and what the group of processes was asked for."""
    found = run_of(config)
    [backend] = pretended.backends
    return found, backend


def on_both(case: str, folder: Path, **changes: Any) -> tuple[Trained, Trained]:
    """A case on the CPU, where flex has no backward pass, and on the device. In bfloat16 the CPU takes attention in its
    parts, as the device does: a fused kernel rounds elsewhere."""
    fields = CASES[case][1]
    sdpa = {"segment_attention": "sdpa"} if fields.get("segment_attention") == "flex" else {}
    with sdpa_kernel(SDPBackend.MATH) if fields.get("bf16") else contextlib.nullcontext():
        cpu = trained(case, folder / "cpu", use_cpu=True, **sdpa, **changes)
    return cpu, trained(case, folder / "device", **changes)


def resumed(case: str, folder: Path, **changes: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Lines of a run of four steps, and of one that goes on from its checkpoint after two."""
    forget_accelerate()
    config = config_of(case, folder, max_steps=4, save_steps=2, save_total_limit=None, **changes)
    whole = run_in(config, "whole")
    assert as_if_killed(whole, folder / "killed") == 2
    forget_accelerate()
    return lines(whole), lines(
        resume_in(dataclasses.replace(config, output_dir=str(folder / "killed")), folder / "killed")
    )


def ran_out(case: str, folder: Path, **changes: Any) -> tuple[str, list[str], list[str]]:
    """The error of a run whose device loses its free memory with its second step; the steps of which there are
    checkpoints; and the rules that have found something."""
    forget_accelerate()
    config = config_of(case, folder, max_steps=4, **changes)
    made: list[int] = []

    def short(*args: Any, **keywords: Any) -> Any:
        made.append(1)
        with pretended.capacity(pretended.memory()[0] + 2**14) if len(made) == 2 else contextlib.nullcontext():
            return train_step(*args, **keywords)

    with mock.patch("ft_host.training.loop.train_step", short), pytest.raises(OutOfMemory) as caught:
        run_in(config, "run")
    run = RunFolder(folder / "runs" / "run")
    checkpoints = [path.name for path in (run.path / "checkpoints").iterdir()]
    return str(caught.value), checkpoints, [entry["code"] for entry in run.read("findings.jsonl")]


def rules_of_a_gpu() -> None:
    """What CUDA refuses is refused; its random numbers are its own and can be put back."""
    x = torch.randn(4, 5, device="cuda")
    for mixed in (
        lambda: x + torch.ones(5),
        lambda: torch.ones(4, 5).add_(x),
        lambda: torch.cat([x, torch.ones(1, 5)]),
    ):
        with pytest.raises(RuntimeError, match="on the same device"):
            mixed()
    assert (x + torch.tensor(1.0)).device == x.device  # a single number may come from the CPU
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device="cuda", generator=torch.Generator())
    state, on_cpu = torch.cuda.get_rng_state(), torch.get_rng_state()
    drawn = torch.rand(3, device="cuda")
    assert torch.equal(on_cpu, torch.get_rng_state())
    torch.cuda.set_rng_state(state)
    assert torch.equal(drawn, torch.rand(3, device="cuda"))
    with pretended.capacity(2**20), pytest.raises(torch.OutOfMemoryError):
        torch.empty(2**20, device="cuda")
    assert torch.accelerator.current_accelerator().type == "cuda"
    assert torch.accelerator.memory_allocated() == torch.cuda.memory_allocated() > 0


def kinds_of_waits() -> dict[str, list[str]]:
    """The kinds of events that each of these gives."""
    x = torch.randn(4, 5, device="cuda")
    ids, counts = torch.arange(3, device="cuda"), torch.ones(3, dtype=torch.long, device="cuda")
    calls = {
        "item": lambda: float(x.sum()),
        "tolist": lambda: x.tolist(),
        "mask": lambda: x[x > 0],
        "fill by a mask": lambda: x.__setitem__(x > 0, 0.0),
        "write by a mask": lambda: x.index_put_((counts.new_ones(4) > 0,), x[0].clone()),
        "indices of the CPU": lambda: x[torch.tensor([0, 1])],
        "tensor": lambda: torch.tensor([1, 2], device="cuda"),
        "pageable": lambda: torch.ones(3).to("cuda", non_blocking=True),
        "pinned": lambda: torch.ones(3).pin_memory().to("cuda", non_blocking=True),
        "pinned, blocking": lambda: torch.ones(3).pin_memory().to("cuda"),
        "repeats": lambda: ids.repeat_interleave(counts),
        "repeats of a known number": lambda: ids.repeat_interleave(counts, output_size=3),
        "synchronize": torch.accelerator.synchronize,
        "arithmetic": lambda: (x * 2 + 1).softmax(-1).to(torch.bfloat16) @ x.T.bfloat16(),
        "to_device": lambda: to_device([torch.ones(3), torch.arange(5), torch.ones(2) > 0], "cuda"),
    }
    found = {}
    for name, call in calls.items():
        with pretended.log() as log:
            call()
        found[name] = [event.kind for event in log.events]
    return found


def lean_forms() -> dict[str, tuple[Found, Found]]:
    """What is found to compute a known form, on the CPU and on the device, by the type of the maths."""
    return {
        precision: tuple(
            make_lean(tiny_llama().to(device), torch.device(device), precision) for device in ("cpu", "cuda")
        )
        for precision in ("no", "bf16")
    }


def copied() -> None:
    """What `to_device` returns is what it was given."""
    given = [
        torch.arange(5),
        torch.ones(2, 3, dtype=torch.bool),
        torch.empty(0, 4),
        torch.tensor(2.5, dtype=torch.float64),
    ]
    given += [torch.arange(6).view(2, 3).T, torch.ones(3, device="cuda")]
    made = to_device(given, "cuda")
    for before, after in zip(given, made, strict=True):
        assert after.device.type == "cuda" and after.dtype == before.dtype and torch.equal(after.cpu(), before.cpu())
