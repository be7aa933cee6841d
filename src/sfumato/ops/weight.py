"""Weights as kernels read them: in place as a checkpoint stores them, or in panels of 16 rows.

The layouts are those of csrc/kernels.hpp. `dense` gives any of them as plain matrices: the
references compute with those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from sfumato.errors import InputError
from sfumato.ops.kernels import Kernels, give
from sfumato.quant.int8 import Int8Tensor
from sfumato.quant.narrow import round_rows
from sfumato.quant.nvfp4 import GROUP, Nvfp4Tensor, decode

PANEL = 16
Layout = Literal["f32_rows", "bf16_rows", "bf16_panels", "i8_rows", "nvfp4_rows"]
NARROW: tuple[Layout, ...] = ("nvfp4_rows", "i8_rows")  # what may take activations in 8 bits


@dataclass(frozen=True, eq=False)
class Weight:
    """E matrices [n, k]; for a linear map E is 1.

    `data` holds them as stacks [e, ..]: one of all E, or in NVFP4 as many as the checkpoint has.
    `layout` says how they lie. Of a gated weight in rows, `data` [e, n / 2, k] is the gate's half
    and `values` the other; in panels the two alternate, 16 rows of each. `scales`, `value_scales`
    and `scale` [E, 2], of the gate and of the values, are NVFP4's; rows in 8 bits have a `scale`
    [n]. Make one with `rows`, `panels`, `int8` or `nvfp4`.
    """

    layout: Layout
    data: tuple[Tensor, ...]
    n: int
    k: int
    gated: bool = False
    values: tuple[Tensor, ...] = ()
    scales: tuple[Tensor, ...] = ()
    value_scales: tuple[Tensor, ...] = ()
    scale: Tensor | None = None

    @property
    def matrices(self) -> int:
        """E."""
        return sum(one.shape[0] for one in self.data)

    @property
    def device(self) -> torch.device:
        """Where the matrices are."""
        return self.data[0].device

    def native(self, kernels: Kernels) -> Any:
        """The compiled module's view of this weight, made once: it serves every instruction set.

        That for activations in 8 bits is another.
        """
        narrow = kernels.narrows(self.layout, self.k)
        name = "_made_narrow" if narrow else "_made"
        found = self.__dict__.get(name)
        if found is None:
            parts = (self.data, self.values, self.scales, self.value_scales)
            held = ([give(one.detach()) for one in part] for part in parts)
            found = kernels.native.Weight(self.layout, *held, self.scale, self.n, narrow)
            self.__dict__[name] = found
        return found

    @cached_property
    def bytes(self) -> int:
        """Memory of the weight's tensors, or of the files' pages that they are."""
        tensors = (*self.data, *self.values, *self.scales, *self.value_scales)
        own = 0 if self.scale is None else self.scale.numel() * self.scale.element_size()
        return own + sum(one.numel() * one.element_size() for one in tensors)

    def seen(self, x: Tensor, *, narrow: bool) -> Tensor:
        """Activations `x` [.., k] as references multiply them: `narrow` ones rounded, in fp32."""
        return round_rows(x) if narrow and self.layout in NARROW else x

    def dense(self) -> Tensor:
        """The matrices [E, n, k], the gate's half first if gated: fp32 or bf16."""
        if self.layout == "bf16_panels":
            wide = self.data[0].permute(0, 1, 3, 2, 4).reshape(self.matrices, -1, self.k)
            wide = wide[:, : self.n]
            return _apart(wide) if self.gated else wide
        if self.layout == "i8_rows":
            assert self.scale is not None
            return self.data[0].float() * self.scale[None, :, None]
        halves = [self.data, self.values] if self.values else [self.data]
        if self.layout == "nvfp4_rows":
            halves = [self._decoded(half) for half in range(len(halves))]
        whole = [one[0] if len(one) == 1 else torch.cat(one) for one in halves]
        return whole[0] if len(whole) == 1 else torch.cat(whole, dim=1)

    def _decoded(self, half: int) -> tuple[Tensor, ...]:
        """The stacks of one half in fp32: of the gate 0, of the values 1."""
        assert self.scale is not None
        codes, scales = ((self.data, self.scales), (self.values, self.value_scales))[half]
        factors = torch.split(self.scale[:, half], [one.shape[0] for one in codes])
        return tuple(
            decode(Nvfp4Tensor(one, bits.view(torch.float8_e4m3fn), factor.contiguous()))
            for one, bits, factor in zip(codes, scales, factors, strict=True)
        )


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
    return Weight(layout, (data,), n, k, other is not None, () if other is None else (other,))


def panels(weight: Tensor, *, gated: bool = False) -> Weight:
    """A packed copy of `weight` bf16 [n, k] or [E, n, k]; `gated`: the gate's half comes first."""
    data = weight if weight.dim() == 3 else weight[None]
    if data.dtype != torch.bfloat16 or data.shape[-1] % 2:
        raise InputError("panels are bfloat16 with an even number of inputs")
    matrices, n, k = data.shape
    data = _padded(_woven(data) if gated else data)
    packed = data.view(matrices, -1, PANEL, k // 2, 2).permute(0, 1, 3, 2, 4).contiguous()
    return Weight("bf16_panels", (packed,), n, k, gated)


def int8(weight: Int8Tensor) -> Weight:
    """A matrix in 8 bits, read where it is. Raises InputError for an odd k or rows with gaps."""
    n, k = weight.shape
    if k % 2 or (weight.codes.stride(-1) != 1 and k > 1):
        raise InputError("rows in 8 bits need an even number of inputs, and no gaps")
    scale = weight.scale.reshape(n).contiguous()
    return Weight("i8_rows", (weight.codes[None],), n, k, scale=scale)


def nvfp4(weights: Sequence[Nvfp4Tensor], values: Sequence[Nvfp4Tensor] = ()) -> Weight:
    """Matrices [n, k] or stacks of them in NVFP4, read where they are; with `values`, gated ones.

    Their scales must have passed `check_scales`, as those of a loaded checkpoint have: NaN is not
    looked for again. Raises InputError for matrices of several shapes, with gaps, or halves that
    do not fit.
    """
    n, k = weights[0].shape[-2:]
    if any(one.shape[-2:] != (n, k) for one in (*weights, *values)):
        raise InputError("the matrices of a weight, and its halves, must have one shape")
    if values and [one.shape for one in weights] != [one.shape for one in values]:
        raise InputError("a gated weight needs values for each gate")
    if values and n % PANEL:
        raise InputError(f"a gated weight's halves need rows in {PANEL}s, not {n}")
    if any(
        not (one.packed.is_contiguous() and one.scale.is_contiguous())
        for one in (*weights, *values)
    ):
        raise InputError("codes and scales must lie without gaps")
    factors = [_factors(weights), _factors(values or weights)]
    return Weight(
        "nvfp4_rows",
        tuple(one.packed.view(-1, n, k // 2) for one in weights),
        2 * n if values else n,
        k,
        bool(values),
        tuple(one.packed.view(-1, n, k // 2) for one in values),
        tuple(_bytes(one.scale, n, k) for one in weights),
        tuple(_bytes(one.scale, n, k) for one in values),
        torch.stack(factors, dim=1),
    )


def _bytes(scale: Tensor, n: int, k: int) -> Tensor:
    return scale.view(torch.uint8).view(-1, n, k // GROUP)


def _factors(weights: Sequence[Nvfp4Tensor]) -> Tensor:
    """What the sums of each matrix are multiplied by, [E]."""
    own = [1.0 / one.tensor_scale if one.reciprocal else one.tensor_scale for one in weights]
    return torch.cat([one.reshape(-1) for one in own])


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
