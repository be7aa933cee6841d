"""`ModelConfig` to the config.json that transformers 5.23 reads as the same model."""

from __future__ import annotations

from typing import Any

from sfumato.config.layers import ACTIVATION
from sfumato.config.model import ModelConfig, RopeConfig, TextConfig, VisionConfig


def to_json(config: ModelConfig) -> dict[str, Any]:
    """The JSON object of config.json; `parse_config` of it gives `config` again."""
    return {
        "architectures": ["DiffusionGemmaForBlockDiffusion"],
        "boi_token_id": config.boi_token_id,
        "canvas_length": config.canvas_length,
        "dtype": config.dtype,
        "eoi_token_id": config.eoi_token_id,
        "image_token_id": config.image_token_id,
        "model_type": "diffusion_gemma",
        "text_config": _text(config.text),
        "tie_word_embeddings": True,
        "vision_config": None if config.vision is None else _vision(config.vision),
    }


def _text(text: TextConfig) -> dict[str, Any]:
    base = next((layer for layer in text.layers if layer.is_sliding), text.layers[0])
    overrides = {
        str(index): {
            "head_dim": layer.head_dim,
            "num_key_value_heads": layer.num_key_value_heads,
        }
        for index, layer in enumerate(text.layers)
        if not layer.is_sliding
    }
    eos = text.eos_token_id
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": text.bos_token_id,
        "eos_token_id": (eos[0] if len(eos) == 1 else list(eos)) if eos else None,
        "final_logit_softcapping": text.final_logit_softcapping,
        "head_dim": base.head_dim,
        "hidden_activation": ACTIVATION,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "layer_types": [layer.kind for layer in text.layers],
        "max_position_embeddings": text.max_position_embeddings,
        "model_type": "diffusion_gemma_text",
        "moe_intermediate_size": text.moe_intermediate_size,
        "num_attention_heads": text.num_attention_heads,
        "num_experts": text.num_experts,
        "num_hidden_layers": len(text.layers),
        "num_key_value_heads": base.num_key_value_heads,
        "pad_token_id": text.pad_token_id,
        "per_layer_config": overrides,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_parameters": {
            "full_attention": _rope(text.rope_full),
            "sliding_attention": _rope(text.rope_sliding),
        },
        "sliding_window": text.sliding_window,
        "tie_word_embeddings": True,
        "top_k_experts": text.top_k_experts,
        "use_bidirectional_attention": "vision" if text.bidirectional_images else None,
        "vocab_size": text.vocab_size,
    }


def _rope(rope: RopeConfig) -> dict[str, Any]:
    fields: dict[str, Any] = {"rope_theta": rope.theta, "rope_type": rope.kind}
    if rope.kind == "proportional":
        fields["partial_rotary_factor"] = rope.partial_rotary_factor
    return fields


def _vision(vision: VisionConfig) -> dict[str, Any]:
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": vision.head_dim,
        "hidden_activation": ACTIVATION,
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.intermediate_size,
        "model_type": "gemma4_vision",
        "num_attention_heads": vision.num_attention_heads,
        "num_hidden_layers": vision.num_hidden_layers,
        "num_key_value_heads": vision.num_key_value_heads,
        "patch_size": vision.patch_size,
        "pooling_kernel_size": vision.pooling_kernel_size,
        "position_embedding_size": vision.position_embedding_size,
        "rms_norm_eps": vision.rms_norm_eps,
        "rope_parameters": {"rope_theta": vision.rope_theta, "rope_type": "axial"},
        "standardize": vision.standardize,
        "use_clipped_linears": vision.use_clipped_linears,
    }
