"""One denoising step as plain values: what every view draws, with no tensor left in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

# A position shows its draft, not its noise, once it hesitates between three tokens or fewer.
DRAFT_CONFIDENCE = 1 / 3


class TokenText(Protocol):
    """What a view needs to know of a tokenizer."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each id in `ids`; those of a split character are empty but the last."""

    def is_control(self, token: int) -> bool:
        """Whether `token` is a control token, which users never write."""

    def is_stop(self, token: int) -> bool:
        """Whether `token` ends the answer."""


@dataclass(frozen=True)
class Cell:
    """One canvas position."""

    text: str  # of the draft: the denoiser's most probable token
    noise: str  # of the token that stands there now, which may be random
    confidence: float  # exp(-entropy): 1 is certain, 1/n hesitates between n tokens
    accepted: bool
    control: bool = False
    stop: bool = False

    @property
    def drafted(self) -> bool:
        """Whether the draft is worth showing; otherwise the position is still noise."""
        return self.accepted or self.confidence >= DRAFT_CONFIDENCE


@dataclass(frozen=True)
class Frame:
    """One row of one denoising step."""

    cells: tuple[Cell, ...]
    canvas_index: int = 0
    step: int = 1
    steps_max: int = 1
    entropy: float = 0.0  # mean over the canvas, in nats
    committed: int = 0  # tokens of earlier canvases
    forwards: int = 1  # denoising steps of all canvases so far
    seconds: float = 0.0  # spent in the model, the view's own time left out
    history: tuple[float, ...] = field(default=(), repr=False)  # this canvas's mean entropies

    @property
    def answer_length(self) -> int:
        """Positions before the first accepted stop token; the whole canvas without one."""
        for index, cell in enumerate(self.cells):
            if cell.stop and cell.accepted:
                return index
        return len(self.cells)

    @property
    def settled(self) -> int:
        """Accepted positions up to the stop, which counts as a token of the answer."""
        return sum(cell.accepted for cell in self.cells[: self.answer_length + 1])

    @property
    def tokens_per_forward(self) -> float:
        """Tokens settled so far for each pass of the denoiser."""
        return (self.committed + self.settled) / max(1, self.forwards)


@dataclass(frozen=True)
class StepRow:
    """One row of a `StepEvent` as lists, [L] each."""

    draft: Sequence[int]
    current: Sequence[int]
    entropy: Sequence[float]
    accepted: Sequence[bool]


def cells_of(row: StepRow, tokens: TokenText) -> tuple[Cell, ...]:
    """The cells of one row."""
    texts = tokens.pieces(row.draft)
    return tuple(
        Cell(
            text=text,
            noise="".join(tokens.pieces([now])),
            confidence=math.exp(-max(0.0, entropy)),
            accepted=bool(accepted),
            control=tokens.is_control(draft),
            stop=tokens.is_stop(draft),
        )
        for text, draft, now, entropy, accepted in zip(
            texts, row.draft, row.current, row.entropy, row.accepted, strict=True
        )
    )


def committed_cells(ids: Sequence[int], tokens: TokenText) -> tuple[Cell, ...]:
    """Cells of a committed canvas: certain, and cut before its first stop token."""
    cells = []
    for token, text in zip(ids, tokens.pieces(ids), strict=True):
        if tokens.is_stop(token):
            break
        cells.append(Cell(text, text, 1.0, True, control=tokens.is_control(token)))
    return tuple(cells)
