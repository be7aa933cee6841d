"""Tokens of one character each, and consoles that keep what is drawn."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console

from sfumato.cli.live.frame import Cell, Frame, StepRow
from sfumato.cli.live.live_canvas import LiveCanvas

STOP, CONTROL, OPEN, CLOSE = 1, 2, 3, 4
NAMES = {STOP: "<turn|>", CONTROL: "<|think|>", OPEN: "<|channel>", CLOSE: "<channel|>"}


class Letters:
    """`TokenText` where an id is a character's code, and a few are control tokens."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [NAMES.get(token) or chr(token) for token in ids]

    def is_control(self, token: int) -> bool:
        return token in NAMES

    def is_stop(self, token: int) -> bool:
        return token == STOP


def ids(text: str, stop: bool = False) -> list[int]:
    """The ids of `text`, with a stop behind it if asked for."""
    return [ord(c) for c in text] + [STOP] * stop


def row(text: str, accepted: int, *, noise: str = "#", stops: int = 0) -> StepRow:
    """A step whose first `accepted` positions are certain and the rest are noise."""
    draft = [*ids(text), *[STOP] * stops]
    sure = [index < accepted for index in range(len(draft))]
    return StepRow(
        draft=draft,
        current=[one if ok else ord(noise) for one, ok in zip(draft, sure, strict=True)],
        entropy=[0.0 if ok else 3.0 for ok in sure],
        accepted=sure,
    )


def cells(text: str, confidence: float = 1.0, accepted: bool = True) -> tuple[Cell, ...]:
    """A cell a character, all alike, with `~` as noise."""
    return tuple(Cell(c, "~", confidence, accepted) for c in text)


def frame(text: str, accepted: bool = True, confidence: float = 1.0) -> Frame:
    """A frame of `text`."""
    return Frame(cells(text, confidence, accepted), step=3, steps_max=48, forwards=3)


def console(width: int = 60, height: int = 24, *, terminal: bool = True) -> Console:
    """A console into memory."""
    return Console(
        file=io.StringIO(),
        width=width,
        height=height,
        force_terminal=terminal,
        color_system=None,
        highlight=False,
        markup=False,
    )


def written(screen: Console) -> str:
    """What was written to the console."""
    file = screen.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


class Clock:
    """Time that moves only when somebody sleeps, or is told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def live(prompt: str = "", *, width: int = 60, height: int = 24, clock: Clock | None = None,
         pace: float = 0.0, limit: int | None = None) -> LiveCanvas:  # fmt: skip
    """A live canvas over letters."""
    timer = clock or Clock()
    return LiveCanvas(
        console(width, height),
        Letters(),
        prompt,
        pace=pace,
        max_new_tokens=limit,
        clock=timer,
        sleep=timer.sleep,
    )
