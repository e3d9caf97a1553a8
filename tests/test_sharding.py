"""Two processes, each with some of the rows, have the losses and gradients of one with all of them. A model of which
each reads its own part is the one that each would have read whole.

The two processes run this file as a script, once for all cases, on CPUs over gloo.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from ft_host.batch import Batch, Segment, flat_batch
from ft_host.config import RunConfig
from ft_host.errors import ConfigError
from ft_host.models import Policy, add_reference_adapter, attach_value, load_policy, save_model, shard
from ft_host.models.adapter_folder import copy_adapter
from ft_host.models.shards import whole_state
from ft_host.testing import models, vision
from ft_host.types import ModelSpec

CPU = torch.device("cpu")
WORLD = 2
LORA = {"use_peft": True, "lora_r": 4}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "full, untied": ("llama", {}),
    "full, tied": ("qwen", {}),
    "full, tied, checkpointed": ("qwen", {"gradient_checkpointing": True}),
    "experts": ("moe", {"router_aux_loss_coef": 0.5}),
    "LoRA, untied": ("llama", LORA),
    "LoRA, tied": ("qwen", LORA),
    "LoRA, tied, head too": ("qwen", LORA | {"lora_target_modules": ["q_proj", "lm_head"]}),
    "LoRA, head saved": ("llama", LORA | {"lora_modules_to_save": ["lm_head"]}),
    "LoRA, checkpointed": ("llama", LORA | {"gradient_checkpointing": True}),
    "rectangle": ("llama", {"segment_attention": "none"}),
}
WAYS = ("fsdp2", "ddp")
# Rows of each rank's micro-batches; the second rank has nothing left for the second one.
SPLIT = [[[0, 2], [4]], [[1, 3], []]]


def prepared(folder: Path, fields: dict[str, Any]) -> Policy:
    torch.manual_seed(0)  # an adapter starts at random, the same on every rank
    policy = load_policy(RunConfig(model=str(folder), **fields), models.tiny_tokenizer(), CPU)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # away from where half of an adapter's gradients are zero
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return policy


def rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 256, (length,), generator=generator).tolist() for length in (9, 17, 2, 12, 20)]


def batch_of(indices: list[int]) -> Batch:
    chosen = [rows()[index] for index in indices]
    segments = [Segment(input_ids=row, labels=row, row=index) for index, row in enumerate(chosen)]
    return flat_batch(segments, num_rows=len(chosen))


TARGETS = sum(len(row) - 1 for row in rows())


def dft(values: dict[str, torch.Tensor], part: slice) -> torch.Tensor:
    return -values["logp"].detach().exp() * values["logp"]


def loss_of(model: Any, policy: Policy, indices: list[int], way: str) -> torch.Tensor:
    """This micro-batch's part of the step's loss, as a sum. `way`: "nll" makes the gradient in the forward."""
    batch = batch_of(indices)
    if way == "nll":
        loss = model(batch, loss=dft)["loss"] / TARGETS
    else:
        logp = model(batch)["logp"]
        loss = -(logp.detach().exp() * logp).sum() / TARGETS
    if policy.aux_loss is not None:
        loss = loss + policy.router_aux_loss_coef * policy.aux_loss * len(indices) / len(rows())
    return loss


def step(model: Any, policy: Policy, micro_batches: list[list[int]], way: str, scale: float) -> list[float]:
    """Forward and backward of each. Gives their losses."""
    losses = []
    for indices in micro_batches:
        loss = loss_of(model, policy, indices, way)
        (loss * scale).backward()
        losses.append(float(loss.detach()))
    return losses


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def grads_of(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: whole(p.grad) for name, p in policy.named_parameters() if p.grad is not None}


# ---------------------------------------------------------------- in each of the two processes


def worker(folder: Path, rank: int) -> None:
    from torch.nn.parallel import DistributedDataParallel

    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    results = {}
    for case, (name, fields) in CASES.items():
        for strategy in WAYS:
            config = RunConfig(model=str(folder / name), distributed_strategy=strategy, **fields)
            policy = prepared(folder / name, fields)
            model = shard(policy, config) if strategy == "fsdp2" else DistributedDataParallel(policy)
            optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.1)
            entry: dict[str, Any] = {}
            for way in ("logp", "nll"):
                optimizer.zero_grad()
                # DDP and FSDP2 average over ranks; the loss is a sum over them
                entry[f"losses {way}"] = step(model, policy, SPLIT[rank], way, WORLD)
                entry[f"grads {way}"] = grads_of(policy)
            optimizer.step()
            with torch.no_grad():
                # ranks evaluate different numbers of rows, and take part in each other's forwards
                entry["after"] = [float(loss_of(model, policy, indices, "nll")) for indices in SPLIT[rank]]
            state = whole_state(policy) if strategy == "fsdp2" else None
            if rank == 0:
                save_model(policy, folder / strategy / case, state)
            results[strategy, case] = entry
    config = RunConfig(model=str(folder / "qwen"), distributed_strategy="fsdp2", bf16=True)
    half = prepared(folder / "qwen", {})
    model = shard(half, config)
    assert all(isinstance(p, DTensor) and p.dtype == torch.float32 for p in half.parameters())
    results["bfloat16"] = {"losses nll": step(model, half, SPLIT[rank], "nll", WORLD), "grads nll": grads_of(half)}
    torch.save(results, folder / f"rank-{rank}.pt")
    worker_of_cuts(folder, rank)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharding")
    for name in {name for name, _ in CASES.values()}:
        models.save_tiny(folder / name, getattr(models, f"tiny_{name}")())
    save_models(folder)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, str(folder), str(rank)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        outputs = [process.communicate(timeout=1500)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return folder


# ---------------------------------------------------------------- and in one


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_as_one(ran, case):
    name, fields = CASES[case]
    policy = prepared(ran / name, fields)
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.1)
    expected: dict[str, Any] = {}
    for way in ("logp", "nll"):
        optimizer.zero_grad()
        expected[f"losses {way}"] = [step(policy, policy, mine, way, 1.0) for mine in SPLIT]
        expected[f"grads {way}"] = grads_of(policy)
    assert expected["losses nll"][1][1] == 0 and all(grad.any() for grad in expected["grads nll"].values())
    if policy.aux_loss is None:  # then the split doesn't matter either
        optimizer.zero_grad()
        everything = step(policy, policy, [[0, 1, 2, 3, 4]], "nll", 1.0)
        assert everything[0] == pytest.approx(sum(map(sum, expected["losses nll"])), rel=1e-6)
        assert_close(grads_of(policy), expected["grads nll"])
    optimizer.step()
    with torch.no_grad():
        after = [[float(loss_of(policy, policy, indices, "nll")) for indices in mine] for mine in SPLIT]

    for rank in range(WORLD):
        results = torch.load(ran / f"rank-{rank}.pt")
        for strategy in WAYS:
            found = results[strategy, case]
            for way in ("logp", "nll"):
                assert found[f"losses {way}"] == pytest.approx(expected[f"losses {way}"][rank], rel=1e-6, abs=1e-8)
                assert_close(found[f"grads {way}"], expected[f"grads {way}"], f"{strategy}, rank {rank}, {way}")
            assert found["after"] == pytest.approx(after[rank], rel=1e-5, abs=1e-8)

    # what the first process saved is the model that one process has
    with torch.no_grad():
        logp = policy(batch_of([0, 1, 2, 3, 4]))["logp"]
        for strategy in WAYS:
            config = RunConfig(model=str(ran / strategy / case), use_peft=fields.get("use_peft", False))
            again = load_policy(config, models.tiny_tokenizer(), CPU)
            torch.testing.assert_close(again(batch_of([0, 1, 2, 3, 4]))["logp"], logp, rtol=1e-5, atol=1e-5)


def test_shards_in_bfloat16(ran):
    """The maths in bfloat16, over float32 shards, with float32 gradients: near to all in float32."""
    policy = prepared(ran / "qwen", {})
    losses = [step(policy, policy, mine, "nll", 1.0) for mine in SPLIT]
    expected = grads_of(policy)
    for rank in range(WORLD):
        found = torch.load(ran / f"rank-{rank}.pt")["bfloat16"]
        assert found["losses nll"] == pytest.approx(losses[rank], rel=0.1, abs=1e-8)
        for name, wanted in expected.items():
            assert found["grads nll"][name].dtype == torch.float32
            assert (found["grads nll"][name] - wanted).norm() < 0.25 * wanted.norm(), name


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], where: str = "one process") -> None:
    assert found.keys() == expected.keys(), where
    for name, wanted in expected.items():
        error = (found[name] - wanted).norm() / wanted.norm()
        assert error < 1e-5, f"{where}: gradients of {name} differ by {error:.2g}"


# ---------------------------------------------------------------- each rank reads its own rows

# A folder, fields, a head, what is added to the policy, and which parameters are whole on every rank until they are
# sharded: those that come from no file, and those that are changed before.
NEW = r"lora_[AB]"
CUT: dict[str, tuple[str, dict[str, Any], str | None, str, str]] = {
    "untied": ("llama", {}, None, "", ""),
    "tied": ("qwen", {}, None, "", ""),
    "rows that don't divide": ("odd", {}, None, "", ""),
    "experts by themselves, in an index of files": ("index", {"router_aux_loss_coef": 0.5}, None, "", ""),
    "layers in layers, padded": ("mamba", {}, None, "", ""),
    "a tower that no text goes through": ("gemma3", {}, None, "", ""),
    "in the files' type": ("half", {"dtype": "auto"}, None, "", ""),
    "more tokens": ("qwen", {"resize_token_embeddings": True}, None, "", "embed_tokens"),
    "new score": ("qwen", {}, "reward", "", "score"),
    "saved score": ("classifier", {}, "reward", "", ""),
    "value head": ("qwen", {}, None, "value head", r"value\.value"),
    "value model, LoRA": ("qwen", LORA, None, "value model", NEW + "|score"),
    "LoRA": ("llama", LORA, None, "", NEW),
    "LoRA left out where no text goes": ("llama4", LORA, None, "", NEW),
    "LoRA on experts": ("moe", LORA | {"lora_target_parameters": ["experts.gate_up_proj"]}, None, "", NEW),
    "LoRA, half base, head saved": ("llama", LORA | {"bf16": True, "lora_modules_to_save": ["lm_head"]}, None, "", NEW),
    "DoRA": ("qwen", LORA | {"use_dora": True}, None, "", NEW),
    "DoRA, columns": ("gpt2", LORA | {"use_dora": True, "lora_target_modules": ["c_attn"]}, None, "", NEW + "|c_|magn"),
    "adapter with a head, as a reference too": ("adapter", LORA, None, "reference", NEW),
    "adapter that follows": ("llama", LORA, None, "copy", NEW),
    "adapter made off its base": ("pissa", LORA, None, "reference", "."),
}
BROKEN = ("lacking", "misshapen")


def save_models(folder: Path) -> None:
    """Write the models of CUT that CASES hasn't, and of BROKEN."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file

    made = {
        "odd": models.tiny_qwen(vocab_size=257, hidden_size=60, head_dim=10, intermediate_size=33),
        "mamba": models.tiny_mamba(),
        "gemma3": vision.tiny_gemma3(),
        "llama4": vision.tiny_llama4_text(),
        "half": models.tiny_qwen().to(torch.bfloat16),
        "gpt2": models.tiny_gpt2(),
        "classifier": models.as_classifier(models.tiny_qwen()),
        "index": models.tiny_moe(),
        "lacking": models.tiny_llama(),
        "misshapen": models.tiny_llama(),
    }
    for name, model in made.items():
        models.save_tiny(folder / name, model)
    (folder / "index/model.safetensors").unlink()
    made["index"].save_pretrained(folder / "index", max_shard_size="50KB")
    assert (folder / "index/model.safetensors.index.json").is_file()
    for name, key in (("lacking", "model.layers.1.mlp.up_proj.weight"), ("misshapen", "model.norm.weight")):
        file = folder / name / "model.safetensors"
        tensors = load_file(file)
        tensors[key] = tensors[key][:-1].clone()  # one row less: only one of the ranks has fewer
        if name == "lacking":
            del tensors[key]
        save_file(tensors, file, metadata={"format": "pt"})
    for name, fields in (
        ("adapter", {"modules_to_save": ["lm_head"], "use_dora": True}),
        ("pissa", {"init_lora_weights": "pissa"}),
    ):
        settings = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **fields)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            model = get_peft_model(models.auto_class("CAUSAL_LM").from_pretrained(folder / "llama"), settings)
        models.disturb(model)
        model.save_pretrained(folder / name)
        models.tiny_tokenizer().save_pretrained(folder / name)


