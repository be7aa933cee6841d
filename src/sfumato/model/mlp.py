"""The dense gated MLP that stands beside the experts in every layer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from sfumato.model.linear import Kernel, Linear


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh approximation, the only activation of this family."""
    return functional.gelu(x, approximate="tanh")


class GatedMLP(nn.Module):
    """down(gelu(gate(x)) * up(x)), widths D -> F -> D; `kernel`, if set, computes it."""

    kernel: Kernel | None = None

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden, inner)
        self.up_proj = Linear(hidden, inner)
        self.down_proj = Linear(inner, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Transform `x` [..., D]."""
        if self.kernel is not None:
            return self.kernel(x)
        out: Tensor = self.down_proj(gelu(self.gate_proj(x)) * self.up_proj(x))
        return out
