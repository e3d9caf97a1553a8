"""Numbers that aren't: loss and gradients that are no longer finite. Imports no torch."""

from __future__ import annotations

from ft_host.diagnostics.remedies import lower_rate, warm_up
from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.view import View, percent


def not_finite_message(view: View) -> str:
    where = view.get("watch/not_finite_parameter")
    if view["watch/not_finite"] == "weight":
        return f"The model came with numbers that are NaN or infinite: {where}. Nothing can be trained from them."
    found = (
        f"The {view['watch/not_finite']} became {view['watch/not_finite_value']} at step"
        f" {view['watch/not_finite_step']}"
    )
    at = f"; the first parameter whose gradient isn't finite is {where}" if where else ""
    return f"{found}{at}. The weights were not updated and the run ended."


def not_finite_remedies(view: View) -> list[Remedy]:
    if view["watch/not_finite"] == "weight":
        return [Remedy(why="Take another checkpoint of the model; the run that made this one broke it")]
    out = [lower_rate(view, 5, ", the usual cause")]
    if view.config.fp16:
        out.insert(
            0,
            Remedy(why="Use bf16 in place of fp16: float16 overflows above 65504", patch={"fp16": False, "bf16": True}),
        )
    out += warm_up(view)
    out.append(Remedy(why="Look at the rows of this step: an empty sequence, or a number that isn't one"))
    return out


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
            f"No update was made {view.often}, since gradients overflowed in float16"
            f" ({percent(view.mean('update_skipped'))} of them); the scale of the loss halves each time."
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
