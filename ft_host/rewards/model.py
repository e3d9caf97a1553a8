"""A reward that is a model: the folder of a sequence classifier with one label, as `ft-host train reward` leaves it.

It scores a prompt with its completion, read with its own tokenizer and chat template just as the texts that it was
trained on: a text ends in EOS, a conversation is what the template makes of it. Importing this loads no torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.config.paths import PARTS, folder_problem
from ft_host.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ft_host.config import RunConfig
    from ft_host.models import Policy


# ---------------------------------------------------------------- before anything is loaded


def name_of(folder: str | Path) -> str:
    """What a reward model's metrics are called: its folder, or the run that left it."""
    place = Path(folder).resolve()
    return place.parent.name if place.name in PARTS else place.name


# ---------------------------------------------------------------- scoring


@dataclass
class RewardModel:
    """Called as a reward function is. Weights are loaded at the first call, onto the run's device, and kept.

    `option`: the field that errors name. They are scored in the type of the run's maths, but never quantised.
    """

    folder: str
    config: RunConfig
    option: str = "eval_reward"
    loaded: tuple[Policy, PreTrainedTokenizerBase] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        problem = folder_problem(self.folder)
        if problem:
            raise ConfigError(f"{self.option}: {problem}")

    def __call__(
        self,
        prompts: list[Any],
        completions: list[Any],
        tools: list[Any] | None = None,
        chat_template_kwargs: list[Any] | None = None,
    ) -> list[float]:
        """One score for each completion, all texts or all lists of messages, after its prompt."""
        model, tokenizer = self.loaded = self.loaded or self.load()
        rows = []
        for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            found = {"prompt": prompt, "completion": completion}
            for name, column in (("tools", tools), ("chat_template_kwargs", chat_template_kwargs)):
                if column is not None and column[index] is not None:
                    found[name] = column[index]
            rows.append(whole_ids(found, tokenizer))
        return scores_of(model, tokenizer, rows, self.config)

    def load(self) -> tuple[Policy, PreTrainedTokenizerBase]:
        import torch
        from accelerate import PartialState
        from transformers import AutoTokenizer

        from ft_host.models import load_frozen

        tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=self.config.trust_remote_code)
        config = dataclasses.replace(self.config, load_in_4bit=False, load_in_8bit=False)
        device = PartialState().device  # the run's, whose accelerator made that state
        # An adapter's base may be a language model, which gets a new head before it gets the adapter's: the run's
        # random numbers must not depend on that.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            model = load_frozen(config, self.folder, device, head="reward", tokenizer=tokenizer, field=self.option)
        return model, tokenizer


def whole_ids(found: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of {"prompt", "completion"} as one text or conversation."""
    from ft_host.data import tokenize_completions

    prompt, [completion] = tokenize_completions(found, tokenizer, ("completion",))
    return prompt + completion


def scores_of(
    model: Policy, tokenizer: PreTrainedTokenizerBase, rows: list[list[int]], config: RunConfig
) -> list[float]:
    """The score of each row of tokens, in flat batches of `per_device_eval_batch_size` rows, without gradient."""
    import torch

    from ft_host.batch import IGNORE, Segment, flat_batch
    from ft_host.models import precision, score_pad

    size, device = config.per_device_eval_batch_size, model.device
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision(config, device))
    found: list[torch.Tensor] = []
    for start in range(0, len(rows), size):
        segments = [
            Segment(input_ids=ids, labels=[IGNORE] * len(ids), row=row)
            for row, ids in enumerate(rows[start : start + size])
        ]
        batch = flat_batch(segments, num_rows=len(segments), pad_token_id=score_pad(tokenizer)).to(device)
        with torch.no_grad(), torch.autocast(device.type, dtype=kind, enabled=kind is not None):
            found.append(model(batch, want=("score",))["score"])
    return torch.cat(found).tolist() if found else []
