"""Short and long completions apart, and the loop over all of them.

In one buffer every row costs attention over as many columns as the longest row has. A few long completions among many
short ones would so make each token several times dearer. They go on in a buffer of their own, where a second pass of
the model costs less than the columns that it saves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ft_host.generation import Sampling
from ft_host.generation.decode import Decoder, columns_of
from ft_host.generation.jobs import DecodedRow, Job
from ft_host.generation.prompts import Prompt, next_prompts, prefill, prompts_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# So many columns, of all rows together, take as long in attention as a second pass of the model takes over a token. On
# CPU measured with a model of 9 M parameters (2,700); where both grow with the layers, the ratio stays. On other
# devices all rows stay together: there a pass is bound by its launches.
SPLIT = {"cpu": 4096}


class Decoders:
    """Rows in decoding: `short`, where they enter, and `long`, whose rows are far longer than most."""

    def __init__(self, model: PreTrainedModel, sampling: Sampling, size: int):
        self.short, self.long = Decoder(model, sampling, size), Decoder(model, sampling, 0)
        self.split = SPLIT.get(model.device.type)

    @property
    def rows(self) -> list[DecodedRow]:
        return self.short.rows + self.long.rows

    @property
    def free(self) -> int:
        """How many rows may enter."""
        return self.short.size - len(self.short.rows)

    def use(self, model: PreTrainedModel) -> None:
        """Go on with a model that has been loaded anew."""
        self.short.use(model)
        self.long.use(model)

    def places(self, rows: int, most: int) -> None:
        """Let there be places for so many rows, of `most` at a time."""
        self.short.places(rows - len(self.long.rows), most)

    def close(self) -> None:
        """Let no row enter any more: new buffers have no spare rows."""
        self.short.size = len(self.short.rows)

    def enter(self, prompt: Prompt) -> None:
        self.short.enter(prompt)

    def leave(self) -> list[DecodedRow]:
        return self.short.leave() + self.long.leave()

    def advance(self) -> None:
        """Sample the next token of each row."""
        if self.split is not None:
            self._part(self.split)
        for decoder in (self.short, self.long):
            if decoder.rows:
                decoder.advance()

    def _part(self, split: int) -> None:
        """Let all rows go on together where one pass is cheaper, else the longest ones apart where two are."""
        short, long = self.short, self.long
        lengths = [columns_of(row) for row in short.rows]
        longest = max(map(columns_of, long.rows), default=0)
        if longest and lengths and len(lengths) * (longest - max(lengths)) < split // 2:
            short.adopt(long, list(range(len(long.rows))))
        elif lengths:
            order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
            width = lengths[order[0]]
            saved = [(len(order) - count) * (width - lengths[index]) for count, index in enumerate(order)]
            count = max(range(len(order)), key=saved.__getitem__)
            if saved[count] > (split // 4 if longest else split):
                long.adopt(short, order[:count])


def decode(model: PreTrainedModel, jobs: list[Job], sampling: Sampling, size: int) -> Iterator[DecodedRow]:
    """Complete the jobs, at most `size` at a time; yield rows as they end. Gradients must be off."""
    waiting, size = prompts_of(jobs), min(size, len(jobs))
    decoders = Decoders(model, sampling, size)
    while waiting or decoders.rows:
        decoders.places(size, size)
        # Prefill of one prompt takes about as long as a step of all rows: wait for a few free places.
        if waiting and (not decoders.rows or size - len(decoders.rows) >= max(1, size // 8)):
            while waiting and len(decoders.rows) < size:
                if waiting[0].states is None:
                    prefill(model, next_prompts(waiting, size - len(decoders.rows)))
                decoders.enter(waiting[0])
                if not waiting[0].jobs:
                    waiting.popleft()
                # One look for all prompts that were prefilled together
                if not (
                    decoders.short.waits and waiting and waiting[0].states is not None and len(decoders.rows) < size
                ):
                    yield from decoders.leave()
        else:
            if not waiting:
                decoders.close()
            decoders.advance()
            yield from decoders.leave()
