"""What a run says about itself: rules, what they see, and what they found. Imports no torch."""

from ft_host.diagnostics.engine import Engine
from ft_host.diagnostics.finding import Finding
from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.view import View, percent, rounded, short

__all__ = ["Engine", "Finding", "Remedy", "Rule", "View", "percent", "rounded", "short"]
