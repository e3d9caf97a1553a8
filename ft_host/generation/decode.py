"""Continuous batching on a transformers model: completions leave the batch when they end, waiting ones take their
places.

All rows write their next key and value into the same column of one buffer. A row's own columns are contiguous, from
`start` to the current one:

    column          0 1 2 3 4 5 6 7 8
    row 0           p p p p p c c c c       p: prompt, c: completion
    row 1               p p p c c c c
    row 2 (entered)           p p p c       took the place of a row that left; its prompt ends where all rows are

So the model sees an ordinary batch, padded on the left, with a 2-D mask. Distances in columns are distances in
positions, as sliding windows need. Nothing moves when a row enters, as long as its prompt is no longer than the columns
up to the current one: the longest prompts enter first. A longer one, which arrives while others are under way, moves
them to the right. At the end of the buffer, columns that no row needs are dropped to make room.

A prompt that several rows share runs through the model once, and its keys and values are copied to each row.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.func import functional_call
from transformers.cache_utils import Cache

from ft_host.generation import Sampling
from ft_host.generation.cache import Columns, Extent, Pair, Part
from ft_host.generation.frames import RECORDERS, STEPS, Frames, round_columns, round_rows
from ft_host.generation.jobs import DecodedRow
from ft_host.generation.looks import Sampled, read
from ft_host.generation.prompts import Prompt, cache_argument, without_routing
from ft_host.generation.sampling import sample_token
from ft_host.generation.widths import PRICE, bands_of, exchanges, moving
from ft_host.models.bands import Band, banded
from ft_host.models.masks import padded
from ft_host.util.transfer import to_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Weights = dict[str, torch.Tensor]

ROOM = 64  # the least number of spare columns in a new buffer
# Steps between two reads of the sampled tokens, by type of device. On others a read waits for all queued work: STEPS.
STRETCH = {"cpu": 1}


class Decoder:
    """The rows in decoding: `rows` here, and a row of each tensor for each, in the same order."""

    def __init__(self, model: PreTrainedModel, sampling: Sampling, size: int):
        self.sampling = sampling
        self.frames = Frames(self) if model.device.type in RECORDERS else None
        self.layers: list[Columns] = []
        self.cache = Cache(layers=self.layers)
        self.use(model)
        self.size = size  # the rows that there are places for
        self.made = size  # the rows that buffers are made for, or those of a frame
        self.rows: list[DecodedRow] = []
        self.used = Extent()
        device = model.device
        token, start = torch.zeros(2, self._capacity, dtype=torch.long, device=device)
        self.token = token  # the last token, not yet in the buffer
        self.start = start  # the column of a row's first token
        self.seen: torch.Tensor | None = None  # (size, V), where a repetition penalty needs it
        self.unread: list[Sampled] = []  # first tokens of the last rows
        self.price = PRICE.get(device.type)
        self.bands: list[Band] | None = None  # of the rows as they are; None until it is needed
        self.wasted = self.debt = 0  # columns that the order of rows costs: a step, and since they were last sorted
        self.waits = device.type not in STRETCH  # whether reading what was sampled waits for queued work

    def use(self, model: PreTrainedModel) -> None:
        """Go on with a model whose weights may have changed, or that has been loaded anew."""
        self.model, self.extras = model, without_routing(model) | {cache_argument(model): self.cache}
        if self.frames is not None:
            self.frames.fresh = False

    @property
    def _capacity(self) -> int:
        return self.made if self.frames is None else round_rows(self.made)

    @property
    def free(self) -> int:
        """How many rows may enter."""
        return self.size - len(self.rows)

    # -- in and out

    def places(self, rows: int, most: int) -> None:
        """Let there be places for so many rows. Buffers that are too small for them are doubled, up to `most` rows."""
        have = self.layers[0].shape[0] if self.layers else 0
        self.size = max(len(self.rows), rows if rows <= have or not have else min(most, max(rows, 2 * have)))
        self.made = max(self.size, have)

    def close(self) -> None:
        """Let no row enter any more: new buffers have no spare rows."""
        self.size = self.made = len(self.rows)

    def enter(self, prompt: Prompt) -> None:
        """Add rows for the prompt's jobs, as many as have a place, with their first token, which isn't read yet."""
        used, length = self.used, len(prompt.ids)
        jobs = [prompt.jobs.popleft() for _ in range(min(self.free, len(prompt.jobs)))]
        new = slice(used.rows, used.rows + len(jobs))
        if not self.rows:
            used.first, used.end = 0, length
        self._fit(new.stop, length, prompt.states, max(job.limit for job in jobs))
        for layer, pair in zip(self.layers, prompt.states, strict=True):
            for buffer, states in zip((layer.keys, layer.values), pair, strict=True):
                buffer[new, :, used.end - length : used.end] = states
        self.start[new] = used.end - length
        logits = prompt.logits.expand(len(jobs), -1)
        if self.sampling.repetition_penalty != 1:
            if self.seen is None:
                self.seen = torch.zeros(len(self.token), logits.shape[1], dtype=torch.bool, device=logits.device)
            self.seen[new] = False
            self.seen[new].scatter_(1, prompt.tokens.expand(len(jobs), -1), True)
        used.rows += len(jobs)
        self.bands = None
        self.rows += [DecodedRow(job, job.noise() if self.sampling.temperature else None) for job in jobs]
        self.unread.append(self.pick(logits, new, self._noise(new, 1)[0]))

    def leave(self) -> list[DecodedRow]:
        """Read first tokens, and remove the rows that have ended; the last rows move into their places."""
        if self.unread:
            tokens, logprobs = (torch.cat(values) for values in zip(*self.unread, strict=True))
            self.unread = []
            self._take(self.rows[-len(tokens) :], [(tokens, logprobs)])
        return self._remove([index for index, row in enumerate(self.rows) if row.ended])

    def _remove(self, indices: list[int]) -> list[DecodedRow]:
        if not indices:
            return []
        out, used = set(indices), self.used
        left, gone = len(self.rows) - len(indices), [self.rows[index] for index in indices]
        holes = [index for index in indices if index < left]
        self._move([index for index in range(left, len(self.rows)) if index not in out], holes)
        del self.rows[left:]
        used.rows, self.bands = left, None
        used.first = used.end - max((row.columns for row in self.rows), default=0)
        return gone

    def _move(self, of: list[int], to: list[int]) -> None:
        """Move rows to places that no other row needs."""
        if not of:
            return
        moved, end = [self.rows[index] for index in of], self.used.end
        for place, row in zip(to, moved, strict=True):
            self.rows[place] = row
        ((at, old),) = to_device([torch.tensor([to, of])], self.token.device)
        for tensor in (self.token, self.start, self.seen):
            if tensor is not None:
                tensor[at] = tensor[old]
        columns = slice(end - max(row.columns for row in moved), end)
        for layer in self.layers:
            for buffer in (layer.keys, layer.values):
                buffer[at, :, columns] = buffer[old, :, columns]

    def _parts(self) -> list[Part]:
        """Return the rows by band, with the first column of the buffers that one of them has."""
        used = self.used
        if self.bands is None:
            return [(slice(0, used.rows), used.first)]
        return [(band.rows, used.first + band.first) for band in self.bands]

    def _part(self, price: int) -> None:
        """Take the rows apart in bands. Let some change places first, if where they are has cost more than that."""
        columns = [row.columns for row in self.rows]
        self.bands, area = bands_of(columns, price)
        of, to, least = exchanges(columns, price)
        self.wasted = area - least
        if self.debt > moving(columns, of, price):
            self._move(of, to)
            self.bands, self.wasted, self.debt = bands_of([row.columns for row in self.rows], price)[0], 0, 0

    def _fit(self, rows: int, length: int, like: list[Pair], steps: int) -> None:
        """See that the buffers have places for so many rows, and so many columns up to the current one. `steps`: the
        most tokens that a new row may get."""
        used = self.used
        if rows > len(self.token):
            more = self._capacity - len(self.token)
            self.token, self.start = (torch.cat([old, old.new_zeros(more)]) for old in (self.token, self.start))
            if self.seen is not None:
                self.seen = torch.cat([self.seen, self.seen.new_zeros(more, self.seen.shape[1])])
        if not self.layers:
            self.layers += [Columns(used) for _ in like]
        have = self.layers[0].shape
        if rows > have[0] or used.end > have[1] or length > used.end:
            self._make_room(like, max(0, length - (used.end - used.first)), steps)
        used.first = min(used.first, used.end - length)

    def _make_room(self, like: list[Pair], before: int = 0, steps: int = 0) -> None:
        """Drop the columns that no row needs, leave `before` columns empty, and add columns at the end, as many as half
        of the others, if rows may get so many tokens."""
        used = self.used
        end = before + used.end - used.first
        steps = max([steps, *(row.job.limit - len(row.tokens) for row in self.rows)])
        room = end + max(ROOM, min(steps, end // 2))
        rows, columns = self._capacity, room if self.frames is None else round_columns(end + ROOM)
        have, parts = self.layers[0].shape, self._parts()
        # Graphs know the buffers by their address. Others are given up once less than half of them is needed.
        if (
            have[0] >= rows
            and have[1] >= columns
            and (self.frames is not None or 2 * rows * columns >= have[0] * have[1])
        ):
            rows, columns = have
        elif self.frames is not None:
            self.frames.drop()
        for layer, pair in zip(self.layers, like, strict=True):
            layer.make_room(rows, columns, before - used.first, pair, parts)
        self.start += before - used.first
        used.first, used.end = before, end

    def fit_frame(self, steps: int) -> None:
        """See that the buffers have columns for so many steps, and that a frame has no more of them than it needs."""
        used, end = self.used, self.used.end + steps
        needed = round_columns(used.end - used.first + ROOM)
        if end > self.layers[0].shape[1] or (used.first and needed < round_columns(end)):
            self._make_room([(layer.keys, layer.values) for layer in self.layers])

    # -- a step

    def advance(self) -> None:
        """Sample the next token of each row, or several before they are read. One by one, never past a row's limit."""
        sampled = None if self.frames is None else self.frames.advance()
        if sampled is None:
            steps = STRETCH.get(self.token.device.type, STEPS)
            steps = min(steps, *(row.job.limit - len(row.tokens) for row in self.rows))
            every = slice(0, len(self.rows))
            even = self._even()
            if self.price is not None and not even:
                if self.bands is None:
                    self._part(self.price)
                self.debt += self.wasted
            sampled = [self._step(noise, even) for noise in self._noise(every, steps)]
        self._take(self.rows, sampled)

    def _even(self) -> bool:
        """Whether all rows begin in the same column, so that nothing is hidden from any. All tokens must be read."""
        return len({row.columns for row in self.rows}) == 1

    def _noise(self, rows: slice, steps: int) -> torch.Tensor:
        """Return (steps, rows): the noise of the next tokens."""
        every = self.rows[rows]
        if not self.sampling.temperature:
            return torch.zeros(steps, len(every), device=self.token.device)
        noise = np.stack([row.noise[len(row.tokens) : len(row.tokens) + steps] for row in every], 1)
        return to_device([torch.from_numpy(noise)], self.token.device)[0]

    def _take(self, rows: list[DecodedRow], steps: list[Sampled]) -> None:
        for row, sampled in zip(rows, read(steps), strict=True):
            row.take(*sampled)

    def _step(self, noise: torch.Tensor, even: bool) -> Sampled:
        if self.used.end == self.layers[0].shape[1]:
            self._make_room([(layer.keys, layer.values) for layer in self.layers])
        logits = self.plain_logits(even)
        self.used.end += 1
        return self.pick(logits, slice(0, len(self.rows)), noise)

    def plain_logits(self, even: bool) -> torch.Tensor:
        """Return (rows, V); keys and values are written into the next column."""
        used, start = self.used, self.start[: len(self.rows), None]
        mask = None if even else torch.arange(used.first, used.end + 1, device=start.device) >= start
        with contextlib.nullcontext() if even else padded(), banded(self.bands or []):
            return self.logits(self.token[: len(self.rows), None], mask, used.end - start)

    def logits(
        self, token: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor, weights: Weights | None = None
    ) -> torch.Tensor:
        """Return (B, V) float32. `weights`: by name, in place of the model's own."""
        arguments = {
            "input_ids": token,
            "attention_mask": mask,
            "position_ids": positions,
            "use_cache": True,
            "logits_to_keep": 1,
            **self.extras,
        }
        if weights:
            output = functional_call(self.model, weights, kwargs=arguments, tie_weights=False)
        else:
            output = self.model(**arguments)
        return output.logits[:, -1].float()

    def pick(self, logits: torch.Tensor, rows: slice, noise: torch.Tensor) -> Sampled:
        """Sample the next tokens of these rows, and keep them as their last ones."""
        seen = None if self.seen is None else self.seen[rows]
        token, logp = sample_token(logits, self.sampling, noise, seen)
        if seen is not None:
            seen.scatter_(1, token[:, None], True)
        self.token[rows] = token
        return token, logp
