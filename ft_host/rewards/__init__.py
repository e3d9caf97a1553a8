"""What completions are worth: functions of the user, built-in ones, and reward models. Importing this loads no torch.

`score` calls functions in this process; a `RewardPool` calls them in processes of their own, with deadlines.
"""

from ft_host.rewards.functions import (
    RewardFunction,
    Scoring,
    check_columns,
    describe,
    find_reward,
    load_reward,
    load_rewards,
    score,
)
from ft_host.rewards.pool import RewardPool, Scored

__all__ = [
    "RewardFunction",
    "RewardPool",
    "Scored",
    "Scoring",
    "check_columns",
    "describe",
    "find_reward",
    "load_reward",
    "load_rewards",
    "score",
]
