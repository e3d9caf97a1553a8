"""Notices that a run stands still: far longer than a step usually takes. It is a thread, since the training thread
can't report its own hang, and there is one on every rank, since a rank that waits for another can't say what that one
does.

    stacks.txt             the stacks of all threads, of the main process
    stacks-rank-N.txt      of the others
    .stalled-N.json        while rank N stands still: where, for the main process to name it
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.monitor.place import Place, place_of
from ft_host.rundir.folder import write_json
from ft_host.util.console import tell
from ft_host.util.text import now

if TYPE_CHECKING:
    from ft_host.run import Run

LEAST = 60.0  # seconds that are no standstill, however short the steps are
FIRST = 1800.0  # seconds that the first work of its kind may take, as in SageMaker Debugger's StalledTraining
PREPARATION = 7200.0  # seconds from the model to the first step: a reference's log-probs of all rows, for instance
STEPS = 10  # usual steps that one may take
LONGEST = 3  # times as long as the longest of the last ones: rollouts, or a compilation, come in some steps alone
LOOK = 5.0  # seconds between two looks
PATIENCE = 6.0  # seconds in which the other ranks may say where they are
STEP = "a step"


class StallDetector:
    """What one rank is doing, and since when. The loop calls `stepped` after each step, and does what takes longer than
    a step within `during`."""

    def __init__(self, run: Run):
        self.run = run
        self.doing = "the preparation"
        self.took: dict[str, deque[float]] = {}  # seconds, by what was done
        self.last = time.monotonic()
        self.due: float | None = None  # seconds of silence after which it is told again; None: it wasn't told
        self.times = 0  # how often the run has stood still
        self.told: dict[str, Any] = {}  # facts of the last standstill
        self.longest: dict[str, Any] = {}  # facts of the longest one that has passed
        self._file().unlink(missing_ok=True)  # of a process that was killed
        self.ended = threading.Event()
        self.main = threading.current_thread()
        self.thread = threading.Thread(target=self._watch, name="ft-host-stall", daemon=True)
        self.thread.start()

    # -- from the loop

    def begin(self) -> None:
        """Steps begin."""
        self._goes_on(STEP)

    def stepped(self, seconds: float) -> None:
        """A step is done, which took so many seconds."""
        self._done(STEP, seconds)
        self._goes_on(STEP)

    @contextlib.contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Work that isn't a step, such as "an evaluation"."""
        before, started = self.doing, time.monotonic()
        self._goes_on(what)
        yield
        self._done(what, time.monotonic() - started)
        self._goes_on(before)

    def close(self) -> None:
        self.ended.set()
        self.thread.join()
        self._file().unlink(missing_ok=True)

    # -- what is usual

    @property
    def usual(self) -> float:
        """The median of what is being done, in seconds; 0 where it is done for the first time."""
        took = self.took.get(self.doing)
        return statistics.median(took) if took else 0.0

    @property
    def limit(self) -> float:
        """Seconds after which it stands still."""
        took = self.took.get(self.doing)
        if not took:
            return max(LEAST, PREPARATION if self.doing == "the preparation" else FIRST)
        return max(LEAST, STEPS * self.usual, LONGEST * max(took))

    def _done(self, what: str, seconds: float) -> None:
        self.took.setdefault(what, deque(maxlen=100)).append(seconds)

    def _goes_on(self, what: str) -> None:
        silent, due = time.monotonic() - self.last, self.due
        self.doing, self.last, self.due = what, time.monotonic(), None
        if due is not None:
            self._file().unlink(missing_ok=True)
        if self.told:
            self._passed(silent)
            self.told = {}

    def _passed(self, silent: float) -> None:
        """It goes on. What was told stays in the folder, as a standstill that has passed."""
        self.times += 1
        if silent > self.longest.get("watch/stalled_seconds", 0.0):
            known = {name.replace("/silent_", "/stalled_"): value for name, value in self.told.items()}
            self.longest = known | {"watch/stalled_seconds": round(silent, 1)}
        over = {"watch/silent_seconds": round(silent, 1), "watch/silent_over": True}
        self.run.record_facts(over | self.longest | {"watch/stalls": self.times})

    # -- in the thread

    def _watch(self) -> None:
        while not self.ended.wait(min(LOOK, LEAST / 4)):
            last, silent = self.last, time.monotonic() - self.last
            if silent > (self.limit if self.due is None else self.due):
                self.due = 2 * silent
                try:
                    self._tell(silent, last)
                except OSError as error:  # the disk may be what hangs; a thread's error would only be a traceback
                    text = f"no step for {silent:.0f} seconds, and that can't be written down: {error}"
                    tell(text, "warning", self.run.config.progress)

    def _tell(self, silent: float, last: float) -> None:
        """Write down what the threads do, before anything else can go wrong."""
        run, place = self.run, place_of(self.main.ident or 0)
        name = "stacks.txt" if run.rank == 0 else f"stacks-rank-{run.rank}.txt"
        with (run.folder.path / name).open("a", encoding="utf-8") as file:
            silence = f"nothing for {silent:.0f} seconds after step {run.step}, in {self.doing}"
            file.write(f"{now()}: {silence}: {place.text}\n")
            file.flush()
            faulthandler.dump_traceback(file=file, all_threads=True)
            file.write("\n")
        if run.rank:
            write_json(self._file(), asdict(place) | {"step": run.step})
            return
        facts = {
            "watch/silent_seconds": round(silent, 1),
            "watch/silent_after_step": run.step,
            "watch/silent_during": self.doing,
            "watch/silent_usual": round(self.usual, 3),
            "watch/silent_place": self._culprit(place),
            "watch/silent_over": False,
        }
        if self.last == last:  # it may have gone on meanwhile
            self.told = facts
            run.record_facts(facts)

    def _culprit(self, mine: Place) -> str:
        """Return where the run stands still. A rank that waits for another tells nothing, where another does."""
        run = self.run
        if run.world_size == 1:
            return mine.text
        known = {0: mine}
        until = time.monotonic() + PATIENCE
        while len(known) < run.world_size and time.monotonic() < until and not self.ended.wait(0.1):
            for rank in range(1, run.world_size):
                file = self._file(rank)
                if rank not in known and file.is_file():
                    said = json.loads(file.read_text(encoding="utf-8"))
                    if said.pop("step") == run.step:
                        known[rank] = Place(**said)
        alone = [rank for rank, place in known.items() if not place.together]
        chosen = alone or [0]
        more = f" (ranks {', '.join(map(str, chosen[1:]))} too)" if len(chosen) > 1 else ""
        return f"rank {chosen[0]}{more}: {known[chosen[0]].text}"

    def _file(self, rank: int | None = None) -> Path:
        return self.run.folder.path / f".stalled-{self.run.rank if rank is None else rank}.json"
