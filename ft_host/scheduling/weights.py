"""The policy's weights on their way to what samples: when they are sent, and what stands still meanwhile."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ft_host.run import Run
    from ft_host.scheduling.source import Source
    from ft_host.scheduling.waiting import Post


@dataclass(kw_only=True)
class Weights:
    """`open_source` starts the source; None on ranks that have none. `publish(version)` returns the weights of a policy
    that the trainer itself holds, as `Source.resume` takes them; all ranks call it at once."""

    run: Run
    post: Post
    open_source: Callable[[], Source] | None
    publish: Callable[[int], Any]
    version: int | None = None  # the optimizer step whose weights the source has

    def open(self) -> None:
        """Start the source the first time, with what a checkpoint left under way."""
        post = self.post
        if self.open_source is not None and post.source is None:
            post.source = self.open_source()
            post.source.admit(post.ledger.again())

    def refresh(self) -> None:
        """Give the source the policy's weights, if it has others. All ranks must call it."""
        run = self.run
        run.sync_weights()  # where the backend holds weights of its own: through `updating`
        if self.version != run.step:
            started = time.perf_counter()
            # What another model samples is as fresh as the step: the version goes without weights.
            self._went_on(self.publish(run.step) if run.config.samples_policy else None)
            run.add_time("weight_sync", time.perf_counter() - started)

    @contextlib.contextmanager
    def updating(self) -> Iterator[None]:
        """Around the transfer of weights to a backend that holds them: nothing is sampled meanwhile."""
        if self.post.source is not None:
            self.post.source.pause()
        yield
        self._went_on(self.run.connect())

    def _went_on(self, weights: Any) -> None:
        if self.post.source is not None:
            self.post.source.resume(self.run.step, weights)
        self.version = self.run.step
