"""The policy: a transformers model that takes a flat batch of segments and returns values per target."""

from ft_host.distributed.processes import precision
from ft_host.models.adapter_folder import add_reference_adapter
from ft_host.models.load import attach_value, load_frozen, load_policy, score_pad
from ft_host.models.policy import Policy
from ft_host.models.save import merge_adapter, save_model, save_whole
from ft_host.models.sharding import shard
from ft_host.models.shards import reshard
from ft_host.models.vocabulary import check_vocabulary

__all__ = [
    "Policy",
    "add_reference_adapter",
    "attach_value",
    "check_vocabulary",
    "load_frozen",
    "load_policy",
    "merge_adapter",
    "precision",
    "reshard",
    "save_model",
    "save_whole",
    "score_pad",
    "shard",
]
