"""From prompts to completions, and from completions to rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ft_host.hooks import hookspec

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from ft_host.models.policy import Policy
    from ft_host.rollouts.rollout import RolloutRun
    from ft_host.run import EnginePlace, Run
    from ft_host.types import Completion, Engine, Request, Rollout, Row, Sampling, Scores, Sequence, Served


RUN = FutureWarning("ft_rollout: its argument run is called rollout since ft-host 0.5")


@hookspec(firstresult=True, warn_on_impl_args={"run": RUN})
def ft_rollout(rows: list[Row], rollout: RolloutRun, run: RolloutRun) -> Rollout:
    """Turn prompts into rows to train on: complete them, score the completions, say what to learn from them.

    Implemented by methods that learn from what they sample; a method without it is trained on the rows as they are.
    Runs on this rank's prompts of a rollout, all ranks at once, through `rollout.generate` and `rollout.reward` alone:
    `rollout` holds no model, so that it may run elsewhere than the training. May leave out groups that hold no signal;
    further prompts are then drawn, up to `max_rollout_draws` times. `run` is the same object, by the name that it had
    before 0.5. Since 0.3.
    """


@hookspec(firstresult=True)
def ft_generate(requests: list[Request], sampling: Sampling, run: Run) -> list[Completion]:
    """Complete each request, in the order given, with the weights that the backend got last.

    Implemented by the backend; called as `run.generate(...)`. Runs for rollouts, and before, during and after training
    for `eval_reward`; all ranks call it at once, some perhaps without requests. It takes and returns token ids: text is
    never tokenised again in between. Since 0.1.
    """


@hookspec(firstresult=True)
def ft_engine(place: EnginePlace) -> Engine:
    """Return a sampler that takes requests while others are under way.

    Implemented by backends that can; `rollouts: overlap` and `async` need it. Runs once before the first rollout: in
    the trainer's process for `overlap`, in the rollout process for `async`, and there again if that process is
    restarted. Since 0.7.
    """


@hookspec(firstresult=True)
def ft_connect(run: Run) -> Any:
    """Return what a rollout process needs to reach this backend's servers: what JSON can hold, as `EnginePlace` passes
    it on.

    Implemented by backends whose weights are in servers; without it the rollout process loads the model itself. Runs
    with `rollouts: async` in the trainer, on all ranks at once: before the rollout process starts, and after each
    `ft_sync_weights`, whose news it then tells (`Engine.update` gets it). Since 0.7.
    """


@hookspec(firstresult=True)
def ft_serve(model: str, servers: int, host: str, backend_config: Any) -> AbstractContextManager[Served]:
    """Start servers of a model, for runs to sample on, and end them when the context is left.

    Implemented by backends with servers of their own; called by `ft-host serve`, outside of any run. `backend_config`
    is an object of the backend's config class, not yet checked. Since 0.7.
    """


@hookspec(firstresult=True)
def ft_score(sequences: list[Sequence], top: int, run: Run) -> list[Scores]:
    """Score the tokens of each sequence, in the order given, with another model that the backend serves (a teacher):
    its `top` likeliest tokens at each position, with their log-probs at temperature 1.

    Implemented by backends that can serve such a model; called as `run.score(...)`. Runs once for each row as it enters
    the buffer; all ranks call it at once, some perhaps without sequences. Since 0.4.
    """


@hookspec(firstresult=True)
def ft_sync_weights(model: Policy, version: int, run: Run) -> None:
    """Take over the policy's weights; `version` is the optimizer step that they come from.

    Implemented by backends that hold weights of their own. Runs before the first generation and before each one that
    follows an update, on all ranks at once, while no request is running. Since 0.3.
    """


@hookspec
def ft_close(run: Run) -> None:
    """End what was started for this run: servers, engines, files.

    Implemented by plugins that start something. Runs once when the run ends, however it ends, on each rank by itself:
    others may be gone by then. Since 0.3.
    """
