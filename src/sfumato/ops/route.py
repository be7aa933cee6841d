"""The router's choice of experts.

Contract of `route`: of softmax(scores) [R, E] the K best of each row, divided by their sum and
multiplied by each expert's scale; numbers int64 [R, K], best first, and shares fp32 [R, K]. Equal
scores may come in either order in the reference; a kernel takes the lower number first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.ops.kernels import Kernels, give


def route(
    scores: Tensor, scales: Tensor, slots: int, kernels: Kernels | None = None
) -> tuple[Tensor, Tensor]:
    """Expert numbers and shares for `scores` [R, E], `scales` fp32 [E] and K = `slots`."""
    if kernels is None:
        return reference(scores, scales, slots)
    chosen = torch.empty(scores.shape[0], slots, dtype=torch.int64)
    shares = torch.empty(scores.shape[0], slots)
    wide = scores.float().contiguous()
    kernels.native.route(kernels.name, give(wide), give(scales), give(chosen), give(shares))
    return chosen, shares


def reference(scores: Tensor, scales: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """`route` in torch."""
    probabilities = torch.softmax(scores, dim=-1, dtype=torch.float32)
    shares, chosen = torch.topk(probabilities, slots, dim=-1)
    return chosen, shares / shares.sum(dim=-1, keepdim=True) * scales[chosen]
