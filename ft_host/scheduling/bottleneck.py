"""Which side a run waits for, and what would help, from what it has measured of its first rollouts.

With everything at work at the same time a step takes as long as its slowest part:

    async     max(generate, score, train)
    overlap   max(generate + train, score)      one process samples and trains, rewards have processes of their own

It can take longer, since each side waits for the other where too few prompts may be begun: a larger `max_staleness`
brings at best what lies between. Twice as many servers halve `generate`, twice as many reward workers halve `score`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

ROLLOUTS, SECONDS = 5, 60.0  # how many rollouts, and how long, a run is looked at before it is said; the later of both
AGAIN = 4  # it is measured anew over so many times as many rollouts
LOOSE = 1.25  # a step that takes so many times what its slowest part needs is held up by waiting
GENERATION, REWARDS, TRAINING, WAITING = "generation", "rewards", "training", "waiting"


@dataclass(frozen=True, kw_only=True)
class Load:
    """Seconds of an optimizer step: how long it took, and what each part had to do for it. `score` is of rewards, with
    as many calls at once as there were; `together`: generation and training are done by one process."""

    step: float
    generate: float
    score: float
    train: float
    together: bool

    @property
    def bound(self) -> float:
        """The least that a step can take with these parts."""
        return max(self.generate + self.train, self.score) if self.together else max(*self.parts.values())

    @property
    def parts(self) -> dict[str, float]:
        return {GENERATION: self.generate, REWARDS: self.score, TRAINING: self.train}

    @property
    def slowest(self) -> str:
        """The bottleneck: the part that needs most, or WAITING where a step takes far longer than that."""
        if self.step > LOOSE * self.bound:
            return WAITING
        if self.together and self.score < self.bound:
            return GENERATION if self.generate >= self.train else TRAINING
        return max(self.parts, key=lambda name: self.parts[name])

    def but(self, *, generate: float = 1.0, score: float = 1.0, apart: bool = False) -> float:
        """What a step would take at best if these parts took so many times as long, or if training had a device of its
        own."""
        return Load(
            step=self.step,
            generate=self.generate * generate,
            score=self.score * score,
            train=self.train,
            together=self.together and not apart,
        ).bound

    def facts(self) -> dict[str, Any]:
        return {
            "watch/bottleneck": self.slowest,
            "watch/bottleneck_step": self.step,
            "watch/bottleneck_generation": self.generate,
            "watch/bottleneck_rewards": self.score,
            "watch/bottleneck_training": self.train,
            "watch/bottleneck_larger_bound": self.bound,
            "watch/bottleneck_more_servers": self.but(generate=0.5, apart=True),
            "watch/bottleneck_more_workers": self.but(score=0.5),
        }

    def said(self) -> str:
        """One sentence or two for the user."""
        needs = ", ".join(f"{name} {seconds:.2g} s" for name, seconds in self.parts.items())
        ways = {
            GENERATION: [(self.but(generate=0.5), "generation twice as fast (twice the servers)")],
            REWARDS: [(self.but(score=0.5), "twice the reward_workers")],
        }.get(self.slowest, [])
        if self.together and self.slowest in (GENERATION, TRAINING):
            ways = [(self.but(apart=True), "rollouts: async, with a device for each side")]
        if self.slowest == WAITING:
            begin = "A step takes far longer than its parts need, which wait for each other"
        else:
            begin = f"The bottleneck is {self.slowest}"
        ways += [(self.bound, "a larger max_staleness")]
        helps = [f"with {how} about {seconds:.2g} s" for seconds, how in ways if seconds < 0.95 * self.step]
        then = f"; at best, {', '.join(helps)}" if helps else "; nothing on the side of the rollouts makes it shorter"
        return f"{begin}: a step takes {self.step:.2g} s, and needs {needs}{then}"


class Bottleneck:
    """Adds up rollouts until there are enough of them to say. `updates`: the steps that a rollout is used for."""

    def __init__(self, *, updates: int, together: bool):
        self.updates, self.together = updates, together
        self.wanted = ROLLOUTS
        self.begun: float | None = None  # when the first rollout was taken: nothing was at work beside it
        self.count = 0
        self.sums = {"generate": 0.0, "score": 0.0, "wait": 0.0}
        self.last: str | None = None  # what was said to be the slowest

    def add(self, *, generate: float, score: float, wait: float, at: float | None = None) -> Load | None:
        """A rollout has been taken, for which the engine was at work and rewards were, and the trainer waited, for so
        many seconds since the one before. Returns what was found where there are enough of them."""
        now = time.monotonic() if at is None else at
        if self.begun is None:
            self.begun = now
            return None
        self.count += 1
        for name, seconds in (("generate", generate), ("score", score), ("wait", wait)):
            self.sums[name] += seconds
        whole = now - self.begun
        if self.count < self.wanted or whole < SECONDS:
            return None
        steps = self.count * self.updates
        load = Load(
            step=whole / steps,
            generate=self.sums["generate"] / steps,
            score=self.sums["score"] / steps,
            train=max(0.0, whole - self.sums["wait"]) / steps,
            together=self.together,
        )
        self.wanted, self.begun, self.count = AGAIN * self.count, now, 0
        self.sums = dict.fromkeys(self.sums, 0.0)
        return load

    def news(self, load: Load) -> bool:
        """Whether it is another bottleneck than was said last."""
        new, self.last = load.slowest != self.last, load.slowest
        return new
