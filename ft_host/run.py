"""What a hook is handed, and what it hands back."""

from __future__ import annotations

import contextlib
import time
from collections import abc
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from ft_host.contract.blame import blamed
from ft_host.contract.generation import check_completions, check_rollout, check_scores
from ft_host.contract.loss import checked
from ft_host.contract.rows import collate, same_rows
from ft_host.errors import ConfigError, FtHostError
from ft_host.types import NO_SCORES
from ft_host.util.console import tell
from ft_host.util.memory import ANNOTATION, GENERATION, oom_context
from ft_host.util.moved import names_of, old_attributes
from ft_host.util.ranks import Failure, everywhere, told
from ft_host.util.signals import Signals
from ft_host.util.text import now

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from pluggy import PluginManager
    from transformers import PreTrainedTokenizerBase

    from ft_host.batch import Batch
    from ft_host.config import RunConfig
    from ft_host.config.rollout import RolloutPlan
    from ft_host.models.aux_models import AuxModel
    from ft_host.models.policy import Policy
    from ft_host.models.store import Store
    from ft_host.monitor.stall import StallDetector
    from ft_host.monitor.watch import Monitor
    from ft_host.rollouts.rollout import RolloutRun
    from ft_host.rundir.folder import RunFolder
    from ft_host.scheduling.timeline import Timeline
    from ft_host.types import Completion, LossOutput, Request, Rollout, Row, Sampling, Scores
    from ft_host.types import Sequence as TokenSequence


T = TypeVar("T")
U = TypeVar("U")
__getattr__ = names_of(__name__)


