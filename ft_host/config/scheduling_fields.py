"""The fields of every run with rollouts that say when completions are sampled, and what becomes of failures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ft_host.config.options import option
from ft_host.config.usual import Usual
from ft_host.errors import ConfigError
from ft_host.util.text import QUOTED, nearest

if TYPE_CHECKING:
    from ft_host.config.rollout import RolloutPlan

CAUSES = ("engine", "environment", "reward", "timeout")  # of a prompt that failed
RETRIES = {"engine": 5, "environment": 2, "reward": 2, "timeout": 1}


@dataclass(kw_only=True)
class SchedulingFields:
    """A part of `RolloutConfig`."""

    rollouts: str = option(
        "sync",
        "When completions are sampled. sync: before the steps that learn from them, which wait. overlap: a rollout "
        "ends when enough prompts are done, and what still runs goes on in the next one, under the new weights. async: "
        "all the time, in a process of its own or on servers.",
        group="rollouts",
        choices=("sync", "overlap", "async"),
    )
    max_staleness: int | None = option(
        None,
        "The most optimizer steps between the weights that sampled a token and the first update that learns from it. "
        "0: as sync. Not set: the steps of one rollout.",
        group="rollouts",
        ge=0,
    )
    rollout_order: str = option(
        "ready_first",
        "Which prompts a step takes of those that are done: ready_first, or in_order of the data. None is taken later "
        "than max_staleness allows.",
        group="rollouts",
        choices=("ready_first", "in_order"),
    )
    recompute_cache: bool = option(
        True,
        "Compute the keys and values of completions under way anew after an update of the weights. false keeps those "
        "of the old weights: faster, and further from the policy.",
        group="rollouts",
    )
    record_rollouts: bool | None = option(
        None,
        "Keep what each step learns from in RUN/rollouts, 8 to 12 bytes a token, so that `ft-host train --replay RUN` "
        "can learn from it again. Not set: with overlap and async, whose completions can't be sampled again.",
        group="rollouts",
    )
    replay: str | None = option(
        None,
        "Learn from the rollouts that the run in this folder has recorded, in their order, rather than sample any. "
        "`ft-host train --replay RUN` takes the other fields from it too.",
        group="rollouts",
        path=True,
        compared=False,
    )
    rollout_device: str | None = option(
        None,
        "Device of the rollout process. Not set: a GPU that the trainer doesn't use, else the trainer's.",
        group="rollouts",
        example="cuda:1",
    )
    rollout_timeout: float = option(
        1800.0,
        "Seconds that a step waits for completions while no prompt gets any further; then the run ends and says why.",
        group="rollouts",
        gt=0,
        usual=Usual(low=30.0, why="a rollout that is slow once ends the run", source="own judgement"),
    )
    rollout_retries: dict[str, int] = option(
        {},
        "How often a prompt is tried again by what failed: engine (5), environment (2), reward (2), timeout (1). After "
        "that it is set aside and reported.",
        group="rollouts",
    )
    max_set_aside: int = option(
        16, "Prompts that may be set aside in an epoch; more end the run.", group="rollouts", ge=0
    )

    @property
    def records(self) -> bool:
        """Whether the run keeps its rollouts; one that replays those of another doesn't."""
        wanted = self.rollouts != "sync" if self.record_rollouts is None else self.record_rollouts
        return wanted and self.replay is None

    @property
    def retries(self) -> dict[str, int]:
        """Of each cause, how often a prompt is tried again."""
        return RETRIES | self.rollout_retries

    @property
    def samples_ahead(self) -> bool:
        """Whether completions may be of older weights than those that learn from them."""
        return self.rollouts != "sync" and self.max_staleness != 0

    def rollouts_ahead(self, plan: RolloutPlan) -> int:
        """How many rollouts may be begun before the one that is learnt from has ended; 0 for `sync`."""
        if self.rollouts == "sync":
            return 0
        return 1 if self.max_staleness is None else self.max_staleness // plan.updates

    def check_scheduling(self, plan: RolloutPlan) -> None:
        """Refuse fields without effect, and a bound that isn't whole rollouts. Raises ConfigError."""
        if self.rollouts == "sync":
            for name, default in DEFAULTS.items():
                if getattr(self, name) != default and not (name == "max_staleness" and self.max_staleness == 0):
                    raise ConfigError(f"{name}: has no effect with rollouts: sync; set rollouts: overlap or async")
        if self.rollouts != "async" and self.rollout_device is not None:
            raise ConfigError("rollout_device: only rollouts: async has a process of its own")
        unknown = [cause for cause in self.rollout_retries if cause not in CAUSES]
        if unknown:
            raise ConfigError(
                f"rollout_retries: {unknown[0]!r} is no cause{nearest(unknown[0], CAUSES, QUOTED, 'causes')}; expected "
                f"{', '.join(CAUSES)}"
            )
        bad = [cause for cause, times in self.rollout_retries.items() if not isinstance(times, int) or times < 0]
        if bad:
            raise ConfigError(
                f"rollout_retries: {bad[0]} is {self.rollout_retries[bad[0]]!r}; expected a whole number from 0 on"
            )
        if self.rollouts != "sync" and self.max_staleness and self.max_staleness % plan.updates:
            below = self.max_staleness // plan.updates * plan.updates
            raise ConfigError(
                f"max_staleness: {self.max_staleness} is no whole number of rollouts, each of which is used for "
                f"{plan.updates} steps; nearest: {below} or {below + plan.updates}"
            )


DEFAULTS = {
    "max_staleness": None,
    "rollout_order": "ready_first",
    "recompute_cache": True,
    "rollout_timeout": 1800.0,
    "rollout_retries": {},
    "max_set_aside": 16,
}
