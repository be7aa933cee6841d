"""Cells to lines of a given width, broken by character as a terminal breaks them."""

from __future__ import annotations

from collections.abc import Iterable

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text

from sfumato.cli.live.frame import Cell
from sfumato.cli.live.palette import Glyphs, Palette
from sfumato.cli.terminal import printable

Run = tuple[str, Style]


def fold(runs: Iterable[Run], width: int) -> list[Text]:
    """`runs` as lines of at most `width` columns.

    Breaking between words would make the text jump at every step, and the finished answer, which
    the terminal breaks, would not lie where it lay.
    """
    lines = [Text(no_wrap=True)]
    column = 0
    for text, style in runs:
        begun = 0  # of the part of `text` that goes on the present line
        for index, character in enumerate(text):
            size = cell_len(character)
            breaks = character == "\n"
            if not breaks and (column + size <= width or not column):
                column += size
                continue
            lines[-1].append(text[begun:index], style)
            lines.append(Text(no_wrap=True))
            begun, column = (index + 1, 0) if breaks else (index, size)
        lines[-1].append(text[begun:], style)
    return lines


def noise_run(cell: Cell, index: int, step: int, glyphs: Glyphs, palette: Palette) -> Run:
    """A position that is still noise, as wide as its draft, so that the text does not jump."""
    width = max(1, cell_len(printable(cell.text).replace("\n", ""))) if not cell.control else 1
    characters = [c for c in glyphs.noise(cell.noise) if cell_len(c) == 1]
    if not characters:
        return glyphs.haze * width, palette.noise
    start = (index + step) % len(characters)
    text = "".join(characters[(start + offset) % len(characters)] for offset in range(width))
    return text, palette.noise


def draft_run(cell: Cell, glyphs: Glyphs, palette: Palette) -> Run:
    """A position whose draft is shown."""
    if cell.stop:
        return glyphs.stop, palette.control
    if cell.control:
        return glyphs.control_name(cell.text), palette.control
    text = printable(cell.text)
    if "\n" in text and not cell.accepted:  # a line that may yet go must not push the rest down
        text = text.replace("\n", glyphs.newline)
    return text, palette.draft(cell.confidence, cell.accepted)


def committed_runs(cells: Iterable[Cell], glyphs: Glyphs, palette: Palette) -> list[Run]:
    """Finished text: in the terminal's own colour, thoughts apart, control tokens quiet."""
    runs: list[Run] = []
    thinking = False
    for cell in cells:
        if cell.control:
            thinking = _thinking_after(cell.text, thinking)
            runs.append((glyphs.control_name(cell.text), palette.control))
        else:
            runs.append((printable(cell.text), palette.thought if thinking else palette.committed))
    return runs


def _thinking_after(control: str, thinking: bool) -> bool:
    if control == "<|channel>":
        return True
    return False if control == "<channel|>" else thinking
