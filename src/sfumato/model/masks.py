"""Who may look at whom, from positions alone.

Positions count a row's real tokens; -1 marks padding. Every mask is [B, 1, S, T], or S is 1 where
all queries see the same; true to look.
"""

from __future__ import annotations

import torch
from torch import Tensor


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


def encode_mask(
    queries: Tensor, keys: Tensor, window: int | None, groups: Tensor | None = None
) -> Tensor:
    """Causal mask for query positions [B, S] over key positions [B, T].

    With `window`, a query sees `window` positions, its own included. `groups` [B, S] numbers the
    images among the queries, which are the last S keys: inside one image every position sees every
    other, whatever the window. A padding query sees itself, so that no softmax is empty.
    """
    q, k = queries[:, :, None], keys[:, None]
    mask = (k <= q) & (k >= 0)
    if window is not None:
        mask &= k > q - window
    own = mask[:, :, -queries.shape[1] :]
    if groups is not None:
        own |= (groups[:, :, None] == groups[:, None]) & (groups[:, :, None] >= 0)
    own |= torch.eye(queries.shape[1], dtype=torch.bool, device=queries.device)
    return mask[:, None]


def denoise_mask(start: Tensor, keys: Tensor, window: int | None, length: int) -> Tensor:
    """Mask [B, 1, 1, T + L] for a canvas of `length` L starting at positions `start` [B].

    `keys` [B, T] are the cached positions; the canvas follows them and is seen whole. Every row of
    the canvas sees the same, with `window` the last `window - 1` positions before the canvas, so
    one row of a mask serves them all.
    """
    first, k = start[:, None], keys
    seen = (k >= 0) & (k < first)
    if window is not None:
        seen &= k > first - window
    canvas = seen.new_ones(seen.shape[0], length)
    return torch.cat([seen, canvas], dim=1)[:, None, None]
