"""Time that isn't training. Imports no torch.

Machines are noisy: what is a warning here is clear and lasts.
"""

from __future__ import annotations

from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.view import View, percent, short

# ---------------------------------------------------------------- a GPU's memory


# ---------------------------------------------------------------- memory that is never given back


# ---------------------------------------------------------------- time


def waits_for_rows(view: View) -> bool:
    """For a good part of the step, and for long enough to be more than tokenising rows for a tiny model."""
    waited = view["perf/data_time"]
    return waited > 0.3 * view["perf/step_time"] and waited > 0.025


def share_of(view: View, name: str, count: int = 50) -> float:
    spent, steps = sum(view.recent(name, count)), sum(view.recent("perf/step_time", count))
    return spent / steps if steps else 0.0


def more_workers(view: View) -> list[Remedy]:
    now = view.config.dataloader_num_workers
    return [
        Remedy(
            why=f"Raise dataloader_num_workers from {now} to {max(2, 2 * now)}: processes that read and tokenise ahead",
            patch={"dataloader_num_workers": max(2, 2 * now)},
            safe=True,
            expected="no wait for rows",
        ),
        Remedy(why="Read from a faster disk, or a file that is tokenised already"),
    ]


def slower(view: View) -> bool | None:
    """The last steps at under a third of the speed of those before."""
    before = view.recent("perf/tokens_per_second", 200)[5:-15]
    if len(before) < 15:
        return None
    return view.median("perf/tokens_per_second", 15) < sorted(before)[len(before) // 2] / 3


def slower_message(view: View) -> str:
    now = view.median("perf/tokens_per_second", 15)
    before = sorted(view.recent("perf/tokens_per_second", 200)[5:-15])
    return (
        f"Training has slowed down to {short(now)} tokens/s; the median before was {short(before[len(before) // 2])}."
        f" Steps take {short(view.median('perf/step_time', 10))} s."
    )


def interrupted(view: View, count: int = 50) -> float:
    """The share of the time that goes into evaluations and checkpoints."""
    aside = share_of(view, "perf/evaluation_time", count) + share_of(view, "perf/save_time", count)
    return aside / (1 + aside)


def seldom(view: View) -> list[Remedy]:
    """Whichever takes more, so seldom that it takes about a tenth of the time."""
    config, found = view.config, []
    for field, name, what in (
        ("save_steps", "perf/save_time", "Checkpoints"),
        ("eval_steps", "perf/evaluation_time", "Evaluations"),
    ):
        now, aside = getattr(config, field), share_of(view, name)
        if now and aside > 0.1:
            new = max(now + 1, round(now * aside / 0.1))
            found.append(
                (
                    aside,
                    Remedy(
                        why=(
                            f"Raise {field} from {now} to {new}: {what.lower()} take {percent(aside / (1 + aside))} of"
                            " the time"
                        ),
                        patch={field: new},
                        safe=True,
                    ),
                )
            )
    return [remedy for _, remedy in sorted(found, key=lambda each: -each[0])]


RULES = [
    Rule(
        code="PERF004",
        title="Training waits for rows",
        stage="train",
        level="speed",
        needs=("perf/data_time", "perf/step_time"),
        least=15,
        share=0.6,
        test=waits_for_rows,
        message=lambda view: (
            f"{percent(share_of(view, 'perf/data_time'))} of the time goes into reading and tokenising rows."
        ),
        remedies=more_workers,
        when="Reading and tokenising take more than 30 % of the step, and more than 25 ms, in most steps.",
        why="The device has nothing to do meanwhile.",
        remedy="Worker processes that read ahead, a faster disk, data that is tokenised beforehand.",
        source="SageMaker Debugger Dataloader; Lightning",
    ),
    Rule(
        code="PERF006",
        title="Training has slowed down",
        stage="train",
        level="speed",
        severity="info",  # on a machine that others use too it is nobody's mistake, and passes
        needs=("perf/tokens_per_second", "perf/step_time"),
        least=8,
        window=10,
        share=0.8,
        test=slower,
        message=slower_message,
        remedies=lambda view: [
            Remedy(why="Look at what else runs on the machine, at its temperature, and at a rank that lags")
        ],
        when="The median of the last 15 steps is below a third of the median before, and stays there.",
        why="Another job, a device that throttles, a disk that fills up, or rows that have become longer.",
        remedy="Look at the machine.",
        source="own judgement",
    ),
    Rule(
        code="PERF009",
        title="Much time goes into evaluations and checkpoints",
        stage="train",
        level="speed",
        needs=("perf/evaluation_time", "perf/save_time", "perf/step_time"),
        least=25,
        share=0.8,
        window=30,
        test=lambda view: interrupted(view) > 0.4,
        message=lambda view: f"{percent(interrupted(view))} of the time goes into evaluations and checkpoints.",
        remedies=seldom,
        when="Over 50 steps evaluations and checkpoints take more than 40 % of the time.",
        why="They come more often than the run needs them.",
        remedy="Evaluate and save less often, or on fewer rows.",
        source="own judgement",
    ),
]
