"""What the trainer sees of the place in which completions are made, be it in this process or in another."""

from __future__ import annotations

from typing import Any, Protocol

from ft_host.scheduling.unit import Event, Unit
from ft_host.types import Completion, Request, Sampling


class Source(Protocol):
    """`local.Local` and `remote.Remote`. Called from the trainer's main thread."""

    def admit(self, units: list[Unit]) -> None:
        """Begin these units, or go on with what they have `begun`."""

    def events(self, patience: float) -> list[Event]:
        """Return what has happened since the last call; wait up to so many seconds where nothing has. `Local` samples
        meanwhile. Raises FtHostError where the source can't be used any more and could not be begun anew."""

    def generate(self, requests: list[Request], sampling: Sampling) -> list[Completion]:
        """Complete requests of no unit with the engine's current weights: a probe."""

    def pause(self) -> None:
        """Stop what runs, keeping its tokens, until `resume`: the weights are about to change."""

    def resume(self, version: int, weights: Any) -> None:
        """Go on with the weights of that optimizer step; `weights` is what `Engine.update` gets."""

    def rest(self) -> None:
        """The trainer trains now: give back what it needs."""

    def flush(self, patience: float) -> list[Event]:
        """Return all that has happened up to now, so that a checkpoint has it."""

    def circumstances(self) -> str:
        """Return further lines for the message of a failure: what is known of the place in which completions are made.
        Empty, or begins with a new line."""

    def close(self) -> None:
        """End it; what runs is lost here, and kept in the ledger."""
