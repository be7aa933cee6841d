"""Root-mean-square normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfumato.model.linear import Kernel


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Normalise the last dimension of `x` [..., D] to unit root mean square, times `weight` [D].

    The arithmetic is fp32 whatever the dtype of `x`, which the result has again. The inverse root
    is a power, as in the reference: `rsqrt` differs from it in the last bit. Compiled code, which
    promises no bits, takes the faster one.
    """
    wide = x.float()
    mean = wide.pow(2).mean(-1, keepdim=True) + eps
    wide = wide * (torch.rsqrt(mean) if torch.compiler.is_compiling() else torch.pow(mean, -0.5))
    if weight is not None:
        wide = wide * weight.float()
    return wide.to(x.dtype)


class RMSNorm(nn.Module):
    """`rms_norm` with a learned weight of size `dim`; `kernel`, if set, computes it."""

    kernel: Kernel | None = None

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` [..., dim]."""
        return rms_norm(x, self.weight, self.eps) if self.kernel is None else self.kernel(x)
