"""Numbers that aren't: loss and gradients that are no longer finite. Imports no torch."""

from __future__ import annotations

import statistics

from ft_host.diagnostics.remedies import lower_rate, warm_up
from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.view import View, percent, short

LARGE = 0.1  # of the weights in one update: what breaks them


def not_finite_message(view: View) -> str:
    where, of = view.get("watch/not_finite_parameter"), view.get("watch/not_finite_of", "gradient")
    if view["watch/not_finite"] == "weight":
        return f"The model came with numbers that are NaN or infinite: {where}. Nothing can be trained from them."
    found = (
        f"The {view['watch/not_finite']} became {view['watch/not_finite_value']} at step"
        f" {view['watch/not_finite_step']}"
    )
    if where and of == "weight":
        return f"{found}: numbers of {where} are NaN or infinite. The run ended."
    share = view.get("watch/not_finite_share")
    at = ""
    if where and share is not None:
        at = f"; {percent(share)} of the gradients aren't finite, of which {where} is the nearest to the loss"
    elif where:
        at = f"; the gradient of {where} isn't finite"
    elif share == 1:
        at = "; none of the gradients is finite"
    before = earlier_message(view)
    return f"{found}{at}{before}. The weights were not updated and the run ended."


def grown(view: View) -> tuple[str, float, float] | None:
    """The norm of the gradient, or else the loss, where it grew before it broke: its name, median, and last value."""
    for name, said, by in (("grad_norm", "gradient norm", 10.0), ("loss", "loss", 2.0)):
        values = view.recent(name, 20)
        if len(values) >= 3:
            usual = statistics.median(values[:-1])
            if values[-1] > by * usual > 0:
                return said, usual, values[-1]
    return None


def earlier_message(view: View) -> str:
    """What the steps before say: updates that were too large are seen in them."""
    if view["watch/not_finite_step"] <= 1:
        return "; no update had been made yet, so that learning_rate isn't the cause"
    found, ratio = grown(view), view.get("update_ratio", 0.0)
    if found is not None:
        return f"; the {found[0]} had risen from {short(found[1])} to {short(found[2])}"
    return f"; an update before it changed the weights by {percent(ratio)} of their size" if ratio > LARGE else ""


def not_finite_remedies(view: View) -> list[Remedy]:
    """Before the first update it can't be the rate; after it, the steps before say whether it is likelier than rows."""
    if view["watch/not_finite"] == "weight":
        return [Remedy(why="Take another checkpoint of the model; the run that made this one broke it")]
    look = Remedy(why="Look at the rows of this step: an empty sequence, or a number that isn't one")
    half = Remedy(why="Use bf16 in place of fp16: float16 overflows above 65504", patch={"fp16": False, "bf16": True})
    first = [half] if view.config.fp16 else []
    if view["watch/not_finite_step"] <= 1:
        return [*first, look]
    calmer = [lower_rate(view, 5), *warm_up(view)]
    by_updates = grown(view) or view.get("update_ratio", 0.0) > LARGE or view.get("watch/not_finite_of") == "weight"
    return [*first, *calmer, look] if by_updates else [*first, look, *calmer]


RULES = [
    Rule(
        code="NUM001",
        title="Loss or gradient isn't a finite number",
        stage="train",
        symptom="divergence",
        level="numbers",
        needs=("watch/not_finite",),
        severity="error",
        test=lambda view: True,
        message=not_finite_message,
        remedies=not_finite_remedies,
        mutes=("ALL",),
        when="The loss or the norm of the gradient of any step is NaN or infinite.",
        why=(
            "A number overflowed or was divided by nothing: mostly a learning rate that is too high, float16, or a row "
            "that holds no or a broken number. An update would have made all weights NaN."
        ),
        remedy="Lower learning_rate, warm up, prefer bf16 to fp16, look at the rows of the step.",
        source="axolotl docs/training_stability; SageMaker Debugger ExplodingTensor",
    ),
    Rule(
        code="NUM002",
        title="Updates are skipped since float16 overflows",
        stage="train",
        symptom="divergence",
        level="numbers",
        mutes=("standstill",),
        needs=("update_skipped",),
        share=0.1,
        test=lambda view: view["update_skipped"] == 1 if view.step > 10 else None,
        message=lambda view: (
            f"No update was made {view.often}, since gradients overflowed in float16; the scale of the loss halves each"
            " time."
        ),
        remedies=lambda view: [
            Remedy(
                why="Use bf16 in place of fp16: it has the range of float32",
                patch={"fp16": False, "bf16": True},
                expected="no skipped updates",
            ),
            lower_rate(view, 2),
        ],
        when="With fp16, at least a tenth of the last 50 updates were skipped; of the first ten some always are.",
        why=(
            "The loss is scaled up so that small gradients survive in float16. A scale that is too large overflows, and"
            " the step is left out: at the start, until the scale has settled. Later it means gradients that keep"
            " growing."
        ),
        remedy="Use bf16 where the hardware has it; else lower learning_rate and max_grad_norm.",
        source="torch.amp.GradScaler; threshold by own judgement",
    ),
]