def loaded(folder: Path, case: str, sharded: bool) -> tuple[Policy, RunConfig, dict[str, torch.Tensor]]:
    """The policy before it is sharded, its config, and what is whole in it."""
    name, fields, head, added, _ = CUT[case]
    config = RunConfig(model=str(folder / name), distributed_strategy="fsdp2", **fields)
    tokenizer = models.tiny_tokenizer(261 if config.resize_token_embeddings else 256)
    torch.manual_seed(0)
    policy = load_policy(config, tokenizer, CPU, head=head, sharded=sharded)
    if added == "reference":
        add_reference_adapter(policy, folder / name)
    elif added == "copy":
        copy_adapter(policy)
    elif added:
        spec = ModelSpec(head="value", trained=True, shares_policy=added == "value head", field="value_model")
        attach_value(policy, spec, config, tokenizer, CPU, sharded)
    plain = {name: each for name, each in policy.named_parameters() if not isinstance(each, DTensor)}
    return policy, config, plain


def told(policy: Policy, config: RunConfig, rank: int) -> dict[str, Any]:
    """All that must not depend on how a sharded policy was loaded, with a forward and a backward pass of it."""
    parameters = dict(policy.named_parameters())
    out: dict[str, Any] = {
        "tensors": {name: whole(each.detach()).clone() for name, each in parameters.items()},
        "buffers": {name: each.clone() for name, each in policy.named_buffers()},
        "trained": {name: each.requires_grad for name, each in parameters.items()},
        "random state": {"": torch.get_rng_state()},
        "kernel, lean layers": (policy.kernel, vars(policy.lean), policy.training, policy.unreached, policy.recomputes),
        "notes": [note for note in policy.notes if not note.startswith("every rank loads the whole base")],
    }
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=bool(config.bf16)):
        if policy.head is not None:
            values = policy(batch_of(SPLIT[rank][0]), want=("score",))["score"]
        elif policy.companions:
            both = policy(batch_of(SPLIT[rank][0]), want=("logp", "value"))
            values = both["logp"] + both["value"]
        else:
            values = torch.tensor(step(policy, policy, SPLIT[rank], "nll", WORLD))
        if values.requires_grad:
            values.sum().backward()
    return out | {"values": {"": values.detach()}, "gradients": grads_of(policy)}


