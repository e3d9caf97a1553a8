"""The generation engines of the host. What goes into a backend and comes out of it is in `ft_host.types`."""

from ft_host.types import Completion, Request, Sampling, Scores, Sequence

__all__ = ["Completion", "Request", "Sampling", "Scores", "Sequence"]
