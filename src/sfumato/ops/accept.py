"""Which positions of a canvas keep what was sampled for them; the others get fresh noise.

Contract of `accept`: with the entropies [B, L] of a row sorted ascending, equal ones in the order
of their positions, a position is accepted while the sum of those before it is at most `bound` nats:
the running sum up to and with its own, rounded to fp32, less its own. NaN is never accepted. Given
are the sampled ids and fresh ones, int64 [B, L]; the result is the mask of accepted positions and
the canvas, sampled ids where accepted and fresh ones elsewhere. Kernel and reference agree exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.ops.kernels import Kernels, give


def accept(
    entropies: Tensor,
    sampled: Tensor,
    fresh: Tensor,
    bound: float,
    kernels: Kernels | None = None,
) -> tuple[Tensor, Tensor]:
    """Accepted positions, bool [B, L], and the canvas int64 [B, L]; see the module's contract."""
    if kernels is None or entropies.dtype != torch.float32:
        accepted = reference(entropies, bound)
        return accepted, torch.where(accepted, sampled, fresh)
    accepted = torch.empty(entropies.shape, dtype=torch.uint8)
    canvas = torch.empty_like(sampled, memory_format=torch.contiguous_format)
    kernels.native.accept(
        kernels.name,
        give(entropies.contiguous()),
        give(sampled.contiguous()),
        give(fresh.contiguous()),
        bound,
        give(accepted),
        give(canvas),
    )
    return accepted.view(torch.bool), canvas


def reference(entropies: Tensor, bound: float) -> Tensor:
    """The mask of accepted positions, in torch."""
    ordered, places = torch.sort(entropies, dim=-1, stable=True)
    chosen = torch.cumsum(ordered, dim=-1) - ordered <= bound
    return torch.zeros_like(chosen).scatter(-1, places, chosen)
