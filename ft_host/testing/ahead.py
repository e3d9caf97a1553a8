"""What must hold of a method's runs whose rollouts don't wait for training."""

from __future__ import annotations

from unittest import mock

from ft_host.config import RolloutConfig
from ft_host.scheduling.ledger import Ledger
from ft_host.scheduling.unit import Unit
from ft_host.testing.invariants import assert_same, assert_same_weights, lines, run_in


def rollouts_ahead(config: RolloutConfig, mode: str = "overlap") -> list[list[Unit]]:
    """A run with rollouts one ahead learns from each prompt once, from no token that is older than the bound, and from
    all that its config asks for; a replay of its rollouts has its numbers, bit for bit. Gives the prompts of each
    rollout; only of `overlap` are they seen in this process."""
    taken: list[list[Unit]] = []
    take = Ledger.take

    def seen(ledger: Ledger, chosen: list[Unit]) -> list[Unit]:
        taken.append(list(chosen))
        return take(ledger, chosen)

    with mock.patch.object(Ledger, "take", seen):
        folder = run_in(config, f"ahead-{mode}", rollouts=mode)
    numbers = [unit.number for units in taken for unit in units]
    assert len(numbers) == len(set(numbers)), f"prompts were learnt from twice: {numbers}"
    found = lines(folder)
    assert len(found) == len(lines(run_in(config, "one-by-one")))
    updates = config.rollout_plan(1).updates
    oldest = max(line.get("rollouts/staleness_max", 0) for line in found)
    replayed = run_in(config, f"replayed-{mode}", rollouts=mode, replay=str(folder))
    assert_same(found, lines(replayed), rel=0.0, abs=0.0)
    assert oldest <= updates, f"tokens were {oldest} updates old; expected at most {updates}"
    return taken


def same_as_sync(config: RolloutConfig, mode: str = "async") -> None:
    """With `max_staleness: 0` a run is bit for bit the synchronous one."""
    there, here = run_in(config, f"exact-{mode}", rollouts=mode, max_staleness=0), run_in(config, "sync")
    assert_same(lines(there), lines(here), rel=0.0, abs=0.0)
    assert_same_weights(there, here, rel=0.0)
