"""Tiny vision-language models with random weights, for tests of runs over texts."""

from __future__ import annotations

from typing import Any

import torch

from ft_host.testing.models import SIZES

TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}


def _seen(kind: Any, config: Any, seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.05)
    return model


def tiny_gemma3(**overrides: Any) -> Any:
    """Gemma 3: a SigLIP tower, sliding windows, which transformers' class for causal models loads whole too."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16, "query_pre_attn_scalar": 16}
    text = {**SIZES, "head_dim": 16, **layers, **overrides}
    tower = {**TOWER, "image_size": 16, "patch_size": 4}
    images = {"mm_tokens_per_image": 4, "boi_token_index": 250, "eoi_token_index": 251, "image_token_index": 252}
    return _seen(Gemma3ForConditionalGeneration, Gemma3Config(text_config=text, vision_config=tower, **images))


def _qwen(tower: dict[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
    images = {"image_token_id": 250, "video_token_id": 251, "vision_start_token_id": 252, "vision_end_token_id": 253}
    shared = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
    patches = {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
    return {
        "text_config": {**SIZES, "head_dim": 16, "rope_parameters": rope, **text},
        "vision_config": {**shared, **patches, **tower},
        **images,
    }


def tiny_qwen2_5_vl(**overrides: Any) -> Any:
    """Qwen2.5-VL, which transformers' class for causal models doesn't know."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(**_qwen({"window_size": 16, "fullatt_block_indexes": [1]}, overrides))
    return _seen(Qwen2_5_VLForConditionalGeneration, config)


def tiny_qwen3_5(**overrides: Any) -> Any:
    """Qwen3.5, which that class would load without its tower; with layers of linear attention."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8}
    linear |= {"linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}
    config = _qwen({"num_position_embeddings": 64}, {**linear, **overrides})
    config["text_config"]["rope_parameters"]["partial_rotary_factor"] = 1.0
    return _seen(Qwen3_5ForConditionalGeneration, Qwen3_5Config(**config))


def tiny_llama4_text(**overrides: Any) -> Any:
    """The language model of Llama 4: attention in chunks, fused experts."""
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    own = {"head_dim": 16, "num_local_experts": 2, "intermediate_size_mlp": 96, "attention_chunk_size": 64}
    return _seen(Llama4ForCausalLM, Llama4TextConfig(**{**SIZES, **own, "interleave_moe_layer_step": 2, **overrides}))


FAMILIES = {"gemma3": tiny_gemma3, "qwen2_5_vl": tiny_qwen2_5_vl, "qwen3_5": tiny_qwen3_5}
