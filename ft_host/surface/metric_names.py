"""The names of the numbers that the host logs, as docs/metrics.md describes them: a part of its promise. A method lists
its own in `RunConfig.metrics`. Imports nothing but `re`.

`*` stands for any text: the name of a reward, a cause, the number of a server.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# What each line begins with, in a step and in an evaluation.
LINE = ("kind", "step", "epoch")
EVERY_RUN = (
    "loss",
    "loss/*",
    "grad_norm",
    "learning_rate",
    "num_tokens",
    "update_ratio",
    "update_skipped",
    "aux_loss",
    "moe/aux_share",
    "moe/max_violation",
    "moe/dead_experts",
    "moe/router_entropy",
    "data/dropped_rows",
    "data/truncated_rows",
    "perf/step_time",
    "perf/train_time",
    "perf/tokens_per_second",
    "perf/supervised_tokens_per_second",
    "perf/peak_memory_mb",
    "perf/data_time",
    "perf/slowest_rank",
    "perf/slowest_rank_time",
    "perf/other_ranks_time",
    "perf/slowest_rank_rows_time",
    "perf/other_ranks_rows_time",
    "perf/slowest_rank_training_time",
    "perf/other_ranks_training_time",
    "perf/slowest_rank_tokens",
    "perf/other_ranks_tokens",
    "perf/evaluation_time",
    "perf/save_time",
    "perf/memory_mb",
    "perf/memory_allocated_mb",
    "perf/memory_reserved_mb",
    "perf/memory_share",
    "perf/alloc_retries",
    "perf/eval_time",
    "eval_reward",
    "eval_reward_std",
    "eval_rewards/*/mean",
    "eval_rewards/*/std",
    "eval_rewards/*/none_share",
    "eval_completions/mean_length",
    "eval_completions/clipped_ratio",
)
ROLLOUTS = (
    "rewards/*/mean",
    "rewards/*/std",
    "rewards/*/failed",
    "rewards/*/failed_share",
    "rewards/*/none_share",
    "rewards/*/repeat_variance",
    "completions/unrewarded_share",
    "completions/mean_length",
    "completions/min_length",
    "completions/max_length",
    "completions/mean_terminated_length",
    "completions/min_terminated_length",
    "completions/max_terminated_length",
    "completions/clipped_ratio",
    "completions/empty_share",
    "completions/unique_share",
    "completions/reward_min",
    "completions/reward_max",
    "completions/reward_length_correlation",
    "tools/call_frequency",
    "tools/failure_frequency",
    "rollout/prompts_drawn",
    "perf/rollout_time",
    "perf/generation_time",
    "perf/reward_time",
    "perf/annotation_time",
    "perf/weight_sync_time",
    "perf/generation_tokens_per_second",
    "rollouts/staleness_mean",
    "rollouts/staleness_max",
    "rollouts/late_share",
    "rollouts/late_length",
    "rollouts/on_time_length",
    "rollouts/ess",
    "rollouts/ess_rows",
    "rollouts/logp_difference",
    "rollouts/mismatch_mean",
    "rollouts/mismatch_max",
    "rollouts/ready",
    "rollouts/running",
    "rollouts/waiting",
    "rollouts/failed_*",
    "rollouts/set_aside",
    "rollouts/server_*/tokens_per_second",
    "perf/rollout_wait_time",
    "perf/rollout_idle_share",
    "perf/rollout_scoring_share",
    "perf/engine_time",
    "perf/scoring_time",
    "perf/weight_update_time",
    "perf/measuring_time",
)


def unnamed(logged: Iterable[str], own: Iterable[str], rollouts: bool = False) -> list[str]:
    """Return what a run has logged that neither the host's tables nor the method's own list (`own`) names. `logged`:
    the keys of its lines. An evaluation has each name with `eval_`, one of several sets with `eval_NAME_`."""
    patterns = [*LINE, *EVERY_RUN, *(ROLLOUTS if rollouts else ()), *own]
    bare = [pattern.removeprefix("eval_") for pattern in patterns]
    known = re.compile("|".join([*map(_expression, patterns), *(rf"eval_(\w+_)?{_expression(each)}" for each in bare)]))
    return sorted(name for name in set(logged) if not known.fullmatch(name))


def _expression(pattern: str) -> str:
    return ".+".join(map(re.escape, pattern.split("*")))
