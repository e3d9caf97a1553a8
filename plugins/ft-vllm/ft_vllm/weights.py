"""The policy's weights as a checkpoint has them: what there is (`manifest_of`), and the tensors, in pieces (`pieces`).

Weights are gathered, where they are sharded, a group (a decoder layer, or what comes before or after them) at a time,
so that no rank ever holds the whole model twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.distributed.tensor import DTensor

from ft_host.api import ConfigError

if TYPE_CHECKING:
    from peft import LoraConfig

    from ft_host.api import Policy

PIECE = 256 << 20  # bytes; a piece ends with the tensor that takes it past this, which is vLLM's own rule
ADAPTER = "default"  # peft's name of the adapter that is trained

Named = tuple[str, torch.Tensor]


@dataclass(frozen=True)
class Merge:
    """A weight with its adapter: base + scaling · up @ down."""

    base: torch.Tensor
    down: torch.Tensor
    up: torch.Tensor
    scaling: float

    @property
    def shape(self) -> torch.Size:
        return self.base.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype


@dataclass(frozen=True)
class Manifest:
    """What will be sent, in order. `bounds`: [start, end) of each piece. `engine`: the type that vLLM computes in, None
    where that isn't known."""

    names: list[str]
    dtypes: list[torch.dtype]
    shapes: list[list[int]]
    bounds: list[list[int]]
    engine: torch.dtype | None = None

    @property
    def dtype_names(self) -> list[str]:
        return [str(dtype).removeprefix("torch.") for dtype in self.dtypes]

    @property
    def sizes(self) -> list[int]:
        """Bytes of each tensor."""
        return [torch.Size(shape).numel() * dtype.itemsize for shape, dtype in zip(self.shapes, self.dtypes)]


def sent_as(weight: torch.Tensor | Merge, engine: torch.dtype | None) -> torch.dtype:
    """The type that a weight is sent in: matrices in the engine's, where it is narrower; it would round them itself.
    Vectors are small, and what vLLM keeps in float32 (a router's correction) is among them."""
    if engine is None or weight.dtype != torch.float32 or len(weight.shape) < 2:
        return weight.dtype
    return engine


def manifest_of(policy: Policy, engine: torch.dtype | None = None) -> Manifest:
    """Names, types and shapes of what `pieces` gives, found without gathering anything. `engine`: the type that vLLM
    computes in, where that is known."""
    found = [
        pair
        for group in groups_of(policy)
        for pair in as_saved(
            policy,
            [(name, torch.empty(weight.shape, dtype=sent_as(weight, engine), device="meta")) for name, weight in group],
        )
    ]
    names, tensors = [name for name, _ in found], [tensor for _, tensor in found]
    return Manifest(
        names=names,
        dtypes=[tensor.dtype for tensor in tensors],
        shapes=[list(tensor.shape) for tensor in tensors],
        bounds=bounds_of([tensor.numel() * tensor.dtype.itemsize for tensor in tensors], PIECE),
        engine=engine,
    )


def bounds_of(sizes: list[int], limit: int) -> list[list[int]]:
    """[start, end) of pieces of tensors of these sizes: each ends with the tensor that takes it past `limit`."""
    bounds, start, held = [], 0, 0
    for index, size in enumerate(sizes):
        held += size
        if held > limit or index == len(sizes) - 1:
            bounds.append([start, index + 1])
            start, held = index + 1, 0
    return bounds


def pieces(policy: Policy, manifest: Manifest, keep: bool) -> Iterator[list[Named]]:
    """The weights, a piece at a time, in the order of the manifest. All ranks must go through it: sharded weights are
    gathered on the way. Where `keep` is False (all ranks but the sender) the pieces are empty.

    A piece's weights are whole, on every rank, before it is given out: no gather is under way while it is sent.
    """
    waiting: list[Named] = []
    given = 0
    for group in groups_of(policy):
        whole = [(name, gathered(weight, manifest.engine)) for name, weight in group]
        if keep:
            waiting += as_saved(policy, whole)
        del whole
        while keep and given < len(manifest.bounds):
            start, end = manifest.bounds[given]
            if len(waiting) < end - start:
                break
            if waiting[0][1].device.type != "cpu":
                torch.accelerator.synchronize(waiting[0][1].device)
            yield waiting[: end - start]
            del waiting[: end - start]
            given += 1


def gathered(weight: torch.Tensor | Merge, engine: torch.dtype | None = None) -> torch.Tensor:
    """The whole tensor, without gradient, in the type that it is sent in. All ranks must call it."""
    dtype = sent_as(weight, engine)
    if isinstance(weight, Merge):
        base, down, up = (gathered(part) for part in (weight.base, weight.down, weight.up))
        return (base + weight.scaling * (up @ down)).to(dtype)  # a base in bfloat16 is rounded once, with its adapter
    weight = weight.detach().to(dtype)
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def as_saved(policy: Policy, named: list[Named]) -> list[Named]:
    """Weights of one group under the names and in the layout that they have in a checkpoint: some models hold in one
    tensor (all experts of a layer) what their files, and vLLM, have in several."""
    from transformers.core_model_loading import revert_weight_conversion

    return list(revert_weight_conversion(policy.causal_lm, dict(named)).items())


