"""Rows sorted by group, each group with a matrix of its own: what sparse experts are made of.

The functions are registered with torch, gradients included, so that a compiled graph can hold them
although the sizes of the groups change from call to call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@torch.library.custom_op("sfumato::grouped_linear", mutates_args=())
def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Rows [R, O] of `x` [R, I], each times the matrix of its group in `weight` [G, O, I].

    `ends` [G], int64: the row after each group's last; the last of them is R. Groups may be empty.
    In bf16 on CUDA it is one product, which does not wait for `ends`; else one a group.
    """
    if _in_one_product(x, weight):
        offsets = ends.to(torch.int32)
        return functional.grouped_mm(x, weight.transpose(1, 2), offs=offsets)
    out = x.new_empty(x.shape[0], weight.shape[1])
    start = 0
    for group, end in enumerate(ends.tolist()):
        if end > start:
            torch.mm(x[start:end], weight[group].t(), out=out[start:end])
        start = end
    return out


def _in_one_product(x: Tensor, weight: Tensor) -> bool:
    """Whether torch has one for these: bf16 in rows that lie on whole 16 bytes, from Ampere on."""
    if not x.is_cuda or not x.shape[0] or {x.dtype, weight.dtype} != {torch.bfloat16}:
        return False
    if torch.version.hip is not None or torch.cuda.get_device_capability(x.device) < (8, 0):
        return False
    lie = (x.stride(-1), weight.stride(-1)) == (1, 1) and x.data_ptr() % 16 == 0
    return lie and not any(n % 8 for n in (x.stride(0), *weight.stride()[:2], *weight.shape[1:]))


@torch.library.custom_op("sfumato::grouped_outer", mutates_args=())
def grouped_outer(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """For each group, the product [O, I] of its rows of `left` [R, O] and of `right` [R, I].

    This is the gradient [G, O, I] of `grouped_linear`'s weight. `ends` as there.
    """
    out = left.new_zeros(ends.shape[0], left.shape[1], right.shape[1])
    start = 0
    for group, end in enumerate(ends.tolist()):
        if end > start:
            torch.mm(left[start:end].t(), right[start:end], out=out[group])
        start = end
    return out


@torch.library.custom_op("sfumato::permute_rows", mutates_args=())
def permute_rows(x: Tensor, order: Tensor, inverse: Tensor, copies: int) -> Tensor:
    """Row i of the result [R * copies, ...] is row `order[i]` // `copies` of `x` [R, ...].

    `order` [R * copies] is a permutation and `inverse` its inverse: the gradient then gathers too,
    instead of adding into rows one by one.
    """
    return x.index_select(0, order if copies == 1 else order // copies)


@grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@grouped_outer.register_fake
def _(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    return left.new_empty(ends.shape[0], left.shape[1], right.shape[1])


@permute_rows.register_fake
def _(x: Tensor, order: Tensor, inverse: Tensor, copies: int) -> Tensor:
    return x.new_empty(order.shape[0], *x.shape[1:])


def _linear_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    x, weight, ends = ctx.saved_tensors
    grad = grad.contiguous()
    to_x = grouped_linear(grad, weight.transpose(1, 2), ends)
    return to_x, grouped_outer(grad, x, ends), None


def _permute_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
    _, order, inverse, ctx.copies = inputs
    ctx.save_for_backward(order, inverse)


def _permute_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    order, inverse = ctx.saved_tensors
    back = permute_rows(grad.contiguous(), inverse, order, 1)
    if ctx.copies > 1:
        back = back.view(-1, ctx.copies, *back.shape[1:]).sum(1)
    return back, None, None, None


grouped_linear.register_autograd(_linear_backward, setup_context=_linear_context)
permute_rows.register_autograd(_permute_backward, setup_context=_permute_context)
