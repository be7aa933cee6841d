"""Rotary position embeddings, default and proportional."""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.config.model import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int, device: torch.device) -> Tensor:
    """Angles per position [rotary_dim / 2], fp32.

    Default: theta^(-2i / r) over the r rotated dimensions. Proportional: theta^(-2i / head_dim) for
    the rotated share of the pairs, and zero, which rotates nothing, for the others.
    """
    rotated = int(head_dim * rope.partial_rotary_factor)
    if rope.kind == "default":
        exponents = torch.arange(0, rotated, 2, dtype=torch.float, device=device) / rotated
        return 1.0 / (rope.theta**exponents)
    pairs = int(rope.partial_rotary_factor * head_dim // 2)
    exponents = torch.arange(0, 2 * pairs, 2, dtype=torch.float, device=device) / head_dim
    turning = 1.0 / (rope.theta**exponents)
    return torch.cat([turning, turning.new_zeros(head_dim // 2 - pairs)])


def rotary_tables(
    positions: Tensor, rope: RopeConfig, head_dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosine and sine [B, S, 1, H] in `dtype` for integer `positions` [B, S]."""
    angles = positions[..., None].float() * inverse_frequencies(rope, head_dim, positions.device)
    angles = torch.cat([angles, angles], dim=-1)[:, :, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def turning_tables(
    positions: Tensor, rope: RopeConfig, head_dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """What `rotary_tables` says of the R pairs of dimensions that turn: [B, S, 1, 2 R] each.

    The first R of every half of a head turn; whatever the position, the others stay as they are.
    """
    frequencies = inverse_frequencies(rope, head_dim, positions.device)
    turning = int(frequencies.count_nonzero())
    angles = positions[..., None].float() * frequencies[:turning]
    angles = torch.cat([angles, angles], dim=-1)[:, :, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate `x` [B, S, N, H]: dimension i is paired with i + H / 2."""
    cos, sin = tables
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
