"""From files and hub data sets to the rows of a step. Importing this loads neither torch nor datasets."""

from __future__ import annotations

from ft_host.data.completions import fit_length, is_empty, tokenize_completions
from ft_host.data.content import content_of
from ft_host.data.load import open_eval, open_source, open_train, sets_of
from ft_host.data.pairs import pair_row
from ft_host.data.preferences import preference_row, unpaired_rows
from ft_host.data.prompts import completed_row, prompt_row, row_from_tokens
from ft_host.data.sources import Source, Stream, notes_of
from ft_host.data.stream import StepRows, TrainStream, check_first_rows, eval_rows
from ft_host.data.tokenizer import load_tokenizer, tokenizer_of
from ft_host.data.tokens import prompt_of, tokenize_row
from ft_host.util.moved import names_of

__getattr__ = names_of(__name__)
__all__ = [
    "Source",
    "StepRows",
    "Stream",
    "TrainStream",
    "check_first_rows",
    "completed_row",
    "content_of",
    "eval_rows",
    "fit_length",
    "is_empty",
    "row_from_tokens",
    "load_tokenizer",
    "notes_of",
    "open_eval",
    "open_source",
    "open_train",
    "pair_row",
    "preference_row",
    "prompt_of",
    "prompt_row",
    "sets_of",
    "tokenize_completions",
    "tokenize_row",
    "tokenizer_of",
    "unpaired_rows",
]
