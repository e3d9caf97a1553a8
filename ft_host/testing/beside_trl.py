"""Two steps of a migrated run and of the same run by the installed TRL, side by side: `ft-host migrate --check`.

A process of its own, since TRL changes the one it is in: `python -m ft_host.testing.beside_trl FILE`, a JSON file of
`method`, `values` (what was migrated) and `given` (what TRL was given). Both get the same tiny model, or that of a
folder, the same rows in their order, in float32, and, where something is sampled, the same completions and rewards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from ft_host import registry
from ft_host.config import RunConfig
from ft_host.config.fields import fields_of
from ft_host.errors import FtHostError, UsageError
from ft_host.testing.fixed import fixed_where_sampled
from ft_host.testing.invariants import lines, run_in
from ft_host.testing.moved import is_folder, materials_in, small
from ft_host.testing.parity import Line, relative, trl_trajectory
from ft_host.testing.trl_side import CLASSES, WITHOUT_CHANCE, trainer_of

DIFFERENT = 7  # the exit code where the two aren't the same
FIRST, LATER = 1e-4, 1e-3  # how far losses and norms of the first and of later steps may be apart
# Why the two may differ, by method, where it isn't the migration.
KNOWN = {
    "gkd": "temperature is in the loss here, and in TRL it isn't: with temperature: 1 they are the same. ",
    "gold": "TRL's merging of tokens (observed) reads logits one place late, its eos is a template's last token. ",
    "kto": "With several micro-batches a step KL is of each of them there, and of the step here (kl_scope). ",
    "grpo": "entropy_coef and cispo without epsilon_high are otherwise (docs/grpo.md). ",
}


def compared(method: str, values: dict[str, Any], given: dict[str, Any], folder: Path) -> tuple[list[Line], list[Line]]:
    """Train both for two steps. Gives the lines of ours and of TRL's. Raises UsageError for a method that this TRL
    doesn't have or can't train, ConfigError where ours can't be trained."""
    if method not in CLASSES:
        import trl

        raise UsageError(f"--check: TRL {trl.__version__} has no {method}; with it are {', '.join(CLASSES)}")
    config = beside_each_other(method, values, folder)
    with fixed_where_sampled(config, folder) as backend:
        ours = lines(run_in(config, "ours", **backend))
    try:
        theirs = trl_trajectory(trainer_of(method, config, given, folder))
    except Exception as error:  # whatever it is, it is TRL's answer
        raise UsageError(f"--check: TRL can't train it: {type(error).__name__}: {error}") from error
    return ours, theirs


def beside_each_other(method: str, values: dict[str, Any], folder: Path) -> RunConfig:
    """The run made small, and without chance."""
    config_class = registry.config_class(method)
    fields = fields_of(config_class)
    if values.get("assistant_only_loss"):
        marked(materials_in(folder)["model"])
    changes = {name: value for name, value in WITHOUT_CHANCE.items() if values.get(name) is not None or name == "lmbda"}
    changes = {name: value for name, value in changes.items() if name in fields}
    if "lmbda" in fields:  # max_length is of prompt and answer there
        changes |= {"max_length": None, "max_completion_length": 200}
    if method == "reward":
        changes["model"] = scorer(values.get("model", ""), folder)
    plain = {name: value for name, value in values.items() if not name.startswith(("lora_", "use_dora", "use_rslora"))}
    config, _ = small(config_class, plain | {"use_peft": False}, folder, **changes)
    if values.get("use_peft"):
        adapter = adapted(config.model, values, "SEQ_CLS" if method == "reward" else "CAUSAL_LM", folder / "adapter")
        config = dataclasses.replace(config, model=adapter, use_peft=True)
    return config


def marked(model: str) -> None:
    """Give the tiny model a template that says what an assistant generates, which TRL asks for."""
    said = "<|{{ message.role }}|>{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|end|>"
    said += "{% endgeneration %}{% else %}{{ message.content }}<|end|>{% endif %}"
    template = f"{{% for message in messages %}}{said}{{% endfor %}}"
    template += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    (Path(model) / "chat_template.jinja").write_text(template, encoding="utf-8")


def scorer(model: str, folder: Path) -> str:
    """A reward model with a head that both begin from: tiny, or of the model in a folder."""
    if not is_folder(model):
        return materials_in(folder)["scorer"]
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    place = folder / "scorer"
    AutoModelForSequenceClassification.from_pretrained(model, num_labels=1).save_pretrained(place)
    AutoTokenizer.from_pretrained(model).save_pretrained(place)
    return str(place)


def adapted(model: str, values: dict[str, Any], task: str, place: Path) -> str:
    """A new adapter of the model, which both go on with: each would draw another. Dropout is left out."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    from ft_host.testing.models import auto_class

    base = auto_class(task).from_pretrained(model)
    names = [name.rpartition(".")[2] for name, _ in base.named_modules()]
    targets = [name for name in values.get("lora_target_modules", []) if name in names]
    torch.manual_seed(0)
    settings = LoraConfig(
        r=values.get("lora_r", 16),
        lora_alpha=values.get("lora_alpha", 32),
        target_modules=targets or "all-linear",
        modules_to_save=[name for name in values.get("lora_modules_to_save", []) if name in names] or None,
        use_rslora=values.get("use_rslora", False),
        use_dora=values.get("use_dora", False),
        task_type=task,
    )
    get_peft_model(base, settings).save_pretrained(place)
    AutoTokenizer.from_pretrained(model).save_pretrained(place)
    return str(place)


# ---------------------------------------------------------------- what is said


def table(ours: list[Line], theirs: list[Line]) -> tuple[str, bool]:
    """The two side by side, and whether they are the same."""
    said = [f"{'step':<6}{'':11}{'TRL':>14}{'ft-host':>14}{'apart':>10}"]
    same = len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=False):
        for name in ("loss", "grad_norm"):
            apart = relative(one[name], other[name])
            near = apart <= (FIRST if one["step"] == 1 else LATER) or abs(one[name] - other[name]) < 1e-6
            same = same and near
            said.append(f"{one['step']:<6}{name:<11}{other[name]:>14.7g}{one[name]:>14.7g}{apart:>10.1e}")
    return "\n".join(said), same


def main(path: str) -> int:
    wanted = json.loads(Path(path).read_text(encoding="utf-8"))
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    noise = io.StringIO()  # bars and lines of TRL's and of what it uses
    try:
        with tempfile.TemporaryDirectory(prefix="ft-host-migrate-") as folder:
            with contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
                found = compared(wanted["method"], wanted["values"], wanted["given"], Path(folder))
    except FtHostError as error:
        print(f"ft-host: error: {error}", file=sys.stderr)
        return error.exit_code
    text, same = table(*found)
    print(text)
    if same:
        print("the same to float32's rounding")
        return 0
    print(f"not the same. {KNOWN.get(wanted['method'], '')}docs/from-trl.md has what is otherwise on purpose")
    return DIFFERENT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
