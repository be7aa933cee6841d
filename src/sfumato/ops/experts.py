"""The mixture of experts as one operation.

Contract of `experts`: out[r] = sum over s of shares[r, s] * down[e](gelu(gate) * value), where e is
chosen[r, s] and gate and value are gate_up[e] of x[r]; `x` [R, D], `chosen` int64 and `shares` fp32
[R, K], gate_up [E, 2F, D] gated, down [E, D, F]; the result [R, D] in the dtype of `x`. A row's
parts are summed in the order of its slots. Experts without rows cost nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sfumato.ops.kernels import Kernels, give
from sfumato.ops.linear import ACTIVATIONS
from sfumato.ops.weight import PANEL, Weight


def declines(x_dtype: torch.dtype, gate_up: Weight, down: Weight) -> str | None:
    """Why no kernel serves these experts, or None if one does."""
    if x_dtype not in ACTIVATIONS:
        return f"activations are {x_dtype}, not float32 or bfloat16"
    if gate_up.device.type != "cpu":
        return f"the weights are on {gate_up.device}"
    if not gate_up.gated or down.gated:
        return "the way up must be gated, and the way down not"
    if down.k % PANEL:
        return f"the experts' width {down.k} is no multiple of {PANEL}"
    if (gate_up.layout == "f32_rows") != (down.layout == "f32_rows"):
        return f"the way up is {gate_up.layout}, the way down {down.layout}"
    return None


def experts(
    x: Tensor,
    chosen: Tensor,
    shares: Tensor,
    gate_up: Weight,
    down: Weight,
    kernels: Kernels | None = None,
) -> Tensor:
    """The mix [R, D] of `x` [R, D]; see the module's contract."""
    if kernels is None:
        return reference(x, chosen, shares, gate_up, down)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    kernels.native.experts(
        kernels.name,
        give(x),
        give(chosen.contiguous()),
        give(shares.contiguous()),
        gate_up.native(kernels),
        down.native(kernels),
        give(out),
        kernels.threads,
    )
    return out


def reference(
    x: Tensor,
    chosen: Tensor,
    shares: Tensor,
    gate_up: Weight,
    down: Weight,
    *,
    narrow: bool = False,
) -> Tensor:
    """The same in torch, expert after expert; with `narrow` of activations in 8 bits."""
    seen = gate_up.seen(x, narrow=narrow)
    up, back = gate_up.dense().to(seen.dtype), down.dense().to(seen.dtype)
    parts = shares.new_zeros(*chosen.shape, x.shape[-1])
    for expert in torch.unique(chosen).tolist():
        rows, slot = torch.where(chosen == expert)
        gate, values = functional.linear(seen[rows], up[expert]).chunk(2, dim=-1)
        active = (functional.gelu(gate, approximate="tanh") * values).to(x.dtype)
        active = down.seen(active, narrow=narrow).to(seen.dtype)
        parts[rows, slot] = functional.linear(active, back[expert]) * shares[rows, slot, None]
    return parts.sum(dim=1).to(x.dtype)
