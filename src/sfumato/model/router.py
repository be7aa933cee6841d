"""Which experts a position uses, and with which weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfumato.config.model import TextConfig
from sfumato.model.linear import Linear
from sfumato.model.norm import rms_norm


class Router(nn.Module):
    """Scores the raw residual, keeps the best K experts, renormalises, scales each expert."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.eps = config.rms_norm_eps
        self.top_k = config.top_k_experts
        self.root_size = config.hidden_size**-0.5
        self.proj = Linear(config.hidden_size, config.num_experts)
        self.scale = nn.Parameter(torch.ones(config.hidden_size))
        self.per_expert_scale = nn.Parameter(torch.ones(config.num_experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (fp32) and expert numbers, both [R, K], for the rows of `x` [R, D]."""
        scaled = rms_norm(x, None, self.eps) * self.scale * self.root_size
        probabilities = torch.softmax(self.proj(scaled), dim=-1, dtype=torch.float32)
        weights, chosen = torch.topk(probabilities, self.top_k, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights * self.per_expert_scale[chosen], chosen
