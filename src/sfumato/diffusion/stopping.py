"""When a canvas is done."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StableAndConfident:
    """Done when the argmax has not changed for `stability` steps and entropy is low.

    `confidence` is in nats, compared with the mean over the canvas.
    """

    stability: int
    confidence: float

    def history(self) -> deque[Tensor]:
        """An empty memory of argmax canvases for one canvas's steps."""
        return deque(maxlen=self.stability)

    def done(self, argmax: Tensor, entropies: Tensor, history: deque[Tensor]) -> Tensor:
        """Which rows [B] stop at this step; remembers `argmax` [B, L] in `history`."""
        confident = entropies.mean(dim=-1) < self.confidence
        if len(history) < self.stability:
            stable = torch.zeros_like(confident)
        else:
            stable = torch.ones_like(confident)
            for earlier in history:
                stable &= (earlier == argmax).all(dim=-1)
        history.append(argmax)
        return stable & confident


@dataclass(frozen=True)
class Attempts:
    """How many steps a canvas has in all, and after how many it starts anew if it is not done.

    A puzzle that does not settle in one attempt often does in another: its noise led it astray.
    """

    total: int
    steps: int  # of one attempt; the last may be shorter

    @classmethod
    def of(cls, total: int, restart: int | None) -> Attempts:
        """`total` steps, in attempts of `restart` unless that is None."""
        return cls(total, total if restart is None else min(restart, total))

    def left(self, taken: int) -> int:
        """Steps that an attempt still has with step number `taken` (from 1): 1 at its last."""
        return self.steps - (taken - 1) % self.steps


def first_stop(tokens: list[int], stop_ids: Iterable[int]) -> int | None:
    """Index of the first stop id in `tokens`, or None."""
    stops = set(stop_ids)
    return next((index for index, token in enumerate(tokens) if token in stops), None)
