"""Rollouts that are begun before the one before them has been learnt from, within `max_staleness`.

What `Drawing` does for `rollouts: sync`, this does for `overlap` and `async`. With `overlap` each rank has a ledger and
a source of its own, for its share of the prompts; with `async` the main process has the only ones, and deals out what
is made. All ranks draw the same prompts, so that the position in the data is the same on all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ft_host.errors import Interrupted
from ft_host.metrics import Accumulator, Metric, combine
from ft_host.rollouts.drawing import RolloutMade, draw, say_few
from ft_host.rollouts.rewards import no_signal, without_zeros
from ft_host.scheduling.bottleneck import Bottleneck
from ft_host.scheduling.dealing import added, dealt, joined, kept_units, rows_of, shares, units_of
from ft_host.scheduling.failures import News, SetAside, listed, of_ranks, said
from ft_host.scheduling.measure import ledger_metrics, mismatch_metrics, sample_metrics, staleness_metrics
from ft_host.scheduling.unit import READY, Unit
from ft_host.scheduling.waiting import Post
from ft_host.scheduling.weights import Weights
from ft_host.types import Row
from ft_host.util.ranks import everywhere

if TYPE_CHECKING:
    from ft_host.config.rollout import RolloutConfig, RolloutPlan
    from ft_host.data.stream import TrainStream
    from ft_host.run import Run

SLICE = 0.5  # seconds between two exchanges of ranks that wait for completions
COMPARED = 16  # rollouts between two comparisons of engine and policy


@dataclass(kw_only=True)
class Ahead:
    """`post` and its ledger are those of this rank; where another rank has the source, its quota is 0. `before` is
    called with the first prompts of each rollout, on all ranks at once."""

    run: Run
    prompts: TrainStream
    plan: RolloutPlan
    config: RolloutConfig
    post: Post
    weights: Weights
    before: Callable[[list[Row]], None]
    saved: list[dict[str, Any]] = field(default_factory=list)  # what `state` returned on each rank of a checkpoint
    place: dict[str, Any] = field(default_factory=dict)  # in the prompts, behind all that were drawn
    ended: bool = False  # no prompt is left to draw
    told: set[str] = field(default_factory=set)  # causes of failures that aren't told of again
    aside: list[SetAside] = field(
        default_factory=list
    )  # prompts set aside on all ranks, since the run began or went on
    handed: tuple[int, list[Unit]] = (-1, [])  # the last rollout, and the prompts of it
    taken_at: float | None = None  # when the last one was taken, by a clock that doesn't go back
    number: int = -1  # of this rollout
    bottleneck: Bottleneck = field(init=False)
    mismatch: dict[str, Metric] = field(default_factory=dict)  # measured before this rollout, if it was

    def __post_init__(self) -> None:
        self.bottleneck = Bottleneck(updates=self.plan.updates, together=not self.shared)
        if self.saved:
            run, ledgers = self.run, [each["ledger"] for each in self.saved]
            self.place = self.saved[0]["place"]
            self.post.ledger.restore(kept_units(ledgers, run.rank, run.world_size, self.shared))
            failures = [each["failures"] for each in self.saved]
            self.post.failures.restore(of_ranks(failures, run.rank, run.world_size))
            self.aside = [SetAside(**aside) for each in failures for aside in each["aside"][: each["told"]]]

    @property
    def shared(self) -> bool:
        """Whether one source completes the prompts of all ranks."""
        return self.config.rollouts == "async"

    def make(self, number: int, place: dict[str, Any]) -> RolloutMade:
        """Return rollout `number` as soon as it can be. All ranks must call it."""
        run, post = self.run, self.post
        self.place = self.place or place
        post.ledger.taken = 0
        self.number, self.mismatch = number, {}
        self.weights.open()
        self.weights.refresh()
        post.begin()
        taken = self.next_ones(number)
        now = time.monotonic()
        if self.taken_at is not None:
            post.ledger.adapt(post.waited, now - self.taken_at)
        self.taken_at = now
        self.handed = (number, taken)
        run.add_time("rollout_wait", post.waited)
        if post.source is not None:
            post.source.rest()
        groups = rows_of(taken)
        rows, samples = dealt(run, groups) if self.shared else joined(groups)
        return RolloutMade(
            rows=rows,
            samples=samples,
            place=self.place,
            metrics=self.metrics(taken, rows),
            prompts=[unit.told() for unit in taken],
        )

    def metrics(self, taken: list[Unit], rows: list[Row]) -> dict[str, float]:
        """Return the metrics of the method, and what is measured of the rollout, over all ranks."""
        run, post, started = self.run, self.post, time.perf_counter()
        measured = Accumulator()
        measured.add(self.mismatch)
        measured.add(staleness_metrics(taken, run.step))
        news = post.failures.news()
        measured.add(ledger_metrics(post.ledger.units.values(), news.failed, len(post.failures.aside)))
        measured.add(post.times.take(taken))
        measured.add(sample_metrics(rows, run, self.number))
        of_method = added([unit.made.metrics for unit in taken if unit.made is not None])
        found = combine(run.gather(measured.local()))
        run.add_time("measuring", time.perf_counter() - started)
        self.say_failures(run.gather(news))
        self.say_bottleneck(found)
        return without_zeros(combine(run.gather(of_method))) | found

    def say_failures(self, ranks: list[News]) -> None:
        """Say what failed since the last rollout, on all ranks."""
        for line in said(ranks, self.told):
            self.run.say(line, "warning")
        self.aside += [aside for each in ranks for aside in each.aside]
        if self.aside:
            self.run.record_facts({"watch/set_aside": listed(self.aside), "watch/set_aside_count": len(self.aside)})

    def say_bottleneck(self, measured: dict[str, float]) -> None:
        """Say after some rollouts which side is the slower one; later only if it has changed."""
        load = self.bottleneck.add(
            generate=measured.get("perf/engine_time", 0.0),
            score=measured.get("perf/scoring_time", 0.0),
            wait=self.post.waited,
        )
        if load is not None:
            self.run.record_facts(load.facts())
            if self.bottleneck.news(load):
                self.run.say(load.said())

    def next_ones(self, number: int) -> list[Unit]:
        """Return this rank's prompts of the next rollout, all of which are ready, with those left out since the last
        one. Raises StopIteration where no rank has any."""
        run, post, first = self.run, self.post, True
        ledger = post.ledger
        while True:
            self.draw_more(first)
            first = False
            chosen = post.wait(lambda: self.choose(number), SLICE, self.may_draw) if ledger.quota else []
            told = run.gather((None if chosen is None else len(chosen), run.signals.asked))
            if any(asked for _, asked in told):
                raise everywhere(Interrupted(run.stopped_as_asked()))
            counts = [count for count, _ in told if count is not None]
            if len(counts) == len(told):
                break
        if not any(counts):
            self.say_failures(run.gather(post.failures.news()))
            raise StopIteration
        return ledger.take(chosen or [])

    def choose(self, number: int) -> list[Unit] | None:
        """Return the prompts of the next rollout; None while there is something to wait for, or to draw."""
        ledger, draws = self.post.ledger, self.config.max_rollout_draws
        found = ledger.choose(self.run.step, more=not self.ended)
        if found is not None or ledger.finished < draws * ledger.quota:
            return found
        ready = [unit for unit in ledger.units.values() if unit.state == READY]
        if not ready:
            left = [unit.made.metrics for unit in ledger.left_out if unit.made is not None]
            raise no_signal(combine([added(left)]), number + 1, ledger.finished, draws)
        if any(unit.state != READY for unit in ledger.due(self.run.step)):
            return None
        say_few(self.run, number, len(ready), draws)
        return ready[: ledger.quota]

    def may_draw(self) -> bool:
        """Whether prompts can take the places of some that were left out."""
        return not self.ended and self.post.ledger.room() > 0

    def draw_more(self, first: bool) -> None:
        """Draw as many prompts as the ranks have room for, and begin those of this rank."""
        run, post = self.run, self.post
        rooms = run.gather(post.ledger.room())
        if first or (any(rooms) and not self.ended):
            with run.may_stop():
                rows, place = draw(self.prompts, 0 if self.ended else sum(rooms), self.place)
            self.ended = self.ended or len(rows) < sum(rooms)
            units = units_of(rows, post.ledger.next_number, self.plan, run.step, place["epoch"], time.time())
            mine = shares(units, rooms)[run.rank]
            for unit in mine:
                post.ledger.add(unit)
            post.ledger.next_number += len(units)
            self.place = place
            if first and units:
                firsts = [row for unit in mine for row in unit.rows]
                self.before(firsts)
                self.measure_mismatch(firsts)
            if mine:
                post.source.admit(mine)

    def measure_mismatch(self, rows: list[Row]) -> None:
        """Right after an update, every so often: the engine and the policy have the same weights."""
        if self.run.config.samples_policy and self.number % COMPARED == 1:
            started = time.perf_counter()
            self.mismatch = mismatch_metrics(rows, self.run, self.post.generate)
            self.run.add_time("measuring", time.perf_counter() - started)

    def state(self, held: int) -> dict[str, Any]:
        post, (number, taken) = self.post, self.handed
        if post.source is not None:
            post.take(post.source.flush(1.0))
        if self.run.timeline is not None:
            self.run.timeline.flush()
        return {
            "place": self.place,
            "ledger": post.ledger.state(taken if number > held else []),
            "failures": post.failures.state(),
        }

    def close(self) -> None:
        self.prompts.close()
        self.post.close()
