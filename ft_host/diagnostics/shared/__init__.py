"""Rules that methods with rollouts share: the same trouble over each method's names. Imports no torch.

    RULES = rollout_rules(Names(letters="GRPO"))

Numbers are those of GRPO: RLOO003 is to RLOO what GRPO003 is to GRPO; PPO's begin at PPO100.
"""

from dataclasses import replace

from ft_host.diagnostics.rule import Rule
from ft_host.diagnostics.shared import completions, policy, rewards, signal
from ft_host.diagnostics.shared.distillation import taught_rules
from ft_host.diagnostics.shared.helpers import Names, broken_by, ruin
from ft_host.diagnostics.shared.monitored_reward import watched_rules

__all__ = ["Names", "broken_by", "rollout_rules", "ruin", "taught_rules", "watched_rules"]


def rollout_rules(names: Names) -> list[Rule]:
    """The shared rules over a method's metrics, in the order of their codes."""
    found = [*signal.rules(names), *rewards.rules(names), *policy.rules(names), *completions.rules(names)]
    described = [replace(rule, family=f"rollouts-{int(rule.code[-3:]) - names.first:02d}") for rule in found]
    return sorted(described, key=lambda rule: rule.code)
