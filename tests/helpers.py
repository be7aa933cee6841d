"""Random checkpoints for comparison with the reference: every norm, scalar and scale different."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sfumato.config.model import LayerConfig, ModelConfig, RopeConfig, TextConfig, VisionConfig
from sfumato.model.diffusion_gemma import DiffusionGemma


@dataclass(frozen=True)
class Shape:
    """What varies between the random configurations."""

    pattern: str = "SSF"
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    global_kv_heads: int = 1
    global_head_dim: int = 32
    window: int = 8
    experts: int = 4
    top_k: int = 2
    expert_width: int = 24
    canvas: int = 12
    vocab: int = 97
    vision: bool = False


def tiny_config(shape: Shape) -> ModelConfig:
    """A small configuration of the released family."""
    layers = tuple(
        LayerConfig("sliding_attention", shape.head_dim, shape.kv_heads)
        if letter == "S"
        else LayerConfig("full_attention", shape.global_head_dim, shape.global_kv_heads)
        for letter in shape.pattern
    )
    vision = VisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        position_embedding_size=64,
        standardize=True,
    )
    return ModelConfig(
        text=TextConfig(
            vocab_size=shape.vocab,
            hidden_size=shape.hidden,
            intermediate_size=96,
            num_attention_heads=shape.heads,
            layers=layers,
            sliding_window=shape.window,
            num_experts=shape.experts,
            top_k_experts=shape.top_k,
            moe_intermediate_size=shape.expert_width,
            max_position_embeddings=4096,
            rope_sliding=RopeConfig(1e4),
            rope_full=RopeConfig(1e6, 0.25, "proportional"),
        ),
        vision=vision if shape.vision else None,
        canvas_length=shape.canvas,
        image_token_id=shape.vocab - 1,
        boi_token_id=shape.vocab - 2,
        eoi_token_id=shape.vocab - 3,
    )


def randomise(net: torch.nn.Module, seed: int) -> None:
    """Draw every tensor anew: matrices at a lively scale, norms and scalars around one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.dim() >= 2 or name.endswith("std_bias"):
                spread = 0.8 if "embed_tokens" in name else 1.4 * tensor.shape[-1] ** -0.5
                tensor.copy_(noise * spread)
            elif name.endswith(("q_norm.weight", "k_norm.weight")):
                tensor.copy_(0.6 + 0.2 * noise)
            elif name.endswith(("_min", "_max")):
                sign = -1.0 if name.endswith("_min") else 1.0
                tensor.copy_(sign * (2.0 + noise.abs()))
            else:
                tensor.copy_(1.0 + 0.3 * noise)


def reference_config(config: ModelConfig) -> Any:
    """The same configuration as `transformers` spells it."""
    from transformers import DiffusionGemmaConfig

    text = config.text
    full = next(layer for layer in text.layers if not layer.is_sliding)
    sliding = next((layer for layer in text.layers if layer.is_sliding), full)
    fields: dict[str, Any] = {
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": len(text.layers),
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": sliding.num_key_value_heads,
        "head_dim": sliding.head_dim,
        "global_head_dim": full.head_dim,
        "num_global_key_value_heads": full.num_key_value_heads,
        "layer_types": [layer.kind for layer in text.layers],
        "sliding_window": text.sliding_window,
        "num_experts": text.num_experts,
        "top_k_experts": text.top_k_experts,
        "moe_intermediate_size": text.moe_intermediate_size,
        "max_position_embeddings": text.max_position_embeddings,
        "use_bidirectional_attention": "vision" if text.bidirectional_images else None,
        "rope_parameters": {
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": text.rope_sliding.theta,
            },
            "full_attention": {
                "rope_type": "proportional",
                "rope_theta": text.rope_full.theta,
                "partial_rotary_factor": text.rope_full.partial_rotary_factor,
            },
        },
    }
    vision = config.vision or VisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        position_embedding_size=16,
    )
    return DiffusionGemmaConfig(
        text_config=fields,
        vision_config={
            "model_type": "gemma4_vision",
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.num_hidden_layers,
            "num_attention_heads": vision.num_attention_heads,
            "num_key_value_heads": vision.num_key_value_heads,
            "head_dim": vision.head_dim,
            "global_head_dim": vision.head_dim,
            "patch_size": vision.patch_size,
            "pooling_kernel_size": vision.pooling_kernel_size,
            "position_embedding_size": vision.position_embedding_size,
            "standardize": vision.standardize,
            "use_clipped_linears": vision.use_clipped_linears,
        },
        canvas_length=config.canvas_length,
        image_token_id=config.image_token_id,
        boi_token_id=config.boi_token_id,
        eoi_token_id=config.eoi_token_id,
    )


def pair(shape: Shape, seed: int, dtype: torch.dtype = torch.float32) -> tuple[DiffusionGemma, Any]:
    """Our network and the reference's with equal random weights."""
    from transformers import DiffusionGemmaForBlockDiffusion

    config = tiny_config(shape)
    ours = DiffusionGemma(config)
    randomise(ours, seed)
    ours = ours.to(dtype).eval()
    reference = DiffusionGemmaForBlockDiffusion(reference_config(config)).eval()
    angles = {name: one for name, one in reference.named_buffers() if name.endswith("inv_freq")}
    reference = reference.to(dtype)
    for name, frequencies in angles.items():
        # `from_pretrained` keeps the rotary frequencies in fp32; `to` would round them.
        module, _, leaf = name.rpartition(".")
        setattr(reference.get_submodule(module), leaf, frequencies)
    missing, unexpected = reference.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected, unexpected
    reference.tie_weights()
    left = [name for name in missing if not _tied_or_unused(name, config)]
    assert not left, left
    return ours, reference


def _tied_or_unused(name: str, config: ModelConfig) -> bool:
    """Names the reference lists besides ours: its tied copies, and vision weights we left out."""
    if name == "lm_head.weight" or name.startswith("model.encoder.language_model."):
        return not name.endswith("layer_scalar")
    seeing = name.startswith(("model.encoder.vision_tower.", "model.encoder.embed_vision."))
    return seeing and config.vision is None
