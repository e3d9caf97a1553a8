"""From prompts to completions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ft_host.hooks import hookspec

if TYPE_CHECKING:
    from ft_host.generation import Completion, Request, Sampling
    from ft_host.run import Run


@hookspec(firstresult=True)
def ft_generate(requests: list[Request], sampling: Sampling, run: Run) -> list[Completion]:
    """Complete each request, in the order given, with the policy's current weights.

    Implemented by the backend; reached as `run.generate(...)`. Runs before, during and after training for
    `eval_reward`. Takes and gives token ids: text is never tokenised again in between. Since 0.1.
    """
