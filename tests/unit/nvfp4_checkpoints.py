"""Small NVFP4 checkpoints in both dialects, written by the safetensors library alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfumato.config.model import ModelConfig
from sfumato.config.write import to_json
from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.quant.nvfp4 import MODELOPT, quantise
from sfumato.weights.files import SINGLE
from tests.helpers import Shape, randomise, tiny_config

SHAPE = Shape(pattern="SF", hidden=32, heads=2, kv_heads=1, head_dim=16, vocab=48)
LAYER = "model.decoder.layers.0."
EXPERT = LAYER + "experts.1."
KEPT = ["lm_head", LAYER + "router.proj", "model.decoder.layers.1.self_attn*"]
WEIGHTS = {"num_bits": 4, "type": "float", "group_size": 16, "dynamic": False}
CACHE = {"num_bits": 8, "type": "float", "dynamic": False}
MODELOPT_FIELD: dict[str, Any] = {
    "quant_method": "modelopt",
    "quant_algo": "NVFP4",
    "config_groups": {
        "group_0": {"weights": WEIGHTS, "input_activations": WEIGHTS, "targets": ["Linear"]}
    },
    "ignore": KEPT,
    "producer": {"name": "modelopt", "version": "0.47.0"},
}
MODELOPT_FILE: dict[str, Any] = {
    "producer": {"name": "modelopt", "version": "0.47.0"},
    "quantization": {
        "quant_algo": "NVFP4",
        "kv_cache_quant_algo": None,
        "group_size": 16,
        "exclude_modules": KEPT,
    },
}
COMPRESSED_FIELD: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "nvfp4-pack-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "format": "nvfp4-pack-quantized",
            "input_activations": {"num_bits": 4, "dynamic": "local"},
            "output_activations": None,
            "targets": ["Linear"],
            "weights": {
                **WEIGHTS,
                "actorder": None,
                "block_structure": None,
                "observer": "minmax",
                "observer_kwargs": {},
                "scale_dtype": "torch.float8_e4m3fn",
                "strategy": "tensor_group",
                "symmetric": True,
                "zp_dtype": "torch.float8_e4m3fn",
            },
        }
    },
    "global_compression_ratio": None,
    "ignore": ["lm_head", "re:.*router.*", "model.decoder.layers.1.self_attn.q_proj"],
    "kv_cache_scheme": None,
    "sparsity_config": {},
    "transform_config": {},
    "version": "0.14.0",
}


def quantisable_config(shape: Shape = SHAPE) -> ModelConfig:
    """A small configuration whose rows are all multiples of 16 long."""
    config = tiny_config(shape)
    text = dataclasses.replace(config.text, moe_intermediate_size=32)
    return dataclasses.replace(config, text=text, dtype="bfloat16")


def write_nvfp4(
    folder: Path, dialect: str = "modelopt", *, seed: int = 0, field: Any = None
) -> dict[str, Tensor]:
    """A checkpoint with its experts and the first layer's attention in NVFP4; what it holds.

    Tensor scales are powers of two, so that both dialects stand for the same weights.
    """
    config = quantisable_config()
    network = DiffusionGemma(config)
    randomise(network, seed)
    tensors: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        if ".experts." in name:
            for expert, matrix in enumerate(tensor):
                parts = {"down_proj": matrix}
                if name.endswith("gate_up_proj"):
                    parts = dict(zip(("gate_proj", "up_proj"), matrix.chunk(2), strict=True))
                for part, rows in parts.items():
                    module = f"{name.rpartition('.')[0]}.{expert}.{part}"
                    tensors |= _named(module, rows, dialect)
        elif name.startswith(LAYER + "self_attn.") and tensor.dim() == 2:
            tensors |= _named(name.removesuffix(".weight"), tensor, dialect)
        else:
            tensors[name] = tensor.to(torch.bfloat16)
    folder.mkdir()
    save_file(tensors, folder / SINGLE)
    if field is None:
        field = MODELOPT_FIELD if dialect == "modelopt" else COMPRESSED_FIELD
    (folder / "config.json").write_text(
        json.dumps(to_json(config) | {"quantization_config": field})
    )
    return tensors


def _named(module: str, weight: Tensor, dialect: str) -> dict[str, Tensor]:
    weight = weight.to(torch.bfloat16)
    stored = quantise(weight, MODELOPT, torch.tensor(2.0**-9))
    parts = {"scale": stored.scale.clone()}
    if dialect == "modelopt":
        parts |= {"": stored.packed, "scale_2": stored.tensor_scale}
        named = {f"{module}.weight{'_' if key else ''}{key}": one for key, one in parts.items()}
        return named | {f"{module}.input_scale": torch.tensor(0.25)}
    parts |= {"packed": stored.packed, "global_scale": 1 / stored.tensor_scale.reshape(1)}
    named = {f"{module}.weight_{key}": one for key, one in parts.items()}
    return named | {f"{module}.input_global_scale": torch.tensor([4.0])}


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors of a checkpoint of one file."""
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE)
