"""Prompts that fail: which are tried again, which are set aside, and when the run ends."""

from __future__ import annotations

from typing import Any

from ft_host.config.rollout import RolloutConfig
from ft_host.scheduling.unit import Failed, Unit


class Failures:
    def __init__(self, config: RolloutConfig):
        self.config = config

    def take(self, failed: Failed, unit: Unit) -> str:
        """Return "retry" or "set aside". Raises the error where it ends the run."""
        if failed.cause is None:
            raise failed.error
        tries = unit.tries[failed.cause] = unit.tries.get(failed.cause, 0) + 1
        if tries <= self.config.retries[failed.cause]:
            return "retry"
        raise failed.error

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, saved: dict[str, Any]) -> None:
        pass
