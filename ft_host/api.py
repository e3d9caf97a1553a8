"""The front door: everything that a method or a backend imports, by one name. Rules import `ft_host.diagnostics` beside
it, tests `ft_host.testing`; nothing else of the host is promised to stay where it is.

Importing this loads no torch. A name is fetched from its own module when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ft_host.util.door import open_door

if TYPE_CHECKING:
    from ft_host.batch import IGNORE as IGNORE
    from ft_host.batch import Batch as Batch
    from ft_host.batch import Segment as Segment
    from ft_host.batch import by_row as by_row
    from ft_host.batch import count_targets as count_targets
    from ft_host.batch import flat_batch as flat_batch
    from ft_host.batch import pair_batch as pair_batch
    from ft_host.batch import pair_means as pair_means
    from ft_host.batch import pair_sums as pair_sums
    from ft_host.batch import per_target as per_target
    from ft_host.batch import sum_by_row as sum_by_row
    from ft_host.config import Deprecated as Deprecated
    from ft_host.config import GroupedRolloutConfig as GroupedRolloutConfig
    from ft_host.config import ReferenceConfig as ReferenceConfig
    from ft_host.config import RolloutConfig as RolloutConfig
    from ft_host.config import RolloutPlan as RolloutPlan
    from ft_host.config import RunConfig as RunConfig
    from ft_host.config import Usual as Usual
    from ft_host.config import grouped_plan as grouped_plan
    from ft_host.config import option as option
    from ft_host.config.paths import function_problems as function_problems
    from ft_host.config.paths import place_problems as place_problems
    from ft_host.data import completed_row as completed_row
    from ft_host.data import fit_length as fit_length
    from ft_host.data import is_empty as is_empty
    from ft_host.data import pair_row as pair_row
    from ft_host.data import preference_row as preference_row
    from ft_host.data import prompt_row as prompt_row
    from ft_host.data import row_from_tokens as row_from_tokens
    from ft_host.data import tokenize_completions as tokenize_completions
    from ft_host.data import tokenize_row as tokenize_row
    from ft_host.data import tokenizer_of as tokenizer_of
    from ft_host.data import unpaired_rows as unpaired_rows
    from ft_host.data.formats import content_of as content_of
    from ft_host.data.formats import kind_of as kind_of
    from ft_host.data.formats import messages_of as messages_of
    from ft_host.data.templates import turn_marks as turn_marks
    from ft_host.distributed.processes import precision as precision
    from ft_host.errors import BackendGone as BackendGone
    from ft_host.errors import ConfigError as ConfigError
    from ft_host.errors import DataError as DataError
    from ft_host.errors import FtHostError as FtHostError
    from ft_host.errors import RowError as RowError
    from ft_host.errors import UsageError as UsageError
    from ft_host.generation.thoughts import opened_by as opened_by
    from ft_host.generation.thoughts import without_thoughts as without_thoughts
    from ft_host.generation.transformers import end_tokens as end_tokens
    from ft_host.hooks import hookimpl as hookimpl
    from ft_host.metrics import Metric as Metric
    from ft_host.metrics import effective_share as effective_share
    from ft_host.metrics import explained as explained
    from ft_host.metrics import maximum as maximum
    from ft_host.metrics import mean as mean
    from ft_host.metrics import minimum as minimum
    from ft_host.metrics import std as std
    from ft_host.metrics import total as total
    from ft_host.metrics import variance as variance
    from ft_host.models import Policy as Policy
    from ft_host.models import score_pad as score_pad
    from ft_host.models.annotate import annotate as annotate
    from ft_host.models.annotate import policy_values as policy_values
    from ft_host.models.load import base_of as base_of
    from ft_host.models.tiled_divergence import TiledDivergence as TiledDivergence
    from ft_host.models.weights_folder import WeightsFolder as WeightsFolder
    from ft_host.rollouts.rewards import Rewards as Rewards
    from ft_host.rollouts.rewards import groups_differ as groups_differ
    from ft_host.rollouts.rollout import RolloutRun as RolloutRun
    from ft_host.rollouts.rollout import seed_of as seed_of
    from ft_host.rollouts.rows import completion_batch as completion_batch
    from ft_host.rollouts.rows import completion_metrics as completion_metrics
    from ft_host.rollouts.rows import completion_row as completion_row
    from ft_host.rollouts.rows import completion_segments as completion_segments
    from ft_host.rollouts.rows import masked_row as masked_row
    from ft_host.rollouts.rows import num_targets as num_targets
    from ft_host.rollouts.rows import sampling_metrics as sampling_metrics
    from ft_host.run import EnginePlace as EnginePlace
    from ft_host.run import Run as Run
    from ft_host.types import Completion as Completion
    from ft_host.types import Drop as Drop
    from ft_host.types import LossOutput as LossOutput
    from ft_host.types import ModelSpec as ModelSpec
    from ft_host.types import Piece as Piece
    from ft_host.types import Request as Request
    from ft_host.types import Rollout as Rollout
    from ft_host.types import Sampling as Sampling
    from ft_host.types import Scores as Scores
    from ft_host.types import Sequence as Sequence
    from ft_host.types import Served as Served
    from ft_host.util.devices import widened as widened
    from ft_host.util.imports import load_function as load_function
    from ft_host.util.text import nearest as nearest
    from ft_host.util.transfer import to_device as to_device

_HOMES = {  # module -> its names that are public
    "ft_host.hooks": "hookimpl",
    "ft_host.config": (
        "Deprecated GroupedRolloutConfig ReferenceConfig RolloutConfig RolloutPlan RunConfig Usual grouped_plan option"
    ),
    "ft_host.config.paths": "function_problems place_problems",
    "ft_host.batch": (
        "IGNORE Batch Segment by_row count_targets flat_batch pair_batch pair_means pair_sums per_target sum_by_row"
    ),
    "ft_host.types": "Completion Drop LossOutput ModelSpec Piece Request Rollout Sampling Scores Sequence Served",
    "ft_host.run": "EnginePlace Run",
    "ft_host.metrics": "Metric effective_share explained maximum mean minimum std total variance",
    "ft_host.errors": "BackendGone ConfigError DataError FtHostError RowError UsageError",
    "ft_host.data": (
        "completed_row fit_length row_from_tokens is_empty pair_row preference_row "
        "prompt_row tokenize_completions tokenize_row tokenizer_of unpaired_rows"
    ),
    "ft_host.data.formats": "content_of kind_of messages_of",
    "ft_host.data.templates": "turn_marks",
    "ft_host.models": "Policy score_pad",
    "ft_host.models.annotate": "annotate policy_values",
    "ft_host.models.load": "base_of",
    "ft_host.models.tiled_divergence": "TiledDivergence",
    "ft_host.models.weights_folder": "WeightsFolder",
    "ft_host.generation.thoughts": "opened_by without_thoughts",
    "ft_host.generation.transformers": "end_tokens",
    "ft_host.rollouts.rollout": "RolloutRun seed_of",
    "ft_host.rollouts.rewards": "Rewards groups_differ",
    "ft_host.rollouts.rows": (
        "completion_batch completion_metrics completion_row completion_segments masked_row num_targets sampling_metrics"
    ),
    "ft_host.distributed.processes": "precision",
    "ft_host.util.devices": "widened",
    "ft_host.util.imports": "load_function",
    "ft_host.util.text": "nearest",
    "ft_host.util.transfer": "to_device",
}
_names, _get = open_door(__name__, _HOMES, globals())
__all__ = _names
if not TYPE_CHECKING:  # a type checker would take any name for one of these
    __getattr__ = _get


def __dir__() -> list[str]:
    return list(__all__)
