"""What a run logs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ft_host.testing.conformance.check import Check, Figures, NotMet

if TYPE_CHECKING:
    from ft_host.testing.conformance.subject import Subject


def named(subject: Subject) -> Figures:
    """What a run of two steps and an evaluation logs."""
    from ft_host.surface.metric_names import unnamed
    from ft_host.testing.invariants import fixed_completions_of, lines, run_in
    from ft_host.testing.rows import write_rows

    held_out = str(write_rows(subject.folder / "held_out.jsonl", subject.rows(count=4)))
    fields = {"max_steps": 2, "eval_dataset": held_out, "eval_steps": 2}
    with fixed_completions_of(subject.config(**fields)) as config:
        folder = run_in(config, "logged")
    logged = {name for kind in ("train", "eval") for line in lines(folder, kind) for name in line}
    found = unnamed(logged, subject.config_class.metrics, rollouts=subject.samples)
    if found:
        raise NotMet(
            f"a run logs {', '.join(found)}, which neither the host nor {subject.config_class.__name__}.metrics names"
        )
    return {"metrics": len(logged)}


CHECKS: list[Check] = [
    Check(
        id="metrics-named",
        title="A run logs no metric that the package doesn't name",
        about="method",
        why="Names of metrics are a promise: rules, pages and programs of users read them. The contract has the list.",
        looks_at="All keys of metrics.jsonl of two steps and an evaluation, the host's table of names and the config's "
        "`metrics`.",
        mend="Add the name to `metrics` of the config class; `*` stands for any text.",
        test=named,
    )
]
