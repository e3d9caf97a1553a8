"""Loss, gradients and updates, of every method. Imports no torch."""

from __future__ import annotations

from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.view import View, rounded, short


def lower_rate(view: View, by: float, why: str = "") -> Remedy:
    """A patch that lowers the learning rate."""
    now = view.config.learning_rate
    new = rounded(now / by)
    return Remedy(
        why=f"Lower learning_rate from {short(now)} to {short(new)}{why}",
        patch={"learning_rate": new},
        expected="smaller updates",
    )


def not_finite_message(view: View) -> str:
    where = view.get("watch/not_finite_parameter")
    found = f"The {view['watch/not_finite']} became {view['watch/not_finite_value']} at step {view['watch/not_finite_step']}"
    at = f"; the first parameter whose gradient isn't finite is {where}" if where else ""
    return f"{found}{at}. The weights were not updated and the run ended."


def not_finite_remedies(view: View) -> list[Remedy]:
    out = [lower_rate(view, 5, ", the usual cause")]
    if view.config.fp16:
        out.insert(0, Remedy(
            why="Use bf16 in place of fp16: float16 overflows above 65504", patch={"fp16": False, "bf16": True},
        ))  # fmt: skip
    if not view.config.warmup_steps:
        out.append(Remedy(why="Set warmup_steps to 0.05, a twentieth of all steps", patch={"warmup_steps": 0.05}, again=True))
    out.append(Remedy(why="Look at the rows of this step: an empty sequence, or a number that isn't one"))
    return out


RULES = [
    Rule(
        code="NUM001",
        title="Loss or gradient isn't a finite number",
        stage="train",
        needs=("watch/not_finite",),
        severity="error",
        test=lambda view: True,
        message=not_finite_message,
        remedies=not_finite_remedies,
        mutes=("ALL",),
        when="The loss or the norm of the gradient of any step is NaN or infinite.",
        why="A number overflowed or was divided by nothing: mostly a learning rate that is too high, float16, or a row "
        "that holds no or a broken number. An update would have made all weights NaN.",
        remedy="Lower learning_rate, warm up, prefer bf16 to fp16, look at the rows of the step.",
        source="axolotl docs/training_stability; SageMaker Debugger ExplodingTensor",
    ),
]
