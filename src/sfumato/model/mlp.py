"""The dense gated MLP that stands beside the experts in every layer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh approximation, the only activation of this family."""
    return functional.gelu(x, approximate="tanh")


class GatedMLP(nn.Module):
    """down(gelu(gate(x)) * up(x)), widths D -> F -> D."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform `x` [..., D]."""
        out: Tensor = self.down_proj(gelu(self.gate_proj(x)) * self.up_proj(x))
        return out
