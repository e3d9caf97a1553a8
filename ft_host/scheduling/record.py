"""What a run learns from, kept on disk as it is made, and a run that learns from it again.

A rollout is recorded as `ft_rollout` made it, before `ft_annotate`: all that comes after depends on the weights. With
the random states of that moment a replay has the same losses, bit for bit where the run itself would have: on one
process, or as many as before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.contract.generation import check_json
from ft_host.distributed.processes import on_main
from ft_host.errors import DataError, FtHostError
from ft_host.rollouts.drawing import RolloutMade, Rollouts
from ft_host.rundir.recorded import FOLDER, cut, file_of, recorded
from ft_host.scheduling.opening import rollouts_of
from ft_host.scheduling.packed import read_packed, write_packed
from ft_host.util.disk import disk_problem
from ft_host.util.ranks import everywhere
from ft_host.util.seeds import random_states, set_random_states

if TYPE_CHECKING:
    from ft_host.data.stream import TrainStream
    from ft_host.rollouts.session import RolloutSession
    from ft_host.run import Run


def rollouts_for(session: RolloutSession, run: Run, prompts: TrainStream, buffers: list[dict[str, Any]]) -> Rollouts:
    """Return what makes the rollouts of a run, records them, or gives those of another again. `buffers` are those of
    all ranks of a checkpoint. All ranks must call it. Raises ConfigError as `rollouts_of` does."""
    config = session.config
    if config.replay is not None:
        return Recorded(run=run, prompts=prompts, source=Path(config.replay))
    rollouts = rollouts_of(session, run, prompts, buffers)
    last = buffers[0]["number"] if buffers else -1

    def begin() -> None:
        cut(run.folder.path, last)  # as the logs of a resumed run are
        if config.records:
            (run.folder.path / FOLDER).mkdir(exist_ok=True)

    on_main(run.accelerator, begin)
    return Recorder(run=run, rollouts=rollouts) if config.records else rollouts


@dataclass(kw_only=True)
class Recorder:
    """Makes rollouts as `rollouts` does, and keeps each rank's part of them in the run's folder."""

    run: Run
    rollouts: Rollouts

    @property
    def prompts(self) -> TrainStream:
        return self.rollouts.prompts

    def make(self, number: int, place: dict[str, Any]) -> RolloutMade:
        made = self.rollouts.make(number, place)
        self._write(number, made)
        return made

    def state(self, held: int) -> dict[str, Any]:
        return self.rollouts.state(held)

    def close(self) -> None:
        self.rollouts.close()

    def _write(self, number: int, made: RolloutMade) -> None:
        """Raises FtHostError, on all ranks, where a disk doesn't take it."""
        run = self.run
        kept = {
            "number": number,
            "step": run.step,
            "world_size": run.world_size,
            "seed": run.config.seed,
            "rows": made.rows,
            "samples": made.samples,
            "place": made.place,
            "metrics": made.metrics,
            "prompts": made.prompts,
            "random": random_states(),
        }
        problem, cause = None, None
        try:
            write_packed(file_of(run.folder.path, number, run.rank), kept)
        except TypeError:
            for row in made.rows:
                check_json(run.plugins, "ft_rollout", [row])
            raise
        except OSError as error:
            what = disk_problem([error], run.folder.path) or f"{type(error).__name__}: {error}"
            problem, cause = f"rollout {number} could not be recorded: {what}", error
        problems = [text for text in run.gather(problem) if text]
        if problems:
            raise everywhere(FtHostError(f"{problems[0]}; record_rollouts: false goes on without")) from cause


@dataclass(kw_only=True)
class Recorded:
    """The rollouts of the run in `source`, in their order; nothing is sampled. `prompts` isn't read: it knows how many
    there are."""

    run: Run
    prompts: TrainStream
    source: Path
    numbers: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.numbers = recorded(self.source)

    def make(self, number: int, place: dict[str, Any]) -> RolloutMade:
        """Raises DataError for a rollout that isn't there, or a file that is damaged."""
        run, first, last = self.run, self.numbers[0], self.numbers[-1]
        if number > last:
            run.say(f"{self.source} has no rollout after number {last}: its replay ends here")
            raise StopIteration
        if number < first:
            raise DataError(
                f"{self.source} has recorded rollouts {first} to {last}, and this run begins with rollout {number}: "
                "set resume_from_checkpoint to the checkpoint that it began with"
            )
        part = self._read(number, 0)
        if part["world_size"] == run.world_size:
            part = part if run.rank == 0 else self._read(number, run.rank)
            rows, samples = part["rows"], part["samples"]
            if part["seed"] == run.config.seed:
                set_random_states(part["random"])
        else:
            others = (self._read(number, rank) for rank in range(1, part["world_size"]))
            rows, samples = dealt([part, *others], run.rank, run.world_size)
        if part["place"]["position"] is not None:
            self.prompts.tally.dropped = dict(part["place"]["position"]["dropped"])
        # How long things took is said of this run alone.
        metrics = {name: value for name, value in part["metrics"].items() if not name.startswith("perf/")}
        return RolloutMade(rows=rows, samples=samples, place=part["place"], metrics=metrics)

    def state(self, held: int) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self.prompts.close()

    def _read(self, number: int, rank: int) -> dict[str, Any]:
        path = file_of(self.source, number, rank)
        if not path.is_file():
            raise DataError(f"{path} is missing: {self.source} recorded rollout {number} on more processes")
        return read_packed(path)


def dealt(parts: list[dict[str, Any]], rank: int, world_size: int) -> tuple[list[Any], list[Any]]:
    """Return one rank's rows and samples of a rollout that other ranks have recorded: whole groups, in turn."""
    rows = [row for part in parts for row in part["rows"]]
    samples = [sample for part in parts for sample in part["samples"]]
    of_rows = samples if len(samples) == len(rows) else [None] * len(rows)
    places = {group: index for index, group in enumerate(sorted({row["group"] for row in rows}))}
    both = sorted(zip(rows, of_rows, strict=True), key=lambda pair: places[pair[0]["group"]])
    mine = [pair for pair in both if places[pair[0]["group"]] % world_size == rank]
    return [row for row, _ in mine], [sample for _, sample in mine if sample is not None]
