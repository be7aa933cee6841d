"""A run's averaged weights as a checkpoint folder that sfumato and transformers load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sfumato.config.generation import GenerationConfig
from sfumato.model.diffusion_gemma import DiffusionGemma, with_experts
from sfumato.training.data import Data
from sfumato.weights.export import export

_COPIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def generation_config(data: Data) -> GenerationConfig:
    """How the trained model is to be decoded: one canvas, stopping where training put the end."""
    return GenerationConfig(
        max_new_tokens=data.canvas_length,
        eos_token_id=(data.eos, data.form.turn_end),
        pad_token_id=data.pad,
        bos_token_id=data.form.tokenizer.control.get("<bos>"),
    )


def export_weights(
    net: DiffusionGemma, data: Data, weights: Mapping[str, Tensor], to: Path
) -> Path:
    """Write `weights`, by the network's names, in bfloat16 into the folder `to`, all or nothing."""
    copy = network_with(net, weights)
    files = {name: data.folder / name for name in _COPIED if (data.folder / name).is_file()}
    return export(
        copy,
        copy.config,
        to,
        generation=generation_config(data),
        extra_files=files,
        dtype=torch.bfloat16,
        overwrite=True,
    )


def network_with(net: DiffusionGemma, weights: Mapping[str, Tensor]) -> DiffusionGemma:
    """A network of the shape of `net` that holds copies of `weights`, for evaluation."""
    copy = DiffusionGemma(net.config)
    copy.load_state_dict(dict(weights))
    return with_experts(copy, "dense").eval().requires_grad_(False)
