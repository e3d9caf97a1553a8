"""The fields of every run that say what an adapter is."""

from __future__ import annotations

from dataclasses import dataclass

from ft_host.config.options import option
from ft_host.config.usual import Usual


@dataclass(kw_only=True)
class LoRAFields:
    """A part of `RunConfig`."""

    use_peft: bool = option(False, "Train a LoRA adapter instead of all weights.", group="lora")
    lora_r: int = option(
        16,
        "Rank of the adapter.",
        group="lora",
        gt=0,
        usual=Usual(
            high=512,
            why="an adapter of this rank is no smaller than many matrices",
            source="TRL LoRA without regret: up to 256",
        ),
    )
    lora_alpha: int = option(32, "The adapter's output is scaled by lora_alpha / lora_r.", group="lora", gt=0)
    lora_dropout: float = option(
        0.0,
        "Dropout before the adapter. 0, since short runs seldom gain from it.",
        group="lora",
        ge=0,
        le=1,
        usual=Usual(
            far=3,
            high=0.3,
            above=("no_learning",),
            why="most of what the adapter reads is dropped",
            source="QLoRA, arXiv 2305.14314: 0.05 to 0.1",
        ),
    )
    lora_target_modules: list[str] = option(
        ["all-linear"],
        "Modules that get an adapter, by name or as one regular expression of full names; all-linear is every linear "
        "layer but the head.",
        group="lora",
    )
    lora_modules_to_save: list[str] = option(
        [], "Modules trained in full beside the adapter and saved with it.", group="lora"
    )
    use_rslora: bool = option(False, "Scale by lora_alpha / sqrt(lora_r) (arXiv 2312.03732).", group="lora")
    use_dora: bool = option(
        False, "Train a magnitude of each output beside the adapter (DoRA, arXiv 2402.09353). Slower.", group="lora"
    )
    lora_target_parameters: list[str] = option(
        [],
        "Parameters that get an adapter, by the end of their name: the fused experts of a mixture, for instance "
        "mlp.experts.gate_up_proj, which all-linear leaves out.",
        group="lora",
    )
    lora_base_model: str | None = option(
        None,
        "Folder or hub id of the base of the adapter in `model`, where that isn't what the adapter names.",
        group="lora",
        path=True,
        compared=False,  # with the adapter
    )
    merge_adapter: bool = option(
        False, "Also write merged/: the base weights with the adapter merged in.", group="lora"
    )
