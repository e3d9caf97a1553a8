"""A new LoRA adapter: which modules get it, and what peft takes.

Names are tried on a model without weights (torch's meta device), so that what peft refuses is refused before weights
are loaded. A vision-language model in a run of texts gets adapters on its text decoder alone.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.tensor.experimental import implicit_replication

from ft_host.config.adapters import ALL_LINEAR
from ft_host.errors import ConfigError
from ft_host.models.folder import auto_class, find_config
from ft_host.models.reach import outside_text, within
from ft_host.models.shards import make_whole
from ft_host.util.text import nearest

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

    from ft_host.config import RunConfig

REFUSED = (ValueError, TypeError, NotImplementedError, RuntimeError)  # what peft raises for modules it doesn't take


# ---------------------------------------------------------------- a new adapter


def empty_model(config: RunConfig, name: str, head: str | None) -> nn.Module:
    """Return the model of a folder or hub id without its weights."""
    settings = find_config(name, "model", config.model_revision, config.trust_remote_code)
    if head is not None:
        settings.num_labels = 1
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return auto_class(settings, head).from_config(settings, trust_remote_code=config.trust_remote_code)
        except ValueError as error:  # no class for this config
            raise ConfigError(f"model: {name} can't be loaded: {first_line(error)}") from error


def plan_adapter(config: RunConfig, head: str | None) -> tuple[LoraConfig, list[str]]:
    """Return the settings of a new adapter, and sentences on what it leaves out. Raises ConfigError, which names the
    field, for modules that there aren't and for what peft refuses."""
    model = empty_model(config, config.model, head)
    outside = outside_text(model, head)
    inside = {name: module for name, module in model.named_modules() if name and not within(name, outside)}
    for field, names in (
        ("lora_target_modules", config.lora_target_modules),
        ("lora_modules_to_save", config.lora_modules_to_save),
    ):
        for name in names:
            if name != "all-linear":
                _check_name(field, name, inside, model)
    names = parameters = None
    for name in config.lora_target_parameters:
        parameters = parameters or [key for key, value in model.named_parameters() if value.dim() > 1]
        if not any(matches(name, key) for key in parameters):
            tails = sorted({".".join(key.split(".")[-3:]) for key in parameters if key.endswith(_fused(inside))})
            raise ConfigError(
                f"lora_target_parameters: the model has no parameter {name}"
                f"{nearest(name, tails, otherwise='there are')}"
            )
    notes: list[str] = []
    targets: Any = config.lora_target_modules
    if targets == ALL_LINEAR:
        targets, notes = all_linear(config, head, model, inside, outside)
    elif len(targets) == 1 and is_pattern(targets[0]):
        targets = targets[0]
    settings = lora_config(config, head, targets, _excluded(targets, outside))
    refused = refusal(model, settings)
    if refused:
        raise ConfigError(_why(config, head, refused, inside))
    return settings, notes


def all_linear(
    config: RunConfig, head: str | None, model: nn.Module, inside: dict[str, nn.Module], outside: list[str]
) -> tuple[Any, list[str]]:
    """Return "all-linear", or the names that it stands for where peft's own would take too much or be refused; and
    sentences on what is left out."""
    ends = (model.get_output_embeddings() if head is None else model.score,)
    names = {name.rpartition(".")[2] for name in linear_names(inside) if inside[name] not in ends}
    notes, left = [], []
    targets: Any = "all-linear"
    others = {name.rpartition(".")[2] for name, module in inside.items() if isinstance(module, nn.Linear)} - names
    left += sorted(others - {name.rpartition(".")[2] for name, module in inside.items() if module in ends})
    every = lora_config(config, head, "all-linear", None)
    if outside or left or refusal(empty_model(config, config.model, head), every):
        for name in sorted(names):
            alone = lora_config(config, head, [name], _excluded([name], outside))
            if refusal(empty_model(config, config.model, head), alone):
                left.append(name)
        targets = sorted(names.difference(left))
        if not targets:
            return "all-linear", []
    if left:
        notes.append(f"all-linear leaves out {', '.join(left)}, which peft doesn't take in {type(model).__name__}")
    fused = _fused(inside)
    if fused and not config.lora_target_parameters:
        sizes = {name: p.numel() for name, p in model.named_parameters()}
        share = sum(size for name, size in sizes.items() if name.endswith(fused)) / sum(sizes.values())
        notes.append(
            f"all-linear leaves out the experts, {100 * share:.0f} % of the weights: they are no linear layers but "
            f"fused tensors; lora_target_parameters: [{', '.join(fused)}] puts adapters on them"
        )
    return targets, notes


def lora_config(config: RunConfig, head: str | None, targets: Any, excluded: str | None) -> LoraConfig:
    """Return peft's settings of a run's adapter."""
    from peft import LoraConfig

    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        exclude_modules=excluded,
        target_parameters=config.lora_target_parameters or None,
        modules_to_save=config.lora_modules_to_save or None,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        task_type="CAUSAL_LM" if head is None else "SEQ_CLS",  # with SEQ_CLS peft also trains and saves `score`
    )


