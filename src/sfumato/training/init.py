"""Weights to start from when there is no checkpoint to start from."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sfumato.config.model import ModelConfig
from sfumato.errors import TrainingError
from sfumato.model.diffusion_gemma import DiffusionGemma, with_experts
from sfumato.weights.loader import load_network

POST_NORM = 0.5
_POST_NORMS = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")


def new_network(config: ModelConfig, seed: int) -> DiffusionGemma:
    """A freshly initialised network in fp32, a pure function of `config` and `seed`.

    Matrices are truncated normals of deviation fan_in^-0.5, the embedding D^-0.5 (it is scaled by
    sqrt(D) on the way in and is the head on the way out). Attention divides by nothing, so q_norm
    starts at head_dim^-0.5. What each layer adds is normalised after the fact; those two norms
    start at one half, so that the residual stream grows slowly with depth. The self-conditioning's
    down projection starts at zero: at first every step is the first step.
    """
    net = DiffusionGemma(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            _fill(name, weight, config.text.hidden_size, generator)
    return with_experts(net, "dense")


def start_from(net: DiffusionGemma, folder: str | Path) -> None:
    """Give `net` the weights of the checkpoint in `folder`, which must have its shape."""
    found, config = load_network(folder, torch.float32)
    for name in ("text", "canvas_length", "vision"):
        if getattr(config, name) != getattr(net.config, name):
            raise TrainingError(
                f"{folder}: another network than the recipe describes: its {name} differs",
                hint="start from a checkpoint of the same shape, or describe that one",
            )
    net.load_state_dict(found.state_dict())


def _fill(name: str, weight: Tensor, hidden: int, generator: torch.Generator) -> None:
    if name.endswith("self_conditioning.down_proj.weight"):
        weight.zero_()
    elif weight.dim() >= 2:
        fan_in = hidden if name.endswith("embed_tokens.weight") else weight.shape[-1]
        spread = fan_in**-0.5
        torch.nn.init.trunc_normal_(
            weight, 0.0, spread, -3 * spread, 3 * spread, generator=generator
        )
    elif name.endswith("q_norm.weight"):
        weight.fill_(weight.shape[0] ** -0.5)
    elif name.endswith(_POST_NORMS):
        weight.fill_(POST_NORM)
    else:
        weight.fill_(1.0)
