"""NVFP4 whose errors make up for each other under the inputs that a matrix really meets.

Rounding every weight to the nearest code takes inputs for independent, and they are not: what one
column's rounding adds to an output, later columns can take away again. Given the second moments of
the inputs, columns are rounded in order and each error is passed on to the columns behind it in the
way that least squares wants (Frantar et al., "GPTQ", 2022). Files and readers are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.errors import InputError, QuantisationError
from sfumato.quant.nvfp4 import (
    FOUR_OVER_SIX,
    GROUP,
    ScaleRule,
    group_scales,
    pack,
)

DAMPING = 0.01
ROWS = 4096  # at work at once: enough that torch's price for a call does not count
_BLOCK = 8 * GROUP  # columns after which errors go on to all the rest, in one product
_EXPONENT = 0x7F800000  # of an fp32's bits
_LARGEST = 6.0


@dataclass(frozen=True, eq=False)
class Feedback:
    """How errors are passed on: the upper Cholesky factor of the inverse moments, fp32 [K, K]."""

    factor: Tensor

    @property
    def inputs(self) -> int:
        """K."""
        return self.factor.shape[0]


def feedback_of(moments: Tensor, rows: int, damping: float = DAMPING) -> Feedback | None:
    """Feedback of `moments` [K, K], the sum of x x^T over `rows` inputs x; None if there were none.

    A share of the mean diagonal is added to the diagonal: `damping`, and K / rows of it, as a sum
    over few inputs says little of others. An input that was always zero passes nothing on.

    Raises QuantisationError for moments that are not finite.
    """
    if moments.dim() != 2 or moments.shape[0] != moments.shape[1] or rows < 0:
        raise InputError(f"moments are square, not {list(moments.shape)} of {rows} rows")
    size = moments.shape[0]
    if not bool(torch.isfinite(moments.diagonal()).all()):
        raise QuantisationError("was multiplied with inputs that are not finite")
    level = moments.diagonal().double().mean()
    if rows == 0 or not level:
        return None
    # One name for all: of the largest each is 0.5 GB, and none is needed after the next.
    matrix = moments.to(torch.float64, copy=True)
    matrix.diagonal().add_(level * (damping + damping * size / rows))
    matrix = torch.linalg.cholesky(matrix)
    matrix = torch.cholesky_inverse(matrix)
    matrix = torch.linalg.cholesky(matrix, upper=True)
    return Feedback(matrix.float())


def quantise_compensated(
    weight: Tensor, feedback: Feedback, tensor_scale: Tensor, rule: ScaleRule = FOUR_OVER_SIX
) -> tuple[Tensor, Tensor]:
    """Codes [N, K / 2] and scales [N, K / 16] of `weight` [N, K], errors passed on.

    `tensor_scale` fp32 is one for all or [N], so that matrices with the same inputs may come
    stacked. Of a group's candidates for the scale the one wins that leaves the least behind after
    its own feedback. Rows do not hang on each other. Raises QuantisationError as `quantise` does.
    """
    N, K = weight.shape
    if K % GROUP or feedback.inputs != K:
        raise QuantisationError(f"has rows of {K} values, its inputs have {feedback.inputs}")
    if not bool(torch.isfinite(weight).all()):
        raise QuantisationError("holds an infinity or a NaN, which NVFP4 cannot")
    packed = torch.empty(N, K // 2, dtype=torch.uint8)
    scale = torch.empty(N, K // GROUP, dtype=torch.float8_e4m3fn)
    factors = tensor_scale.float().expand(N)
    for start in range(0, N, ROWS):
        rows = slice(start, start + ROWS)
        # In units of the tensor scale's power of two, which changes no bit: squares of errors, and
        # what is passed on, would pass fp32's largest number where weights come near it.
        power = _inverse_power(factors[rows])
        held = weight[rows].float() * power[:, None]
        codes, scales = _rows(held, feedback.factor, factors[rows] * power, rule)
        packed[rows] = pack(codes)
        scale.view(torch.uint8)[rows] = scales
    return packed, scale


def _inverse_power(values: Tensor) -> Tensor:
    """The powers of two that bring fp32 `values` > 0 to [0.5, 1), or as near as fp32 has them."""
    _, exponent = torch.frexp(values)
    return ((127 - exponent.clamp(-126, 126)) << 23).to(torch.int32).view(torch.float32)


def _rows(
    weight: Tensor, factor: Tensor, tensor_scale: Tensor, rule: ScaleRule
) -> tuple[Tensor, Tensor]:
    """Codes [R, K] and the bytes of scales [R, K / 16] of some rows."""
    left = weight.t().contiguous()  # [K, R]: a column at a time is worked on
    codes = torch.empty(left.shape, dtype=torch.uint8)
    scales = torch.empty(left.shape[0] // GROUP, left.shape[1], dtype=torch.uint8)
    for begin in range(0, left.shape[0], _BLOCK):
        end = min(begin + _BLOCK, left.shape[0])
        errors = torch.empty(end - begin, left.shape[1])
        for at in range(begin, end, GROUP):
            group, own = slice(at, at + GROUP), errors[at - begin : at - begin + GROUP]
            found = _group(left[group], factor[group, group], tensor_scale, rule)
            codes[group], scales[at // GROUP] = found[:2]
            own.copy_(found[2])
            left[at + GROUP : end].addmm_(factor[group, at + GROUP : end].t(), own, alpha=-1)
        left[end:].addmm_(factor[begin:end, end:].t(), errors, alpha=-1)
    return codes.t().contiguous(), scales.t().contiguous()


def _group(
    columns: Tensor, factor: Tensor, tensor_scale: Tensor, rule: ScaleRule
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [16, R], bytes of the scales [R] and errors [16, R] of a group's columns [16, R]."""
    largest = columns.abs().amax(dim=0)
    bits = torch.stack(
        [group_scales(largest, one, tensor_scale).view(torch.uint8) for one in rule.largest_as]
    )
    steps = bits.view(torch.float8_e4m3fn).float() * tensor_scale  # [candidates, R]
    left = columns.unsqueeze(1).repeat(1, len(bits), 1)
    sizes, errors = torch.empty_like(left), torch.empty_like(left)
    for i, own_factor in enumerate(factor.diagonal().tolist()):
        own = left[i]
        size = _nearest(own.abs().div_(steps), out=sizes[i])
        torch.sub(own, torch.copysign(size * steps, own), out=errors[i]).div_(own_factor)
        left[i + 1 :].addcmul_(factor[i, i + 1 :, None, None], errors[i], value=-1)
    # The sum of squares is just what the outputs lose, moments and feedback considered.
    lost = errors.square().sum(dim=0)
    size, own, error, scale, least = sizes[:, 0], left[:, 0], errors[:, 0], bits[0], lost[0]
    for other in range(1, len(bits)):
        better = lost[other] < least
        size = torch.where(better, sizes[:, other], size)
        own = torch.where(better, left[:, other], own)
        error = torch.where(better, errors[:, other], error)
        scale = torch.where(better, bits[other], scale)
        least = torch.where(better, lost[other], least)
    codes = torch.minimum(torch.minimum(size * 2, size + 2), size * 0.5 + 4).to(torch.uint8)
    return codes | (torch.signbit(own).to(torch.uint8) << 3), scale, error


def _nearest(sizes: Tensor, out: Tensor) -> Tensor:
    """What the nearest codes stand for, of values without sign; a tie goes to the even code.

    fp32 rounds to a multiple of half the value's power of two, and below 1 to one of 0.5, when
    2^22 times that power is added and taken off again: six calls, where codes take ten.
    """
    power = (sizes.clamp(1, 8).view(torch.int32) & _EXPONENT).view(torch.float32).mul_(2.0**22)
    return torch.add(sizes, power, out=out).sub_(power).clamp_(max=_LARGEST)
