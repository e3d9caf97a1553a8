"""Ranks that hold up the others: slow ones, and ones with more to do. Imports no torch."""

from __future__ import annotations

from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.view import View, short

RANKS = (
    "perf/slowest_rank",
    "perf/slowest_rank_time",
    "perf/other_ranks_time",
    "perf/slowest_rank_tokens",
    "perf/other_ranks_tokens",
    "perf/slowest_rank_rows_time",
    "perf/other_ranks_rows_time",
    "perf/slowest_rank_training_time",
    "perf/other_ranks_training_time",
)
MUCH = 1.5  # times the others' own time


def times(view: View, what: str = "time") -> float:
    """How many times as much the slowest rank has as the others: time, or tokens."""
    others = view[f"perf/other_ranks_{what}"]
    return view[f"perf/slowest_rank_{what}"] / others if others else 1.0


def lags(view: View) -> bool:
    """Whether one and the same rank takes half as long again as the others, for long enough to matter."""
    slow, other = view["perf/slowest_rank_time"], view["perf/other_ranks_time"]
    same = len(set(view.recent("perf/slowest_rank", 5))) == 1
    return same and slow > MUCH * other and slow - other > 0.02


def is_slow(view: View) -> bool:
    """Whether it would lag with as many tokens as the others, too."""
    return lags(view) and times(view) > MUCH * max(1.0, times(view, "tokens"))


def has_more(view: View) -> bool:
    """Whether its tokens explain why it lags."""
    return lags(view) and not is_slow(view) and times(view, "tokens") > 1.25


def rank(view: View) -> str:
    """ "Rank 1 (node-b, cuda:1)"."""
    number = int(view["perf/slowest_rank"])
    places = view.get("plan/places", "").split("; ")
    return f"Rank {number}" + (f" ({places[number]})" if number < len(places) and places[number] else "")


def slow_part(view: View) -> str:
    """Where most of the difference is: rows or training."""
    gaps = {
        part: view[f"perf/slowest_rank_{part}_time"] - view[f"perf/other_ranks_{part}_time"]
        for part in ("rows", "training")
    }
    return max(gaps, key=lambda part: gaps[part])


def slow_message(view: View) -> str:
    part = slow_part(view)
    where = "getting its rows" if part == "rows" else "its forward and backward passes and its update"
    slow, other = view[f"perf/slowest_rank_{part}_time"], view[f"perf/other_ranks_{part}_time"]
    return (
        f"{rank(view)} takes {short(times(view))} times as long as the others for its own part of a step, without the"
        f" waits for each other: {short(view['perf/slowest_rank_time'])} s, the others"
        f" {short(view['perf/other_ranks_time'])} s (medians), with {short(times(view, 'tokens'))} times their tokens."
        f" The difference is mostly in {where}: {short(slow)} s beside {short(other)} s. The others wait for it."
    )


def slow_remedies(view: View) -> list[Remedy]:
    number = int(view["perf/slowest_rank"])
    if slow_part(view) == "rows":
        return [
            Remedy(
                why=(
                    f"Look at what rank {number} gets its rows from: its disk or network, its processes that read, and"
                    " reward functions, tools or servers that answer it late"
                )
            )
        ]
    return [
        Remedy(
            why=(
                f"Look at the device of rank {number}: what else runs on it, its clock and temperature, its CPU"
                " threads; and at code of the method that does more on this rank"
            )
        )
    ]


def uneven_message(view: View) -> str:
    return (
        f"{rank(view)} gets {short(times(view, 'tokens'))} times as many tokens as the others, and takes"
        f" {short(times(view))} times as long: {short(view['perf/slowest_rank_time'])} s of its own a step, the others"
        f" {short(view['perf/other_ranks_time'])} s (medians). They wait for it."
    )


def even_rows(view: View) -> list[Remedy]:
    found = []
    if view.config.train_sampling_strategy == "sequential":
        found.append(
            Remedy(
                why=(
                    "Set train_sampling_strategy from sequential to random: the order of the data deals long rows to"
                    " one rank"
                ),
                patch={"train_sampling_strategy": "random"},
                again=True,
            )
        )
    if not view.config.packing:
        found.append(
            Remedy(
                why="Set packing to true: the blocks of all ranks are about as long",
                patch={"packing": True},
                again=True,
            )
        )
    return [*found, Remedy(why="Mix long and short rows in the data, so that each rank gets of both")]


RULES = [
    Rule(
        code="SYS006",
        title="A rank is slower than the others",
        stage="train",
        level="speed",
        needs=RANKS,
        window=20,
        least=5,
        share=0.7,
        test=is_slow,
        message=slow_message,
        remedies=slow_remedies,
        when=(
            "Over 20 steps the same rank takes over 1.5 times as long as the median of the others, and over 20 ms"
            " longer, for what it does by itself, and has no more tokens to explain that. Not with FSDP2, whose ranks"
            " wait for each other within each layer: there only rows and updates are compared."
        ),
        why="Every step ends with the slowest rank: the others stand still meanwhile.",
        remedy="Look at the rank's machine and device: other processes, clock and temperature, disk, network, threads.",
        source="NVIDIA Resiliency Extension (straggler detection); PyTorch DDP comm_time statistics",
    ),
    Rule(
        code="SYS007",
        title="A rank has more tokens than the others",
        stage="train",
        level="speed",
        needs=RANKS,
        window=20,
        least=5,
        share=0.7,
        test=has_more,
        message=uneven_message,
        remedies=even_rows,
        when="As SYS006, where the rank has over 1.25 times the tokens of the others, and these explain its time.",
        why="Every step ends with the rank that has most to do. Rows that are dealt in an order of length go to one.",
        remedy="Shuffle or pack the rows, or mix long and short ones.",
        source="own judgement",
    ),
]
