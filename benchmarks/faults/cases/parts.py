"""Faults of code and of the machine: parts that are broken on purpose (`broken_parts`)."""

from __future__ import annotations

from cases.kinds import Kind, Times

CODE, MACHINE = ("code",), ("machine",)
TWO = ("transduction", "lookup")  # enough for what doesn't depend on the task
STALE = ("GRPO", "RLOO", "ENG", "PRB003", "OPT")

KINDS = [
    # -- weights and gradients
    Kind(name="sft-nan-layer", method="sft", what="a layer gives NaN from step 41 on",
         patch=("nan_layer", {"after": 40}), at_fault=CODE, cause=("NUM001",), visible=41),
    Kind(name="grpo-nan-layer", method="grpo", what="a layer gives NaN from step 21 on", families=TWO,
         patch=("nan_layer", {"after": 20}), at_fault=CODE, cause=("NUM001",), beside=("GRPO", "ENG"), visible=21),
    Kind(name="sft-detached", method="sft", what="gradients don't pass the last layer", patch=("detached", {}),
         at_fault=CODE, cause=("PRB006",), beside=("OPT",)),
    Kind(name="sft-frozen", method="sft", what="all weights but the embeddings are frozen", config={"model": "@model/start"},
         patch=("frozen", {"keep": "embed"}), at_fault=CODE, cause=("PRB006",), beside=("OPT",)),
    Kind(name="dpo-frozen", method="dpo", what="all weights but those of norms are frozen", patch=("frozen", {"keep": "norm"}),
         families=("arithmetic", "transduction"), at_fault=CODE, cause=("PRB006",), beside=("OPT", "DPO003")),
    Kind(name="sft-lora-frozen", method="sft", what="the adapter is frozen in all layers but one",
         config={"model": "@model/start", "use_peft": True, "lora_r": 8, "lora_alpha": 16, "learning_rate": 3e-3},
         patch=("frozen", {"keep": "layers.1."}), at_fault=CODE, cause=("PRB006",), beside=("OPT",)),
    Kind(name="sft-no-updates", method="sft", what="the optimizer changes nothing", patch=("no_updates", {}), at_fault=CODE,
         cause=("OPT007", "PRB006"), partly=("OPT005",), beside=("OPT",)),
    Kind(name="sft-small-gradients", method="sft", what="gradients come out a million times too small",
         patch=("small_gradients", {"by": 1e6}), at_fault=CODE, cause=("OPT002",), partly=("OPT005", "OPT007"),
         beside=("OPT", "PRB")),
    # -- sampler
    Kind(name="grpo-never-synced", method="grpo", what="the sampler keeps the first weights",
         config={"learning_rate": Times(2), "warmup_steps": 0}, patch=("stale_sampler", {"after": 0}), at_fault=CODE,
         cause=("ENG004", "ENG001"), beside=STALE),
    Kind(name="grpo-sync-stops", method="grpo", what="the sampler gets no weights after step 20",
         config={"learning_rate": Times(2)}, patch=("stale_sampler", {"after": 20}), at_fault=CODE,
         cause=("ENG001", "ENG002", "ENG004"), beside=STALE, visible=22),
    Kind(name="rloo-never-synced", method="rloo", what="the sampler keeps the first weights",
         config={"learning_rate": Times(2), "warmup_steps": 0}, patch=("stale_sampler", {"after": 0}), families=TWO,
         at_fault=CODE, cause=("ENG004", "ENG001"), beside=STALE),
    Kind(name="grpo-other-temperature", method="grpo", what="the sampler has another temperature than the loss",
         config={"max_steps": 40}, patch=("other_temperature", {"factor": 1.6}), at_fault=CODE,
         cause=("PRB003", "ENG001"), beside=("GRPO", "ENG"), visible=0),
    # -- time and memory
    Kind(name="sft-slow-loader", method="sft", what="rows are read slowly", patch=("slow_rows", {"seconds": 0.004}),
         config={"max_steps": 60}, families=TWO, at_fault=("machine", "dataloader_num_workers"), cause=("PERF004",)),
    Kind(name="sft-memory-leak", method="sft", what="four megabytes a step are never given back", families=TWO,
         patch=("hoarding", {"megabytes": 4}), at_fault=CODE, cause=("PERF003",), beside=("SYS003",)),
    Kind(name="sft-slow-checkpoints", method="sft", what="a checkpoint every second step on a slow disk", families=TWO,
         config={"save_steps": 2, "max_steps": 60}, patch=("slow_saving", {"seconds": 0.1}),
         at_fault=("machine", "save_steps"), cause=("PERF009",)),
    Kind(name="sft-slows-down", method="sft", what="from step 61 on each step takes several times as long", families=TWO,
         patch=("slow_steps", {"after": 60, "seconds": 0.15}), at_fault=MACHINE, cause=("PERF006",), beside=("PERF",),
         visible=61),
]
