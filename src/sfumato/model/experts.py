"""The mixture of experts: a plain loop, and a dense form of the same sum."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from sfumato.config.model import TextConfig
from sfumato.model.mlp import gelu

ExpertsMode = Literal["loop", "dense"]


class Experts(nn.Module):
    """E gated MLPs of width F; each row is a weighted sum over the K that its router chose.

    `mode` "loop" gathers the rows of each expert in turn. "dense" computes every expert for every
    row and multiplies those not chosen by zero: the same sum but for rounding, without
    data-dependent shapes, hence the form for small models and for compiled training.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        experts, hidden = config.num_experts, config.hidden_size
        inner = config.moe_intermediate_size
        self.mode: ExpertsMode = "loop"
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * inner, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, inner))

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Mix [R, D] for rows `x` [R, D], `weights` fp32 [R, K] and expert numbers [R, K]."""
        mix = self._dense if self.mode == "dense" else self._loop
        return mix(x, weights, chosen)

    def _loop(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        # The weighted parts are summed in the order in which the router ranked the experts, not in
        # the order of their numbers: so does the reference, and the last bit shows it.
        parts = weights.new_empty(*chosen.shape, x.shape[-1])
        for expert in torch.unique(chosen).tolist():
            rows, slot = torch.where(chosen == expert)
            gate, up = functional.linear(x[rows], self.gate_up_proj[expert]).chunk(2, dim=-1)
            part = functional.linear(gelu(gate) * up, self.down_proj[expert])
            parts[rows, slot] = part * weights[rows, slot, None]
        return parts.sum(dim=1).to(x.dtype)

    def _dense(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        experts, hidden, inner = self.down_proj.shape
        share = weights.new_zeros(x.shape[0], experts).scatter(1, chosen, weights)
        both = functional.linear(x, self.gate_up_proj.reshape(-1, hidden))
        gate, up = both.view(-1, experts, 2 * inner).chunk(2, dim=-1)
        active = gelu(gate) * up * share[:, :, None].to(both.dtype)
        down = self.down_proj.transpose(1, 2).reshape(experts * inner, hidden)
        return torch.matmul(active.flatten(1), down).to(x.dtype)
