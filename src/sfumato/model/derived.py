"""Attention of a full layer whose cache holds the raw keys x of the prefix alone.

    V = rms(x),  K = rope(k_norm.weight * rms(x))

Both are derived by the operations that `Attention.project` applies, to the bit but where torch
computes an inverse root with other instructions at a tensor's end (an ulp, rarely). One key-value
head comes after another: what exists besides the cache is one head's keys and values, of the
released model at 262,144 positions 0.54 GB, and pieces of a few hundred positions in fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.config.model import RopeConfig
from sfumato.kv.cache import Fresh, KVCache
from sfumato.model.attention import Attention
from sfumato.model.norm import rms_norm
from sfumato.model.rope import rotary_tables, rotate, turning_tables
from sfumato.ops.visibility import Visibility


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
    mixed = []
    for head in range(fresh.keys.shape[1]):
        mine = slice(head * group, (head + 1) * group)
        mixed.append(
            attention.mix(
                queries[:, mine], *derived(attention, fresh, cache, layer, head, rope), sight
            )
        )
    return torch.cat([one.transpose(1, 2) for one in mixed], dim=2).transpose(1, 2)


def derived(
    attention: Attention, fresh: Fresh, cache: KVCache, layer: int, head: int, rope: RopeConfig
) -> tuple[Tensor, Tensor]:
    """Keys and values [B, 1, T + S, H] of one key-value head: the prefix, then `fresh`."""
    batch, _, steps, dim = fresh.keys.shape
    held = cache.length
    keys = fresh.keys.new_empty(batch, 1, held + steps, dim)
    values = torch.empty_like(keys)
    for start, raw, positions in cache.pieces(layer, head, keys.dtype):
        part, places = slice(start, start + raw.shape[2]), positions.clamp(min=0)
        if attention.derive_kernel is not None:  # the kernels that `project` used, for their bits
            whole = rotary_tables(places, rope, dim, keys.dtype)
            keys[:, :, part], values[:, :, part] = attention.derive_kernel(raw, whole)
            continue
        tables = turning_tables(places, rope, dim, keys.dtype)
        _derive(attention, raw, tables, keys[:, :, part], values[:, :, part])
    keys[:, :, held:] = fresh.keys[:, head : head + 1]
    values[:, :, held:] = fresh.values[:, head : head + 1]
    return keys, values


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
