"""What the config alone shows, beside the size of the model and the plan. Imports no torch.

Small models bear rates that ruin large ones: what is said of learning rates is about models of 100 M parameters and
more.
"""

from __future__ import annotations

from ft_host.diagnostics.remedies import larger_step, more_generations, warm_up
from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.rules.relations_loaded import adapters_on_attention
from ft_host.diagnostics.view import View, percent, short

LARGE = 1e8  # parameters


def is_large(view: View) -> bool:
    return view["model/parameters"] >= LARGE


def has(view: View, name: str) -> bool:
    return name in vars(view.config)


def highest(view: View) -> float:
    """The learning rate above which fine-tuning seldom lives."""
    return 1e-2 if view.config.use_peft else 1e-3


def set_rate(view: View, new: float) -> Remedy:
    now = view.config.learning_rate
    word = "Lower" if new < now else "Raise"
    return Remedy(
        why=f"{word} learning_rate from {short(now)} to {short(new)}", patch={"learning_rate": new}, again=True
    )


def held_out(view: View) -> bool:
    return view.config.eval_dataset is not None or view.config.dataset_test_split is not None


RULES = [
    Rule(
        code="CFG001",
        title="The learning rate is far above the usual",
        stage="before",
        level="settings",
        mutes=("OPT001", "OPT003", "OPT004", "OPT006", "OPT007"),
        needs=("model/parameters",),
        test=lambda view: is_large(view) and view.config.optim == "adamw" and view.config.learning_rate > highest(view),
        message=lambda view: (
            f"learning_rate is {short(view.config.learning_rate)} for a model of {view['model/parameters'] / 1e6:.0f} M"
            f" parameters, which are usually tuned at {short(highest(view))} at most."
        ),
        remedies=lambda view: [set_rate(view, 2e-4 if view.config.use_peft else 2e-5)],
        when="Above 1e-3 with AdamW (1e-2 for LoRA), of a model with 100 M parameters or more.",
        why=(
            "Each update moves each weight by about the learning rate; pretrained weights are forgotten in a few steps."
        ),
        remedy="1e-5 to 5e-5 for all weights, 1e-4 to 3e-4 for LoRA, lower still for preferences and rewards.",
        source="axolotl docs/training_stability",
    ),
    Rule(
        code="CFG002",
        title="The learning rate is low for LoRA",
        stage="before",
        level="settings",
        needs=("model/parameters",),
        severity="info",
        test=lambda view: (
            is_large(view) and view.config.use_peft and not has(view, "beta") and view.config.learning_rate <= 1e-5
        ),
        message=lambda view: (
            f"learning_rate is {short(view.config.learning_rate)}, and an adapter is trained (usual: 1e-4 to 3e-4)."
        ),
        remedies=lambda view: [set_rate(view, float(f"{10 * view.config.learning_rate:.2g}"))],
        when=(
            "use_peft with a learning_rate of 1e-5 or less, where there is no beta, of a model with 100 M parameters or"
            " more."
        ),
        why="The two small matrices of an adapter begin far from where they are to be.",
        remedy="Raise learning_rate tenfold.",
        source="TRL LoRA without regret; axolotl docs",
    ),
    Rule(
        code="CFG003",
        title="A high learning rate without warm-up",
        stage="before",
        level="settings",
        needs=("model/parameters",),
        severity="info",
        test=lambda view: (
            is_large(view)
            and view.config.warmup_steps == 0
            and view.config.learning_rate >= (5e-4 if view.config.use_peft else 5e-5)
        ),
        message=lambda view: (
            f"The first step is made at the full learning_rate of {short(view.config.learning_rate)}, in the direction"
            " of a single batch."
        ),
        remedies=warm_up,
        when="warmup_steps 0 and a learning_rate of 5e-5 or more (5e-4 for LoRA), with 100 M parameters or more.",
        why="The first updates are the largest that there are, in directions of a single batch.",
        remedy="Warm up over 3 to 10 % of the steps.",
        source="axolotl docs/training_stability",
    ),
    Rule(
        code="CFG004",
        title="Few preferences a step",
        stage="before",
        level="settings",
        needs=("plan/rows_per_step", "data/rows"),
        fields=("precompute_ref_log_probs",),
        severity="info",
        test=lambda view: (
            not view.by_rollout
            and not view.config.packing
            and view["plan/rows_per_step"] < 8
            and view["data/rows"] >= 500
        ),
        message=lambda view: (
            f"A step learns from {view['plan/rows_per_step']} of {view['data/rows']} rows: a wrong label among them is"
            f" {percent(1 / view['plan/rows_per_step'])} of an update."
        ),
        remedies=lambda view: larger_step(view, view["plan/rows_per_step"], 16),
        when="Less than 8 rows a step, of 500 rows or more.",
        why="Preference labels are often wrong; a step should average over several of them.",
        remedy="16 to 128 rows a step.",
        source="own judgement",
    ),
    Rule(
        code="CFG005",
        title="Few completions of a prompt",
        stage="before",
        level="settings",
        needs=("plan/generations",),
        fields=("num_generations",),
        severity="info",
        # of one, nothing is held against another; nor where a row is a pair, or the best of several
        test=lambda view: (
            1 < view["plan/generations"] < 4
            and view.facts.get("plan/rows_per_prompt", view["plan/generations"]) == view["plan/generations"]
        ),
        message=lambda view: (
            f"A group has {view['plan/generations']} completions: {percent(1 / view['plan/generations'])} of what a"
            " completion is held against is its own reward."
        ),
        remedies=lambda view: more_generations(view, least=8),
        when="num_generations is 2 or 3.",
        why="The mean of a group is its baseline; of two it is half of the completion itself.",
        remedy="8 to 32 completions a prompt.",
        source="prime-rl docs; arXiv 2402.03300",
    ),
    Rule(
        code="OPT013",
        title="Updates are too small for bfloat16 weights",
        stage="before",
        level="settings",
        mutes=("standstill",),
        needs=("model/parameters",),
        test=lambda view: (
            view.config.dtype == "bfloat16"
            and not view.config.use_peft
            and view.config.optim == "adamw"
            and view.config.learning_rate < 1e-5
        ),
        message=lambda view: (
            "Weights are held in bfloat16, which has steps of 1/256 of a weight or more, and learning_rate is"
            f" {short(view.config.learning_rate)}: an update of that size is rounded away in each weight above"
            f" {short(512 * view.config.learning_rate)}."
        ),
        remedies=lambda view: [
            Remedy(
                why=(
                    "Hold weights in float32 (dtype from bfloat16 to float32); the maths still runs in bfloat16 with"
                    " bf16"
                ),
                patch={"dtype": "float32"},
                again=True,
                expected="4 bytes a weight in place of 2",
            )
        ],
        when="dtype bfloat16 and a learning_rate below 1e-5 with AdamW, all weights being trained.",
        why="An update of less than half the distance to the next number changes nothing.",
        remedy="dtype float32, or LoRA.",
        source="own judgement",
    ),
    Rule(
        code="CFG006",
        title="A long run is evaluated at its ends only",
        stage="before",
        level="settings",
        needs=("plan/total_steps",),
        severity="info",
        test=lambda view: held_out(view) and view.config.eval_steps is None and view["plan/total_steps"] >= 1000,
        message=lambda view: (
            f"There is evaluation data and eval_steps is not set: of {view['plan/total_steps']} steps it is used at the"
            " ends alone."
        ),
        remedies=lambda view: [
            Remedy(
                why=f"Set eval_steps to {view['plan/total_steps'] // 20}",
                patch={"eval_steps": view["plan/total_steps"] // 20},
                safe=True,
            )
        ],
        when="Evaluation data, no eval_steps, 1000 steps or more.",
        why="Overfitting is seen where held-out loss rises, which needs several evaluations.",
        remedy="Set eval_steps.",
        source="own judgement",
    ),
    Rule(
        code="CFG007",
        title="A long run writes no checkpoint",
        stage="before",
        level="settings",
        needs=("plan/total_steps",),
        severity="info",
        test=lambda view: view.config.save_steps == 0 and view["plan/total_steps"] >= 1000,
        message=lambda view: (
            f"save_steps is 0: should one of {view['plan/total_steps']} steps fail, all of them are lost, and there is "
            "nothing to go back to."
        ),
        remedies=lambda view: [
            Remedy(
                why=f"Set save_steps from 0 to {view['plan/total_steps'] // 10}",
                patch={"save_steps": view["plan/total_steps"] // 10},
                safe=True,
            )
        ],
        when="save_steps 0 and 1000 steps or more.",
        why="A run that dies without a checkpoint begins from nothing.",
        remedy="Set save_steps.",
        source="own judgement",
    ),
    Rule(
        code="OPT011",
        title="LoRA is on attention only",
        stage="before",
        level="settings",
        needs=("model/parameters",),
        severity="info",
        test=lambda view: adapters_on_attention(view.config),
        message=lambda view: (
            f"Adapters are on {', '.join(view.config.lora_target_modules)}, which are layers of attention; the others"
            " have no adapter."
        ),
        remedies=lambda view: [
            Remedy(
                why="Set lora_target_modules to all-linear", patch={"lora_target_modules": ["all-linear"]}, again=True
            )
        ],
        when="use_peft, and all of lora_target_modules are layers of attention.",
        why=(
            "Most weights, and most of what a model knows, are in the layers between attentions. Adapters on all linear"
            " layers learn more, at the same number of weights too."
        ),
        remedy="lora_target_modules: all-linear.",
        source="TRL LoRA without regret",
    ),
]
