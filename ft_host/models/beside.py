"""What a run says of the attention of models beside the policy: references, teachers, reward and value models. Each
chooses its kernel as the policy does, by its own numbers.

Of one that has the policy's own kernel nothing is said. Frozen ones keep nothing for a backward pass, so that what
isn't lean in them is of no account.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ft_host.models.policy import Policy

if TYPE_CHECKING:
    from ft_host.run import Run


def models_beside(run: Run) -> dict[str, Policy]:
    """Return the models that are loaded, by role."""
    trained = {role: model for role, model in run.policy.companions.items() if isinstance(model, Policy)}
    return trained | {role: model.held for role, model in run.models.items() if model.held is not None}


def note_of(name: str, model: Policy, policy: Policy) -> str | None:
    """Return the plan's sentence on a model's attention, None where it is the policy's own."""
    ours, theirs = ((each.kernel, each.rows_kernel, each.attention.refused) for each in (policy, model))
    return None if ours == theirs else f"attention of {name}{model.attention.said.removeprefix('attention')}"


def notes_of(models: Mapping[str, Policy], policy: Policy) -> list[str]:
    """Return what the plan says of models, by name: their attention, and of those that are trained what isn't lean."""
    found = [note_of(name, model, policy) for name, model in models.items()]
    lean = [f"{name}: {note}" for name, model in models.items() if model.training for note in model.lean.notes()]
    return [*(note for note in found if note is not None), *lean]


def refused_of(models: Mapping[str, Policy], policy: Policy) -> dict[str, str]:
    """Return why models don't have the attention that is meant for the device, by name; without those that have the
    policy's."""
    told = {name: model for name, model in models.items() if note_of(name, model, policy) is not None}
    return {name: model.attention.refused for name, model in told.items() if model.attention.refused is not None}


def tell_of(run: Run, name: str, model: Policy) -> None:
    """Say the same of a model that is loaded once the plan is written: to the user, in run.json, and to rules. In a
    rollout process, which has no run.json, to the user."""
    note = note_of(name, model, run.policy)
    if note is None or note in run.said:
        return
    run.say_once(note)
    if run.watch is None or not run.accelerator.is_main_process or "plan" not in run.folder.manifest:
        return
    plan = run.folder.manifest["plan"]
    run.folder.update(plan=plan | {"notes": [*plan["notes"], note]})
    refused = run.watch.facts.get("plan/companions_refused", {}) | refused_of({name: model}, run.policy)
    if refused:  # with what PRB008 needs, so that it is asked again
        run.record_facts({"plan/kernel": run.policy.kernel, "plan/companions_refused": refused})
