"""Root-mean-square norms: alone, with a residual, and of attention's heads with rotary positions.

Contract of `norm`: out = (residual + x / sqrt(mean(x^2) + eps) * weight) * scale, by rows [.., D];
of `heads`: x [B, S, N, H] normalised by heads, with tables rotated (dimension i is paired with
i + H / 2), the result [B, N, S, H]. Arithmetic is fp32 and rounded once to the dtype of `x`, where
the references in torch round after each part.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.ops.kernels import Kernels, give

Tables = tuple[Tensor, Tensor]  # cosines and sines, fp32 [B, S, 1, H], without gaps


def norm(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    kernels: Kernels | None = None,
    *,
    residual: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """`x` [.., D] normalised; `weight` fp32 [D] or None, `residual` of `x`'s shape or None."""
    if kernels is None:
        return reference(x, weight, eps, residual, scale)
    flat = x.reshape(-1, x.shape[-1])
    add = None if residual is None else residual.reshape(flat.shape)
    out = torch.empty_like(flat)
    kernels.native.norm(
        kernels.name,
        give(flat),
        None if weight is None else give(weight),
        None if add is None else give(add),
        eps,
        scale,
        give(out),
        kernels.threads,
    )
    return out.view(x.shape)


def reference(
    x: Tensor, weight: Tensor | None, eps: float, residual: Tensor | None, scale: float
) -> Tensor:
    """`norm` in torch."""
    out = _normalised(x, weight, eps)
    if residual is not None:
        out = residual.float() + out
    return (out * scale).to(x.dtype)


def heads(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    tables: Tables | None = None,
    kernels: Kernels | None = None,
) -> Tensor:
    """Heads [B, N, S, H] of `x` [B, S, N, H]; `weight` fp32 [H] or None."""
    if kernels is None:
        return heads_reference(x, weight, eps, tables)
    batch, length, count, dim = x.shape
    out = x.new_empty(batch, count, length, dim)
    cosines, sines = (None, None) if tables is None else (give(one.view(-1, dim)) for one in tables)
    kernels.native.heads(
        kernels.name,
        give(x.contiguous()),
        None if weight is None else give(weight),
        cosines,
        sines,
        eps,
        give(out),
        kernels.threads,
    )
    return out


def heads_reference(x: Tensor, weight: Tensor | None, eps: float, tables: Tables | None) -> Tensor:
    """`heads` in torch."""
    out = _normalised(x, weight, eps)
    if tables is not None:
        cosines, sines = tables
        first, second = out.chunk(2, dim=-1)
        out = out * cosines + torch.cat([-second, first], dim=-1) * sines
    return out.transpose(1, 2).contiguous().to(x.dtype)


def _normalised(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    wide = x.float()
    out = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return out if weight is None else out * weight
