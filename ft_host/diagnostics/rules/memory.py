"""Memory that doesn't suffice, before it runs out and when it has. Imports no torch."""

from __future__ import annotations

from ft_host.diagnostics.memory_remedies import remedies_for
from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.view import View, short
from ft_host.util.memory import BACKWARD, LOADING, PARTS

# Parts that are counted rather than worked out from what rows may be. The gradients are there at the end of each step.
COUNTED = ("base", "weights", "gradients", "optimizer", "companions")
OFF = 2.0  # times that an estimate may be beside what was measured


def counted_mb(view: View) -> float:
    return sum(view.get(f"plan/memory_{part}_mb", 0.0) for part in COUNTED)


def tight_message(view: View) -> str:
    whole, room = view["plan/memory_mb"], view["system/memory_mb"]
    parts = sorted(((view.get(f"plan/memory_{part}_mb", 0.0), said) for part, said in PARTS.items()), reverse=True)
    most = ", ".join(f"{said} {short(size)}" for size, said in parts[:3])
    return (
        f"A step is estimated to take {short(whole)} MB at its peak, and there are {short(room)} MB for this process;"
        f" the largest parts are {most}."
    )


def tight_remedies(view: View) -> list[Remedy]:
    return remedies_for(LOADING if counted_mb(view) > view["system/memory_mb"] else BACKWARD, view.config, view.facts)


def ran_out_message(view: View) -> str:
    step = view.get("watch/out_of_memory_step", 0)
    when = f" of step {step}" if step else ""
    planned = view.get("plan/memory_mb")
    said = f" The plan was estimated to take {short(planned)} MB." if planned else ""
    return f"Memory ran out in {view['watch/out_of_memory']}{when}.{said}"


def measured_mb(view: View) -> float:
    return max(view.recent("perf/peak_memory_mb", 10**9), default=0.0)


def off(view: View) -> bool | None:
    measured = measured_mb(view)
    return None if not measured else not 1 / OFF <= view["plan/memory_mb"] / measured <= OFF


RULES = [
    Rule(
        code="SYS004",
        title="Memory ran out",
        stage="train",
        level="machine",
        needs=("watch/out_of_memory",),
        severity="error",
        test=lambda view: True,
        message=ran_out_message,
        remedies=lambda view: remedies_for(view["watch/out_of_memory"], view.config, view.facts),
        when=(
            "An allocator of the device or of the machine gave up while the model was loaded, trained, evaluated or"
            " sampled from."
        ),
        why=(
            "What was being done needs more than there is. Which part that is depends on the phase: rows and their"
            " activations in the forward and backward pass, two values for each weight in the optimizer's first step,"
            " keys and values of all completions at once in generation."
        ),
        remedy=(
            "Smaller micro-batches and more of them, which leave the run's numbers alone; then gradient checkpointing, "
            "shorter rows, LoRA. For generation fewer completions at a time."
        ),
        source="axolotl docs (out of memory); order by what each costs",
    ),
    Rule(
        code="PERF013",
        title="The plan may not fit into memory",
        stage="probe",
        level="machine",
        needs=("plan/memory_mb", "system/memory_mb"),
        severity="info",
        test=lambda view: view["plan/memory_mb"] > view["system/memory_mb"],
        severe=lambda view: counted_mb(view) > view["system/memory_mb"],
        message=tight_message,
        remedies=tight_remedies,
        when=(
            "The estimate of the plan's peak is above what is free and what the run has already. An error where"
            " weights, gradients and optimizer alone are, which are counted and not estimated."
        ),
        why=(
            "Activations are worked out for the largest micro-batch that is to be expected, and completions that are as"
            " long as they may be: most runs stay below. A run that doesn't will end for lack of memory."
        ),
        remedy="Smaller micro-batches with more accumulation, gradient checkpointing, LoRA.",
        source="own judgement",
    ),
    Rule(
        code="PERF011",
        title="Memory was estimated wrongly",
        stage="after",
        level="speed",
        needs=("plan/memory_mb", "perf/peak_memory_mb"),
        severity="info",
        test=off,
        message=lambda view: (
            f"The plan was estimated to take {short(view['plan/memory_mb'])} MB at its peak, and took "
            f"{short(measured_mb(view))} MB."
        ),
        remedies=lambda view: [Remedy(why="Go by what was measured where you plan the next run")],
        when=f"What was measured is more than {OFF:g} times the estimate, or less than half of it.",
        why=(
            "Rows or completions are much shorter than they may be, a plugin holds memory of its own, or the model is"
            " of a kind that the estimate doesn't know."
        ),
        remedy="Nothing is wrong with the run.",
        source="own judgement",
    ),
]
