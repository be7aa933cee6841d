"""NVFP4: four bits a value, an eight-bit scale a group of 16, an fp32 scale a tensor.

    weight = code * scale * tensor scale

A code is E2M1: bits 0-2 stand for 0, 0.5, 1, 1.5, 2, 3, 4, 6 and bit 3 is the sign. Two codes share
a byte, the low nibble holding the even K. A group is 16 consecutive values of K; its scale is E4M3,
whose smallest value is 2**-9 and whose largest is 448. `code * scale` has at most 6 significant
bits, so it is exact in bf16, fp16's range aside, and in fp32.

ModelOpt's rule, with fp32 arithmetic in this order (nvidia-modelopt 0.47):

    tensor scale = largest / (6 * 448)
    scale        = E4M3(clamp(group's largest / (6 * tensor scale), 2**-9, 448))
    code         = E2M1(value / (scale * tensor scale)), nearest, ties to the even code

At the edges:

- an infinity or a NaN among the weights is an error;
- a group of zeros gets the scale 1, a tensor of zeros also the tensor scale 1 (ModelOpt: NaN);
- the tensor scale is kept between 2**-126, the smallest normal fp32, and what 6 * 448 of it still
  fit in fp32;
- a group far below its tensor gets the scale 2**-9, and what is below a quarter of that step is 0;
- what is above 6 steps, because its scale was rounded down, becomes 6;
- the sign of a zero is kept (ModelOpt writes -0.0 as 0).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.errors import InputError, QuantisationError

GROUP = 16
LARGEST_CODE = 6.0
LARGEST_SCALE = 448.0
SMALLEST_SCALE = 2.0**-9
SMALLEST_TENSOR_SCALE = 2.0**-126
LARGEST_TENSOR_SCALE = torch.finfo(torch.float32).max / (LARGEST_CODE * LARGEST_SCALE)  # exact
CODE_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
DECODED = (torch.float32, torch.bfloat16, torch.float16)

_CHUNK = 1 << 16  # values at work at once: their temporaries stay in the cache
_DROPPED = (1 << 29) - 1  # mantissa bits that fp64 has and fp32 has not


@dataclass(frozen=True)
class ScaleRule:
    """How the scale of a group is chosen.

    `largest_as` lists what a group's largest value may become, as multiples of the scale. Of
    several candidates the one with the least squared error after decoding wins, the earlier one
    at a tie. `largest_scale` is the scale that the tensor's largest value gets when it becomes 6;
    below 448 it leaves room for the scales of smaller multiples.
    """

    largest_as: tuple[float, ...] = (LARGEST_CODE,)
    largest_scale: float = LARGEST_SCALE

    def __post_init__(self) -> None:
        if not self.largest_as or any(not 0.5 <= one <= LARGEST_CODE for one in self.largest_as):
            raise InputError(f"largest_as must hold values from 0.5 to 6, not {self.largest_as}")
        if not 1 <= self.largest_scale <= LARGEST_SCALE:
            raise InputError(f"largest_scale must be from 1 to 448, not {self.largest_scale}")


MODELOPT = ScaleRule()
# Cook et al., "Four Over Six" (2025): near a group's top the steps of E2M1 are coarse (4, 6), so
# that some groups lose less when their largest becomes 4. 256 * 6 / 4 = 384 still is an E4M3 scale.
FOUR_OVER_SIX = ScaleRule((6.0, 4.0), 256.0)


@dataclass(frozen=True, eq=False)
class Nvfp4Tensor:
    """A matrix [N, K], or a stack of them [.., N, K], in NVFP4.

    `packed` is uint8 [.., N, K / 2], `scale` E4M3 [.., N, K / 16], `tensor_scale` fp32 [..], one
    for each matrix. With `reciprocal`, the tensor scale divides instead of multiplying, as
    compressed-tensors stores it. Raises QuantisationError where the three do not fit together.
    """

    packed: Tensor
    scale: Tensor
    tensor_scale: Tensor
    reciprocal: bool = False

    def __post_init__(self) -> None:
        dtypes = (self.packed.dtype, self.scale.dtype, self.tensor_scale.dtype)
        if dtypes != (torch.uint8, torch.float8_e4m3fn, torch.float32):
            raise QuantisationError(f"NVFP4 is uint8, float8_e4m3fn and float32, not {dtypes}")
        shape = self.shape
        fits = len(shape) >= 2 and shape[-1] % GROUP == 0
        if not fits or (
            tuple(self.scale.shape) != (*shape[:-1], shape[-1] // GROUP)
            or tuple(self.tensor_scale.shape) != shape[:-2]
        ):
            raise QuantisationError(
                f"codes of {list(self.packed.shape)} bytes, scales {list(self.scale.shape)} and "
                f"tensor scales {list(self.tensor_scale.shape)} are no NVFP4 tensor"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return (*self.packed.shape[:-1], 2 * self.packed.shape[-1])


def quantise(
    weight: Tensor, rule: ScaleRule = MODELOPT, tensor_scale: Tensor | None = None
) -> Nvfp4Tensor:
    """`weight` [.., N, K] in NVFP4, each matrix of a stack with a tensor scale of its own.

    `tensor_scale` fp32 [..] replaces the ones the rule would choose, where several matrices share
    one. A few rows are at work at a time.

    Raises QuantisationError for infinities, NaN, or a K that is no multiple of 16.
    """
    _check_weight(weight)
    if tensor_scale is None:
        tensor_scale = tensor_scale_of(largest_of(weight), rule)
    *leading, N, K = weight.shape
    packed = torch.empty((*leading, N, K // 2), dtype=torch.uint8, device=weight.device)
    scale = torch.empty((*leading, N, K // GROUP), dtype=torch.float8_e4m3fn, device=weight.device)
    tensor_scale = tensor_scale.to(device=weight.device, dtype=torch.float32)
    result = Nvfp4Tensor(packed, scale, tensor_scale.expand(tuple(leading)).clone())
    matrices = zip(*(_matrices(part) for part in (weight, packed, scale)), strict=True)
    for (values, bytes_, scales), one in zip(
        matrices, result.tensor_scale.reshape(-1), strict=True
    ):
        for rows in _row_chunks(values):
            groups = values[rows].float().unflatten(-1, (-1, GROUP))
            codes, scales[rows] = _quantise_groups(groups, one, rule)
            bytes_[rows] = pack(codes.flatten(-2))
    return result


def decode(tensor: Nvfp4Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight [.., N, K] in fp32, bf16 or fp16: the exact product, rounded once.

    Raises QuantisationError for scales that are NaN or negative, and for a tensor scale that is
    not finite and positive or takes the largest value out of fp32's range.
    """
    if dtype not in DECODED:
        raise InputError(f"NVFP4 is decoded to float32, bfloat16 or float16, not {dtype}")
    check_scales(tensor)
    weight = torch.empty(tensor.shape, dtype=dtype, device=tensor.packed.device)
    parts = (weight, tensor.packed, tensor.scale.view(torch.uint8))
    matrices = zip(*(_matrices(part) for part in parts), strict=True)
    for (values, bytes_, scales), one in zip(
        matrices, tensor.tensor_scale.reshape(-1), strict=True
    ):
        pairs = _pairs(one, tensor.reciprocal, dtype)
        for rows in _row_chunks(values):
            index = scales[rows].to(torch.int32).unsqueeze(-1) << 8
            index = index | bytes_[rows].unflatten(-1, (-1, GROUP // 2))
            values[rows] = pairs[index.flatten(-2)].view(dtype)
    return weight


def is_from(stored: Nvfp4Tensor, weight: Tensor, rule: ScaleRule) -> bool:
    """Whether `stored` is what the rule can make of the matrix `weight` with its tensor scale.

    Every scale must be one of the rule's candidates, and every code the nearest one.
    """
    if tuple(weight.shape) != stored.shape or weight.dim() != 2:
        return False
    for rows in _row_chunks(weight):
        groups = weight[rows].float().reshape(-1, weight.shape[-1] // GROUP, GROUP)
        scale = stored.scale[rows]
        largest = groups.abs().amax(dim=-1)
        known = torch.zeros(scale.shape, dtype=torch.bool, device=weight.device)
        for multiple in rule.largest_as:
            candidate = group_scales(largest, multiple, stored.tensor_scale)
            known |= candidate.view(torch.uint8) == scale.view(torch.uint8)
        step = (scale.float() * stored.tensor_scale).unsqueeze(-1)
        codes = pack(nearest_codes(groups / step).flatten(-2))
        if not (bool(known.all()) and torch.equal(codes, stored.packed[rows])):
            return False
    return True


def check_scales(tensor: Nvfp4Tensor) -> None:
    """Raise QuantisationError for scales that no weight can have: see `decode`."""
    # One pass and no memory: a file may hold 2 GB. By numpy: each of 12,000 tensors would wake
    # torch's threads and wait for them.
    bits = tensor.scale.view(torch.uint8)
    largest = bits.numpy().max() if bits.device.type == "cpu" else bits.max().item()
    if largest >= 0x7F:  # NaN, and everything below zero
        raise QuantisationError("holds a group scale that is NaN or negative")
    for factor in tensor.tensor_scale.flatten().tolist():  # numbers: there are 12,000 such tensors
        own = factor
        if tensor.reciprocal:
            own = 1 / factor if factor else math.inf
        if not 0 < own <= LARGEST_TENSOR_SCALE:  # written so that NaN fails
            raise QuantisationError("holds an impossible tensor scale")


def largest_of(weight: Tensor) -> Tensor:
    """The largest magnitude in each matrix of `weight` [.., N, K], as fp32 [..]."""
    low, high = torch.aminmax(weight.flatten(-2), dim=-1)
    return torch.maximum(-low.float(), high.float())


def tensor_scale_of(largest: Tensor, rule: ScaleRule = MODELOPT) -> Tensor:
    """The tensor scale, fp32, of matrices whose largest magnitude is `largest`.

    Raises QuantisationError if one is infinite or NaN.
    """
    if not bool(torch.isfinite(largest).all()):
        raise QuantisationError("holds an infinity or a NaN, which NVFP4 cannot")
    scale = largest.float() / (LARGEST_CODE * rule.largest_scale)
    scale = scale.clamp(SMALLEST_TENSOR_SCALE, LARGEST_TENSOR_SCALE)
    return torch.where(largest == 0, 1.0, scale)


def nearest_codes(values: Tensor) -> Tensor:
    """The codes nearest to fp32 `values`, in their shape, uint8; a tie goes to the even code."""
    return _with_sign(_nearest_magnitudes(values.abs()), values)


def code_values(codes: Tensor) -> Tensor:
    """What E2M1 `codes` (0 to 15) stand for, fp32."""
    return _signed_values().float().to(codes.device)[codes.int()]


def pack(codes: Tensor) -> Tensor:
    """Codes [.., K] two to a byte, [.., K / 2]: the low nibble is the even K."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack(packed: Tensor) -> Tensor:
    """The codes [.., K] in bytes [.., K / 2]."""
    return torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)


def group_scales(largest: Tensor, multiple: float, tensor_scale: Tensor) -> Tensor:
    """The E4M3 scales with which groups of this `largest` magnitude reach `multiple`."""
    wanted = largest / (multiple * tensor_scale)
    wanted = torch.where(largest == 0, 1.0, wanted.clamp(SMALLEST_SCALE, LARGEST_SCALE))
    return wanted.to(torch.float8_e4m3fn)


def _quantise_groups(
    groups: Tensor, tensor_scale: Tensor, rule: ScaleRule
) -> tuple[Tensor, Tensor]:
    """Codes and scales of fp32 `groups` [N, K / 16, 16], the best of the rule's candidates."""
    sizes = groups.abs()
    largest = sizes.amax(dim=-1)
    codes, scales, least = _candidate(sizes, largest, tensor_scale, rule.largest_as[0])
    for multiple in rule.largest_as[1:]:
        other, other_scales, error = _candidate(sizes, largest, tensor_scale, multiple)
        better = error < least
        least = torch.where(better, error, least)
        codes = torch.where(better.unsqueeze(-1), other, codes)
        # E4M3 has no `where` of its own: its bytes have.
        chosen = torch.where(better, other_scales.view(torch.uint8), scales.view(torch.uint8))
        scales = chosen.view(torch.float8_e4m3fn)
    return _with_sign(codes, groups), scales


def _candidate(
    sizes: Tensor, largest: Tensor, tensor_scale: Tensor, multiple: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes without signs (fp32), scales, and the squared error of each group."""
    scales = group_scales(largest, multiple, tensor_scale)
    step = (scales.float() * tensor_scale).unsqueeze(-1)
    codes = _nearest_magnitudes(sizes / step)
    # What a code of E2M1 without sign stands for, as the greatest of three straight lines.
    decoded = torch.maximum(torch.maximum(codes * 0.5, codes - 2), codes * 2 - 8)
    return codes, scales, (decoded * step - sizes).square_().sum(dim=-1)


def _nearest_magnitudes(sizes: Tensor) -> Tensor:
    """The nearest codes, as fp32 0 to 7, of values without sign.

    The steps are 0.5 below 2, 1 below 4 and 2 above: the least of three roundings. Each rounds a
    tie to even, and codes are counted so that even stays even.
    """
    codes = torch.round(sizes * 2)
    codes = torch.minimum(codes, torch.round(sizes) + 2)
    return torch.minimum(codes, torch.round(sizes * 0.5) + 4).clamp_(max=7)


def _with_sign(codes: Tensor, values: Tensor) -> Tensor:
    return codes.to(torch.uint8) | (torch.signbit(values).to(torch.uint8) << 3)


def _check_weight(weight: Tensor) -> None:
    if weight.dim() < 2 or not weight.is_floating_point():
        raise QuantisationError(f"{weight.dtype} of shape {list(weight.shape)} is no weight matrix")
    if weight.shape[-1] % GROUP or 0 in weight.shape:
        raise QuantisationError(
            f"has rows of {weight.shape[-1]} values, and NVFP4 wants a multiple of {GROUP}"
        )
    if not bool(torch.isfinite(largest_of(weight)).all()):
        raise QuantisationError("holds an infinity or a NaN, which NVFP4 cannot")


def _matrices(stack: Tensor) -> Iterator[Tensor]:
    """The matrices of a stack [.., N, K] in order, as views."""
    return iter(stack.reshape(-1, *stack.shape[-2:]).unbind())


def _row_chunks(matrix: Tensor) -> Iterator[slice]:
    count = max(1, _CHUNK // matrix.shape[-1])
    for start in range(0, matrix.shape[0], count):
        yield slice(start, start + count)


@functools.cache
def _signed_values() -> Tensor:
    """What the codes 0 to 15 stand for, fp64; code 8 is -0.0."""
    return torch.tensor([*CODE_VALUES, *(-value for value in CODE_VALUES)], dtype=torch.float64)


@functools.cache
def _products() -> Tensor:
    """Scale times code, exact, fp64 [256, 16]; rows of scales that are refused stay NaN or less."""
    scales = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    return scales.unsqueeze(-1) * _signed_values()


def _pairs(tensor_scale: Tensor, reciprocal: bool, dtype: torch.dtype) -> Tensor:
    """Both values of a byte for each scale byte and byte, as one integer a pair: [65536, 1].

    The 4,096 products are rounded once here; decoding then only looks them up.
    """
    factor = tensor_scale.double()
    products = _products().to(factor.device)
    exact = products / factor if reciprocal else products * factor
    rounded = _round_once(exact, dtype)
    byte = torch.arange(256, device=factor.device)
    pairs = torch.stack((rounded[:, byte & 0xF], rounded[:, byte >> 4]), dim=-1).flatten(0, 1)
    return pairs.view(torch.int64 if dtype == torch.float32 else torch.int32)[:, 0]


def _round_once(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Fp64 to `dtype` in one rounding; torch's own way to 16 bits rounds to fp32 on the way.

    What fp32 cannot hold is first left as one sticky bit, which decides a tie and nothing else.
    A product has 30 significant bits at most, and a quotient that is no tie is further than
    2**-49 of itself from one: fp64 confuses neither with a tie.
    """
    if dtype == torch.float32:
        return exact.float()
    bits = exact.view(torch.int64)
    sticky = ((bits & _DROPPED) != 0).to(torch.int64) << 29
    return ((bits & ~_DROPPED) | sticky).view(torch.float64).float().to(dtype)


def bytes_of(shape: tuple[int, ...]) -> int:
    """Bytes of a weight [.., N, K] in NVFP4, its scales among them."""
    values = math.prod(shape)
    return values // 2 + values // GROUP + 4 * math.prod(shape[:-2])
