"""What a caller of `RewardPool.score` asks for, call by call, and what was found so far."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from ft_host.rewards.functions import EXPECTED, Scoring


@dataclass
class Call:
    """A pending call: of all completions (`sample` None) or of one, by a worker whose number is above `after`."""

    index: int  # of the function
    sample: int | None = None
    after: int = 0


@dataclass
class Found:
    """The rewards of one function so far, by completion: a value or None, and the reason why there is none.

    `logged`: by the first completion of the call. `seen`: completions already counted for failures in a row.
    """

    rewards: dict[int, float | None] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    logged: dict[int, tuple[dict[str, list[float]], dict[str, list[Any]]]] = field(default_factory=dict)
    columns: dict[str, list[Any]] = field(default_factory=dict)
    seen: int = 0

    def note(self, call: Call, rewards: list[float | None], bad: dict[int, str], *logged: Any) -> None:
        """Record the result of a call. A value that isn't finite fails its own completion only."""
        first = call.sample or 0
        self.rewards |= dict(enumerate(rewards, first))
        self.reasons |= {first + index: f"gave {shown}, {EXPECTED}" for index, shown in bad.items()}
        self.logged[first] = logged


@dataclass(eq=False)
class Job:
    """Completions to score, and what was found so far by each function. `done` has the end, or the error."""

    scoring: Scoring
    found: list[Found]
    waiting: list[Call]
    done: Future[None] = field(default_factory=Future)
    notes: list[str] = field(default_factory=list)  # for the user
    busy: int = 0  # workers


@dataclass
class Turn:
    """What a worker is doing. `late`: the error if it has sent nothing by `deadline`."""

    job: Job
    call: Call
    deadline: float
    late: str
