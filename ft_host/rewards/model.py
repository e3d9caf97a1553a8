"""Reward models: the folder of a sequence classifier with one label, such as `ft-host train reward` writes.

It scores a prompt with its completion, tokenized with its own tokenizer and chat template as in its training: a text
ends in EOS, a conversation goes through the template. Importing this loads no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.config.paths import PARTS, folder_problem
from ft_host.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ft_host.config import RunConfig
    from ft_host.models import Policy
    from ft_host.rewards.functions import RewardFunction
    from ft_host.run import Run


# ---------------------------------------------------------------- before anything is loaded


def name_of(folder: str | Path) -> str:
    """Return the name for a reward model's metrics: its folder, or the run that wrote it."""
    place = Path(folder).resolve()
    return place.parent.name if place.name in PARTS else place.name


# ---------------------------------------------------------------- scoring


@dataclass
class RewardModel:
    """A reward model, called like a reward function. It loads its weights at the first call, onto the run's device.

    `option`: the field that errors name. The model scores in the run's compute dtype and is never quantised.
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
        """Return one score for each completion after its prompt: all texts, or all lists of messages."""
        model, tokenizer = self.loaded = self.loaded or self.load()
        rows = []
        for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            row = {"prompt": prompt, "completion": completion}
            for name, column in (("tools", tools), ("chat_template_kwargs", chat_template_kwargs)):
                if column is not None and column[index] is not None:
                    row[name] = column[index]
            rows.append(whole_ids(row, tokenizer))
        return scores_of(model, tokenizer, rows, self.config)

    def load(self) -> tuple[Policy, PreTrainedTokenizerBase]:
        from accelerate import PartialState
        from transformers import AutoTokenizer

        from ft_host.models import load_frozen
        from ft_host.util import devices

        tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=self.config.trust_remote_code)
        config = dataclasses.replace(self.config, load_in_4bit=False, load_in_8bit=False)
        device = PartialState().device  # the run's, whose accelerator set that state
        # An adapter's base may be a language model, which gets a random head before the adapter's head: the run's
        # random state must not depend on it.
        with devices.forked_random(device):
            model = load_frozen(config, self.folder, device, head="reward", tokenizer=tokenizer, field=self.option)
        return model, tokenizer


def tell_of_models(run: Run, functions: Iterable[RewardFunction]) -> None:
    """Say what is to be said of the attention of reward models among them, once they are loaded."""
    from ft_host.models.beside import tell_of

    for function in functions:
        if isinstance(function.call, RewardModel) and function.call.loaded is not None:
            tell_of(run, f"the reward model {function.name}", function.call.loaded[0])


def whole_ids(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids of {"prompt", "completion"} as one text or conversation."""
    from ft_host.data import tokenize_completions

    prompt, [completion] = tokenize_completions(row, tokenizer, ("completion",))
    return prompt + completion


def scores_of(
    model: Policy, tokenizer: PreTrainedTokenizerBase, rows: list[list[int]], config: RunConfig
) -> list[float]:
    """Return the score of each row of token ids, without gradient, in batches of `per_device_eval_batch_size` rows."""
    import torch

    from ft_host.batch import IGNORE, Segment, flat_batch
    from ft_host.models import precision, score_pad

    size, device = config.per_device_eval_batch_size, model.device
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision(config, device))
    scores: list[torch.Tensor] = []
    for start in range(0, len(rows), size):
        segments = [
            Segment(input_ids=ids, labels=[IGNORE] * len(ids), row=row)
            for row, ids in enumerate(rows[start : start + size])
        ]
        batch = flat_batch(segments, num_rows=len(segments), pad_token_id=score_pad(tokenizer)).to(device)
        with torch.no_grad(), torch.autocast(device.type, dtype=kind, enabled=kind is not None):
            scores.append(model(batch, want=("score",))["score"])
    return torch.cat(scores).tolist() if scores else []
