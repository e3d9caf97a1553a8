"""Remedies that rules share, and which of them a run can take. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ft_host.config.old_names import warn
from ft_host.config.run import OLD_NAMES
from ft_host.diagnostics.rule import Remedy
from ft_host.diagnostics.view import View, rounded, short

LOSS_FALLS, REWARD_RISES = "a loss that falls within the first steps", "a reward that rises"
LOOK_AT_REWARD = Remedy(why="Try the reward by hand on a right, a wrong and an empty completion")


# ---------------------------------------------------------------- the size of updates


def lower_rate(view: View, by: float = 2, why: str = "") -> Remedy:
    """The remedy that divides learning_rate by `by`. `why` is added to its sentence."""
    now = view.config.learning_rate
    new = rounded(now / by)
    return Remedy(
        why=f"Lower learning_rate from {short(now)} to {short(new)}{why}",
        patch={"learning_rate": new},
        expected="smaller updates",
    )


def raise_rate(view: View, by: float = 3, expected: str = REWARD_RISES) -> Remedy:
    """The remedy that multiplies learning_rate by `by`, from the start of the run."""
    now = view.config.learning_rate
    new = rounded(now * by)
    return Remedy(
        why=f"Raise learning_rate from {short(now)} to {short(new)}",
        patch={"learning_rate": new},
        again=True,
        expected=expected,
    )


def warm_up(view: View) -> list[Remedy]:
    if view.config.warmup_steps:
        return []
    return [Remedy(why="Set warmup_steps to 0.05, a twentieth of all steps", patch={"warmup_steps": 0.05}, again=True)]


def calm(view: View) -> list[Remedy]:
    """Against jumps: smaller updates, clipped gradients, warm-up."""
    out = [lower_rate(view, 5)]
    if not view.config.max_grad_norm or view.config.max_grad_norm > 1:
        before = short(view.config.max_grad_norm) if view.config.max_grad_norm else "off"
        out.insert(0, Remedy(why=f"Set max_grad_norm to 1, it is {before}", patch={"max_grad_norm": 1.0}))
    return [*out, *warm_up(view), Remedy(why="Look at the rows of these steps")]


def restore(view: View) -> Remedy:
    """The remedy of going back to an earlier checkpoint, which is no change of the config."""
    return Remedy(why="Go back to a checkpoint from before")


# ---------------------------------------------------------------- fields


def set_field(view: View, field: str, new: object, why: str = "", *, again: bool = False) -> list[Remedy]:
    """A remedy that sets a field, where this run has it and it is something else."""
    now = vars(view.config).get(field)
    if field not in vars(view.config) or now == new:
        return []
    said = f"Set {field}{why}" if new is True else f"Set {field} to {_said(new)}, from {_said(now)}{why}"
    return [Remedy(why=said, patch={field: new}, again=again)]


def _said(value: object) -> str:
    return short(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def more_generations(view: View) -> list[Remedy]:
    """Twice as many completions of a prompt, where a rollout comes out even so."""
    config = vars(view.config)
    now = config.get("num_generations")
    if now is None:
        return []
    micro = config["per_device_train_batch_size"] * config["num_processes"]
    rows = config["generation_batch_size"] or micro * (
        config["steps_per_generation"] or config["gradient_accumulation_steps"]
    )
    said = f"Raise num_generations from {now} to {2 * now}"
    return [Remedy(why=said, patch={"num_generations": 2 * now}, again=True)] if rows % (2 * now) == 0 else []


def warmer(view: View, to: float = 1.0) -> list[Remedy]:
    now = view.config.temperature
    if now >= to:
        return []
    said = f"Raise temperature from {short(now)} to {short(to)}, so that completions differ"
    return [Remedy(why=said, patch={"temperature": to}, again=True)]


# ---------------------------------------------------------------- what a run can take


def usable(remedies: Iterable[Remedy], config: dict[str, Any]) -> list[Remedy]:
    """Return the remedies without those whose patch changes nothing or a field that the run lacks.

    A field that the user has locked is not changed: its remedy gets an empty patch. Fields have their current names.
    """
    now = [_renamed(remedy, config) for remedy in remedies]
    return [_unlocked(remedy, config) for remedy in now if _changes(remedy.patch, config)]


def _renamed(remedy: Remedy, config: dict[str, Any]) -> Remedy:
    old = {name: OLD_NAMES[name] for name in remedy.patch if name in OLD_NAMES and name not in config}
    for name, new in old.items():
        warn("a remedy's patch", name, new)
    return replace(remedy, patch={old.get(name, name): value for name, value in remedy.patch.items()})


def _unlocked(remedy: Remedy, config: dict[str, Any]) -> Remedy:
    locked = [name for name in remedy.patch if name in config.get("locked_fields", ())]
    if not locked:
        return remedy
    return replace(remedy, why=f"{remedy.why} ({', '.join(locked)} is locked)", patch={}, locked=remedy.patch)


def _changes(patch: dict[str, Any], config: dict[str, Any]) -> bool:
    """Return whether a patch is empty, or sets fields of the run to other values."""
    return not patch or (
        all(name in config for name in patch) and any(config[name] != value for name, value in patch.items())
    )
