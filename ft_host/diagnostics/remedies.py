"""Remedies that rules share, and which of them a run can take. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ft_host.config.old_names import warn
from ft_host.config.run import OLD_NAMES
from ft_host.diagnostics.resolved import Accepts, effective
from ft_host.diagnostics.rule import Remedy
from ft_host.diagnostics.sizes import (
    enough_generations,
    more_per_prompt,
    more_rows,
    share_that_differs,
    times_too_large,
    times_too_small,
)
from ft_host.diagnostics.view import View, percent, rounded, short

LOSS_FALLS, REWARD_RISES = "a loss that falls within the first steps", "a reward that rises"
LOOK_AT_REWARD = Remedy(why="Try the reward by hand on a right, a wrong and an empty completion")
LOOK_AT_PAID = Remedy(
    why="Look in samples.jsonl at what earns the most in training, and mend the reward that pays for it"
)


# ---------------------------------------------------------------- the size of updates


def lower_rate(view: View, by: float = 2, why: str = "") -> Remedy:
    """The remedy that divides learning_rate by `by`, or by as much more as the updates that were measured are above the
    usual. `why` is added to its sentence."""
    times, measured = times_too_large(view, by)
    now = view.config.learning_rate
    new = rounded(now / times)
    return Remedy(
        why=f"Lower learning_rate from {short(now)} to {short(new)}{why}",
        patch={"learning_rate": new},
        measured=measured,
        expected="smaller updates",
    )


def raise_rate(view: View, by: float = 3, expected: str = REWARD_RISES) -> Remedy:
    """The remedy that multiplies learning_rate, from the start of the run, by as much as the updates that were measured
    are below the usual (twice at least); by `by` where none was."""
    times, measured = times_too_small(view, by)
    now = view.config.learning_rate
    new = rounded(now * times)
    return Remedy(
        why=f"Raise learning_rate from {short(now)} to {short(new)}",
        patch={"learning_rate": new},
        again=True,
        measured=measured,
        expected=expected,
    )


def warm_up(view: View) -> list[Remedy]:
    """A twentieth of all steps; a tenth of a short run, where that would be next to none."""
    if view.config.warmup_steps:
        return []
    share, said = (0.1, "tenth") if (view.total_steps or 1000) < 200 else (0.05, "twentieth")
    return [
        Remedy(why=f"Set warmup_steps to {share}, a {said} of all steps", patch={"warmup_steps": share}, again=True)
    ]


def calm(view: View) -> list[Remedy]:
    """Against jumps: smaller updates, clipped gradients, warm-up."""
    return [*clipped(view), lower_rate(view, 5), *warm_up(view), Remedy(why="Look at the rows of these steps")]


def clipped(view: View) -> list[Remedy]:
    """Gradients bounded to twice their usual norm, or to 1 where that is usual, so that the odd one is clipped."""
    now, usual = view.config.max_grad_norm, view.median("grad_norm")
    new = rounded(max(1.0, 2 * usual)) if math.isfinite(usual) else 1.0
    if now and now <= new:
        return []
    return [
        Remedy(
            why=f"Set max_grad_norm to {short(new)}, it is {short(now) if now else 'off'}", patch={"max_grad_norm": new}
        )
    ]


def fewer_steps(view: View, best: tuple[float, float] | None, why: str) -> list[Remedy]:
    """The remedy of a shorter run, to the step at which a held-out figure was best; none where that was before the
    first step. `best`: (step, value). `why`: "the held-out loss was lowest"."""
    step = best[0] if best is not None else 0.0
    if not step >= 1:
        return []
    if view.config.max_steps > 0:
        said = f"Set max_steps to {step:.0f}, where {why}"
        return [Remedy(why=said, patch={"max_steps": int(step)}, again=True, measured=True)]
    epochs = view.config.num_train_epochs * (step / view.total_steps if view.total_steps else 0.5)
    epochs = rounded(max(epochs, 0.01))
    said = f"Set num_train_epochs to {short(epochs)}, to stop at step {step:.0f}, where {why}"
    return [Remedy(why=said, patch={"num_train_epochs": epochs}, again=True, measured=True)]


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


def more_generations(view: View, rate: float | None = None, least: int | None = None) -> list[Remedy]:
    """So many completions of a prompt that nine of ten groups hold one that earns and one that doesn't, at a `rate` of
    those that do; `least`, or twice as many, where the rate isn't known. None where the run has as many."""
    now = vars(view.config).get("num_generations")
    if now is None:
        return []
    wanted = least or 2 * now if rate is None else enough_generations(rate)
    patch = more_per_prompt(view.config, wanted)
    if patch is None:
        return []
    new = patch["num_generations"]
    others = [f"{name} to {value}" for name, value in patch.items() if name != "num_generations"]
    said = f"Raise num_generations from {now} to {new}{''.join(f', and {each}' for each in others)}"
    if rate is not None:
        differ = percent(share_that_differs(rate, new))
        said += f": where {percent(rate)} of completions earn, {differ} of groups of {new} differ within, "
        said += f"{percent(share_that_differs(rate, now))} of groups of {now}"
    return [Remedy(why=said, patch=patch, again=True, measured=rate is not None)]


def warmer(view: View, to: float = 1.0) -> list[Remedy]:
    now = view.config.temperature
    if now >= to:
        return []
    said = f"Raise temperature from {short(now)} to {short(to)}, so that completions differ"
    return [Remedy(why=said, patch={"temperature": to}, again=True)]


def larger_step(view: View, rows: int, least: int) -> list[Remedy]:
    """A step of at least `least` rows, where it has `rows`."""
    patch = more_rows(view.config, -(-least // rows))
    now = vars(view.config)
    said = ", ".join(f"{name} from {now[name]} to {value}" for name, value in patch.items())
    return [Remedy(why=f"Raise {said}", patch=patch, again=True)] if rows < least else []


# ---------------------------------------------------------------- what a run can take


def usable(
    remedies: Iterable[Remedy], config: dict[str, Any], view: View, accepts: Accepts | None = None
) -> list[Remedy]:
    """Return the remedies without those whose patch leaves the run as it is, with what its fields stand for, or sets a
    field that it lacks, or a value that it wouldn't take.

    A field that the user has locked is not changed: its remedy gets an empty patch. Fields have their current names.
    """
    now = [_renamed(remedy, config) for remedy in remedies]
    return [_unlocked(remedy, config) for remedy in now if _changes(remedy.patch, config, view, accepts)]


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


def _changes(patch: dict[str, Any], config: dict[str, Any], view: View, accepts: Accepts | None) -> bool:
    """Return whether a patch is empty, or makes another run of this one."""
    if not patch:
        return True
    if not all(name in config for name in patch) or (accepts is not None and not accepts(patch)):
        return False
    return effective(config | patch, view) != effective(config, view)
