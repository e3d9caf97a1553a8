"""What a model's folder or hub repository contains, from its files and its config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ft_host.errors import ConfigError
from ft_host.util.adapters import adapter_of, base_of
from ft_host.util.model_files import files_problem, no_model
from ft_host.util.text import nearest_path

__all__ = ["adapter_of", "auto_class", "base_of", "check_folder", "check_weights", "find_config", "is_classifier"]


def check_folder(name: str, field: str = "model", weights: bool = True) -> None:
    """Refuse a folder that isn't a model, before transformers asks a hub for it. `field`: the field that
    errors name. `weights` False: whether it holds any is asked later, when all else is known to be right.
    """
    place = Path(name)
    unfit = no_model(place)
    if unfit is not None:
        raise ConfigError(f"{field}: {unfit}")
    if place.is_dir():
        problem = files_problem(place, of_weights=False)
        if problem is not None:
            raise ConfigError(f"{field}: {problem}")
        files = {path.name for path in place.iterdir()}
        if "adapter_config.json" in files:
            return
        if "config.json" not in files:
            raise ConfigError(f"{field}: {name} has no config.json; expected a folder written by save_pretrained")
        if weights and not any(file.endswith(".safetensors") for file in files):
            others = sorted(file for file in files if file.endswith((".bin", ".pt", ".pth")))
            content = f"only {', '.join(others)}, which can run code when it is loaded" if others else "no weights"
            raise ConfigError(
                f"{field}: {name} holds {content}; expected safetensors. Convert it with "
                "save_pretrained of a current transformers, where it was made"
            )
    elif place.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise ConfigError(f"{field}: there is no folder {name}{nearest_path(place)}")


def check_weights(name: str, field: str) -> None:
    """Refuse a folder whose weights were cut, or are a pointer to others. Raises ConfigError, which names the file."""
    place = Path(name)
    problem = files_problem(place) if place.is_dir() else None
    if problem is not None:
        raise ConfigError(f"{field}: {problem}")


def find_config(name: str, field: str, revision: str | None, trust_remote_code: bool) -> Any:
    """Return the transformers config of a folder or hub id. Raises ConfigError where there is none."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        hint = "" if Path(name).is_dir() else nearest_path(Path(name))
        raise ConfigError(f"{field}: {name} can't be loaded: {str(error).splitlines()[0]}{hint}") from error


def is_classifier(config: Any) -> bool:
    """Return whether a config is of a saved sequence classifier, not of a language model that could become one."""
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or ())


def auto_class(settings: Any, head: str | None) -> Any:
    """Return transformers' class that loads the models of a config: a sequence classifier for a head, else the language
    model, or the vision-language model, that the folder was saved as."""
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForMultimodalLM,
        AutoModelForSequenceClassification,
    )

    if head is not None:
        return AutoModelForSequenceClassification
    kinds = (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM)
    own_code = settings.to_dict().get("auto_map") or {}
    mapped = [kind for kind in kinds if kind.__name__ in own_code or type(settings) in kind._model_mapping]
    for kind in mapped:
        if kind.__name__ in own_code or kind._model_mapping[type(settings)].__name__ in (settings.architectures or ()):
            return kind
    if settings.get_text_config() is not settings:  # the text is a part of it: the whole of it is the last kind
        mapped.reverse()
    return mapped[0] if mapped else AutoModelForCausalLM
