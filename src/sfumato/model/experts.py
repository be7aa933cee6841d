"""The mixture of experts: a plain loop, and two other forms of the same sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from sfumato.config.model import TextConfig
from sfumato.model.mlp import gelu
from sfumato.ops.grouped import grouped_linear, permute_rows

ExpertsMode = Literal["loop", "dense", "grouped"]
# Up to this many expert columns in all (E * F), one wide product over every expert is cheaper than
# finding out which rows belong to which expert.
DENSE_WIDTH = 1024
# Rows [R, D], expert numbers [R, K] and their weights [R, K] to the mix [R, D].
ExpertsKernel = Callable[[Tensor, Tensor, Tensor], Tensor]


class Experts(nn.Module):
    """E gated MLPs of width F; each row is a weighted sum over the K that its router chose.

    `mode` "loop" gathers the rows of each expert in turn. "dense" computes every expert for every
    row and multiplies those not chosen by zero: the same sum but for rounding, without
    data-dependent shapes, hence the form for small models. "grouped" sorts the rows by expert and
    computes only what is chosen, in shapes that do not depend on the data: the form for training,
    and for accelerators, which would wait for the host at each expert of the loop.
    `kernel`, if set, computes the sum in place of all of them.
    """

    kernel: ExpertsKernel | None = None

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        experts, hidden = config.num_experts, config.hidden_size
        inner = config.moe_intermediate_size
        self.mode: ExpertsMode = "loop"
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * inner, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, inner))

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Mix [R, D] for rows `x` [R, D], `weights` fp32 [R, K] and expert numbers [R, K]."""
        if self.kernel is not None:
            return self.kernel(x, chosen, weights)
        forms = {"loop": self._loop, "dense": self._dense, "grouped": self._grouped}
        mix: Tensor = forms[self.mode](x, weights, chosen)
        return mix

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

    def _grouped(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        numbers = chosen.flatten()
        order = torch.argsort(numbers, stable=True)
        inverse = torch.argsort(order)
        ends = (numbers[:, None] == torch.arange(len(self.down_proj), device=x.device)).sum(0)
        ends = ends.cumsum(0)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        rows = permute_rows(x.to(dtype), order, inverse, chosen.shape[1])
        gate, up = grouped_linear(rows, self.gate_up_proj.to(dtype), ends).chunk(2, dim=-1)
        parts = grouped_linear(gelu(gate) * up, self.down_proj.to(dtype), ends)
        parts = permute_rows(parts, inverse, order, 1).view(*chosen.shape, -1)
        mix: Tensor = (parts * weights[:, :, None]).sum(1)
        return mix.to(x.dtype)


def form_for(config: TextConfig, device: torch.device, *, may_be_dense: bool) -> ExpertsMode:
    """The form that serves a network on `device` best where no kernel does.

    One whose bits need not be the reference's, which the loop's are, `may_be_dense` if narrow.
    """
    if may_be_dense and config.num_experts * config.moe_intermediate_size <= DENSE_WIDTH:
        return "dense"
    return "loop" if device.type == "cpu" else "grouped"
