"""An adapter's folder as peft writes it, from its adapter_config.json alone. Imports neither peft nor torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ft_host.errors import ConfigError
from ft_host.util.text import nearest_path

SETTINGS = "adapter_config.json"
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "tekken.json", "spiece*")


def adapter_of(name: str) -> Path | None:
    """Return the folder if it holds an adapter, else None."""
    folder = Path(name)
    return folder if (folder / SETTINGS).is_file() else None


def settings_of(folder: Path, field: str = "model") -> dict[str, Any]:
    """Return what an adapter's folder says of it. Raises ConfigError, which names `field`, for an adapter that can't be
    used here: one that isn't LoRA, or LoRA that is off until a prompt turns it on (aLoRA)."""
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        kind = str(settings["peft_type"])
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{field}: {folder / SETTINGS} isn't an adapter's settings as peft writes them "
            f"({type(error).__name__}: {error})"
        ) from error
    if kind != "LORA":
        raise ConfigError(
            f"{field}: {folder} is an adapter of type {kind}; expected LORA. Merge it into its base with peft where "
            f"that type can be merged, and give the merged folder as {field}"
        )
    if settings.get("alora_invocation_tokens"):
        raise ConfigError(
            f"{field}: {folder} is an aLoRA adapter, which is off until its invocation tokens are read; only peft's "
            "own forward finds them, so nothing of it would be used or trained here"
        )
    return settings


def base_of(name: str, given: str | None = None, field: str = "model") -> str:
    """Return the base of an adapter's folder; any other folder or hub id is its own base. `given`: the base, where it
    isn't what the adapter names. Raises ConfigError, which names `field`, where the base is unknown, gone, or an
    adapter itself."""
    folder = adapter_of(name)
    if folder is None:
        return name
    settings = settings_of(folder, field)
    base = given or settings.get("base_model_name_or_path")
    change = "set lora_base_model" if field == "model" else f"change base_model_name_or_path in {folder / SETTINGS}"
    if not base:
        raise ConfigError(
            f"{field}: {folder} doesn't name its base model (base_model_name_or_path of {SETTINGS} is "
            f"{json.dumps(base)}); {change} to the folder or hub id of that model"
        )
    place = Path(base)
    is_path = place.is_absolute() or base.startswith((".", "~")) or base.count("/") > 1
    if is_path and not place.is_dir():
        if given:
            raise ConfigError(f"lora_base_model: there is no folder {base}{nearest_path(place)}")
        raise ConfigError(
            f"{field}: the adapter {folder} names {base} as its base, and there is no such folder; {change} to where "
            "that model is now"
        )
    if adapter_of(base):
        raise ConfigError(
            f"{field}: {base}, the base of the adapter {folder}, is an adapter itself; merge that one into its own "
            f"base first (merge_adapter of its run writes merged/), and {change} to the merged folder"
        )
    return base


def tokenizer_place(name: str, given: str | None = None, field: str = "model") -> str:
    """Return where the tokenizer of a folder or hub id is: for an adapter's folder without one, in its base."""
    folder = adapter_of(name)
    if folder is None or any(file for pattern in TOKENIZER_FILES for file in folder.glob(pattern)):
        return name
    return base_of(name, given, field)
