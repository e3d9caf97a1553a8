"""The import door for tests: tiny models and rows, runs and their invariants, comparison with TRL, rules on described
runs, and installed plugins made in memory. Fixtures are in `ft_host.testing.fixtures`; pytest finds them by itself in a
project that names ft-host in its pyproject.toml.

    from ft_host.testing import invariants, tiny_run

Importing this loads no torch. A name is imported from its own module at its first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ft_host.util.door import open_door

_HOMES = {  # module -> its names that are public
    # models, tokenizers and rows
    "ft_host.testing.models": (
        "CHAT_TEMPLATE FAMILIES as_classifier disturb other_tokenizer save_adapter save_family save_tiny tiny_gemma "
        "tiny_gpt2 tiny_gpt_oss tiny_llama tiny_mamba tiny_mistral tiny_moe tiny_qwen tiny_tokenizer"
    ),
    "ft_host.testing.tokenizers": "chat_tokenizer",
    "ft_host.testing.rows": "preference_chats preference_texts rounds sentence tiny_run write_rows",
    # what a package is held to
    "ft_host.testing.conformance.items": "conformance_tests",
    # whole runs, and a run before its first step
    "ft_host.testing.invariants": (
        "as_if_killed assert_same assert_same_weights beside compare_runs lines micro_batch_split resume_in run_in "
        "tensors"
    ),
    "ft_host.testing.ahead": "rollouts_ahead same_as_sync",
    "ft_host.testing.processes": "Command command finish run_command start train_apart",
    "ft_host.testing.ready": "first_step ready_run",
    "ft_host.testing.generation": "generating_run",
    "ft_host.testing.parts": "method_hooks metric_values small_tiles tiled_loss",
    "ft_host.rundir.folder": "RunFolder",
    # what others train
    "ft_host.testing.parity": (
        "TOLERANCES assert_parity assert_same_training differences forget_accelerate relative trl_arguments trl_model "
        "trl_rows trl_trajectory"
    ),
    # rules
    "ft_host.testing.rules": "Told codes evals findings in_order steps",
    "ft_host.testing.free_preference_rules": "free_preference_cases",
    "ft_host.testing.rollout_rules": "rollout_cases",
    # plugins, their fields, and the arguments of a rollout
    "ft_host.testing.backends": "END LONGEST FixedCompletion backend_source fixed_completion fixed_completions",
    "ft_host.testing.distributions": "make_distribution",
    "ft_host.config.fields": "fields_of",
    "ft_host.config.resolve": "resolve",
    "ft_host.rewards": "Scoring load_reward score",
    "ft_host.rewards.model": "RewardModel whole_ids",
    "ft_host.rollouts.rollout": "Rewards reward_metrics",
    # parts of a run for tests of backends
    "ft_host.models": "load_policy",
    "ft_host.models.sharding": "shard",
    "ft_host.cli.train": "leave",
}

if TYPE_CHECKING:
    from ft_host.cli.train import leave as leave
    from ft_host.config.fields import fields_of as fields_of
    from ft_host.config.resolve import resolve as resolve
    from ft_host.models import load_policy as load_policy
    from ft_host.models.sharding import shard as shard
    from ft_host.rewards import Scoring as Scoring
    from ft_host.rewards import load_reward as load_reward
    from ft_host.rewards import score as score
    from ft_host.rewards.model import RewardModel as RewardModel
    from ft_host.rewards.model import whole_ids as whole_ids
    from ft_host.rollouts.rollout import Rewards as Rewards
    from ft_host.rollouts.rollout import reward_metrics as reward_metrics
    from ft_host.rundir.folder import RunFolder as RunFolder
    from ft_host.testing.ahead import rollouts_ahead as rollouts_ahead
    from ft_host.testing.ahead import same_as_sync as same_as_sync
    from ft_host.testing.backends import END as END
    from ft_host.testing.backends import LONGEST as LONGEST
    from ft_host.testing.backends import FixedCompletion as FixedCompletion
    from ft_host.testing.backends import backend_source as backend_source
    from ft_host.testing.backends import fixed_completion as fixed_completion
    from ft_host.testing.backends import fixed_completions as fixed_completions
    from ft_host.testing.conformance.items import conformance_tests as conformance_tests
    from ft_host.testing.distributions import make_distribution as make_distribution
    from ft_host.testing.free_preference_rules import free_preference_cases as free_preference_cases
    from ft_host.testing.generation import generating_run as generating_run
    from ft_host.testing.invariants import as_if_killed as as_if_killed
    from ft_host.testing.invariants import assert_same as assert_same
    from ft_host.testing.invariants import assert_same_weights as assert_same_weights
    from ft_host.testing.invariants import beside as beside
    from ft_host.testing.invariants import compare_runs as compare_runs
    from ft_host.testing.invariants import lines as lines
    from ft_host.testing.invariants import micro_batch_split as micro_batch_split
    from ft_host.testing.invariants import resume_in as resume_in
    from ft_host.testing.invariants import run_in as run_in
    from ft_host.testing.invariants import tensors as tensors
    from ft_host.testing.models import CHAT_TEMPLATE as CHAT_TEMPLATE
    from ft_host.testing.models import FAMILIES as FAMILIES
    from ft_host.testing.models import as_classifier as as_classifier
    from ft_host.testing.models import disturb as disturb
    from ft_host.testing.models import other_tokenizer as other_tokenizer
    from ft_host.testing.models import save_adapter as save_adapter
    from ft_host.testing.models import save_family as save_family
    from ft_host.testing.models import save_tiny as save_tiny
    from ft_host.testing.models import tiny_gemma as tiny_gemma
    from ft_host.testing.models import tiny_gpt2 as tiny_gpt2
    from ft_host.testing.models import tiny_gpt_oss as tiny_gpt_oss
    from ft_host.testing.models import tiny_llama as tiny_llama
    from ft_host.testing.models import tiny_mamba as tiny_mamba
    from ft_host.testing.models import tiny_mistral as tiny_mistral
    from ft_host.testing.models import tiny_moe as tiny_moe
    from ft_host.testing.models import tiny_qwen as tiny_qwen
    from ft_host.testing.models import tiny_tokenizer as tiny_tokenizer
    from ft_host.testing.parity import TOLERANCES as TOLERANCES
    from ft_host.testing.parity import assert_parity as assert_parity
    from ft_host.testing.parity import assert_same_training as assert_same_training
    from ft_host.testing.parity import differences as differences
    from ft_host.testing.parity import forget_accelerate as forget_accelerate
    from ft_host.testing.parity import relative as relative
    from ft_host.testing.parity import trl_arguments as trl_arguments
    from ft_host.testing.parity import trl_model as trl_model
    from ft_host.testing.parity import trl_rows as trl_rows
    from ft_host.testing.parity import trl_trajectory as trl_trajectory
    from ft_host.testing.parts import method_hooks as method_hooks
    from ft_host.testing.parts import metric_values as metric_values
    from ft_host.testing.parts import small_tiles as small_tiles
    from ft_host.testing.parts import tiled_loss as tiled_loss
    from ft_host.testing.processes import Command as Command
    from ft_host.testing.processes import command as command
    from ft_host.testing.processes import finish as finish
    from ft_host.testing.processes import run_command as run_command
    from ft_host.testing.processes import start as start
    from ft_host.testing.processes import train_apart as train_apart
    from ft_host.testing.ready import first_step as first_step
    from ft_host.testing.ready import ready_run as ready_run
    from ft_host.testing.rollout_rules import rollout_cases as rollout_cases
    from ft_host.testing.rows import preference_chats as preference_chats
    from ft_host.testing.rows import preference_texts as preference_texts
    from ft_host.testing.rows import rounds as rounds
    from ft_host.testing.rows import sentence as sentence
    from ft_host.testing.rows import tiny_run as tiny_run
    from ft_host.testing.rows import write_rows as write_rows
    from ft_host.testing.rules import Told as Told
    from ft_host.testing.rules import codes as codes
    from ft_host.testing.rules import evals as evals
    from ft_host.testing.rules import findings as findings
    from ft_host.testing.rules import in_order as in_order
    from ft_host.testing.rules import steps as steps
    from ft_host.testing.tokenizers import chat_tokenizer as chat_tokenizer

_names, _get = open_door(__name__, _HOMES, globals())
__all__ = _names
if not TYPE_CHECKING:  # a type checker would take any name for one of these
    __getattr__ = _get


def __dir__() -> list[str]:
    return list(__all__)