@old_attributes
@dataclass(kw_only=True)
class Run:
    """A run in progress. Hooks read it; what a method must keep over a restart goes into `state`."""

    config: RunConfig
    folder: RunFolder
    tokenizer: PreTrainedTokenizerBase
    plugins: PluginManager
    accelerator: Accelerator
    policy: Policy  # the bare module: for generation and saving, never for a loss
    model: torch.nn.Module  # the policy as the engine wrapped it: what `ft_loss` is given
    models: dict[str, AuxModel] = field(default_factory=dict)  # auxiliary models by role, called like the policy
    store: Store | None = None  # precomputed values of rows, kept on disk; None if there are none
    step: int = 0  # optimizer steps done
    totals: dict[str, float] = field(default_factory=dict)  # counts of the whole step, all micro-batches and ranks
    state: dict[str, Any] = field(default_factory=dict)  # a method's own, JSON-able; kept in checkpoints
    rollouts: RolloutPlan | None = None  # how completions become optimizer steps; None: the rows are those of the data
    waited: float = 0.0  # seconds of this process in `gather`, where it may have waited for others
    seconds: dict[str, float] = field(default_factory=dict)  # time of this step beside training, by name
    backend_config: Any = None  # the backend's own fields, an object of its config class; None if it has none
    backend_state: dict[str, Any] = field(default_factory=dict)  # what a backend keeps while the run lasts
    diagnostics_config: dict[str, Any] = field(default_factory=dict)  # of diagnostics with own fields: {name: object}
    watch: Monitor | None = None  # the run's diagnostics
    stall: StallDetector | None = None  # notices that the run stands still; None before it has its models
    timeline: Timeline | None = None  # what is done when; None where rollouts and training take turns
    sampler_version: int | None = None  # the step whose weights the backend has; None: it has got none yet
    said: set[str] = field(default_factory=set)  # what `say_once` has said
    signals: Signals = field(default_factory=Signals)  # that ask the run to stop
    began: bool = False  # whether this process has begun a training step
    whole: bool = True  # whether weights and counts are those after `step`; not from an update until it is counted
    # Around each transfer of weights to the backend: rollouts that run meanwhile stand still.
    around_sync: abc.Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    within: str | None = None  # a hook in which the other ranks may wait for this one elsewhere than in `gather`

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def world_size(self) -> int:
        return self.accelerator.num_processes

    @property
    def is_sharded(self) -> bool:
        return self.config.distributed_strategy == "fsdp2" and self.world_size > 1

    def gather(self, value: Any) -> list[Any]:
        """One picklable value of each rank, in the order of ranks, on every rank. All ranks must call it. Raises the
        error of a rank that has failed since the last call (`tell_ranks`)."""
        if self.world_size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world_size
        started = time.perf_counter()
        dist.all_gather_object(values, value)
        self.waited += time.perf_counter() - started
        for each in values:
            if isinstance(each, Failure):
                raise everywhere(each.error)
        return values

    def tell_ranks(self, error: Exception) -> NoReturn:
        """Raise an error of this rank on all ranks, each of which finds it where it gathers next. Raises it here alone
        if the others know it, or may wait for this rank elsewhere than in `gather`."""
        if self.world_size > 1 and self.within is None and not told(error):
            try:
                self.gather(Failure.of(error))
            except FtHostError as shared:
                raise shared from error
            except RuntimeError:  # the others have ended meanwhile: this error comes first
                raise error from None
        raise error

    def may_stop(self) -> contextlib.AbstractContextManager[None]:
        """Work that is done again when the run goes on: a signal breaks it off at once. Where several ranks work
        together, it is heeded when they agree."""
        return self.signals.at_once() if self.world_size == 1 else contextlib.nullcontext()

    def stopped_as_asked(self) -> str:
        return f"stopped at step {self.step} as asked; go on with `ft-host train --resume {self.folder.path}`"

    @contextlib.contextmanager
    def _within(self, hook: str) -> abc.Iterator[None]:
        """A hook that runs models on all ranks at once. What it raises names the plugin."""
        outer = self.within
        self.within = hook if self.is_sharded else None
        with blamed(self.plugins, hook):
            yield
        self.within = outer

    def over_ranks(self, mine: abc.Sequence[T], function: abc.Callable[[list[T]], abc.Sequence[U]]) -> list[U]:
        """This rank's part of what `function` returns for the values of all ranks, in the order of ranks: one for each.
        `mine` are picklable. All ranks must call it. Raises ValueError where `function` returns more or fewer."""
        ranks = self.gather(list(mine))
        values = list(chain.from_iterable(ranks))
        made = function(values)
        if len(made) != len(values):
            raise ValueError(f"over_ranks: the function returned {len(made)} values for {len(values)}")
        first = sum(len(rank) for rank in ranks[: self.rank])
        return list(made[first : first + len(mine)])

    # -- the hooks, with what they return checked; all of these raise HookError for what a hook may not return

    def collate(self, rows: list[Row]) -> Batch:
        """`ft_collate` on the rows of one micro-batch."""
        return collate(self.plugins, rows, self.tokenizer, self.config)

    def annotate(self, rows: list[Row]) -> list[Row]:
        """The rows as `ft_annotate` returns them. All ranks must call it at once."""
        with oom_context(ANNOTATION, self.step + 1):
            with self._within("ft_annotate"):
                found = self.plugins.hook.ft_annotate(rows=rows, run=self)
        return same_rows(self.plugins, "ft_annotate", rows, found)

    def add_step_statistics(self, rows: list[Row]) -> list[Row]:
        """The rows as `ft_step` returns them. All ranks must call it at once."""
        with self._within("ft_step"):
            found = self.plugins.hook.ft_step(rows=rows, run=self)
        return same_rows(self.plugins, "ft_step", rows, found)

    def loss(self, batch: Batch) -> LossOutput:
        """`ft_loss` of one micro-batch on the device, its terms divided by `totals`."""
        outer, self.within = self.within, "ft_loss"  # the others may be in a backward pass
        with blamed(self.plugins, "ft_loss"):
            output = self.plugins.hook.ft_loss(model=self.model, batch=batch, run=self)
        self.within = outer
        return checked(self.plugins, output, self.totals)

    def rollout(self, rows: list[Row], rollout: RolloutRun) -> Rollout:
        """`ft_rollout` on this rank's prompts. All ranks must call it at once."""
        with blamed(self.plugins, "ft_rollout"):
            found = self.plugins.hook.ft_rollout(rows=rows, rollout=rollout, run=rollout)
        return check_rollout(self.plugins, found)

    def generate(self, requests: list[Request], sampling: Sampling) -> list[Completion]:
        """Complete each request with the weights that the backend has. All ranks must call it."""
        with oom_context(GENERATION, self.step + 1), self._within("ft_generate"):
            found = self.plugins.hook.ft_generate(requests=requests, sampling=sampling, run=self)
        return check_completions(self.plugins, found, len(requests), self.rollouts is not None)

    def score(self, sequences: list[TokenSequence], top: int) -> list[Scores]:
        """The scores of tokens by the model that the backend serves beside the policy. All ranks must call it. Raises
        ConfigError if the backend serves none."""
        if not self.plugins.hook.ft_score.get_hookimpls():
            raise ConfigError(NO_SCORES.format(self.config.backend))
        with self._within("ft_score"):
            found = self.plugins.hook.ft_score(sequences=sequences, top=top, run=self)
        return check_scores(self.plugins, found, len(sequences))

    def sync_weights(self) -> None:
        """Give the backend the policy's current weights, if it holds weights and has others. All ranks must call it."""
        if self.sampler_version == self.step:
            return
        if self.plugins.hook.ft_sync_weights.get_hookimpls():
            started = time.perf_counter()
            with self.around_sync(), self._within("ft_sync_weights"):
                self.plugins.hook.ft_sync_weights(model=self.policy, version=self.step, run=self)
            self.add_time("weight_sync", time.perf_counter() - started)
        self.sampler_version = self.step

    def connect(self) -> Any:
        """What `ft_connect` of the backend returns. All ranks must call it."""
        with self._within("ft_connect"):
            return self.plugins.hook.ft_connect(run=self)

    def add_time(self, what: str, seconds: float) -> None:
        """Add time of this step that isn't training: metrics.jsonl has it as `perf/WHAT_time`."""
        self.seconds[what] = self.seconds.get(what, 0.0) + seconds
        self.ended(what, seconds)

    def ended(self, what: str, seconds: float) -> None:
        """Tell the timeline, if there is one, what has taken the last `seconds`."""
        if self.timeline is not None:
            self.timeline.ended(what, seconds)

    def record_facts(self, facts: dict[str, Any]) -> None:
        """Record facts of the run, which rules read: {name: value}. Only the main process records them."""
        if self.watch is not None:
            self.watch.record_facts(facts)

    def log(self, entry: dict[str, Any]) -> None:
        """Write a line of metrics.jsonl and pass it to the sinks. Does nothing off the main process."""
        if self.accelerator.is_main_process:
            self.folder.append("metrics.jsonl", entry)
            self.plugins.hook.ft_log(entry=entry, run=self)

    def say(self, text: str, level: str = "info") -> None:
        """Print a message, once, and write it to events.jsonl. `level`: info, warning or error."""
        if not self.accelerator.is_main_process:
            return
        self.folder.append("events.jsonl", {"time": now(), "step": self.step, "level": level, "text": text})
        tell(text, level, self.config.progress)

    def say_once(self, text: str, level: str = "info") -> None:
        """As `say`, for a message that may come again: it is printed the first time."""
        if text not in self.said:
            self.said.add(text)
            self.say(text, level)


@dataclass(kw_only=True)
class EnginePlace:
    """What `ft_engine` is given: where the engine is to work.

    In the trainer's process and in a rollout process that holds the model itself `run` has the policy and the models of
    other roles, and `connection` is None. A backend with `ft_connect` gets in a rollout process what that returned, and
    no `run`: there is no model in it.
    """

    config: RunConfig
    tokenizer: PreTrainedTokenizerBase
    backend_config: Any
    say: abc.Callable[..., None]  # say(text, level)
    run: Run | None = None
    connection: Any = None
