"""Linear maps without bias, and the gated activation that follows two of them.

Contract of `linear`: out[.., n] = x[.., k] . weight[n, k]^T, and with a gated weight
out[.., n / 2] = gelu(gate) * value in GELU's tanh approximation, in the dtype of `x`. Sums are fp32
whatever the dtypes. A kernel's row has the same bits alone or beside others and for any number of
threads; kernel and reference agree but for rounding, about 1e-6 of the largest element in fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sfumato.ops.kernels import Kernels, give
from sfumato.ops.weight import Weight

ACTIVATIONS = (torch.float32, torch.bfloat16)


def declines(x_dtype: torch.dtype, weight: Weight) -> str | None:
    """Why no kernel serves activations of this dtype with this weight, or None if one does."""
    if x_dtype not in ACTIVATIONS:
        return f"activations are {x_dtype}, not float32 or bfloat16"
    if weight.matrices != 1:
        return f"a linear map has one matrix, not {weight.matrices}"
    if weight.device.type != "cpu":
        return f"the weights are on {weight.device}"
    return None


def linear(x: Tensor, weight: Weight, kernels: Kernels | None = None) -> Tensor:
    """`x` [.., k] through `weight`; see the module's contract."""
    if kernels is None:
        return reference(x, weight)
    flat = x.reshape(-1, weight.k)
    # Rows of a wider tensor are read in place, if they follow each other at even distances.
    if flat.stride(0) < weight.k or flat.stride(0) % 2 or flat.stride(1) != 1:
        flat = flat.contiguous()
    out = flat.new_empty(flat.shape[0], weight.n // 2 if weight.gated else weight.n)
    kernels.native.linear(
        kernels.name,
        give(flat),
        weight.native(kernels),
        give(out),
        weight.gated,
        kernels.threads,
    )
    return out.view(*x.shape[:-1], out.shape[1])


def reference(x: Tensor, weight: Weight, *, narrow: bool = False) -> Tensor:
    """The same in torch, from the decoded matrix; with `narrow` of activations in 8 bits."""
    seen = weight.seen(x, narrow=narrow)
    both = functional.linear(seen, weight.dense()[0].to(seen.dtype))
    if not weight.gated:
        return both.to(x.dtype)
    gate, values = both.chunk(2, dim=-1)
    return (functional.gelu(gate, approximate="tanh") * values).to(x.dtype)
