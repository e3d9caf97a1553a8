"""The same training by TRL, step by step: what the numbers of a method are compared with. Only tests need TRL.

    ours = lines(run_in(config, "ours"))
    args = trl.SFTConfig(**trl_arguments(config, "loss_type", "packing"))
    theirs = trl_trajectory(trl.SFTTrainer(args=args, ...))
    assert_parity(ours, theirs)

Run ours first: nothing that TRL may do to the process can then reach it.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ft_host.config import RunConfig

Line = dict[str, Any]

# Fields that have the same name and meaning in transformers' TrainingArguments, beside those of a method.
SHARED = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "num_train_epochs",
    "max_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed", "use_cpu", "train_sampling_strategy",
)  # fmt: skip

# Relative. Two float32 programs that add in another order agree to about 1e-6; a gradient's norm to 1e-5.
TOLERANCES = {"loss": 1e-5, "grad_norm": 1e-4, "learning_rate": 1e-9, "num_tokens": 0.0}


def trl_arguments(config: RunConfig, *names: str) -> dict[str, Any]:
    """What a TRL config must be given to do what `config` does: the shared fields and, by name, the method's own that
    are called the same there. Float32, a log line a step, nothing saved, no gradient checkpointing.

    Raises ValueError for rows in random order: TRL shuffles them another way.
    """
    if config.train_sampling_strategy != "sequential":
        raise ValueError("train_sampling_strategy: the order of rows must be 'sequential' for a comparison with TRL")
    fields = asdict(config)
    return {name: fields[name] for name in (*SHARED, *names)} | {
        "output_dir": str(Path(config.output_dir) / "trl"),
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "logging_strategy": "steps",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def trl_trajectory(trainer: Any) -> list[Line]:
    """Train, and give what TRL (or any transformers Trainer) logged at each step, in the form of metrics.jsonl."""
    trainer.train()
    return [{"kind": "train", **entry} for entry in trainer.state.log_history if "loss" in entry]


def forget_accelerate() -> None:
    """Undo what a Trainer leaves in accelerate's process-wide state, which another Trainer or run would inherit."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def relative(a: float, b: float) -> float:
    return 0.0 if a == b else abs(a - b) / max(abs(a), abs(b))


def differences(ours: list[Line], theirs: list[Line], names: tuple[str, ...]) -> dict[str, float]:
    """The largest relative difference of each metric over all steps. The steps must be the same."""
    steps = [line["step"] for line in ours]
    assert steps and steps == [line["step"] for line in theirs], f"{steps} and {[line['step'] for line in theirs]}"
    return {name: max(relative(a[name], b[name]) for a, b in zip(ours, theirs, strict=True)) for name in names}


def assert_parity(ours: list[Line], theirs: list[Line], **tolerances: float) -> dict[str, float]:
    """Loss, gradient norm, learning rate and token count of each step are those of TRL, and the further metrics that
    are named with their relative tolerance. Gives the largest differences, and prints them (`pytest -rP` shows it).
    """
    allowed = TOLERANCES | tolerances
    found = differences(ours, theirs, tuple(allowed))
    print("largest relative differences: " + ", ".join(f"{name} {value:.1e}" for name, value in found.items()))
    for name, value in found.items():
        both = [(a[name], b[name]) for a, b in zip(ours, theirs, strict=True)]
        assert value <= allowed[name], f"{name}: relative difference {value:.2e} > {allowed[name]:g}; by step: {both}"
    return found
