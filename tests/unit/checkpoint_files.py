"""Small checkpoint folders and safetensors files, sound or broken on purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from sfumato.config.model import ModelConfig
from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.weights.export import export
from tests.helpers import Shape, randomise, tiny_config

TINY = Shape(hidden=16, heads=2, kv_heads=1, head_dim=8, global_head_dim=8, vocab=32)


def text_fields(**changes: Any) -> dict[str, Any]:
    """A text_config with every field a file must have."""
    fields: dict[str, Any] = {
        "model_type": "diffusion_gemma_text",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
    }
    return fields | changes


def vision_fields(**changes: Any) -> dict[str, Any]:
    """A vision_config with every field a file must have."""
    fields: dict[str, Any] = {
        "model_type": "gemma4_vision",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 8,
    }
    return fields | changes


def config_fields(**changes: Any) -> dict[str, Any]:
    """A config.json without pictures."""
    return {"model_type": "diffusion_gemma", "text_config": text_fields()} | changes


def write_checkpoint(
    folder: Path, *, seed: int = 0, shape: Shape = TINY, **how: Any
) -> tuple[DiffusionGemma, ModelConfig]:
    """A random checkpoint in `folder`; `how` goes to `export`."""
    config = tiny_config(shape)
    network = DiffusionGemma(config)
    randomise(network, seed)
    export(network, config, folder, **how)
    return network, config


def safetensors_bytes(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file with this header (an object, or JSON text as it is) before `data`."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[int], start: int, stop: int) -> dict[str, Any]:
    """A tensor's header entry."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A safetensors file with exactly these tensors, each in its own dtype."""
    codes = {
        torch.float32: "F32",
        torch.bfloat16: "BF16",
        torch.float16: "F16",
        torch.float64: "F64",
        torch.uint8: "U8",
    }
    header: dict[str, Any] = {}
    data = b""
    for name, tensor in tensors.items():
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        header[name] = entry(
            codes[tensor.dtype], list(tensor.shape), len(data), len(data) + len(raw)
        )
        data += raw
    path.write_bytes(safetensors_bytes(header, data))
