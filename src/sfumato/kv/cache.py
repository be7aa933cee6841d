"""The cached prefix: keys and values of every encoded position."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class KVCache:
    """Keys and values by layer, and where each cached slot stands in its row.

    Full layers hold every slot; sliding layers drop the leading slots that no later position can
    see. Tensors are replaced, never written in place, so `fork` is cheap and safe.
    """

    sliding: tuple[bool, ...]
    window: int
    keys: list[Tensor] = field(default_factory=list)  # per layer [B, N_kv, T, H]
    values: list[Tensor] = field(default_factory=list)
    positions: Tensor | None = None  # [B, T], -1 for padding
    next_position: Tensor | None = None  # [B], where the next token goes
    length: int = 0  # slots encoded so far, padding included
    dropped: int = 0  # leading slots that sliding layers no longer hold
    padded: bool = False  # whether any slot of any row is padding

    @property
    def batch_size(self) -> int:
        """Rows held; 0 before the first encode."""
        return 0 if self.positions is None else self.positions.shape[0]

    def fork(self) -> KVCache:
        """An independent cache over the same prefix: appending to one leaves the other alone."""
        return KVCache(
            self.sliding,
            self.window,
            list(self.keys),
            list(self.values),
            self.positions,
            self.next_position,
            self.length,
            self.dropped,
            self.padded,
        )

    def take(self, other: KVCache) -> None:
        """Become what `other`, a fork of this cache that has been appended to, is now."""
        for name in other.__dataclass_fields__:
            setattr(self, name, getattr(other, name))

    def select(self, rows: Tensor) -> KVCache:
        """A cache over the same prefixes of the `rows` (a mask [B]) alone."""
        chosen = self.fork()
        chosen.keys = [keys[rows] for keys in self.keys]
        chosen.values = [values[rows] for values in self.values]
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

    def joined(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """This layer's cached keys and values with new ones [B, N_kv, S, H] after them."""
        if not self.keys:
            return keys, values
        return (
            torch.cat([self.keys[layer], keys], dim=2),
            torch.cat([self.values[layer], values], dim=2),
        )

    def append(self, keys: list[Tensor], values: list[Tensor], new_positions: Tensor) -> None:
        """Take over every layer's joined keys and values, and drop what has left the window."""
        held = self.dropped
        self.positions = (
            new_positions
            if self.positions is None
            else torch.cat([self.positions, new_positions], dim=1)
        )
        self.length = self.positions.shape[1]
        last = self.positions.amax(1)
        self.next_position = last + 1
        self.padded = self.padded or bool((new_positions < 0).any())
        self.dropped = self._droppable()
        cut = self.dropped - held
        for layer, sliding in enumerate(self.sliding):
            if sliding and cut:
                keys[layer] = keys[layer][:, :, cut:].contiguous()
                values[layer] = values[layer][:, :, cut:].contiguous()
        self.keys, self.values = keys, values

    def _droppable(self) -> int:
        """Leading slots that are, in every row, padding or too far back to be seen again."""
        assert self.positions is not None
        assert self.next_position is not None
        if not self.padded:
            return max(0, self.length - (self.window - 1))
        first_seen = (self.next_position - (self.window - 1))[:, None]
        needed = ((self.positions >= 0) & (self.positions >= first_seen)).any(0)
        return int(needed.int().argmax()) if bool(needed.any()) else self.length
