"""Rules, what they read, and their findings. The import door for rules. Imports no torch."""

from ft_host.diagnostics.engine import Engine
from ft_host.diagnostics.finding import Finding
from ft_host.diagnostics.remedies import (
    fewer_steps,
    larger_step,
    lower_rate,
    more_generations,
    raise_rate,
    restore,
    set_field,
)
from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.shared import Names, broken_by, rollout_rules, ruin, taught_rules, watched_rules
from ft_host.diagnostics.shared.free_preferences import free_preference_rules
from ft_host.diagnostics.shared.helpers import at_best, learns, rising
from ft_host.diagnostics.shared.preferences import (
    CHOSEN,
    MARGINS,
    REJECTED,
    by_chance,
    errors,
    fall,
    preference_rules,
    rows_of,
)
from ft_host.diagnostics.spread import fallen, risen
from ft_host.diagnostics.suspects import Suspect
from ft_host.diagnostics.view import View, percent, rounded, short, went

__all__ = [
    "CHOSEN",
    "MARGINS",
    "REJECTED",
    "Engine",
    "Finding",
    "Names",
    "Remedy",
    "Rule",
    "Suspect",
    "View",
    "at_best",
    "broken_by",
    "by_chance",
    "errors",
    "fall",
    "fallen",
    "fewer_steps",
    "free_preference_rules",
    "larger_step",
    "learns",
    "lower_rate",
    "more_generations",
    "percent",
    "preference_rules",
    "raise_rate",
    "restore",
    "rising",
    "risen",
    "rollout_rules",
    "rounded",
    "ruin",
    "rows_of",
    "set_field",
    "short",
    "taught_rules",
    "watched_rules",
    "went",
]
