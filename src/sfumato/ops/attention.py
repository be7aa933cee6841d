"""Attention of many rows to many slots, without writing the scores.

Contract of `attention`: queries [B, N, S, H], keys and values [B, N_kv, T, H]; query heads share
key heads in groups of N / N_kv. Scores are not scaled. `sight` says who may look at whom, None
that all may look everywhere. The result is [B, S, N, H] in the queries' dtype. Slots that a row may
not see change no bit of it, and where positions follow one another without padding between them, a
row's bits do not hang on the pass that it comes in.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from sfumato.ops.kernels import Kernels, give
from sfumato.ops.linear import ACTIVATIONS
from sfumato.ops.visibility import Visibility

PANEL = 16


def declines(dtype: torch.dtype, head_dim: int) -> str | None:
    """Why no kernel serves heads of this dtype and size, or None if one does."""
    if dtype not in ACTIVATIONS:
        return f"heads are {dtype}, not float32 or bfloat16"
    if head_dim % PANEL:
        return f"heads of {head_dim} are no multiple of {PANEL}"
    return None


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    sight: Visibility | None = None,
    kernels: Kernels | None = None,
) -> Tensor:
    """Mixed values [B, S, N, H]; see the module's contract."""
    if kernels is None:
        return reference(queries, keys, values, sight)
    batch, count, length, dim = queries.shape
    out = queries.new_empty(batch, length, count, dim)
    places = None if sight is None else sight.places
    groups = None if places is None else places.groups
    kernels.native.attention(
        kernels.name,
        give(queries),
        give(keys),
        give(values),
        None if places is None else give(places.queries),
        None if places is None else give(places.slots),
        None if groups is None else give(groups),
        1 if places is None else places.window,
        places is not None and places.aligned,
        give(out),
        kernels.threads,
    )
    return out


def attention_in_parts(
    queries: Tensor, parts: Iterable[tuple[Tensor, Tensor]], kernels: Kernels | None = None
) -> Tensor:
    """`attention` without `sight` over keys and values that come one part after the other.

    A part is gone before the next is made, so that memory does not grow with the slots. With parts
    of which all but the last are multiples of 64 slots, the bits are those of one call.
    """
    if kernels is None:
        keys, values = zip(*parts, strict=True)
        return reference(queries, torch.cat(keys, dim=2), torch.cat(values, dim=2))
    batch, count, length, dim = queries.shape
    out = queries.new_empty(batch, length, count, dim)
    state = torch.empty(batch * count * length, dim + 2)
    held, first = None, True
    for part in parts:
        if held is not None:
            _part(queries, held, out, state, kernels, first=first, last=False)
            first = False
        held = part
        del part
    assert held is not None, "there are no slots"
    _part(queries, held, out, state, kernels, first=first, last=True)
    return out


def _part(
    queries: Tensor,
    part: tuple[Tensor, Tensor],
    out: Tensor,
    state: Tensor,
    kernels: Kernels,
    *,
    first: bool,
    last: bool,
) -> None:
    given = (give(queries), give(part[0]), give(part[1]), None, None, None, 1, False, give(out))
    kernels.native.attention(
        kernels.name, *given, kernels.threads, give(state), first=first, last=last
    )


def reference(
    queries: Tensor, keys: Tensor, values: Tensor, sight: Visibility | None = None
) -> Tensor:
    """The same in torch."""
    times = queries.shape[1] // keys.shape[1]
    mixed = functional.scaled_dot_product_attention(
        queries,
        keys.repeat_interleave(times, dim=1),
        values.repeat_interleave(times, dim=1),
        attn_mask=None if sight is None else sight.mask,
        scale=1.0,
    )
    return mixed.transpose(1, 2)