# ---------------------------------------------------------------- which


def groups_of(policy: Policy) -> list[list[tuple[str, torch.Tensor | Merge]]]:
    """What the model's files would hold, by group; where there is an adapter, merged into the weights."""
    named = merged(policy) if adapted(policy) else plain(policy.causal_lm)
    groups: dict[tuple[str, str], list] = {}
    for name, weight in named:
        groups.setdefault(layer_of(name), []).append((name, weight))
    return list(groups.values())


def plain(model: torch.nn.Module) -> list[Named]:
    """Parameters, a tied one once, and those buffers that are saved (a router's correction, for one)."""
    saved = model.state_dict().keys()
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if name in saved]
    return [*model.named_parameters(), *buffers]


def layer_of(name: str) -> tuple[str, str]:
    """("model.layers", "3") of "model.layers.3.mlp.experts.7.w1": the outermost number; ("", "") without one."""
    parts = name.split(".")
    for index, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[:index]), part
    return "", ""


def adapted(policy: Policy) -> bool:
    from peft import PeftModel

    return isinstance(policy.model, PeftModel)


# ---------------------------------------------------------------- adapters


def merged(policy: Policy) -> list[tuple[str, torch.Tensor | Merge]]:
    """The weights under their own names, those with an adapter as a `Merge`. Raises ConfigError where peft has put
    something on the model that isn't a LoRA of a linear layer."""
    from peft.tuners.lora import Linear, LoraLayer
    from peft.utils import ModulesToSaveWrapper

    model = policy.causal_lm
    changed: dict[str, torch.Tensor | Merge] = {}
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    for path, module in model.named_modules():
        added = isinstance(module, (LoraLayer, ModulesToSaveWrapper))
        if added and module in ends and policy.config.tie_word_embeddings:
            raise ConfigError(
                f"backend_config.lora: merged can't change {path} alone, which shares its weight with the other end of"
                " the model; leave it out of lora_target_modules and lora_modules_to_save"
            )
        if isinstance(module, ModulesToSaveWrapper):
            for name, weight in module.modules_to_save[ADAPTER].named_parameters():
                changed[f"{path}.{name}"] = weight
        elif type(module) is Linear:
            if module.use_dora[ADAPTER] or module.lora_bias[ADAPTER] or module.fan_in_fan_out:
                raise ConfigError(f"backend_config.lora: merged can't add the kind of LoRA that {path} has")
            down, up = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
            changed[f"{path}.weight"] = Merge(module.base_layer.weight, down, up, module.scaling[ADAPTER])
        elif added:
            kind = type(module).__name__
            raise ConfigError(f"backend_config.lora: merged adds LoRA to plain linear layers; {path} has peft's {kind}")
    weights = {}
    for name, weight in plain(model):
        if ".original_module." in name or ".modules_to_save." in name or ".lora_" in name:
            continue
        name = name.replace(".base_layer.", ".")
        weights[name] = changed.pop(name, weight)
    return list((weights | changed).items())  # what is left are modules to save: their originals are not in `weights`


def changes_base(found: LoraConfig) -> bool:
    """Whether an adapter was taken off its base's weights when it was made: vLLM has those as they were."""
    made = str(found.init_lora_weights).lower()
    return made.startswith(("pissa", "corda")) or made in ("olora", "loftq", "lora_ga")


def check_adapter(policy: Policy) -> int:
    """The adapter's rank. Raises ConfigError for one that vLLM can't serve by itself."""
    found = policy.model.peft_config[ADAPTER]
    for what, there in (
        ("modules that are trained in full (lora_modules_to_save)", found.modules_to_save),
        ("DoRA", found.use_dora),
        ("a bias", found.bias != "none"),
        (f"a base that it changed (init_lora_weights: {found.init_lora_weights})", changes_base(found)),
        ("trained tokens", found.trainable_token_indices),
    ):
        if there:
            raise ConfigError(f"backend_config.lora: vLLM takes no adapter with {what}; set lora: merged")
    return max([found.r, *found.rank_pattern.values()])


def write_adapter(policy: Policy, folder: Path, keep: bool) -> None:
    """Write the adapter as peft does. All ranks must call it: sharded weights are gathered; `keep` is True on the one
    that writes."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    parts = {name: gathered(weight) for name, weight in policy.model.named_parameters() if f".{ADAPTER}." in name}
    if not keep:
        return
    state = get_peft_model_state_dict(policy.model, state_dict=parts, adapter_name=ADAPTER, save_embedding_layers=False)
    folder.mkdir(parents=True)
    save_file({name: weight.cpu().contiguous() for name, weight in state.items()}, folder / "adapter_model.safetensors")
    config = policy.model.peft_config[ADAPTER]
    inference, config.inference_mode = config.inference_mode, True
    try:
        config.save_pretrained(folder)
    finally:
        config.inference_mode = inference
