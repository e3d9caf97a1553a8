"""What lies in a model's folder, or on the hub under its name, seen from its files and its config."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.errors import ConfigError
from ft_host.util.text import nearest_path

if TYPE_CHECKING:
    pass


def check_folder(name: str, field: str = "model") -> None:
    """Refuse a folder that can't be a model, before transformers asks a hub for it. `field` is what errors name."""
    place = Path(name)
    if place.is_dir():
        files = {path.name for path in place.iterdir()}
        if "adapter_config.json" in files:
            return
        if "config.json" not in files:
            raise ConfigError(f"{field}: {name} has no config.json; a model's folder is what save_pretrained writes")
        if not any(file.endswith(".safetensors") for file in files):
            others = sorted(file for file in files if file.endswith((".bin", ".pt", ".pth")))
            found = f"only {', '.join(others)}, which can run code when it is loaded" if others else "no weights"
            raise ConfigError(
                f"{field}: {name} holds {found}; expected safetensors. Convert it where it was made with "
                "save_pretrained of a current transformers"
            )
    elif place.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise ConfigError(f"{field}: there is no folder {name}{nearest_path(place)}")


def find_config(name: str, field: str, revision: str | None, trust_remote_code: bool) -> Any:
    """The transformers config of a folder or hub id. Raises ConfigError where there is none."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        hint = "" if Path(name).is_dir() else nearest_path(Path(name))
        raise ConfigError(f"{field}: {name} can't be loaded: {str(error).splitlines()[0]}{hint}") from error


def is_classifier(found: Any) -> bool:
    """Whether a config is of a sequence classifier that was saved, not of a language model that could become one."""
    return any(name.endswith("ForSequenceClassification") for name in found.architectures or ())


def adapter_of(name: str) -> Path | None:
    """The folder, where it is an adapter's."""
    folder = Path(name)
    return folder if (folder / "adapter_config.json").is_file() else None


def base_of(name: str) -> str:
    """What an adapter's folder was trained on; any other folder or hub id is its own base."""
    adapter = adapter_of(name)
    if adapter is None:
        return name
    from peft import PeftConfig

    return PeftConfig.from_pretrained(adapter).base_model_name_or_path
