"""Rewards of completions: the user's functions, built-in functions and reward models. Importing this loads no torch.

`score` calls functions in this process; a `RewardPool` calls them in separate processes, with deadlines.
"""

from ft_host.rewards.find import describe, find_reward, load_reward, load_rewards
from ft_host.rewards.functions import RewardFunction, Scored, Scoring, check_columns, score
from ft_host.rewards.pool import RewardPool

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
