"""Steps whose operators, shapes and addresses never change, so that a device replays them from one call.

On a GPU a step of decoding is bound by the launches of its operators, 60 to 80 a layer, and not by their work. A graph
of the device holds all launches of a step: the model, the choice of the token, and the writing of both. For that
nothing in a step may depend on numbers of the host. So the model sees a *frame* of the buffers, whose rows and columns
are rounded up; the current column, the noise and the sampled tokens are tensors; columns that aren't in use are masked,
and places without a row are computed with the others and never read.

A frame's first steps run one by one, its next ones are captured: a frame that is needed for a few tokens only costs no
capture. Graphs end with the buffers that they were captured on. Before a model is used in this way its log-probs are
compared with those of a step of decode.py. What can't be captured, or gives others, goes on step by step; `way_of` has
the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch

from ft_host.generation.cache import Frame
from ft_host.generation.jobs import positions_of
from ft_host.generation.looks import Sampled
from ft_host.models.attention import original_of
from ft_host.models.masks import NAMES, NotSteady, padded
from ft_host.util.transfer import to_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ft_host.generation.decode import Decoder

STEPS = 8  # tokens of each row between two looks
LEAST_COLUMNS = 128
GRAPHS_USED = "steps are replayed from graphs of the device"

Key = tuple[int, int]  # rows and columns of a frame


class Recorder(Protocol):
    """Records what a function does to tensors."""

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        """Record a step without running it; return what runs it."""


class CudaGraphs:
    """CUDA's graphs. They share the memory for what is between a step's inputs and outputs: no two run at once."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # Other threads may use the device meanwhile: that of the training, beside rollouts that overlap with it.
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                step()
        finally:
            torch.cuda.set_stream(stream)  # torch stays on the stream of a capture that has failed
        return graph.replay


RECORDERS: dict[str, Callable[[], Recorder]] = {"cuda": CudaGraphs}  # by type of device

_ways: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()


def way_of(model: PreTrainedModel) -> str | None:
    """Return how steps of a model are run, and why; None where that isn't known yet, or there is but one way."""
    return _ways.get(model)


