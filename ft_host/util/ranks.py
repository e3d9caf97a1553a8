"""Errors among the processes of a run: one that is told to the others, and the loss of another process."""

from __future__ import annotations

from dataclasses import dataclass

from ft_host import errors
from ft_host.errors import FtHostError
from ft_host.util.memory import ran_out

# What gloo, NCCL and torch's store say to a process whose partner has ended.
LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "gloo/transport",
    "[gloo]",
    "remote process exited",
    "NCCL error",
    "NCCL communicator was aborted",
    "Failed to recv, got 0 bytes",
    "failed to recv",
    "recvValue failed",
    "sendBytes failed",
    "Broken pipe",
)


def lost_another(error: BaseException) -> bool:
    """Return whether an error says that another process of the run has ended."""
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in LOST)


def told(error: BaseException) -> bool:
    """Return whether all processes of the run know of an error, or one of them has gone with it."""
    return lost_another(error) or (isinstance(error, FtHostError) and error.everywhere)


def everywhere(error: FtHostError) -> FtHostError:
    """Mark an error that all processes of the run raise at this place."""
    error.everywhere = True
    return error


@dataclass(frozen=True)
class Failure:
    """An error of one process, as it is sent to the others in place of what they wait for."""

    error: FtHostError

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Make it of any error; one of a class that others can't know becomes one of `ft_host.errors`."""
        if vars(errors).get(type(error).__name__) is type(error):
            return cls(error)
        if ran_out(error):
            return cls(errors.OutOfMemory(f"memory ran out ({type(error).__name__}: {error})"))
        if not isinstance(error, FtHostError):
            return cls(FtHostError(f"{type(error).__name__}: {error}"))
        nearest = next(each for each in type(error).__mro__ if vars(errors).get(each.__name__) is each)
        return cls(nearest(str(error), facts=error.facts))
