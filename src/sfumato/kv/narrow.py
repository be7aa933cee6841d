"""Cached vectors in 8 bits: integers and one fp32 scale for each head and position.

    x = code * scale,   scale = max |x| / 127,   code = round(x / scale) in -127 .. 127

A code is at most half a step off, so no value is off by more than max |x| / 254 (and the rounding
to the weights' dtype). The scale's four bytes stand behind the codes in one int8 tensor, which
caches hold as they would hold the vectors. A vector with a NaN or an infinity reads as NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST = 127
_SCALE_BYTES = 4


def narrow(x: Tensor) -> Tensor:
    """Codes and scale int8 [..., H + 4] of `x` [..., H]."""
    wide = x.float()
    scale = wide.abs().amax(-1, keepdim=True) / _LARGEST
    steps = wide / scale.clamp(min=torch.finfo(torch.float32).tiny)
    codes = steps.nan_to_num(0.0).round().clamp(-_LARGEST, _LARGEST).to(torch.int8)
    return torch.cat([codes, scale.view(torch.int8)], dim=-1)


def widen(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """The vectors [..., H] of `narrow`'s result [..., H + 4], in `dtype`."""
    codes, scale = stored[..., :-_SCALE_BYTES], stored[..., -_SCALE_BYTES:]
    factor = scale.clone(memory_format=torch.contiguous_format).view(torch.float32)
    return (codes.float() * factor).to(dtype)
