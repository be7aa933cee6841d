"""Attention of a full layer whose cache holds the raw keys x of the prefix alone.

    V = rms(x),  K = rope(k_norm.weight * rms(x))

Both are derived by the operations that `Attention.project` applies, to the bit but where torch
computes an inverse root with other instructions at a tensor's end (an ulp, rarely). One key-value
head comes after another, and to kernels that see everything `PART` slots after others: of the
released model 0.07 GB at any length, else one head's keys and values, at 262,144 positions 0.54 GB.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from sfumato.config.model import RopeConfig
from sfumato.kv.cache import Fresh, KVCache
from sfumato.model.attention import Attention
from sfumato.model.norm import rms_norm
from sfumato.model.rope import rotary_tables, rotate, turning_tables
from sfumato.ops.visibility import Visibility

PART = 1 << 15  # slots at a time, a multiple of the kernels' 64


def mix_derived(
    attention: Attention,
    queries: Tensor,
    fresh: Fresh,
    cache: KVCache,
    layer: int,
    rope: RopeConfig,
    sight: Visibility | None,
) -> Tensor:
    """`Attention.mix` [B, N, S, H] of `queries` over the cached prefix of `layer` and `fresh`."""
    group = attention.group_size
    whole = cache.length + fresh.keys.shape[2]
    parts_kernel = attention.parts_kernel if sight is None else None
    mixed = []
    for head in range(fresh.keys.shape[1]):
        mine = queries[:, head * group : (head + 1) * group]
        length = whole if parts_kernel is None else PART
        parts = derived_parts(attention, fresh, cache, layer, head, rope, length)
        if parts_kernel is None:
            mixed.append(attention.mix(mine, *next(parts), sight))
        else:
            mixed.append(parts_kernel(mine, parts))
    return torch.cat([one.transpose(1, 2) for one in mixed], dim=2).transpose(1, 2)


def derived_parts(
    attention: Attention,
    fresh: Fresh,
    cache: KVCache,
    layer: int,
    head: int,
    rope: RopeConfig,
    length: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Keys and values [B, 1, C, H] of one key-value head: the prefix, then `fresh`.

    `length` slots at a time, the last part may have fewer.
    """
    mine = slice(head, head + 1)
    pieces = itertools.chain(
        _derived_pieces(attention, cache, layer, head, rope, fresh.keys.dtype),
        [(fresh.keys[:, mine], fresh.values[:, mine])],
    )
    batch, _, steps, dim = fresh.keys.shape
    rest = next(pieces)
    for begin in range(0, cache.length + steps, length):
        count = min(length, cache.length + steps - begin)
        whole = tuple(fresh.keys.new_empty(batch, 1, count, dim) for _ in range(2))
        filled = 0
        while filled < count:
            if not rest[0].shape[2]:
                rest = next(pieces)
            taken = min(count - filled, rest[0].shape[2])
            for to, piece in zip(whole, rest, strict=True):
                to[:, :, filled : filled + taken] = piece[:, :, :taken]
            rest = (rest[0][:, :, taken:], rest[1][:, :, taken:])
            filled += taken
        keys, values = whole
        yield keys, values


def _derived_pieces(
    attention: Attention,
    cache: KVCache,
    layer: int,
    head: int,
    rope: RopeConfig,
    dtype: torch.dtype,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Keys and values of the prefix, some hundred slots at a time."""
    for _, raw, positions in cache.pieces(layer, head, dtype):
        places, dim = positions.clamp(min=0), raw.shape[-1]
        if attention.derive_kernel is not None:  # the kernels that `project` used, for their bits
            yield attention.derive_kernel(raw, rotary_tables(places, rope, dim, dtype))
            continue
        keys, values = raw.new_empty(raw.shape, dtype=dtype), raw.new_empty(raw.shape, dtype=dtype)
        _derive(attention, raw, turning_tables(places, rope, dim, dtype), keys, values)
        yield keys, values


def _derive(
    attention: Attention, raw: Tensor, tables: tuple[Tensor, Tensor], keys: Tensor, values: Tensor
) -> None:
    """Fill `keys` and `values` [B, 1, C, H] from `raw` keys of that shape.

    The norm that both share is computed once, and rounded to the dtype where `project` rounds.
    Dimensions that do not turn are not multiplied by 1 and 0, which changes no number.
    """
    unit = rms_norm(raw.float(), None, attention.eps)
    values.copy_(unit)
    keys.copy_(unit * attention.k_norm.weight.float())
    cos, sin = (table.transpose(1, 2) for table in tables)
    turning, half = cos.shape[-1] // 2, keys.shape[-1] // 2
    first, second = keys[..., :turning], keys[..., half : half + turning]
    turned = rotate(torch.cat([first, second], dim=-1), (cos, sin))
    first.copy_(turned[..., :turning])
    second.copy_(turned[..., turning:])
