"""View strategies: running text, and a Sudoku as its grid."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rich.style import Style
from rich.text import Text

from sfumato.cli.live.frame import Cell, Frame
from sfumato.cli.live.lines import Run, committed_runs, draft_run, fold, noise_run
from sfumato.cli.live.palette import Glyphs, Palette

_GRID = re.compile(r"(?<![0-9.])[1-9.0]{81}(?![0-9.])")
_SIDE = 9
_CELLS = 81


class View(Protocol):
    """Draws a frame as lines of at most `width` columns."""

    def lines(self, before: Sequence[Cell], frame: Frame, width: int) -> list[Text]:
        """`before` are committed cells that share the first line with the frame's canvas."""

    def fits(self, width: int) -> bool:
        """Whether this view can be drawn so narrow."""

    @property
    def columns(self) -> int | None:
        """Columns it takes, None for all there are."""


@dataclass(frozen=True)
class TextView:
    """The canvas as running text, each position in the colour of its confidence."""

    palette: Palette
    glyphs: Glyphs
    columns: int | None = None

    def fits(self, width: int) -> bool:
        """At any width that holds a wide character."""
        return width >= 2

    def lines(self, before: Sequence[Cell], frame: Frame, width: int) -> list[Text]:
        """The committed text in plain style, the canvas after it."""
        runs = committed_runs(before, self.glyphs, self.palette)
        return fold([*runs, *self._canvas(frame)], width)

    def _canvas(self, frame: Frame) -> Iterable[Run]:
        for index, cell in enumerate(frame.cells):
            # Past the stop only the haze is of interest: it shows how large the canvas is.
            if cell.drafted:
                yield draft_run(cell, self.glyphs, self.palette)
            else:
                yield noise_run(cell, index, frame.step, self.glyphs, self.palette)


@dataclass(frozen=True)
class GridView:
    """The first 81 positions as a Sudoku grid; `givens` are the puzzle's digits, '.' for a hole."""

    givens: str
    palette: Palette
    glyphs: Glyphs

    @property
    def columns(self) -> int:
        """The grid's width."""
        return len(self.glyphs.grid[0])

    def fits(self, width: int) -> bool:
        """Whether the grid fits in `width` columns."""
        return width >= self.columns

    def lines(self, before: Sequence[Cell], frame: Frame, width: int) -> list[Text]:
        """13 lines: nine of digits in their boxes."""
        assert self.fits(width)
        cells = [*before, *frame.cells][:_CELLS]
        runs = [self._cell(index, cell, frame.step) for index, cell in enumerate(cells)]
        runs += [(self.glyphs.haze, self.palette.noise)] * (_CELLS - len(runs))
        return self._draw(runs)

    def finished(self, digits: str) -> list[Text]:
        """The grid of an answer of 81 digits, nothing left in doubt."""
        return self._draw([(digit, self._digit(i)) for i, digit in enumerate(digits)])

    def _draw(self, runs: Sequence[Run]) -> list[Text]:
        top, middle, bottom, upright = self.glyphs.grid
        frame = self.palette.frame
        drawn = [Text(top, frame)]
        for row in range(_SIDE):
            line = Text(no_wrap=True)
            for column in range(_SIDE):
                line.append(f"{upright} " if column % 3 == 0 else "", frame)
                line.append(*runs[row * _SIDE + column])
                line.append(" ")
            drawn.append(line.append(upright, frame))
            if row in {2, 5}:
                drawn.append(Text(middle, frame))
        return [*drawn, Text(bottom, frame)]

    def _digit(self, index: int) -> Style:
        return self.palette.given if self.givens[index] in "123456789" else self.palette.committed

    def _cell(self, index: int, cell: Cell, step: int) -> Run:
        text = cell.text.strip()
        if cell.drafted and len(text) == 1 and text.isascii() and text.isdigit():
            style = self.palette.draft(cell.confidence, cell.accepted)
            if cell.accepted and self.givens[index] == text:
                style = self.palette.given
            return text, style
        return noise_run(Cell(" ", cell.noise, 0.0, False), index, step, self.glyphs, self.palette)


def find_puzzle(prompt: str) -> str | None:
    """The one 81-character grid in `prompt`, holes as dots, if there is exactly one."""
    found = _GRID.findall(prompt)
    return found[0].replace("0", ".") if len(found) == 1 else None


def choose_view(prompt: str, palette: Palette, glyphs: Glyphs) -> TextView | GridView:
    """The grid for a prompt with a puzzle in it, running text for any other."""
    puzzle = find_puzzle(prompt)
    return GridView(puzzle, palette, glyphs) if puzzle else TextView(palette, glyphs)


def grid_is_solved(givens: str, answer: str) -> bool:
    """Whether `answer` keeps the givens and every row, column and box holds 1 to 9."""
    if len(answer) != _CELLS or set(answer) != set("123456789"):
        return False
    if any(given not in {".", digit} for given, digit in zip(givens, answer, strict=True)):
        return False
    units = [answer[row * _SIDE : (row + 1) * _SIDE] for row in range(_SIDE)]
    units += [answer[column::_SIDE] for column in range(_SIDE)]
    corners = [row * _SIDE + column for row in (0, 3, 6) for column in (0, 3, 6)]
    units += ["".join(answer[c + r : c + r + 3] for r in (0, 9, 18)) for c in corners]
    return all(len(set(unit)) == _SIDE for unit in units)
