"""What a process of `ft_host.testing.processes` finds done when it is forked: the fork server imports this module, and
nothing else does.

Besides imports it makes what a run makes once per process, and takes all of it out of the garbage collector's sight: a
full collection would go through half a million objects of modules in each process, and copy their pages.
"""

from __future__ import annotations

import gc
import os

import accelerate  # noqa: F401
import datasets  # noqa: F401
import peft  # noqa: F401
import torch
import torch.distributed.checkpoint  # noqa: F401
import torch.distributed.fsdp  # noqa: F401
import transformers.models.auto.modeling_auto  # noqa: F401
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import ft_host.training.launch  # noqa: F401


def _not_needed(descriptor: int) -> None:
    """A process is killed here, never the machine: what was written is there."""


torch.set_num_threads(1)
os.fsync = _not_needed
get_checkpoint_conversion_mapping("llama")  # a thousand regular expressions, of all models
gc.collect()
gc.freeze()
