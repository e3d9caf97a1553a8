"""What must hold before the first update. Imports no torch."""

from __future__ import annotations

import math

from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.view import View, percent, short

# Times the loss of guessing: weights that say something wrong. New ones of 4096 dimensions have 1.07, larger ones more.
SURE, CERTAIN = 1.15, 1.3


def against_guessing(view: View) -> float:
    """The first loss over that of a model that thinks all tokens of its vocabulary as likely."""
    return view["start/loss"] / math.log(view["model/vocab_size"])


def is_lost(view: View) -> bool | None:
    """Of losses that are the negative log-likelihood of a token, and nothing else."""
    if vars(view.config).get("loss_type", "nll") != "nll":
        return None
    return against_guessing(view) > 0.7


def initial_message(view: View) -> str:
    ratio, guess = against_guessing(view), math.log(view["model/vocab_size"])
    told = (
        f"The first loss is {short(view['start/loss'])}, {percent(ratio)} of the {short(guess)} that guessing among"
        f" {view['model/vocab_size']} tokens gives"
    )
    if ratio > SURE:
        return (
            f"{told}: the model is sure of wrong tokens. The tokenizer, the template or the weights may not be its own."
        )
    return f"{told}: usual for new weights, not for trained ones."


def weights_are_cut_off(view: View) -> bool:
    return view["probe/zero_grad_parameters"] > 0.01 or is_frozen(view)


def is_frozen(view: View) -> bool:
    """Most weights aren't trained, and no adapter is to blame; or the adapter is next to nothing, or frozen itself."""
    if view.config.use_peft:
        return view["probe/trainable_share"] < 1e-5 or adapter_is_frozen(view)
    return view["probe/trainable_share"] < 0.9


def adapter_is_frozen(view: View) -> bool:
    return view.get("probe/adapter_share", 1.0) < 0.9


def is_partly_frozen(view: View) -> bool:
    """Whether most weights are trained all the same: others may be frozen on purpose, and a run learns without them."""
    enough = view["probe/trainable_share"] >= (1e-5 if view.config.use_peft else 0.5)
    return view["probe/zero_grad_parameters"] <= 0.5 and enough and view.get("probe/adapter_share", 1.0) >= 0.5


def cut_off_message(view: View) -> str:
    share = view["probe/zero_grad_parameters"]
    if share > 0.01:
        count = round(share * view["probe/trainable"])
        return (
            f"{count:,} of the {view['probe/trainable']:,} weights that are trained got no gradient"
            f" ({percent(share)}), those of {view.get('probe/zero_grad_example')} among them: they stay as they are."
        )
    if view.config.use_peft and adapter_is_frozen(view):
        return (
            f"{percent(view['probe/adapter_share'])} of the adapter's own weights are trained"
            f" ({view['probe/trainable']:,} weights); the others are frozen."
        )
    return (
        f"{view['probe/trainable']:,} weights are trained, {percent(view['probe/trainable_share'])} of the model's; the"
        " others are frozen."
    )


WAYS = {"none": "a padded rectangle's"}  # what is no kernel by name
FOR_FLEX = ("cuda", "xpu")  # as in ft_host.util.devices, which loads torch


def kernel_is_refused(view: View) -> bool:
    """Whether the policy's kernel, or that of a model beside it, is refused on a device that flex is meant for."""
    refused = view.get("plan/kernel_refused") or view.get("plan/companions_refused")
    return bool(refused) and view["plan/device"] in FOR_FLEX


def kernel_message(view: View) -> str:
    said, device = [], view["plan/device"]
    if view.get("plan/kernel_refused"):
        kernel, rows = (WAYS.get(view[name], view[name]) for name in ("plan/kernel", "plan/rows_kernel"))
        apart = f" ({rows} where no prompt is shared)" if rows != kernel else ""
        said.append(
            f"Attention on {device} is {kernel}{apart} and not flex, which is meant for this device:"
            f" {view['plan/kernel_refused']}."
        )
    said += [
        f"Attention of {name} on {device} isn't flex, which is meant for this device: {reason}."
        for name, reason in view.get("plan/companions_refused", {}).items()
    ]
    return " ".join(said)


def cut_off_remedies(view: View) -> list[Remedy]:
    look = Remedy(why="Look for what freezes the model or cuts it off from the loss: requires_grad, detach, no_grad")
    if view.config.use_peft and not adapter_is_frozen(view):
        return [
            Remedy(
                why="Set lora_target_modules to all-linear",
                patch={"lora_target_modules": ["all-linear"]},
                again=True,
                expected="an adapter on every linear layer, each with a gradient",
            ),
            look,
        ]
    return [look]


