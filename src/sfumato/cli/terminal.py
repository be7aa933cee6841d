"""What goes where: answers and JSON on stdout, progress on stderr and only on a terminal."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from sfumato.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console

USUAL_COLUMNS = 80
# What moves the cursor or sets a terminal's modes, and what reorders or hides its neighbours
# (Trojan Source, CVE-2021-42574).
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_UNESCAPED = re.compile("[\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")  # by `json`


def printable(text: str) -> str:
    """`text` with tabs as spaces and no other control character but the newline.

    What a model writes must not move the cursor or set the terminal's modes.
    """
    spaced = text.replace("\r\n", "\n").replace("\t", "    ")
    return _STEERING.sub(lambda found: "\n" if found[0] == "\n" else "", spaced)


def say(text: str) -> None:
    """`text` and a newline on stdout: as it is through a pipe, harmless on a terminal.

    For what a model or a file wrote, and so for every answer and table.
    """
    print(printable(text) if sys.stdout.isatty() else text, flush=True)


def print_json(value: Any) -> None:
    """`value` as indented JSON on stdout; infinities and NaN, which JSON lacks, are errors."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    print(_UNESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def note(text: str) -> None:
    """A line of progress on stderr, if somebody is there to see it."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


def output_console() -> Console:
    """A rich console on stdout. It follows NO_COLOR, TERM and the terminal's width by itself."""
    from rich.console import Console

    colours: Literal["auto"] | None = None if Settings.from_environment().dumb else "auto"
    console = Console(color_system=colours, highlight=False, markup=False, emoji=False)
    if console.width < 1:  # COLUMNS=0, where nothing at all would be shown
        console.width = USUAL_COLUMNS
    return console


def can_animate() -> bool:
    """Whether stdout is a terminal that can redraw lines."""
    if not sys.stdout.isatty():
        return False
    return not Settings.from_environment().dumb


def print_pairs(pairs: Iterable[tuple[str, str]], indent: str = "") -> None:
    """Names and values, the values in one column."""
    rows = list(pairs)
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        say(f"{indent}{name:<{width}}  {value}".rstrip())


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], right: str = "") -> None:
    """A plain table that a program can cut by its two-blank gaps.

    `right` names by letter, `l` or `r`, how each column is set; missing letters mean left.
    """
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    sides = right.ljust(len(header), "l")
    for line in lines:
        cells = [
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(line, widths, sides, strict=True)
        ]
        say("  ".join(cells).rstrip())


def human_bytes(count: int) -> str:
    """`count` bytes in decimal units, as disks and model files are sold."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def human_count(count: int) -> str:
    """`count` with one decimal and a letter, as model cards have it: 25.2 B, 3.8 B, 5.6 M."""
    for limit, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= limit:
            return f"{count / limit:.1f} {letter}"
    return str(count)
