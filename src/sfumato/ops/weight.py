"""Weights as kernels read them: in place as a checkpoint stores them, or in panels of 16 rows.

The layouts are those of csrc/kernels.hpp. Packing is a permutation of the bytes, written here in
torch so that the layout has one definition; `dense` undoes it and feeds the references.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from sfumato.errors import InputError
from sfumato.ops.kernels import Kernels
from sfumato.quant.nvfp4 import Nvfp4Tensor, check_scales, decode

PANEL = 16
Layout = Literal["f32_rows", "bf16_rows", "bf16_panels", "nvfp4_panels"]


@dataclass(frozen=True, eq=False)
class Weight:
    """A stack of E matrices [n, k]; for a linear map E is 1.

    `layout` says how `data` lies. Of a gated weight in rows, `data` [E, n / 2, k] is the gate's
    half and `values` the other; in panels the two alternate, 16 rows of each. `scales` and `scale`
    [E, 2], of the gate and of the values, are NVFP4's. Make one with `rows`, `panels` or `nvfp4`.
    """

    layout: Layout
    data: Tensor
    n: int
    k: int
    gated: bool = False
    values: Tensor | None = None
    scales: Tensor | None = None
    scale: Tensor | None = None

    @property
    def matrices(self) -> int:
        """E."""
        return self.data.shape[0]

    def native(self, kernels: Kernels) -> Any:
        """The compiled module's view of this weight, made once: it serves every instruction set."""
        found = self.__dict__.get("_made")
        if found is None:
            tensors = (self.data, self.values, self.scales, self.scale)
            data, values, scales, scale = (None if one is None else one.detach() for one in tensors)
            found = kernels.native.Weight(self.layout, data, values, scales, scale, self.n)
            self.__dict__["_made"] = found
        return found

    @cached_property
    def bytes(self) -> int:
        """Memory of the weight's tensors."""
        tensors = (self.data, self.values, self.scales, self.scale)
        return sum(one.numel() * one.element_size() for one in tensors if one is not None)

    def dense(self) -> Tensor:
        """The matrices [E, n, k], the gate's half first if gated: fp32 or bf16."""
        if self.layout in ("f32_rows", "bf16_rows"):
            return self.data if self.values is None else torch.cat([self.data, self.values], dim=1)
        if self.layout == "bf16_panels":
            wide = self.data.permute(0, 1, 3, 2, 4).reshape(self.matrices, -1, self.k)
        else:
            wide = self._decoded()
        wide = wide[:, : self.n]
        return _apart(wide) if self.gated else wide

    def _decoded(self) -> Tensor:
        assert self.scales is not None
        assert self.scale is not None
        packed = self.data.permute(0, 1, 4, 2, 3).reshape(self.matrices, -1, self.k // 2)
        scales = self.scales.transpose(2, 3).reshape(self.matrices, -1, self.k // PANEL)
        bits = scales.contiguous().view(torch.float8_e4m3fn)
        own = [
            decode(Nvfp4Tensor(packed.contiguous(), bits, scale.contiguous()), torch.float32)
            for scale in self.scale.unbind(1)
        ]
        if not self.gated:
            return own[0]
        of_values = torch.arange(packed.shape[1]) // PANEL % 2 == 1
        return torch.where(of_values[:, None], own[1], own[0])


def rows(weight: Tensor, values: Tensor | None = None) -> Weight:
    """`weight` [n, k] or [E, n, k], fp32 or bf16, read where it is; with `values`, a gated weight.

    Raises InputError for another dtype, an odd k in bf16, or halves that do not fit.
    """
    data = weight if weight.dim() == 3 else weight[None]
    other = values if values is None or values.dim() == 3 else values[None]
    if data.dtype not in (torch.float32, torch.bfloat16):
        raise InputError(f"a kernel's weight is float32 or bfloat16, not {data.dtype}")
    n, k = data.shape[1:]
    if data.dtype == torch.bfloat16 and k % 2:
        raise InputError(f"a bfloat16 weight needs an even number of inputs, not {k}")
    if data.stride(-1) != 1 and k > 1:
        raise InputError("a weight's rows must lie without gaps")
    if other is not None:
        _check_halves(data, other)
        n *= 2
    layout: Layout = "f32_rows" if data.dtype == torch.float32 else "bf16_rows"
    return Weight(layout, data, n, k, other is not None, other)


def panels(weight: Tensor, *, gated: bool = False) -> Weight:
    """A packed copy of `weight` bf16 [n, k] or [E, n, k]; `gated`: the gate's half comes first."""
    data = weight if weight.dim() == 3 else weight[None]
    if data.dtype != torch.bfloat16 or data.shape[-1] % 2:
        raise InputError("panels are bfloat16 with an even number of inputs")
    matrices, n, k = data.shape
    data = _padded(_woven(data) if gated else data)
    packed = data.view(matrices, -1, PANEL, k // 2, 2).permute(0, 1, 3, 2, 4).contiguous()
    return Weight("bf16_panels", packed, n, k, gated)


def nvfp4(weight: Nvfp4Tensor, values: Nvfp4Tensor | None = None) -> Weight:
    """A packed copy of an NVFP4 `weight` [n, k] or [E, n, k]; with `values`, a gated weight.

    Raises QuantisationError for scales that cannot be, InputError for halves that do not fit.
    """
    parts = [_stacked(one) for one in (weight, values) if one is not None]
    if len({(part[0].shape, part[1].shape) for part in parts}) > 1:
        raise InputError("the halves of a gated weight must have one shape")
    packed, scales = (torch.cat([part[i] for part in parts], dim=1) for i in range(2))
    if values is not None:
        packed, scales = _woven(packed), _woven(scales)
    matrices, n = packed.shape[:2]
    groups = scales.shape[-1]
    codes = _padded(packed).view(matrices, -1, PANEL, groups, 8).permute(0, 1, 3, 4, 2).contiguous()
    inner = _padded(scales).view(matrices, -1, PANEL, groups).transpose(2, 3).contiguous()
    scale = torch.stack([parts[0][2], parts[-1][2]], dim=1)
    gated = values is not None
    return Weight("nvfp4_panels", codes, n, groups * 16, gated, None, inner, scale)


def _stacked(weight: Nvfp4Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [E, n, k / 2], scales' bytes [E, n, k / 16] and factors [E] of a matrix or a stack."""
    check_scales(weight)
    packed, scales, scale = weight.packed, weight.scale.view(torch.uint8), weight.tensor_scale
    if packed.dim() == 2:
        packed, scales, scale = packed[None], scales[None], scale[None]
    return packed, scales, 1.0 / scale if weight.reciprocal else scale


def _check_halves(gate: Tensor, values: Tensor) -> None:
    same = values.shape == gate.shape and values.dtype == gate.dtype
    if not same or values.stride() != gate.stride():
        raise InputError("the halves of a gated weight must have one shape, dtype and layout")
    if gate.shape[1] % PANEL:
        raise InputError(f"a gated weight's halves need rows in {PANEL}s, not {gate.shape[1]}")


def _woven(weight: Tensor) -> Tensor:
    """[E, 2F, ..] with the gate's half first -> 16 rows of the gate, 16 of the values, in turn."""
    matrices, n = weight.shape[:2]
    if n % (2 * PANEL):
        raise InputError(f"a gated weight's halves need rows in {PANEL}s, not {n / 2:g}")
    halves = weight.view(matrices, 2, n // 2 // PANEL, PANEL, *weight.shape[2:])
    return halves.transpose(1, 2).reshape(weight.shape)


def _apart(weight: Tensor) -> Tensor:
    """What `_woven` did, undone."""
    matrices, n = weight.shape[:2]
    pairs = weight.reshape(matrices, n // 2 // PANEL, 2, PANEL, *weight.shape[2:])
    return pairs.transpose(1, 2).reshape(weight.shape)


def _padded(weight: Tensor) -> Tensor:
    """[E, n, ..] with rows of zeros up to whole panels."""
    short = -weight.shape[1] % PANEL
    if not short:
        return weight.contiguous()
    fill = weight.new_zeros(weight.shape[0], short, *weight.shape[2:])
    return torch.cat([weight, fill], dim=1)
