"""`max_staleness: 0` with a rollout process: the calls of `rollouts: sync`, made there instead of here.

Each rank's prompts of a draw are one unit, so that the very same `ft_rollout` runs, with the same noise, batches and
sums. Nothing overlaps, and the run is bit for bit the synchronous one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ft_host.errors import Interrupted
from ft_host.metrics import Metric
from ft_host.rollouts.rollout import RolloutRun
from ft_host.scheduling.dealing import Local
from ft_host.scheduling.unit import READY, Made, Unit
from ft_host.scheduling.waiting import Post
from ft_host.types import Rollout, Row
from ft_host.util.ranks import everywhere

if TYPE_CHECKING:
    from ft_host.run import Run

SLICE = 2.0  # seconds between two exchanges of ranks that wait


@dataclass(kw_only=True)
class Exact:
    """Called in the place of `Run.rollout`. `post` is that of the main process; on the others it has no source."""

    run: Run
    post: Post

    def __call__(self, rows: list[Row], rollout: RolloutRun) -> Rollout:
        """Return what `ft_rollout` makes of this rank's prompts. All ranks must call it."""
        run, ledger = self.run, self.post.ledger
        asked = run.gather((rows, rollout.calls))
        if run.rank == 0:
            ledger.units.clear()
            for rank, (each, calls) in enumerate(asked):
                ledger.next_number += 1
                ledger.add(
                    Unit(
                        number=ledger.next_number,
                        rollout=rollout.number,
                        step=run.step,
                        rows=each,
                        epoch=0.0,
                        calls=calls,
                        rank=rank,
                    )
                )
            self.post.source.admit(list(ledger.units.values()))
        self.post.begin()
        made = self._wait()
        run.add_time("rollout_wait", self.post.waited)
        rollout.calls = made.calls
        rollout.tokens += made.tokens
        return Rollout(rows=made.rows, metrics=metrics_of(made.metrics), samples=made.samples)

    def _wait(self) -> Made:
        run, ledger = self.run, self.post.ledger
        units = list(ledger.units.values())
        while True:
            done = run.rank != 0 or self.post.wait(lambda: all_ready(units), SLICE)
            told = run.gather((bool(done), run.signals.asked))
            if any(asked for _, asked in told):
                raise everywhere(Interrupted(run.stopped_as_asked()))
            if all(each for each, _ in told):
                break
        mades = run.gather([unit.made for unit in units] if run.rank == 0 else None)[0]
        ledger.units.clear()
        return mades[run.rank]


def all_ready(units: list[Unit]) -> bool | None:
    return True if all(unit.state == READY for unit in units) else None


def metrics_of(local: Local) -> dict[str, Metric]:
    """Return sums as what they were made of."""
    return {name: Metric(formula, tuple(parts)) for name, (formula, parts) in local.items()}