def attach(model: nn.Module, settings: LoraConfig) -> PeftModel:
    """Return the model with a new adapter. Raises ConfigError where peft refuses this model: its weights are of a kind,
    quantised for instance, that an empty one didn't have."""
    from peft import get_peft_model
    from transformers.pytorch_utils import Conv1D

    if settings.use_dora:  # measures outputs; they are columns here, so that rows alone would give sums of parts
        make_whole(module for module in model.modules() if isinstance(module, Conv1D))
    try:
        # DoRA measures weights, of which this rank may have some rows only, together with a whole adapter
        with implicit_replication(), warnings.catch_warnings():  # about names that peft uses and transformers renamed
            warnings.filterwarnings("ignore", category=FutureWarning, message="`is_gradient_checkpointing`")
            return get_peft_model(model, settings)
    except REFUSED as error:
        raise ConfigError(f"lora_target_modules: peft refuses this model: {first_line(error)}") from error


def refusal(model: nn.Module, settings: LoraConfig) -> str | None:
    """Return why peft refuses settings for an empty model, which it changes; None where it doesn't."""
    from peft import get_peft_model

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            get_peft_model(model, copy.deepcopy(settings))
    except REFUSED as error:
        return first_line(error)
    return None


# ---------------------------------------------------------------- names


def is_pattern(name: str) -> bool:
    """Return whether a target is a regular expression over full names, as peft reads a string, not a name."""
    return re.fullmatch(r"[\w.-]+", name) is None


def matches(name: str, full: str) -> bool:
    """Return whether a target's name, or its regular expression, is of the module of that full name."""
    return bool(re.fullmatch(name, full)) if is_pattern(name) else full == name or full.endswith(f".{name}")


def linear_names(modules: dict[str, nn.Module]) -> list[str]:
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    # not what only inherits from one: Llama 4's router gives a tuple, which peft's layer would take for a tensor
    return sorted(
        name for name, module in modules.items() if type(module).forward in (nn.Linear.forward, Conv1D.forward)
    )


def _tails(names: Iterable[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})


def _fused(modules: dict[str, nn.Module]) -> tuple[str, ...]:
    """Return the names of the tensors that hold all experts of a layer, without the layer's own name."""
    found = {
        ".".join([*name.split(".")[-2:], key])
        for name, module in modules.items()
        for key, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3 and not isinstance(module, nn.modules.conv._ConvNd)
    }
    return tuple(sorted(found))


def _excluded(targets: Any, outside: list[str]) -> str | None:
    """Return a pattern of all modules that no text goes through."""
    if not outside or targets == "all-linear":
        return None
    return rf"({'|'.join(map(re.escape, outside))})(\..*)?"


def _check_name(field: str, name: str, inside: dict[str, nn.Module], model: nn.Module) -> None:
    if is_pattern(name):
        try:
            re.compile(name)
        except re.error as error:
            raise ConfigError(f"{field}: {name!r} is not a regular expression: {error}") from error
    if any(matches(name, full) for full in inside):
        return
    linear = _tails(linear_names(inside))
    where = next((full for full, _ in model.named_modules() if full and matches(name, full)), None)
    if where is not None:
        said = f"{name} is {where}, which no text goes through, so nothing of it would be trained."
    elif is_pattern(name):
        said = f"{name!r} matches the full name of no module; one is {max(linear_names(inside), key=len)}."
    else:
        said = f"the model has no module {name}{nearest(name.rpartition('.')[2], linear) or '.'}"
    raise ConfigError(f"{field}: {said} Its linear layers: {', '.join(linear)}", facts={"model/lora_missing": name})


def _why(config: RunConfig, head: str | None, refused: str, inside: dict[str, nn.Module]) -> str:
    """Say which target peft refuses, and why. Some that isn't a layer may hold layers that it takes."""
    for name in [] if config.lora_target_modules == ALL_LINEAR else config.lora_target_modules:
        target = name if is_pattern(name) else [name]
        said = refusal(empty_model(config, config.model, head), lora_config(config, head, target, None))
        if said is None:
            continue
        kinds = {type(module).__name__: module for full, module in inside.items() if matches(name, full)}
        kind, module = next(iter(kinds.items()))
        layers = _tails(linear_names(dict(module.named_modules())))
        if any(module.children()) and layers:
            return (
                f"lora_target_modules: {name} is a {kind}, which peft can't put LoRA on; it takes the linear layers "
                f"within: {', '.join(layers)}"
            )
        return f"lora_target_modules: peft can't put LoRA on {name}, a {kind}: {said}"
    fields = [name for name in ("use_dora", "lora_target_parameters", "lora_modules_to_save") if getattr(config, name)]
    return f"{', '.join(fields) or 'lora_target_modules'}: peft refuses this: {refused}"


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def take_off(model: PeftModel, names: Iterable[str]) -> list[str]:
    """Take the adapter off the modules that these tensors of it are in, as if they had never been targets. Returns the
    modules' names in the model."""
    from peft.tuners.lora import LoraLayer

    layers = [
        name for name, module in model.named_modules() if isinstance(module, LoraLayer) and within_any(name, names)
    ]
    for name in layers:
        model.set_submodule(name, model.get_submodule(name).get_base_layer())
    bare = [name.removeprefix("base_model.model.") for name in layers]
    settings = model.peft_config["default"]
    before = [settings.exclude_modules] if settings.exclude_modules else []
    settings.exclude_modules = "|".join([*before, *map(re.escape, bare)])
    return bare


def within_any(module: str, tensors: Iterable[str]) -> bool:
    return any(tensor.startswith(f"{module}.") for tensor in tensors)
