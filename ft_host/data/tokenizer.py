"""The tokenizer of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ft_host.errors import ConfigError
from ft_host.util.adapters import TOKENIZER_FILES, tokenizer_place
from ft_host.util.model_files import files_problem, no_model
from ft_host.util.text import missing, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ft_host.config import RunConfig


def load_tokenizer(config: RunConfig) -> PreTrainedTokenizerBase:
    """Return the tokenizer of `config.model`, with the config's chat template and EOS token.

    Raises ConfigError that names the field, what was tried, and what exists.
    """
    trust = config.trust_remote_code
    place = tokenizer_place(config.model, config.lora_base_model)
    tokenizer = tokenizer_of(place, "model", revision=config.model_revision, trust_remote_code=trust)
    if config.chat_template_path is not None:
        tokenizer.chat_template = chat_template(config.chat_template_path, config)
    if tokenizer.chat_template:
        check_syntax(tokenizer, config)
    if config.eos_token is not None:
        vocabulary = tokenizer.get_vocab()
        if config.eos_token not in vocabulary:
            near = nearest(config.eos_token, tokenizer.get_added_vocab())
            raise ConfigError(f"eos_token: {config.eos_token!r} is not a token of {config.model}{near}")
        tokenizer.eos_token = config.eos_token
    return tokenizer


def tokenizer_of(
    place: str, field: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder or hub id. Raises ConfigError, which names `field`, where there is none."""
    from transformers import AutoTokenizer

    folder = Path(place)
    unfit = no_model(folder) or (files_problem(folder) if folder.is_dir() else None)
    if unfit is not None:
        raise ConfigError(f"{field}: {unfit}")
    if folder.is_dir() and not any(match for name in TOKENIZER_FILES for match in folder.glob(name)):
        inside = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
        raise ConfigError(
            f"{field}: {place} has no tokenizer (tokenizer.json or the like), only {inside}; copy the files of the "
            "tokenizer of the model that it was made of"
        )
    try:
        return AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises many kinds, also of the network; the message includes the cause
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        folder = Path(place)
        if folder.is_dir():
            inside = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
            reason = f"no tokenizer can be loaded from this folder, which holds {inside}: {reason}"
        else:
            reason = f"no such folder, and no tokenizer could be loaded from the Hugging Face hub: {reason}"
        raise ConfigError(f"{field}: {place}: {reason}") from error


def chat_template(place: str, config: RunConfig) -> str:
    """Return the template of a .jinja file, or of a folder (or hub id) with a tokenizer."""
    path = Path(place)
    if path.is_file():
        return path.read_text(encoding="utf-8")
    if path.suffix == ".jinja":
        raise ConfigError(f"chat_template_path: {place}: {missing(path)}")
    if (path / "chat_template.jinja").is_file():
        return (path / "chat_template.jinja").read_text(encoding="utf-8")
    template = tokenizer_of(place, "chat_template_path", trust_remote_code=config.trust_remote_code).chat_template
    if not template:
        raise ConfigError(f"chat_template_path: the tokenizer of {place} has no chat template")
    return template


def check_syntax(tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> None:
    """Refuse a template that isn't valid Jinja. Its output for a conversation isn't checked."""
    import jinja2

    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    except jinja2.TemplateSyntaxError as error:
        place = config.chat_template_path or config.model
        raise ConfigError(f"the chat template of {place}, line {error.lineno}: {error.message}") from error
    except Exception:  # it raises for this conversation; rows may be fine, and are refused by line if they aren't
        return
