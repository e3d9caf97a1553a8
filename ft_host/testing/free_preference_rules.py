"""Cases of the rules that methods share which learn from pairs without a reference. Imports no torch."""

from __future__ import annotations

from ft_host.testing.rules import Told, steps

# A run that goes well: log-probs are means over the tokens of a completion.
WELL = {
    "logps__chosen": lambda step: -1.2 + 0.005 * step,
    "logps__rejected": lambda step: -1.3 - 0.01 * step,
    "rewards__margins": lambda step: 0.01 + 0.0015 * step + 0.002 * (step % 3 - 1),
    "rewards__accuracies": lambda step: min(0.55 + 0.005 * step, 0.85) + 0.03 * (step % 3 - 1),
}


def free_preference_cases(letters: str, *, displacement: int, signal: int) -> dict[str, tuple[Told, Told]]:
    """{code: (faulty, healthy)} of every rule of `free_preference_rules`."""

    def told(**values: object) -> Told:
        return Told(facts={"plan/total_steps": 80}, lines=steps(80, **(WELL | values)))  # type: ignore[arg-type]

    falls = told(logps__chosen=lambda step: -1.2 - 0.03 * step)
    dips = told(logps__chosen=lambda step: -1.2 - 0.3 * min(step / 10, 1.0) + 0.004 * step)
    stays = told(
        rewards__accuracies=lambda step: 0.55 + 0.06 * (step % 3 - 1),
        rewards__margins=lambda step: 0.01 + 0.01 * (step % 3 - 1),
    )
    return {f"{letters}{displacement:03d}": (falls, dips), f"{letters}{signal:03d}": (stays, told())}
