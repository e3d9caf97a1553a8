"""Which parts of a model a text goes through. A vision-language model in a run of texts has others: its tower, its
projector. They are frozen, and saved as they are.

`Policy` calls a model's text decoder and its head, so whatever is outside those is out of reach. What is out of reach
within them (a layer for images between the others, say) shows in the graph of a small batch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel

from ft_host.models.shards import graph_leaves

if TYPE_CHECKING:
    from ft_host.models.policy import Policy


def backbone_of(model: nn.Module, head: str | None) -> nn.Module:
    """Return the module of a transformers model that turns tokens into hidden states. `head`: as `Policy` has it."""
    if head is None:
        decoder = model.get_decoder()
        if decoder.get_output_embeddings() is not None:  # Llama 4's is a language model with its head
            decoder = next(child for child in decoder.children() if isinstance(child, PreTrainedModel))
        return decoder
    base = model.base_model
    return base.language_model if "language_model" in dict(base.named_children()) else base


def text_part(model: nn.Module) -> nn.Module:
    """Return the part whose attention is computed over texts: a vision-language model's decoder, any other model."""
    return model if model.config.get_text_config() is model.config else backbone_of(model, None)


def outside_text(model: nn.Module, head: str | None) -> list[str]:
    """Return the names of the largest modules with parameters that no text goes through: they hold nothing of the
    decoder or the head and aren't within them."""
    ends = (model.get_output_embeddings(), model.get_input_embeddings()) if head is None else (model.score,)
    inside = {id(module) for part in (backbone_of(model, head), *ends) if part is not None for module in part.modules()}
    found: list[str] = []
    for name, module in model.named_modules():
        if not name or any(name.startswith(f"{outer}.") for outer in found):
            continue
        if not any(id(each) in inside for each in module.modules()) and any(True for _ in module.parameters()):
            found.append(name)
    return found


def within(name: str, modules: Iterable[str]) -> bool:
    """Return whether a name is of one of these modules or of something inside it."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def family(name: str) -> str:
    """Return the name under which parameters are judged together; a gradient in one of them is enough. These are the
    two matrices of an adapter, one of which is 0 at first so that the other has no gradient, and the experts of a
    layer, some of which may have no token."""
    return re.sub(r"\.experts\.\d+\.", ".experts.*.", re.sub(r"lora_(embedding_)?[AB]\b", "lora", name))


def without_graph(policy: Policy, values: torch.Tensor) -> list[str]:
    """Return the names of trained parameters that `values` don't depend on, by the graph behind them; experts that had
    no token count with those of their layer that had. Nothing is differentiated, so no gradient takes memory."""
    seen, leaves, todo = set(), set(), [values.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if "variable" in dir(node):  # the node of a leaf
            leaves.add(id(node.variable))
        todo += [each for each, _ in node.next_functions]
    # a value model is no part of it: its values are made by a forward of their own
    trained = {name: leaf for name, leaf in graph_leaves(policy).items() if name.startswith("model.")}
    return unreached(trained, {name for name, leaf in trained.items() if leaf in leaves})


def unreached(names: Iterable[str], reached: Iterable[str]) -> list[str]:
    """Return those of `names` whose family none of `reached` is in."""
    families = {family(name) for name in reached}
    return [name for name in names if family(name) not in families]
