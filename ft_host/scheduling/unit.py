"""A prompt on its way, and what happens to it. All of it is plain: it crosses processes, and JSON holds a unit.

Events are what a producer tells of its units; the ledger is made of them alone.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from ft_host.errors import FtHostError
from ft_host.types import Piece, Row

WAITING, RUNNING, READY = "waiting", "running", "ready"


@dataclass(kw_only=True)
class Begun:
    """The tokens of a request so far, and why it ended; None while it goes on. `versions` has one for each token."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, more: Piece | Progress) -> None:
        """Take further tokens. `more` has a version for each, or more than that: then for the last so many tokens, in
        place of what was said before."""
        self.token_ids += more.token_ids
        self.logprobs += more.logprobs
        self.versions[len(self.token_ids) - len(more.versions) :] = more.versions
        self.finish_reason = more.finish_reason


@dataclass(kw_only=True)
class Made:
    """What `ft_rollout` made of a unit. `metrics` are local sums of `ft_host.metrics.Accumulator`."""

    rows: list[Row]
    samples: list[dict[str, Any]]
    metrics: dict[str, Any]
    seconds: dict[str, float]  # of generation and of rewards, in the unit's thread
    tokens: int  # sampled
    calls: int  # of `generate`


@dataclass(kw_only=True)
class Unit:
    """One prompt, or with `max_staleness: 0` all prompts of a rank's share of a draw, which are completed together.

    `number` is its name: units are numbered as they are drawn. `rollout` is what `RolloutRun.number` is for it, and
    together with the rows' `group` and `calls` it decides the noise of its completions.
    """

    number: int
    rollout: int
    step: int  # of the trainer when it was drawn: what reward functions are told
    rows: list[Row]  # prepared prompts with their `group`
    epoch: float  # of the data, behind its prompts
    calls: int = 0  # of `generate`, that its own begin to count from
    rank: int | None = None  # that its rows go to; None: they are dealt out
    state: str = WAITING
    begun: dict[str, Begun] = field(default_factory=dict)  # its requests, by a key that a second attempt has too
    tries: dict[str, int] = field(default_factory=dict)  # failures by cause
    reached: int = 0  # tokens that it had when an engine failed it last
    made: Made | None = None
    times: dict[str, float] = field(default_factory=dict)  # seconds since the epoch: drawn, started, ready

    @property
    def oldest(self) -> int | None:
        """The version of the oldest token that it has; None where it has none."""
        # A request's versions only rise, and this is asked at each look at the ledger.
        return min((begun.versions[0] for begun in self.begun.values() if begun.versions), default=None)

    @property
    def tokens(self) -> int:
        return sum(len(begun.token_ids) for begun in self.begun.values())

    def told(self) -> dict[str, Any]:
        """Return what is recorded of it beside its rows: how it went, and the weights of the tokens of each request, as
        pairs of a version and a number of tokens."""
        versions = {
            key: [[version, len(list(tokens))] for version, tokens in groupby(begun.versions)]
            for key, begun in self.begun.items()
        }
        of = ("number", "rollout", "step", "epoch", "times", "tries")
        return {name: getattr(self, name) for name in of} | {"versions": versions}

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, saved: dict[str, Any]) -> Unit:
        """Undo of `as_json`."""
        begun = {key: Begun(**each) for key, each in saved["begun"].items()}
        made = None if saved["made"] is None else Made(**saved["made"])
        return cls(**saved | {"begun": begun, "made": made})


# ---------------------------------------------------------------- events


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Tokens that a request of a unit has got since the last such event; `versions` as in `Piece`."""

    unit: int
    key: str
    token_ids: list[int]
    logprobs: list[float]
    versions: list[int]
    finish_reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Started:
    """The thread of a unit has begun."""

    unit: int
    at: float


@dataclass(frozen=True, kw_only=True)
class Finished:
    unit: int
    made: Made
    at: float


@dataclass(frozen=True, kw_only=True)
class Failed:
    """`ft_rollout` has failed for a unit. `cause` is one of CAUSES of the config; None: trying again can't help, and
    `error` ends the run."""

    unit: int
    cause: str | None
    error: FtHostError


@dataclass(frozen=True, kw_only=True)
class Said:
    text: str
    level: str


@dataclass(frozen=True, kw_only=True)
class Restarted:
    """The rollout process is started again, for so many times in this run. `why`: how the last one ended."""

    times: int
    why: str
    text: str  # for the user


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the producer did since the last such event. `seconds` by activity of the engine's thread: generating,
    updating, scoring (no request, while rewards or tools are awaited), idle (nothing at all); `running` and `queued`
    requests now; `scoring`: units that waited for rewards or tools at once, at most; `servers`: tokens of each of
    several, and the seconds of its requests."""

    at: float
    seconds: dict[str, float]
    tokens: int
    running: int
    queued: int
    scoring: int
    servers: dict[int, tuple[int, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Updated:
    """The engine has the weights of `version`. `seconds`: how long it stood still for them."""

    version: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Broken:
    """The engine, or the whole producer, has failed."""

    error: FtHostError


Event = Progress | Started | Finished | Failed | Said | Restarted | Measured | Updated | Broken
