"""What a decoding tells whoever watches it, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class StepEvent:
    """One denoising step just taken. Tensors are [B, L] unless said otherwise.

    Rows with seeds of their own that stopped on an earlier canvas are finished, and zeros.
    """

    canvas_index: int
    step: int  # steps taken on this canvas, this one included
    steps_max: int
    argmax: Tensor  # the draft: the likeliest id at each position
    current: Tensor  # the canvas that the next step will read, renoised where not accepted
    entropy: Tensor  # nats, of the temperature-scaled distribution
    accepted: Tensor  # bool
    finished: Tensor  # bool [B]: rows whose canvas needs no further step


@dataclass(frozen=True)
class CommitEvent:
    """A canvas [B, L] has been committed; zeros where a row with its own seed had stopped."""

    canvas_index: int
    tokens: Tensor


@dataclass(frozen=True)
class GenerationStats:
    """Per row: denoising steps, canvases, tokens per forward. For all rows together: seconds.

    In autoregressive mode a step is one forward pass and there are no canvases.
    """

    steps: list[int]
    canvases: list[int]
    tokens_per_forward: list[float]
    seconds: float


@dataclass(frozen=True)
class Generation:
    """New tokens per row, cut after the first stop id, their text if there is a tokenizer."""

    tokens: list[list[int]]
    text: list[str] | None
    stats: GenerationStats
