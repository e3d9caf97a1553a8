"""The rollouts that a run has recorded, and whether another run can be trained on them.

RUN/rollouts/N-R.safetensors    what rank R of the run had of rollout N, both counted from 0
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.config.fields import fields_of
from ft_host.config.old_names import of_record, old_names
from ft_host.errors import ConfigError, UsageError
from ft_host.rundir.folder import RunFolder

if TYPE_CHECKING:
    from ft_host.config.rollout import RolloutConfig

FOLDER = "rollouts"
NAME = re.compile(r"(\d+)-(\d+)\.safetensors")
ABOUT_ROLLOUTS = ("data", "rollouts", "generation")  # groups of fields that say what completions are
# Others in them, that say nothing of completions which are there already.
FREE = (
    "dataset",  # whose content is compared
    "eval_dataset",
    "dataset_test_split",
    "dataloader_num_workers",
    "decode_batch_size",
    "logged_completions",
    "record_rollouts",
    "replay",
    "steps_per_generation",
    "generation_batch_size",
    "num_iterations",
    "num_mini_batches",
)
# Fields of other groups, without which the token ids mean something else.
ABOUT_TOKENS = ("model_revision", "chat_template_path", "eos_token", "resize_token_embeddings")


def file_of(run: Path, number: int, rank: int) -> Path:
    """Return where rank `rank` of `run` keeps its part of a rollout."""
    return run / FOLDER / f"{number}-{rank}.safetensors"


def recorded(run: Path) -> list[int]:
    """Return the numbers of the rollouts that a run has recorded, in order."""
    folder = run / FOLDER
    found = (NAME.fullmatch(path.name) for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted({int(match[1]) for match in found if match})


def cut(run: Path, last: int) -> None:
    """Remove the rollouts after number `last`, which are about to be made again, and what a killed run left of
    others."""
    folder = run / FOLDER
    for path in folder.iterdir() if folder.is_dir() else ():
        match = NAME.fullmatch(path.name)
        if (match and int(match[1]) > last) or path.name.endswith(".tmp"):
            path.unlink()


def check_replay(config: RolloutConfig, reference: str, processes: int) -> list[str]:
    """Refuse to train on the rollouts of the run that `config.replay` names, where that means nothing: another method,
    other completions or rollouts of another size, and a run that has none. Returns sentences on what differs.

    `reference` is the method's, `processes` how many will train. Raises UsageError or ConfigError.
    """
    folder = RunFolder.open(config.replay)
    record = folder.manifest
    if record.get("reference") != reference:
        raise ConfigError(
            f"replay: {folder.path} is a run of {record.get('reference')}, and this one is of {reference}: its "
            "rollouts are made for its own method"
        )
    _check_there(folder)
    said = _check_fields(folder, config)
    _check_size(folder, config, processes)
    return said


def _check_there(folder: RunFolder) -> None:
    """Raise UsageError, which says why, for a run without recorded rollouts."""
    run = folder.path
    numbers = recorded(run)
    values = folder.manifest.get("config", {})
    if numbers:
        lacking = sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers))
        if lacking:
            raise UsageError(
                f"replay: {run / FOLDER} lacks rollout {lacking[0]}, and has others up to {numbers[-1]}: its files "
                "were removed"
            )
        return
    if values.get("replay"):
        why = f"it trained on those of {values['replay']}; replay that run"
    elif "rollouts" not in values:
        why = "it has none, or an ft-host before 0.7 made it"
    elif values["rollouts"] == "sync" and not values.get("record_rollouts"):
        why = "rollouts: sync records them only with record_rollouts: true"
    elif values.get("record_rollouts") is False:
        why = "record_rollouts was false"
    elif not (run / FOLDER).is_dir():
        why = f"it has no folder {FOLDER}: it was stopped before the first one, or the folder was removed"
    else:
        why = f"{run / FOLDER} is empty"
    raise UsageError(f"replay: {run} has no recorded rollouts: {why}")


def _check_fields(folder: RunFolder, config: RolloutConfig) -> list[str]:
    """Raise ConfigError, which names each field that made the rollouts what they are and has another value now."""
    fields = fields_of(type(config))
    names = of_record(folder.manifest["config"], old_names(type(config)))
    was = {names.get(name, name): value for name, value in folder.manifest["config"].items()}
    now = dataclasses.asdict(config)
    changed = [name for name in fields if name in was and was[name] != now[name]]
    fixed = [name for name in changed if _is_fixed(fields[name].group, name)]
    if fixed:
        words = ", ".join(f"{name} ({was[name]!r} then, {now[name]!r} now)" for name in fixed)
        raise ConfigError(
            f"replay: the rollouts of {folder.path} are as they are, and so can't have another {words}. Fields of the "
            "training may differ: learning_rate, the loss, precision, processes"
        )
    own = [name for name in changed if fields[name].group == "method"]
    if not own:
        return []
    words = ", ".join(f"{name} {was[name]!r} then and {now[name]!r} now" for name in own)
    return [
        f"{words}: the loss uses what is set now; what was made of the completions as they were sampled (rewards, "
        f"advantages) is that of {folder.path}"
    ]


def _is_fixed(group: str, name: str) -> bool:
    return name in ABOUT_TOKENS or (group in ABOUT_ROLLOUTS and name not in FREE)


def _check_size(folder: RunFolder, config: RolloutConfig, processes: int) -> None:
    plan: dict[str, Any] | None = (folder.manifest.get("plan") or {}).get("rollout")
    now = config.rollout_plan(processes)
    if plan and (plan["prompts"], plan["rows"]) != (now.prompts, now.rows):
        raise ConfigError(
            f"replay: a rollout of {folder.path} has {plan['prompts']} prompts and {plan['rows']} rows, and would now "
            f"have {now.prompts} and {now.rows} ({config.per_device_train_batch_size} a device × "
            f"{config.gradient_accumulation_steps} accumulated × {processes} processes); change "
            "per_device_train_batch_size or gradient_accumulation_steps with the number of processes"
        )
