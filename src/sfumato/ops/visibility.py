"""Who may look at whom, from positions alone.

Positions count a row's real tokens; -1 marks padding. Kernels decide cell by cell from the
positions; torch is given a written mask, [B, 1, S, T] or [B, 1, 1, T] where all queries see the
same, true to look.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

NO_WINDOW = 1 << 30  # for kernels: longer than any context


class Places(NamedTuple):
    """What a kernel decides by.

    A query at q sees the slots whose positions p obey q - window < p <= q and p >= 0, itself, and
    those of the newest S slots that have the number of its own group.
    """

    queries: Tensor  # int32 [B, S], -1 for padding
    slots: Tensor  # int32 [B, T], the newest S last
    groups: Tensor | None  # int32 [B, S], -1 outside of all groups
    window: int
    aligned: bool  # sums begin at multiples of 64 positions, not at the first slot that is seen


@dataclass(frozen=True, eq=False)
class Causal:
    """Of an encode pass: query positions [B, S] look back over slot positions [B, T].

    With `window`, a query sees `window` positions, its own included. `groups` [B, S] numbers the
    images among the queries, which are the last S slots: inside one image every position sees every
    other, whatever the window. A padding query sees itself, so that no softmax is empty.
    """

    queries: Tensor
    slots: Tensor
    window: int | None = None
    groups: Tensor | None = None

    @cached_property
    def mask(self) -> Tensor:
        """Written out, [B, 1, S, T]."""
        q, k = self.queries[:, :, None], self.slots[:, None]
        mask = (k <= q) & (k >= 0)
        if self.window is not None:
            mask &= k > q - self.window
        own = mask[:, :, -self.queries.shape[1] :]
        if self.groups is not None:
            same = self.groups[:, :, None] == self.groups[:, None]
            own |= same & (self.groups[:, :, None] >= 0)
        own |= torch.eye(self.queries.shape[1], dtype=torch.bool, device=self.queries.device)
        return mask[:, None]

    @cached_property
    def places(self) -> Places:
        """The same for kernels."""
        groups = None if self.groups is None else self.groups.int().contiguous()
        window = NO_WINDOW if self.window is None else self.window
        return Places(_places(self.queries), _places(self.slots), groups, window, aligned=True)


@dataclass(frozen=True, eq=False)
class Canvas:
    """Of a denoise pass: a canvas of `length` L that starts at positions `start` [B].

    `slots` [B, T] are the cached positions; the canvas follows them and is seen whole. Every row of
    the canvas sees the same, with `window` the last `window - 1` positions before the canvas.
    """

    start: Tensor
    slots: Tensor
    window: int | None
    length: int

    @cached_property
    def mask(self) -> Tensor:
        """Written out, [B, 1, 1, T + L]: one row serves the whole canvas."""
        first = self.start[:, None]
        seen = (self.slots >= 0) & (self.slots < first)
        if self.window is not None:
            seen &= self.slots > first - self.window
        canvas = seen.new_ones(seen.shape[0], self.length)
        return torch.cat([seen, canvas], dim=1)[:, None, None]

    @cached_property
    def places(self) -> Places:
        """The same for kernels: the canvas is one group, at the place of its first position."""
        first = self.start[:, None].expand(-1, self.length)
        steps = torch.arange(self.length, device=first.device)
        slots = torch.cat([self.slots, first + steps], dim=1)
        groups = torch.zeros_like(first, dtype=torch.int32)
        window = NO_WINDOW if self.window is None else self.window
        return Places(_places(first), _places(slots), groups, window, aligned=False)


Visibility = Causal | Canvas


def _places(positions: Tensor) -> Tensor:
    return positions.int().contiguous()


def image_groups(input_ids: Tensor, image_token_id: int | None) -> Tensor | None:
    """Number each run of image tokens [B, S] (-1 outside), or None if there is no image."""
    if image_token_id is None:
        return None
    inside = input_ids == image_token_id
    if not bool(inside.any()):
        return None
    starts = inside.clone()
    starts[:, 1:] &= ~inside[:, :-1]
    return torch.where(inside, starts.cumsum(1) - 1, -1)
