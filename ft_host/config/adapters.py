"""The fields of a run that trains an adapter further: they are the adapter's own. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.config.fields import show
from ft_host.errors import ConfigError
from ft_host.util.adapters import adapter_of, settings_of

if TYPE_CHECKING:
    from ft_host.config.run import RunConfig

ALL_LINEAR = ["all-linear"]


def own_fields(folder: Path) -> dict[str, Any]:
    """Return the fields of a run that an adapter's folder has decided."""
    settings = settings_of(folder)
    targets = settings.get("target_modules") or []
    return {
        "lora_r": settings["r"],
        "lora_alpha": int(alpha) if float(alpha := settings["lora_alpha"]).is_integer() else alpha,
        "lora_dropout": settings.get("lora_dropout", 0.0),
        "lora_target_modules": [targets] if isinstance(targets, str) else sorted(targets),
        "lora_target_parameters": sorted(settings.get("target_parameters") or []),
        "lora_modules_to_save": sorted(settings.get("modules_to_save") or []),
        "use_rslora": settings.get("use_rslora", False),
        "use_dora": settings.get("use_dora", False),
    }


def changed_fields(config: RunConfig) -> dict[str, str]:
    """Return the origins of a config that nobody has resolved: what isn't a default was given. all-linear counts as
    given too, since it is compared by what it stands for."""
    default = type(config)()
    names = [name for name in vars(config) if getattr(config, name) != getattr(default, name)]
    return dict.fromkeys([*names, "lora_target_modules"], "python")


def same(ours: Any, theirs: Any) -> bool:
    """Return whether two values of such a field are the same; the order of names says nothing."""
    return sorted(ours) == sorted(theirs) if isinstance(ours, list) else ours == theirs


def take_adapter(config: RunConfig, origins: dict[str, str]) -> None:
    """Set the fields of the adapter that `config.model` is, if it is one, so that the plan and run.json have what is
    trained. Raises ConfigError for one that was set to something else. Changes `origins`.

    all-linear that was set stays: which modules it stands for is known once the model is.
    """
    folder = adapter_of(config.model)
    if folder is None:
        if config.lora_base_model is not None:
            raise ConfigError(f"lora_base_model: has no effect: {config.model} is no adapter's folder")
        return
    if not config.use_peft:
        raise ConfigError(f"model: {folder} is an adapter; set use_peft to train it further")
    for name, theirs in own_fields(folder).items():
        ours = getattr(config, name)
        if same(ours, theirs):
            continue
        if origins.get(name, "default") != "default":
            if name == "lora_target_modules" and ours == ALL_LINEAR:
                continue
            raise ConfigError(f"{without_effect(name, ours, theirs, folder)} ({name} is from {origins[name]})")
        setattr(config, name, theirs)
        origins[name] = f"the adapter {folder}"


def without_effect(name: str, ours: Any, theirs: Any, folder: Path) -> str:
    """Say that a field can't be what an adapter isn't."""
    return (
        f"{name}: {show(ours)} has no effect: the adapter {folder} has {show(theirs)} and is trained further as it is; "
        f"leave {name} out, or merge the adapter into its base and train a new one on that"
    )
