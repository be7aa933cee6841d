"""The cached prefix: keys and values of every encoded position, or what gives them exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.errors import InputError
from sfumato.kv.narrow import narrow, widen
from sfumato.kv.slots import SPARE, Pages, Strip

CACHE_DTYPES = ("int8",)  # what a cache may hold besides the weights' own dtype
# Bytes of the derived keys and values that a cache's full layers hold besides the raw keys, in all:
# of the released model 13,107 positions. Longer prefixes are derived anew in each pass.
DERIVED_BYTES = 1 << 28
# Slots derived at once: one head's of the released model fit the second-level cache in fp32.
PIECE = 256


class Fresh(NamedTuple):
    """What a layer makes of the positions of one pass, each tensor [B, N_kv, S, H]."""

    keys: Tensor  # normalised and rotated
    values: Tensor
    raw: Tensor | None  # full layers: the key projection itself, which keys and values come from


@dataclass(frozen=True)
class Held:
    """What a cache holds of one layer.

    A sliding layer has keys and values. A full layer has its raw keys, and as long as they are
    short the keys and values derived from them too.
    """

    keys: Strip | None = None
    values: Strip | None = None
    raw: Pages | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all its memory, free slots included."""
        return sum(part.nbytes for part in (self.keys, self.values, self.raw) if part is not None)

    def rows(self, rows: Tensor) -> Held:
        """A copy of `rows` (a mask [B] or indices) alone."""
        parts = (self.keys, self.values, self.raw)
        keys, values, raw = (None if part is None else part.rows(rows) for part in parts)
        assert not isinstance(keys, Pages)
        assert not isinstance(values, Pages)
        assert not isinstance(raw, Strip)
        return Held(keys, values, raw)


def check_cache_dtype(dtype: str | None) -> None:
    """Raise InputError unless a cache can hold `dtype`."""
    if dtype is not None and dtype not in CACHE_DTYPES:
        choices = " or ".join(repr(name) for name in CACHE_DTYPES)
        raise InputError(
            f"a cache cannot hold {dtype!r}",
            hint=f"cache_dtype is {choices}, or None for the weights' own dtype",
        )


