"""Values that other tools' fields have and ours don't: what to write in their place. Errors use them as answers."""

from __future__ import annotations

TRACKER = "accelerate, which sends the metrics, has no tracker of this name"
# Optimizers of transformers, by import path where a class of that shape exists: `optim` takes these names too.
PATHS = {
    "adamw_hf": "adamw",
    "adamw_torch_xla": "adamw",
    "adamw_torch_npu_fused": "adamw",
    "adamw_apex_fused": "adamw",
    "adamw_anyprecision": "torchdistx.optimizers:AnyPrecisionAdamW",
    "adamw_torch_4bit": "torchao.optim:AdamW4bit",
    "adamw_torch_8bit": "torchao.optim:AdamW8bit",
    "adamw_bnb_8bit": "bitsandbytes.optim:AdamW8bit",
    "adamw_8bit": "bitsandbytes.optim:AdamW8bit",
    "paged_adamw": "bitsandbytes.optim:PagedAdamW",
    "paged_adamw_32bit": "bitsandbytes.optim:PagedAdamW32bit",
    "paged_adamw_8bit": "bitsandbytes.optim:PagedAdamW8bit",
    "ademamix": "bitsandbytes.optim:AdEMAMix",
    "ademamix_8bit": "bitsandbytes.optim:AdEMAMix8bit",
    "paged_ademamix_32bit": "bitsandbytes.optim:PagedAdEMAMix32bit",
    "paged_ademamix_8bit": "bitsandbytes.optim:PagedAdEMAMix8bit",
    "lion": "bitsandbytes.optim:Lion",
    "lion_32bit": "bitsandbytes.optim:Lion32bit",
    "lion_8bit": "bitsandbytes.optim:Lion8bit",
    "paged_lion_32bit": "bitsandbytes.optim:PagedLion32bit",
    "paged_lion_8bit": "bitsandbytes.optim:PagedLion8bit",
    "rmsprop": "torch.optim:RMSprop",
    "rmsprop_bnb": "bitsandbytes.optim:RMSprop",
    "rmsprop_bnb_8bit": "bitsandbytes.optim:RMSprop8bit",
    "rmsprop_bnb_32bit": "bitsandbytes.optim:RMSprop32bit",
    "adagrad": "torch.optim:Adagrad",
    "adam": "torch.optim:Adam",
    "muon": "torch.optim:Muon",
    "torch_adafactor": "torch.optim:Adafactor",
    "schedule_free_adamw": "schedulefree:AdamWScheduleFree",
    "schedule_free_radam": "schedulefree:RAdamScheduleFree",
    "schedule_free_sgd": "schedulefree:SGDScheduleFree",
    "stable_adamw": "optimi:StableAdamW",
    "grokadamw": "grokadamw:GrokAdamW",
}
GROUPED = "it needs groups of its own and hooks on the weights, which no path gives; LoRA takes as little memory"
FUSED = "it updates within the backward pass, which a step here doesn't do"
WITHOUT = {"galore": GROUPED, "apollo": GROUPED, "lomo": FUSED, "adalomo": FUSED}
VALUES: dict[str, dict[str, str]] = {
    "lr_scheduler_type": {
        "reduce_lr_on_plateau": "it follows a metric, and a schedule here is a function of the step",
        "greedy": "it follows a metric, and a schedule here is a function of the step",
        "warmup_stable_decay_lr": "warmup_stable_decay",
    },
    "report_to": dict.fromkeys("azure_ml codecarbon neptune dagshub flyte kubeflow".split(), TRACKER),
    "train_sampling_strategy": {"batch_group_by_length": "group_by_length"},
}


def value_hint(field: str, value: object) -> str | None:
    """What another tool's value of a field is here, or why there is none. None for a value that isn't known."""
    return VALUES.get(field, {}).get(value) if isinstance(value, str) else None


def optimizer_hint(name: str) -> str | None:
    """What is written for one of transformers' optimizers, or why there is none. None for a name that isn't known."""
    for beginning, reason in WITHOUT.items():
        if name.startswith(beginning):
            return reason
    return None
