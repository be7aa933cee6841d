"""The figures beside the canvas: step, entropy and its course, tokens per forward, seconds."""

from __future__ import annotations

from rich.cells import cell_len
from rich.text import Text

from sfumato.cli.live.frame import Frame
from sfumato.cli.live.palette import Glyphs, Palette

_PANEL = 30  # columns of the figures when they stand beside the canvas
_COURSE = 12  # steps of the entropy's course shown in one line


def course(history: tuple[float, ...], glyphs: Glyphs, length: int = _COURSE) -> str:
    """The last mean entropies as bars, each against the highest of the canvas."""
    top = max(history, default=0.0)
    if top <= 0:
        return glyphs.bars[0] * min(length, len(history))
    last = len(glyphs.bars) - 1
    return "".join(glyphs.bars[round(value / top * last)] for value in history[-length:])


def figures(frame: Frame, glyphs: Glyphs) -> list[tuple[str, str]]:
    """(name, value) pairs, the most important first."""
    return [
        ("step", f"{frame.step}/{frame.steps_max}"),
        ("entropy", f"{frame.entropy:.3f}"),
        ("tokens per forward", f"{frame.tokens_per_forward:.1f}"),
        ("seconds", f"{frame.seconds:.2f}"),
        ("canvas", f"{frame.canvas_index + 1}"),
        ("", course(frame.history, glyphs)),
    ]


def status_line(frame: Frame, width: int, glyphs: Glyphs, palette: Palette) -> Text:
    """One line of as many figures as `width` columns hold."""
    line = Text(no_wrap=True)
    gap = f" {glyphs.separator} "
    for name, value in figures(frame, glyphs):
        label = f"{name} " if name else ""
        size = cell_len(label) + cell_len(value) + (len(gap) if line else 0)
        if line.cell_len + size > width:
            break
        line.append(gap if line else "", palette.label)
        line.append(label, palette.label).append(value)
    return line


def status_panel(frame: Frame, glyphs: Glyphs, palette: Palette) -> list[Text]:
    """A line a figure, to stand beside a narrow view."""
    lines = []
    for name, value in figures(frame, glyphs):
        line = Text(no_wrap=True)
        if name:
            line.append(f"{name:>18}  ", palette.label).append(value)
        else:
            line.append(" " * 20).append(course(frame.history, glyphs, _PANEL - 20), palette.label)
        lines.append(line)
    return lines


def beside(left: list[Text], right: list[Text], columns: int) -> list[Text]:
    """`right` next to `left`, which is `columns` wide, in the middle of its height."""
    first = max(0, (len(left) - len(right)) // 2)
    lines = []
    for index, line in enumerate(left):
        joined = Text(no_wrap=True).append_text(line)  # a style of the whole line stays its own
        if first <= index < first + len(right):
            joined.append(" " * (columns - line.cell_len + 2)).append_text(right[index - first])
        lines.append(joined)
    return lines


def panel_fits(columns: int | None, width: int) -> bool:
    """Whether the figures fit beside a view of `columns` columns."""
    return columns is not None and columns + 2 + _PANEL <= width