def differing(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Where two of them differ, to the bit."""
    out = []
    for kind, wanted in expected.items():
        if not isinstance(wanted, dict) or kind == "trained":
            out += [] if found[kind] == wanted else [f"{kind}: {found[kind]}, {wanted}"]
            continue
        out += [] if list(found[kind]) == list(wanted) else [f"{kind}: other names"]
        same = {name: torch.equal(each, found[kind][name]) for name, each in wanted.items() if name in found[kind]}
        out += [f"{kind}: {name}" for name, equal in same.items() if not equal]
    return out


def worker_of_cuts(folder: Path, rank: int) -> None:
    results: dict[str, Any] = {}
    for case in CUT:
        policy, config, _ = loaded(folder, case, sharded=False)
        expected = told(shard(policy, config), config, rank)
        policy, config, plain = loaded(folder, case, sharded=True)
        rows = [each.to_local() for each in policy.parameters() if isinstance(each, DTensor)]
        results[case] = {
            "whole": list(plain),
            "cut": len(rows),
            "held": sum(each.untyped_storage().nbytes() for each in rows) / max(1, sum(each.nbytes for each in rows)),
            "before": policy.layout_difference,
        }
        found = told(shard(policy, config), config, rank)
        results[case] |= {"differing": differing(found, expected), "gradients": len(found["gradients"])}
        results[case]["sharded"] = all(isinstance(each, DTensor) for each in policy.parameters())
    for name in BROKEN:
        config = RunConfig(model=str(folder / name), distributed_strategy="fsdp2")
        try:
            load_policy(config, models.tiny_tokenizer(), CPU, sharded=True)
        except ConfigError as error:
            results[name] = str(error)
    torch.save(results, folder / f"cut-{rank}.pt")


@pytest.mark.parametrize("case", CUT)
def test_rows_read_by_each_rank_are_those_of_the_whole_model(ran, case):
    """Weights, buffers, random states, losses and gradients are those of a model that every rank loaded whole, to the
    bit; and until it is sharded a rank holds no more than its rows."""
    *_, expected = CUT[case]
    for rank in range(WORLD):
        found = torch.load(ran / f"cut-{rank}.pt")[case]
        assert not found["differing"] and found["gradients"] and found["sharded"]
        assert all(expected and re.search(expected, name) for name in found["whole"]), found["whole"]
        if case != "adapter made off its base":  # which is loaded whole
            assert found["cut"] > 10 and found["held"] == 1
            assert found["before"] is None  # it can't be called before


@pytest.mark.parametrize("name", BROKEN)
def test_a_model_that_does_not_fit_is_refused_on_every_rank_as_by_one_process(ran, name):
    with pytest.raises(ConfigError) as refused:
        load_policy(RunConfig(model=str(ran / name)), models.tiny_tokenizer(), CPU)
    assert "model.layers.1.mlp.up_proj.weight" in str(refused.value) or "(63,)" in str(refused.value)
    for rank in range(WORLD):
        assert torch.load(ran / f"cut-{rank}.pt")[name] == str(refused.value)


if __name__ == "__main__":
    worker(Path(sys.argv[1]), int(sys.argv[2]))