@dataclass
class KVCache:
    """What every layer holds of the prefix, and where each cached slot stands in its row.

    Full layers hold every slot; sliding layers drop the leading slots that no later position can
    see. What is held is written once, never changed: `fork` is cheap and safe. With `dtype`
    "int8", what is held is rounded to 8 bits once its pass is over. Raises InputError for others.
    """

    sliding: tuple[bool, ...]
    window: int
    context: int  # slots beyond which full layers keep no room for more
    dtype: str | None = None  # None: the weights' own
    derived_bytes: int = DERIVED_BYTES
    layers: tuple[Held, ...] = ()
    positions: Tensor | None = None  # [B, T], -1 for padding
    next_position: Tensor | None = None  # [B], where the next token goes
    length: int = 0  # slots encoded so far, padding included
    dropped: int = 0  # leading slots that sliding layers no longer hold
    padded: bool = False  # whether any slot of any row is padding
    coming: dict[int, Held] = field(default_factory=dict)  # by layer, until the pass is over

    def __post_init__(self) -> None:
        check_cache_dtype(self.dtype)

    @property
    def batch_size(self) -> int:
        """Rows held; 0 before the first encode."""
        return 0 if self.positions is None else self.positions.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all memory held, free slots and what forks share included."""
        places = (self.positions, self.next_position)
        small = sum(place.nbytes for place in places if place is not None)
        return small + sum(held.nbytes for held in self.layers)

    def fork(self) -> KVCache:
        """An independent cache over the same prefix: appending to one leaves the other alone."""
        return replace(self, coming={})

    def take(self, other: KVCache) -> None:
        """Become what `other`, a fork of this cache that has been appended to, is now."""
        for name in other.__dataclass_fields__:
            setattr(self, name, getattr(other, name))

    def select(self, rows: Tensor) -> KVCache:
        """A cache over the same prefixes of the `rows` (a mask [B] or indices) alone."""
        chosen = self.fork()
        chosen.layers = tuple(held.rows(rows) for held in self.layers)
        if self.positions is not None and self.next_position is not None:
            chosen.positions = self.positions[rows]
            chosen.next_position = self.next_position[rows]
        return chosen

    def place(self, attention_mask: Tensor) -> Tensor:
        """Positions [B, S] for new slots, -1 where `attention_mask` [B, S] is false."""
        start = 0 if self.next_position is None else self.next_position[:, None]
        return torch.where(attention_mask, attention_mask.cumsum(1) - 1 + start, -1)

    def slots(self, layer: int, new_positions: Tensor) -> Tensor:
        """Positions [B, T + S] of what `joined` gives for this layer."""
        if self.positions is None:
            return new_positions
        old = self.positions[:, self.dropped :] if self.sliding[layer] else self.positions
        return torch.cat([old, new_positions], dim=1)

    def joined(self, layer: int, fresh: Fresh) -> tuple[Tensor, Tensor] | None:
        """This layer's keys and values, cached ones before the fresh ones [B, N_kv, T + S, H].

        None where a full layer holds its raw keys alone: `pieces` gives what to derive them from.
        """
        if not self.layers:
            return fresh.keys, fresh.values
        held = self.layers[layer]
        if held.keys is None or held.values is None:
            return None
        return self._join(held.keys, fresh.keys), self._join(held.values, fresh.values)

    def _join(self, strip: Strip, new: Tensor) -> Tensor:
        old = strip.view() if self.dtype is None else widen(strip.view(), new.dtype)
        return torch.cat([old, new], dim=2)

    def pieces(
        self, layer: int, head: int, dtype: torch.dtype
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The raw keys of one head of a full layer, piece after piece.

        Gives the first slot of each piece, its raw keys [B, 1, C, H] in `dtype` and its positions
        [B, C].
        """
        raw = self.layers[layer].raw
        assert raw is not None, "sliding layers hold keys and values"
        assert self.positions is not None
        for start, piece in raw.pieces(PIECE):
            mine = piece[:, head : head + 1]
            wide = mine if self.dtype is None else widen(mine, dtype)
            yield start, wide, self.positions[:, start : start + piece.shape[2]]

    def extend(self, layer: int, fresh: Fresh) -> tuple[Tensor, Tensor] | None:
        """`joined`, for a pass whose slots will stay: they are the cache's own from `append` on."""
        grown = self._grown(layer, fresh)
        self.coming[layer] = grown
        if self.dtype is None and grown.keys is not None and grown.values is not None:
            return grown.keys.view(), grown.values.view()
        return self.joined(layer, fresh)

    def _grown(self, layer: int, fresh: Fresh) -> Held:
        """What is held of `layer` once `fresh` has joined it."""
        held = self.layers[layer] if self.layers else Held()
        if fresh.raw is None:
            most = self.window - 1 + SPARE
            return Held(
                self._strip(held.keys, fresh.keys, most),
                self._strip(held.values, fresh.values, most),
            )
        raw = (held.raw or Pages()).extended(self._stored(fresh.raw), self.context)
        most = self._derived_slots(fresh)
        unknown = bool(self.layers) and held.keys is None
        if self.dtype is not None or unknown or len(raw) > most:
            return Held(raw=raw)
        keys = self._strip(held.keys, fresh.keys, most)
        return Held(keys, self._strip(held.values, fresh.values, most), raw)

    def _strip(self, held: Strip | None, new: Tensor, most: int) -> Strip:
        new = self._stored(new)
        return Strip.of(new) if held is None else held.extended(new, most)

    def _stored(self, new: Tensor) -> Tensor:
        return new if self.dtype is None else narrow(new)

    def _derived_slots(self, fresh: Fresh) -> int:
        """The longest prefix whose derived keys and values a full layer holds."""
        rows, heads, _, width = fresh.keys.shape
        slot = 2 * rows * heads * width * fresh.keys.element_size()
        return self.derived_bytes // (self.sliding.count(False) * slot)

    def append(self, new_positions: Tensor) -> None:
        """End a pass of `new_positions` [B, S]: keep what every layer's `extend` was given.

        What has left the window is dropped.
        """
        held = self.dropped
        last = new_positions.amax(1)
        if self.positions is None or self.next_position is None:
            self.positions, self.next_position = new_positions, last + 1
        else:
            self.positions = torch.cat([self.positions, new_positions], dim=1)
            self.next_position = torch.maximum(self.next_position, last + 1)
        self.length = self.positions.shape[1]
        self.padded = self.padded or bool((new_positions < 0).any())
        self.dropped = self._droppable()
        cut = self.dropped - held
        grown = [self.coming[layer] for layer in range(len(self.sliding))]
        self.layers = tuple(
            _cut(layer, cut) if sliding else layer
            for layer, sliding in zip(grown, self.sliding, strict=True)
        )
        self.coming = {}

    def _droppable(self) -> int:
        """Leading slots that are, in every row, padding or too far back to be seen again."""
        assert self.positions is not None
        assert self.next_position is not None
        if not self.padded:
            return max(0, self.length - (self.window - 1))
        first_seen = (self.next_position - (self.window - 1))[:, None]
        needed = ((self.positions >= 0) & (self.positions >= first_seen)).any(0)
        return int(needed.int().argmax()) if bool(needed.any()) else self.length


def _cut(held: Held, count: int) -> Held:
    """A sliding layer's slots but for the first `count`."""
    assert held.keys is not None
    assert held.values is not None
    return Held(held.keys.without(count), held.values.without(count))
