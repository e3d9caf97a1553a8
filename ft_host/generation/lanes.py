"""Requests of an engine that run together: in the decoding loop, or in batches through `model.generate`.

All that arrives before a lane first works is run as `ft_generate` would run it in one call, with the same numbers.
"""

from __future__ import annotations

import time
from collections import deque
from itertools import chain
from typing import TYPE_CHECKING

from ft_host.generation import Sampling
from ft_host.generation.decode import Decoder
from ft_host.generation.jobs import DecodedRow, Job
from ft_host.generation.prompts import Prompt, next_prompts, prefill
from ft_host.generation.static import batches_of, run_batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ft_host.models.policy import Policy
    from ft_host.run import Run


class DecodingLane:
    """Requests for one model that are sampled in the same way, in one loop.

    What has arrived when rows begin to enter goes before what arrives later, the longest prompt first. A request that
    arrives while others are under way enters as soon as all that wait fit; when they don't, a few places must be free,
    as a prefill takes about as long as a step of all rows.
    """

    def __init__(self, sampling: Sampling):
        self.sampling = sampling
        self.waiting: dict[tuple[int, ...], Prompt] = {}
        self.decoder: Decoder | None = None
        self.entries = 0  # times that rows have begun to enter
        self.entering = False
        self.late = False  # whether a request has arrived after the first of them

    @property
    def rows(self) -> list[DecodedRow]:
        """Those under way."""
        return self.decoder.rows if self.decoder else []

    @property
    def jobs(self) -> list[Job]:
        """Those that haven't begun."""
        return [job for prompt in self.waiting.values() for job in prompt.jobs]

    def add(self, job: Job) -> None:
        prompt = self.waiting.setdefault(tuple(job.prompt_ids), Prompt(job.prompt_ids, arrived=self.entries))
        prompt.jobs.append(job)
        self.late = self.late or self.entries > 0

    def withdraw(self, key: int) -> None:
        for ids, prompt in list(self.waiting.items()):
            prompt.jobs = deque(job for job in prompt.jobs if job.index != key)
            if not prompt.jobs:
                del self.waiting[ids]
        for row in self.rows:
            row.ended = row.ended or row.job.index == key
        if self.decoder:
            self.decoder.leave()

    def forget_prompts(self) -> None:
        """Prefill again what was prefilled and still waits: with it comes the distribution of the first token."""
        for prompt in self.waiting.values():
            prompt.states = prompt.logits = prompt.tokens = None

    def work(self, run: Run, policy: Policy, size: int, until: float, ended: list[DecodedRow]) -> None:
        """Go on with at most `size` rows, a step at least and until that time; add rows to `ended` as they end."""
        model = policy.causal_lm
        if self.decoder is None:
            self.decoder = Decoder(model, self.sampling, 0)
        decoder = self.decoder
        decoder.use(model)  # an auxiliary model may have been loaded anew
        while self.waiting or decoder.rows:
            if self._enters(size):
                self._enter(model, decoder, size, ended)
            else:
                decoder.advance()
                ended += decoder.leave()
            if time.perf_counter() >= until:
                break
        if not self.waiting and not decoder.rows:
            self.decoder = None

    def _enters(self, size: int) -> bool:
        """Whether rows enter next."""
        free = size - len(self.rows)
        if not self.waiting or free <= 0:
            self.entering = False
        elif not self.entering:
            few = self.late and free >= len(self.jobs)
            self.entering = few or not self.rows or free >= max(1, size // 8)
            self.entries += self.entering
        return self.entering

    def _enter(self, model: PreTrainedModel, decoder: Decoder, size: int, ended: list[DecodedRow]) -> None:
        """Let the first prompts enter, as many as are prefilled at a time."""
        order = deque(sorted(self.waiting.values(), key=lambda prompt: (prompt.arrived, -len(prompt.ids))))
        decoder.places(min(size, len(decoder.rows) + len(self.jobs)), size)
        chosen = [order[0]]
        if order[0].states is None:
            chosen = next_prompts(order, decoder.free)
            prefill(model, chosen)
        for prompt in chosen:
            decoder.enter(prompt)
            if not prompt.jobs:
                del self.waiting[tuple(prompt.ids)]
            if not decoder.waits:
                ended += decoder.leave()
        ended += decoder.leave()  # one look for all of them


class BatchLane:
    """Requests for one model that are sampled in the same way, in batches that stay as they are until their last row
    has ended. What arrives meanwhile waits."""

    def __init__(self, sampling: Sampling, max_positions: int | None):
        self.sampling = sampling
        self.max_positions = max_positions
        self.arrived: list[Job] = []
        self.batches: deque[list[Job]] = deque()
        self.rows: list[DecodedRow] = []  # between calls nothing is under way

    @property
    def jobs(self) -> list[Job]:
        return [*chain.from_iterable(self.batches), *self.arrived]

    def add(self, job: Job) -> None:
        self.arrived.append(job)

    def withdraw(self, key: int) -> None:
        batches = [[job for job in batch if job.index != key] for batch in (*self.batches, self.arrived)]
        self.arrived = batches.pop()
        self.batches = deque(batch for batch in batches if batch)

    def forget_prompts(self) -> None:
        """Nothing is prefilled before its turn."""

    def work(self, run: Run, policy: Policy, size: int, until: float, ended: list[DecodedRow]) -> None:
        """Run batches of at most `size`, one at least and until that time; add their rows to `ended`."""
        while self.batches or self.arrived:
            if not self.batches:
                alike: dict[tuple[int, ...], list[Job]] = {}
                for job in self.arrived:
                    alike.setdefault(job.ends, []).append(job)
                self.arrived = []
                for jobs in alike.values():
                    self.batches += batches_of(jobs, size, self.max_positions)
            ended += run_batch(self.batches[0], self.sampling, run, policy, sharded=False)
            self.batches.popleft()
            if time.perf_counter() >= until:
                break