RULES = [
    Rule(
        code="PRB004",
        title="Rows of a batch change each other",
        stage="probe",
        level="models",
        needs=("probe/packing_difference", "probe/packing_leak"),
        test=lambda view: view["probe/packing_leak"] > 1e-4 or view["probe/packing_difference"] > 0.2,
        message=lambda view: (
            f"Rows that are laid out together give log-probs that are up to {short(view['probe/packing_difference'])}"
            " from those of each row alone, and other tokens in one row change those of another by"
            f" {short(view['probe/packing_leak'])}."
        ),
        remedies=lambda view: [
            Remedy(
                why="Set segment_attention to none, which pads rows to a rectangle",
                patch={"segment_attention": "none"},
                again=True,
                expected="rows that know nothing of each other",
            )
        ],
        when=(
            "Before the first step, three rows laid out as one differ by over 0.2 in a log-prob from each alone, or one"
            " moves another by over 1e-4. What is far beyond is refused when the model is loaded."
        ),
        why=(
            "Attention, or a layer that carries state, crosses the borders between rows, or rounding in half precision"
            " is unusually large."
        ),
        remedy="Pad rows (segment_attention none), or use another attention kernel.",
        source="TRL issues 1230, 3910; threshold by own judgement",
    ),
    Rule(
        code="PRB005",
        title="The first loss is that of a model that doesn't know the data",
        stage="probe",
        symptom="bad_start",
        level="models",
        later=("notes", lambda view: against_guessing(view) <= SURE),
        needs=("start/loss", "start/mean_token_accuracy", "model/vocab_size"),
        severity="info",
        severe=lambda view: against_guessing(view) > CERTAIN,
        notable=lambda view: against_guessing(view) > SURE,
        test=is_lost,
        message=initial_message,
        remedies=lambda view: [Remedy(why="Check that model, tokenizer and chat template belong together")],
        when=(
            "The first loss of a method on tokens is over 0.7 ln V, V tokens in the vocabulary; a warning over"
            f" {SURE} ln V, an error over {CERTAIN} ln V."
        ),
        why=(
            "New weights begin at ln V. A trained model that does so has been given another tokenizer or a template"
            " that it has never seen, or its weights weren't loaded. Above ln V it can only be wrong."
        ),
        remedy="Check model, tokenizer and template; where the weights are new, there is nothing to do.",
        source="own judgement",
    ),
    Rule(
        code="PRB006",
        title="Weights are not trained",
        stage="probe",
        level="models",
        later=("notes", is_partly_frozen),
        needs=("probe/zero_grad_parameters", "probe/trainable_share", "probe/trainable"),
        severe=lambda view: view["probe/zero_grad_parameters"] > 0.5,
        test=weights_are_cut_off,
        message=cut_off_message,
        remedies=cut_off_remedies,
        mutes=("OPT002", "standstill"),
        when=(
            "At the first step with a gradient, over 1 % of the trained weights have none; or less than 90 % of all"
            " weights are trained (with LoRA, of the adapter's own). Matrices of an adapter are judged in pairs,"
            " experts of a layer together."
        ),
        why="Something is frozen, detached from the loss, or an adapter sits where nothing passes.",
        remedy="Look at what is frozen; set lora_target_modules to all-linear.",
        source="own judgement",
    ),
    Rule(
        code="PRB007",
        title="LoRA has no module to be put on",
        stage="probe",
        level="models",
        mutes=("SYS005",),
        needs=("model/lora_missing",),
        severity="error",
        test=lambda view: True,
        message=lambda view: f"The model has no module {view['model/lora_missing']}, which LoRA was to be put on.",
        remedies=lambda view: [
            Remedy(
                why="Set lora_target_modules to all-linear", patch={"lora_target_modules": ["all-linear"]}, again=True
            )
        ],
        when="A name of lora_target_modules or lora_modules_to_save is no module of the model. The run is refused.",
        why="The names are those of another architecture.",
        remedy="all-linear fits every architecture; the refusal names modules that there are.",
        source="own judgement",
    ),
    Rule(
        code="PRB008",
        title="The attention is not the device's own",
        stage="probe",
        level="speed",
        needs=("plan/kernel", "plan/rows_kernel", "plan/device"),  # one that is loaded late may be refused alone
        fields=("segment_attention",),
        test=kernel_is_refused,
        message=kernel_message,
        remedies=lambda view: [Remedy(why="Mend what the message names; docs/attention.md has the usual causes")],
        when=(
            "On a GPU, segment_attention is auto, and flex, the kernel for rows that share a prompt, doesn't work or"
            " doesn't give the model's numbers. The model is the policy, or another one that runs beside it: a"
            " reference, a teacher, a reward or value model (facts `plan/kernel_refused`, `plan/companions_refused`)."
        ),
        why=(
            "Without it each segment is a call of its own, of which many short rows make thousands a step, or rows are"
            " padded. A compiler is missing, the installed torch or Triton is too old, or the model mixes tokens other"
            " than by attention."
        ),
        remedy=(
            "Install what is missing: Triton, a C compiler, Python.h. Where the model is the cause, there is nothing to"
            " do."
        ),
        source="own judgement",
    ),
]
