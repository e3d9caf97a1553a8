"""The same training by TRL, step by step, to compare a method's numbers with. Only tests need TRL.

    ours = lines(run_in(config, "ours"))
    args = trl.SFTConfig(**trl_arguments(config, "loss_type", "packing"))
    trainer = trl.SFTTrainer(model=trl_model(config), args=args, train_dataset=trl_rows(config.dataset), ...)
    theirs = trl_trajectory(trainer)
    assert_parity(ours, theirs)

Run ours first, so that it isn't affected by what TRL changes in the process.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ft_host.config import RunConfig
from ft_host.testing.invariants import tensors
from ft_host.testing.models import auto_class

Line = dict[str, Any]

# Fields that have the same name and meaning in transformers' TrainingArguments, beside those of a method.
SHARED = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "seed",
    "use_cpu",
    "train_sampling_strategy",
)

# Relative. Two float32 programs with another order of additions agree to about 1e-6; a gradient's norm to 1e-5.
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


def trl_model(config: RunConfig, task_type: str = "CAUSAL_LM") -> Any:
    """The model to give to TRL for what `config` trains, in `config.model`. With `use_peft` that must be the folder of
    an adapter to go on with: a new one would be drawn from other random numbers there. `task_type` SEQ_CLS: a
    classifier.
    """
    from peft import PeftConfig, PeftModel

    auto = auto_class(task_type)
    if not config.use_peft:
        return auto.from_pretrained(config.model)
    base = PeftConfig.from_pretrained(config.model).base_model_name_or_path
    return PeftModel.from_pretrained(auto.from_pretrained(base), config.model, is_trainable=True)


def trl_rows(file: Path | str) -> Any:
    """The rows of a file of JSON lines, as the `datasets.Dataset` that TRL takes."""
    from datasets import Dataset

    lines = Path(file).read_text(encoding="utf-8").split("\n")  # a text may hold what splitlines() cuts at
    return Dataset.from_list([json.loads(line) for line in lines if line])


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
    """The difference of two numbers as a share of the larger one; 0 where they are equal."""
    return 0.0 if a == b else abs(a - b) / max(abs(a), abs(b))


def differences(ours: list[Line], theirs: list[Line], names: tuple[str, ...]) -> dict[str, float]:
    """The largest relative difference of each metric over all steps. The steps must be the same."""
    steps = [line["step"] for line in ours]
    assert steps and steps == [line["step"] for line in theirs], f"{steps} and {[line['step'] for line in theirs]}"
    return {name: max(relative(a[name], b[name]) for a, b in zip(ours, theirs, strict=True)) for name in names}


def assert_parity(ours: list[Line], theirs: list[Line], **tolerances: float | None) -> dict[str, float]:
    """Loss, gradient norm, learning rate and token count of each step are those of TRL, and the further metrics that
    are named with their relative tolerance. None leaves a metric out: some of TRL's trainers count no tokens. Gives the
    largest differences, and prints them (`pytest -rP` shows it).
    """
    given = TOLERANCES | tolerances
    allowed = {name: value for name, value in given.items() if value is not None}
    found = differences(ours, theirs, tuple(allowed))
    print("largest relative differences: " + ", ".join(f"{name} {value:.1e}" for name, value in found.items()))
    for name, value in found.items():
        both = [(a[name], b[name]) for a, b in zip(ours, theirs, strict=True)]
        assert value <= allowed[name], f"{name}: relative difference {value:.2e} > {allowed[name]:g}; by step: {both}"
    return found


def assert_same_training(start: Path | str, ours: Path, theirs: Any, rel: float = 1e-3) -> None:
    """Each tensor of the model (or adapter) in the folder `ours` went from that in the folder `start` to where the
    trained model `theirs` has it, within `rel` of how far it went. One that was not trained is an error too.
    """
    import torch

    state = theirs.state_dict()
    # what peft has of an adapter, under the names it saves
    adapter = {name: value for name, value in state.items() if "default" in name}
    adapter = {name.replace(".modules_to_save", "").replace(".default", ""): value for name, value in adapter.items()}
    trained, begun = adapter or state, tensors(Path(start))
    for name, value in tensors(ours).items():
        # Adam divides by the size of a gradient: where that is near nothing, its round-off is all there is to see. So
        # what is compared is how far all of a tensor moved, not each element.
        moved = torch.linalg.vector_norm(trained[name] - begun[name])
        assert moved > 0, f"{name} was not trained"
        assert torch.linalg.vector_norm(value - trained[name]) <= rel * moved, name
