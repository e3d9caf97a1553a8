"""Reward functions in separate processes: if one raises, hangs or crashes, completions lose their reward; the run goes
on.

A call for a whole batch fails if it raises, takes too long, dies, or returns anything but a number or None for each
completion. It is then repeated for each completion alone, by processes that have not made the first call. A completion
that still fails has no reward, and the reason is reported. Reward models run in this process, on the run's device.
"""

from __future__ import annotations

import inspect
import os
import re
import threading
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.config.builtin_rewards import BUILTIN
from ft_host.errors import ConfigError, FtHostError
from ft_host.rewards.calls import LOADING, Calls
from ft_host.rewards.find import check_names, find_reward
from ft_host.rewards.functions import RewardFunction, Scored, Scoring, check_columns, score
from ft_host.rewards.jobs import Call, Found, Job
from ft_host.rewards.model import RewardModel
from ft_host.rewards.process import INSIDE, Worker
from ft_host.rewards.unrewarded import Unrewarded
from ft_host.util.imports import EXAMPLE

if TYPE_CHECKING:
    from ft_host.config.rollout import RolloutConfig

NUMBER = re.compile(r"\d+")


class RewardPool:
    """The rewards of a run. `names` and `functions` are in the order of `specs`.

    Functions are inspected in a separate process too, so that none of the user's code runs in this one. Raises
    ConfigError for a reward that can't be found. Without `waits_again` a call that takes too long isn't repeated for
    each completion: `score` raises FtHostError.
    """

    def __init__(self, specs: list[str], config: RolloutConfig, option: str = "reward", *, waits_again: bool = True):
        self.config, self.option, self.specs = config, option, list(specs)
        # files are relative to this folder, even if the run changes its own
        self.calls = Calls(self.specs, config, option, os.getcwd(), waits_again=waits_again)
        for spec in specs:
            if not isinstance(spec, str):
                raise ConfigError(
                    f"{option}: found {spec!r}; rewards are called in other processes, which find them "
                    f"by name: give {_path_of(spec) or EXAMPLE}"
                )
        if INSIDE in os.environ:
            raise ConfigError(
                "the file with the rewards starts a training run when it is imported; put the training under "
                '`if __name__ == "__main__":`, or move the rewards to a separate file'
            )
        try:
            self.functions = self.calls.functions = [self._describe(spec) for spec in self.specs]
            check_names(self.functions, option)
        except BaseException:
            self.close()
            raise
        self.names = [function.name for function in self.functions]
        self.told: set[str] = set()  # notes that were given before
        self.failing: set[tuple[str, str]] = set()  # functions and kinds of failures that were told of
        self.telling = threading.Lock()
        self.modelling = threading.Lock()  # reward models are called by one thread at a time
        self.unrewarded = Unrewarded(config.max_reward_failures)

    def _describe(self, spec: str) -> RewardFunction:
        if spec in BUILTIN or ":" not in spec or Path(spec).is_dir():
            return find_reward(spec, self.config, self.option, arguments=self.config.reward_kwargs)
        worker = self.workers[0] if self.workers else self.calls.start()
        worker.loaded.add(spec)
        worker.send("describe", spec, self.option, {}, self.config.seed)
        if not wait([worker.connection], LOADING):
            raise ConfigError(f"{self.option}: {spec} can't be imported: the import took longer than {LOADING:g} s")
        kind, answer = worker.receive()
        if kind != "described":
            raise ConfigError(answer if kind == "refused" else f"{self.option}: {spec} can't be imported: {answer}")
        return answer

    @property
    def workers(self) -> list[Worker]:
        return self.calls.workers

    @property
    def started(self) -> int:
        """How many processes were started so far."""
        return self.calls.started

    def score(self, scoring: Scoring) -> Scored:
        """Call all functions, as many at the same time as there are workers. Many threads may score at once, each with
        completions of its own.

        Raises DataError for a column that is missing or can't be sent to a worker, and FtHostError where one function
        has failed for more than `max_reward_failures` completions in a row, a reward model has failed, or the pool is
        closed meanwhile. After any exception the processes are ended that worked for this call; all of them, if no
        other goes on.
        """
        for function in self.functions:
            check_columns(function, scoring.columns)
        if not scoring.completions:
            return Scored(values=[])
        models = [isinstance(function.call, RewardModel) for function in self.functions]
        waiting = [Call(index) for index, model in enumerate(models) if not model]
        job = Job(scoring, [Found() for _ in self.functions], waiting)
        try:
            if waiting:
                self.calls.submit(job)
            for function, its, model in zip(self.functions, job.found, models, strict=True):
                if model:
                    its.rewards = dict(enumerate(self._modelled(function, scoring)))
            if not all(models):
                job.done.result()
        except BaseException:
            self.calls.give_up(job)
            raise
        return self._gathered(job)

    def _modelled(self, function: RewardFunction, scoring: Scoring) -> list[float | None]:
        try:
            with self.modelling:
                return score([function], scoring)[0]
        except FtHostError as error:
            error.facts.setdefault("rollout/cause", "reward")
            raise

    def is_new(self, name: str, reason: str) -> bool:
        """Return whether a reward hasn't failed in this way before: with an error of this class, or so late, whatever
        the numbers in the message."""
        kind = name, NUMBER.sub("", reason.partition(":")[0])
        with self.telling:
            new = kind not in self.failing
            self.failing.add(kind)
        return new

    def close(self) -> None:
        """End all processes. Calls under way raise FtHostError, and so does any `score` from here on."""
        self.calls.close()

    def _gathered(self, job: Job) -> Scored:
        results, rows = job.found, len(job.scoring.completions)
        scored = Scored(values=[[its.rewards[row] for its in results] for row in range(rows)])
        for name, its in zip(self.names, results, strict=True):
            if its.reasons:
                scored.failures[name] = sorted(its.reasons.items())
            for sample in sorted(its.logged):
                metrics, extra = its.logged[sample]
                for metric, values in metrics.items():
                    scored.metrics.setdefault(metric, []).extend(values)
                for column, values in extra.items():
                    # It replaces a column of the same name that another function logged.
                    its.columns.setdefault(column, [None] * rows)[sample : sample + len(values)] = values
            scored.extra |= its.columns
        with self.telling:
            scored.notes = [note for note in dict.fromkeys(job.notes) if note not in self.told]
            self.told |= set(scored.notes)
        return scored


def _path_of(spec: Any) -> str | None:
    """Return the spec of a function that was passed as an object; None for one without a name or inside another
    function.
    """
    if not inspect.isfunction(spec) or not spec.__qualname__.isidentifier():
        return None
    where = inspect.getsourcefile(spec) if spec.__module__ == "__main__" else spec.__module__
    return repr(f"{where}:{spec.__qualname__}")
