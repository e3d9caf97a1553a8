"""A GPU's memory: left unused, nearly full, or never given back. Imports no torch."""

from __future__ import annotations

from ft_host.diagnostics.memory_remedies import checkpointing, smaller_micro_batch
from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.spread import trend
from ft_host.diagnostics.view import View, percent, short, went

FULL = 0.9  # of a device that may be taken
LEAK = 24  # steps that are looked at for memory that is never given back


def larger_batch(view: View) -> dict[str, tuple[int, int]] | None:
    """{field: (from, to)}: rows per micro-batch times what accumulation is divided by, as far as memory allows. What
    doesn't grow with the batch is taken from the estimate of the plan; without one all of it is taken to grow."""
    config, share = view.config, max(view["perf/memory_share"], 0.01)
    total = view.get("plan/memory_mb")
    grows = 1.0
    if total:
        parts = ("plan/memory_activations_mb", "plan/memory_logits_mb")
        grows = min(1.0, max(0.05, sum(view.get(part, 0.0) for part in parts) / total))
    most = 1 + (FULL - share) / (share * grows)
    steps, counted = config.gradient_accumulation_steps, vars(config).get("steps_per_generation")  # in micro-batches
    factors = [
        each for each in range(2, steps + 1) if steps % each == 0 and each <= most and not (counted and counted % each)
    ]
    if not factors or config.max_tokens_per_micro_batch is not None:
        return None
    rows = config.per_device_train_batch_size
    return {
        "per_device_train_batch_size": (rows, rows * factors[-1]),
        "gradient_accumulation_steps": (steps, steps // factors[-1]),
        **({"steps_per_generation": (counted, counted // factors[-1])} if counted else {}),
    }


def unused_memory(view: View) -> list[Remedy]:
    config, found = view.config, []
    batch = larger_batch(view)
    if batch is not None:
        (rows, more), (steps, fewer) = batch["per_device_train_batch_size"], batch["gradient_accumulation_steps"]
        whole = rows * steps * view.get("plan/processes", 1)
        found.append(
            Remedy(
                why=(
                    f"Try increasing per_device_train_batch_size from {rows} to {more} and gradient_accumulation_steps"
                    f" from {steps} to {fewer}; the effective batch stays {whole}"
                ),
                patch={name: new for name, (_, new) in batch.items()},
                safe=True,
                expected=f"at most {FULL:.0%} of the memory",
            )
        )
    budget = config.max_tokens_per_micro_batch
    if budget is not None:
        more = int(budget * min(4.0, FULL / max(view["perf/memory_share"], 0.01)))
        found.append(
            Remedy(
                why=f"Raise max_tokens_per_micro_batch from {budget} to {more}",
                safe=True,
                patch={"max_tokens_per_micro_batch": more},
            )
        )
    if config.gradient_checkpointing and view["perf/memory_share"] < 0.4:
        found.append(without_checkpointing())
    return found


def without_checkpointing() -> Remedy:
    return Remedy(
        why="Set gradient_checkpointing to false: activations are made twice to save memory that isn't short",
        patch={"gradient_checkpointing": False},
        safe=True,
        expected="about a third less compute",
    )


def smaller_batch(view: View) -> list[Remedy]:
    return [
        each
        for each in (smaller_micro_batch(view.config, view.facts), checkpointing(view.config, view.facts))
        if each is not None
    ]


def retries(view: View) -> float:
    """How often torch has had to give memory back in the window."""
    values = view.recent("perf/alloc_retries", 20)
    return values[-1] - values[0] if values else 0.0


def nearly_full(view: View) -> bool:
    return view["perf/memory_share"] > 0.95 or retries(view) > 0


def full_message(view: View) -> str:
    again = retries(view)
    said = f"; torch had to give memory back and ask again {again:.0f} times in the last steps" if again else ""
    return f"{percent(view['perf/memory_share'])} of the GPU's memory are taken{said}; a longer row may not fit."


def held(view: View) -> str:
    return "perf/memory_allocated_mb" if "perf/memory_allocated_mb" in view.series else "perf/memory_mb"


def leaks(view: View) -> bool | None:
    """Whether even the least of each quarter of the last steps is above that of the quarter before, by enough, and
    memory grows throughout: where it goes up and down, four lows are in rising order now and then."""
    values = view.recent(held(view), LEAK)
    if view.step < LEAK + 10 or len(values) < LEAK:  # the first steps fill caches
        return None
    least = [min(values[start : start + LEAK // 4]) for start in range(0, LEAK, LEAK // 4)]
    rises = all(later > earlier * 1.004 for earlier, later in zip(least, least[1:], strict=False))
    return rises and trend(values) > 4 and least[-1] - least[0] > max(30.0, 0.03 * least[0])


def leak_message(view: View) -> str:
    values = view.recent(held(view), LEAK)
    first, last = min(values[: LEAK // 4]), min(values[-LEAK // 4 :])
    each = (last - first) / (len(values) - LEAK // 4)
    return (
        f"Even the least memory of {'the GPU' if held(view).startswith('perf/memory_a') else 'the process'} in six"
        f" steps {went(first, last)} MB within {len(values)} steps, by about {short(each)} MB a step."
    )


RULES = [
    Rule(
        code="PERF001",
        title="Much of the GPU's memory is unused",
        stage="train",
        level="speed",
        mutes=("PERF010",),
        needs=("perf/memory_share",),
        least=20,
        share=0.9,
        test=lambda view: view["perf/memory_share"] < 0.7 and bool(unused_memory(view)),
        message=lambda view: f"VRAM utilization is {percent(view['perf/memory_share'])}.",
        remedies=unused_memory,
        when=(
            "The most that torch has taken of the GPU is below 70 %, and micro-batches could be larger at the same"
            " effective batch, or gradient checkpointing off."
        ),
        why=(
            "Larger micro-batches keep the GPU busier: fewer and larger kernels for the same update. With accumulation"
            " the effective batch, and so the run's numbers, stay the same."
        ),
        remedy="Larger micro-batches and fewer of them; no gradient checkpointing.",
        source="SageMaker Debugger BatchSize (70 %)",
    ),
    Rule(
        code="PERF002",
        title="The GPU's memory is nearly full",
        stage="train",
        level="machine",
        needs=("perf/memory_share", "perf/alloc_retries"),
        least=5,
        window=20,
        test=nearly_full,
        message=full_message,
        remedies=smaller_batch,
        when="Torch has taken more than 95 % of the GPU, or had to give memory back in order to go on.",
        why="Giving memory back and asking again stops all kernels, and the next longer row may end the run.",
        remedy="Smaller micro-batches with more accumulation, or gradient checkpointing.",
        source="axolotl docs/training_stability",
    ),
    Rule(
        code="PERF003",
        title="Memory grows from step to step",
        stage="train",
        level="machine",
        needs=("perf/memory_mb",),
        least=8,
        window=12,
        share=0.6,
        test=leaks,
        message=leak_message,
        remedies=lambda view: [
            Remedy(
                why=(
                    "Look for what keeps tensors: a reward, a callback or a plugin that adds to a list, a loss that"
                    " isn't detached"
                )
            )
        ],
        when=(
            f"Over {LEAK} steps even the least memory of each quarter is above that of the one before, by 3 % in all,"
            " and it grows throughout."
        ),
        why="Something holds on to what each step makes. The run will end for lack of memory.",
        remedy="Find what holds on: mostly a list of tensors that still have their graph.",
        source="SageMaker Debugger GPUMemoryIncrease (5 %)",
    ),
    Rule(
        code="PERF010",
        title="Gradient checkpointing isn't needed",
        stage="train",
        level="speed",
        needs=("perf/memory_share",),
        severity="info",
        least=20,
        share=0.9,
        test=lambda view: view.config.gradient_checkpointing is True and view["perf/memory_share"] < 0.4,
        message=lambda view: (
            f"Gradient checkpointing is on, and {percent(view['perf/memory_share'])} of the GPU are used."
        ),
        remedies=lambda view: [without_checkpointing()],
        when="gradient_checkpointing is set, and the most that torch has taken of the GPU is below 40 %.",
        why="Activations are computed a second time to save memory that isn't short.",
        remedy="Leave it out: the host turns it on where activations would not fit.",
        source="own judgement",
    ),
]