def round_rows(rows: int) -> int:
    """Return the rows of a frame for so many: powers of two up to 64, then multiples of 64."""
    return 1 << max(0, rows - 1).bit_length() if rows <= 64 else -(-rows // 64) * 64


def round_columns(columns: int) -> int:
    """Return the columns of a frame for so many: 128, 192, 256, 384, 512, 768 and so on."""
    power = max(LEAST_COLUMNS, 1 << max(0, columns - 1).bit_length())
    return power * 3 // 4 if LEAST_COLUMNS < power and columns <= power * 3 // 4 else power


class Frames:
    """The frames of a decoder's buffers, and their graphs."""

    def __init__(self, decoder: Decoder):
        self.decoder = decoder
        self.recorder: Recorder | None = None
        self.graphs: dict[Key, Callable[[], None]] = {}
        self.begun: set[Key] = set()  # frames that have run
        self.places = 0  # rows of the tensors below
        self.at: torch.Tensor  # (1,) the column that is written next
        self.index: torch.Tensor  # (1,) the number of the step
        self.noise: torch.Tensor  # (STEPS, places)
        self.tokens: torch.Tensor
        self.logprobs: torch.Tensor
        self.casts: dict[str, torch.Tensor] = {}
        self.addresses: tuple[int, ...] = ()
        self.fresh = False  # whether casts and addresses are those of the weights

    # -- what changes between steps

    def drop(self) -> None:
        """Forget the graphs: buffers that they read have moved. Their memory is given up with them: torch takes none
        for a graph from a pool whose graphs are all gone."""
        self.recorder = None
        self.graphs.clear()
        self.begun.clear()

    def _refresh(self) -> None:
        """Notice that weights have changed, or moved, since they were last used."""
        model, self.fresh = self.decoder.model, True
        addresses = tuple(tensor.data_ptr() for tensor in chain(model.parameters(), model.buffers()))
        if addresses != self.addresses:
            self.drop()
            self.addresses, self.casts = addresses, casts_of(model)
        elif self.casts:
            torch._foreach_copy_(list(self.casts.values()), [model.get_parameter(name) for name in self.casts])

    def _prepare(self, steps: int) -> None:
        """Give the next steps their column and noise."""
        decoder = self.decoder
        places, rows = len(decoder.token), decoder.rows
        if self.places != places:
            self.drop()
            self.places, of = places, {"device": decoder.token.device}
            self.at, self.index = (torch.zeros(1, dtype=torch.long, **of) for _ in range(2))
            self.noise, self.logprobs = (torch.zeros(STEPS, places, **of) for _ in range(2))
            self.tokens = torch.zeros(STEPS, places, dtype=torch.long, **of)
        self.at.fill_(decoder.used.end)
        self.index.zero_()
        if decoder.sampling.temperature:
            noise = np.zeros((STEPS, len(rows)), dtype=np.float32)
            for place, row in enumerate(rows):
                own = row.noise[len(row.tokens) : len(row.tokens) + steps]
                noise[: len(own), place] = own
            self.noise[:, : len(rows)] = to_device([torch.from_numpy(noise)], self.noise.device)[0]

    # -- steps

    def advance(self) -> list[Sampled] | None:
        """Sample the next tokens of each row, up to STEPS; those beyond a row's limit are to be cut. Returns None,
        without a change, for a model whose steps must be run one by one."""
        decoder, model = self.decoder, self.decoder.model
        if _ways.get(model, GRAPHS_USED) != GRAPHS_USED:
            return None
        steps = min(STEPS, max(row.job.limit - len(row.tokens) for row in decoder.rows))
        decoder.fit_frame(steps)
        self._prepare(steps)
        if not self.fresh:
            self._refresh()
        key = round_rows(len(decoder.rows)), round_columns(decoder.used.end + steps)
        frame = Frame(*key, self.at)
        if model not in _ways:
            _ways[model] = self._compared(frame)
        elif key in self.begun and key not in self.graphs:
            self._capture(key, frame)
        if _ways[model] != GRAPHS_USED:
            self.drop()
            self.casts.clear()
            return None
        step = self.graphs.get(key) or (lambda: self._step(frame))
        for _ in range(steps):
            step()
        self.begun.add(key)
        decoder.used.end += steps
        count = len(decoder.rows)
        return list(zip(self.tokens[:steps, :count], self.logprobs[:steps, :count], strict=True))

    def _capture(self, key: Key, frame: Frame) -> None:
        try:
            if self.recorder is None:
                self.recorder = RECORDERS[self.at.device.type]()
            self.graphs[key] = self.recorder.capture(lambda: self._step(frame))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # what waits for the device can't be captured: torch names the operator
            # The end of a capture that has failed raises an error of its own.
            cause = str(error.__context__ or error).partition("\n")[0]
            _ways[self.decoder.model] = f"one by one: a step can't be captured ({cause})"

    def _step(self, frame: Frame) -> None:
        """One step. Nothing of the host decides what it does but the frame."""
        decoder, rows = self.decoder, slice(0, frame.rows)
        logits = self._logits(frame)
        noise = self.noise.index_select(0, self.index)[0, rows]
        sampled = decoder.pick(logits, rows, noise)
        for kept, values in zip((self.tokens, self.logprobs), sampled, strict=True):
            kept[:, rows].index_copy_(0, self.index, values[None])
        self.at.add_(1)
        self.index.add_(1)

    def _logits(self, frame: Frame) -> torch.Tensor:
        """Return (rows, V); keys and values are written into the frame's column."""
        decoder, at = self.decoder, self.at
        # A place without a row may hold any start; one behind the current column would leave it nothing to see.
        start = torch.minimum(decoder.start[: frame.rows, None], at)
        column = torch.arange(frame.columns, device=at.device)
        positions, most = at - start, positions_of(decoder.model)
        if most is not None:  # tokens beyond a row's limit are cut, but their position is looked up
            positions = positions.clamp(max=most - 1)
        kind = at.device.type
        decoder.used.frame = frame
        try:
            # Casts that autocast keeps would be made within the graph, and lost after it.
            with padded(at), torch.autocast(kind, torch.get_autocast_dtype(kind), _casts(kind), cache_enabled=False):
                return decoder.logits(
                    decoder.token[: frame.rows, None], (column >= start) & (column <= at), positions, self.casts
                )
        finally:
            decoder.used.frame = None

    def _compared(self, frame: Frame) -> str:
        """Return how steps of this model are to be run. Runs one of both kinds, which change nothing: they write the
        same keys and values."""
        decoder, one_by_one = self.decoder, "one by one: "
        kind = original_of(decoder.model.config.get_text_config(decoder=True))
        if kind not in NAMES:
            return f"{one_by_one}attn_implementation {kind} makes a mask of its own in each step"
        expected = decoder.plain_logits(even=False).log_softmax(-1)
        try:
            found = self._logits(frame)[: len(expected)].log_softmax(-1)
        except NotSteady as error:
            return one_by_one + str(error)
        difference, tolerance = float((found - expected).abs().max()), _tolerance(decoder.model)
        if not difference <= tolerance:
            return f"{one_by_one}within a frame log-probs differ by {difference:.2g} (at most {tolerance:g})"
        return GRAPHS_USED


def _casts(kind: str) -> bool:
    return torch.is_autocast_enabled(kind)


def _tolerance(model: PreTrainedModel) -> float:
    """Of log-probs: they differ by the order of sums."""
    return 1e-3 if model.dtype in (torch.float32, torch.float64) and not _casts(model.device.type) else 0.5


def casts_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the float32 weights of plain linear layers by name, in autocast's type: once for all steps, where autocast
    would make them in each step of a graph. Empty without autocast."""
    kind = model.device.type
    if not _casts(kind):
        return {}
    plain = {f"{name}." for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    return {
        name: parameter.detach().to(torch.get_autocast_dtype(kind))
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.dtype == torch.float32 and name[: name.rfind(".") + 1] in plain
    }
