"""Runs of cached slots that grow in place, each slot written once and shared by every fork.

What a cache holds of one tensor is a frozen view of memory that other caches may share. Slots that
a view covers are never written again. Those behind them belong to whoever claims them first;
whoever comes second copies. So forks are free, independent, and a pass that fails has changed
nothing that anyone sees.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Slots a window keeps free behind its last one: with 16 a sliding layer of the released model
# copies its window once in 16 tokens, and 25 of them stay within the bar at 256K positions.
SPARE = 16
PAGE = 512  # slots of a page, unless a pass brings more

_claiming = threading.Lock()


@dataclass(eq=False)
class Memory:
    """A tensor [B, N, capacity, W] of which the first `used` slots have been given away."""

    tensor: Tensor
    used: int

    def claim(self, at: int, count: int) -> bool:
        """Take the `count` slots from `at` on, if they exist, are free and may be written.

        Where gradients are recorded nothing is written in place: autograd may have kept a view.
        """
        if torch.is_grad_enabled():
            return False
        if self.tensor.is_inference() and not torch.is_inference_mode_enabled():
            return False
        with _claiming:
            if self.used != at or at + count > self.tensor.shape[2]:
                return False
            self.used = at + count
        return True


@dataclass(frozen=True, eq=False)
class Strip:
    """Slots [B, N, T, W] in one piece of memory."""

    memory: Memory
    start: int
    end: int

    @classmethod
    def of(cls, *parts: Tensor, capacity: int = 0) -> Strip:
        """The slots of `parts` [B, N, T, W], one after another, with room for `capacity` in all.

        A single part without spare room is kept itself, unless it is a view of something larger.
        """
        held = sum(part.shape[2] for part in parts)
        if capacity > held and not torch.is_grad_enabled():
            batch, heads, _, width = parts[0].shape
            memory = parts[0].new_empty(batch, heads, capacity, width)
            torch.cat(parts, dim=2, out=memory[:, :, :held])
            return cls(Memory(memory, held), 0, held)
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        if whole.untyped_storage().nbytes() > whole.nbytes:
            whole = whole.clone(memory_format=torch.contiguous_format)
        return cls(Memory(whole, held), 0, held)

    def __len__(self) -> int:
        return self.end - self.start

    @property
    def capacity(self) -> int:
        """Slots in memory, those not seen from here included."""
        return self.memory.tensor.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of the memory, free slots included."""
        return self.memory.tensor.untyped_storage().nbytes()

    def view(self) -> Tensor:
        """The slots themselves [B, N, T, W]: to read, never to write."""
        return self.memory.tensor[:, :, self.start : self.end]

    def written(self, new: Tensor) -> Strip | None:
        """`new` [B, N, S, W] behind these slots in the same memory, or None if that cannot be."""
        count = new.shape[2]
        if not self.memory.claim(self.end, count):
            return None
        self.memory.tensor[:, :, self.end : self.end + count] = new
        return replace(self, end=self.end + count)

    def extended(self, new: Tensor, most: int) -> Strip:
        """`new` [B, N, S, W] behind these slots: in place, or in memory half as large again.

        Up to `most` slots, that is; a strip longer than that gets a few spare ones only.
        """
        grown = self.written(new)
        if grown is not None:
            return grown
        need = len(self) + new.shape[2]
        capacity = min(need + need // 2, most) if need <= most else need + SPARE
        return Strip.of(self.view(), new, capacity=capacity)

    def without(self, count: int) -> Strip:
        """These slots but for the first `count`, whose memory is given up once it is more."""
        rest = replace(self, start=self.start + count)
        if rest.capacity - len(rest) <= SPARE:
            return rest
        return Strip.of(rest.view(), capacity=len(rest) + SPARE)

    def rows(self, rows: Tensor) -> Strip:
        """A copy of `rows` (a mask [B] or indices) alone."""
        return Strip.of(self.view()[rows])


@dataclass(frozen=True, eq=False)
class Pages:
    """Slots [B, N, T, W] in pages: they grow to any length and none is ever copied.

    A page holds what one pass brought or, where passes are short, as many slots as there were
    before, up to `PAGE`.
    """

    pages: tuple[Strip, ...] = ()

    def __len__(self) -> int:
        return sum(len(page) for page in self.pages)

    @property
    def nbytes(self) -> int:
        """Bytes of the pages, free slots included."""
        return sum(page.nbytes for page in self.pages)

    def extended(self, new: Tensor, most: int) -> Pages:
        """`new` [B, N, S, W] behind these slots; no room is kept for more than `most` in all."""
        pages = list(self.pages)
        if pages:
            last = pages[-1]
            fits = min(new.shape[2], last.capacity - last.end)
            grown = last.written(new[:, :, :fits]) if fits else None
            if grown is not None:
                pages[-1], new = grown, new[:, :, fits:]
        if new.shape[2]:
            held = sum(len(page) for page in pages)
            pages.append(Strip.of(new, capacity=min(PAGE, held, most - held)))
        return Pages(tuple(pages))

    def pieces(self, longest: int) -> Iterator[tuple[int, Tensor]]:
        """First slot and slots [B, N, C, W] of one piece after another, C at most `longest`."""
        start = 0
        for page in self.pages:
            for piece in torch.split(page.view(), longest, dim=2):
                yield start, piece
                start += piece.shape[2]

    def rows(self, rows: Tensor) -> Pages:
        """A copy of `rows` (a mask [B] or indices) alone."""
        return Pages(tuple(page.rows(rows) for page in self.pages))
