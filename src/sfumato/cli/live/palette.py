"""Colours and glyphs: confidence as a ramp out of the haze, readable on dark and light screens."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from rich.color import Color
from rich.style import Style

# Slate haze, dusty violet, rose, ember, gold; no end is white or black, so both grounds work.
_STOPS: tuple[tuple[float, tuple[int, int, int]], ...] = (
    (0.0, (112, 116, 142)),
    (0.35, (134, 110, 170)),
    (0.6, (182, 100, 138)),
    (0.8, (214, 128, 84)),
    (1.0, (206, 156, 44)),
)
_STEPS = 32  # the ramp is cut into so many styles, made once


def _ramp(confidence: float) -> tuple[int, int, int]:
    low = _STOPS[0]
    for high in _STOPS[1:]:
        if confidence <= high[0]:
            share = (confidence - low[0]) / (high[0] - low[0])
            mixed = [a + (b - a) * share for a, b in zip(low[1], high[1], strict=True)]
            return round(mixed[0]), round(mixed[1]), round(mixed[2])
        low = high
    return _STOPS[-1][1]


@dataclass(frozen=True)
class Palette:
    """Styles of the live canvas. Without colour, dim and bold alone tell the states apart."""

    noise: Style
    drafts: tuple[Style, ...]
    accepted: tuple[Style, ...]
    committed: Style = Style()
    thought: Style = Style(dim=True, italic=True)
    control: Style = Style(dim=True)
    given: Style = Style(bold=True)
    frame: Style = Style(dim=True)
    label: Style = Style(dim=True)
    good: Style = Style(color="green")
    bad: Style = Style(color="red")

    def draft(self, confidence: float, accepted: bool) -> Style:
        """The style of a position whose draft is shown."""
        styles = self.accepted if accepted else self.drafts
        return styles[min(_STEPS - 1, max(0, int(confidence * _STEPS)))]


def make_palette() -> Palette:
    """The palette; the console it is printed on lowers or drops the colours it cannot show."""
    colours = [Color.from_rgb(*_ramp(index / (_STEPS - 1))) for index in range(_STEPS)]
    return Palette(
        noise=Style(color=colours[0], dim=True),
        drafts=tuple(Style(color=colour) for colour in colours),
        accepted=tuple(Style(color=colour, bold=True) for colour in colours),
    )


@dataclass(frozen=True)
class Glyphs:
    """The characters a view draws with; plain ASCII where the terminal takes no more."""

    stop: str = "·"
    newline: str = "↵"
    haze: str = "░"
    ellipsis: str = "⋮"
    separator: str = "·"
    bars: str = "▁▂▃▄▅▆▇█"
    left: str = "⟨"
    right: str = "⟩"
    yes: str = "✓"
    no: str = "✗"
    # top, between rows of boxes, bottom; then the upright
    grid: tuple[str, str, str, str] = (
        "┌───────┬───────┬───────┐",
        "├───────┼───────┼───────┤",
        "└───────┴───────┴───────┘",
        "│",
    )
    ascii_only: bool = False

    def control_name(self, text: str) -> str:
        """A control token's text without its own brackets, in quiet ones."""
        name = text.strip("<>|")
        return f"{self.left}{name}{self.right}" if name else ""

    def noise(self, text: str) -> str:
        """The characters of `text` that a cell of haze may show, perhaps none."""
        return "".join(c for c in text if self._shows(c))

    def _shows(self, character: str) -> bool:
        if character.isascii():
            return "!" <= character <= "~"
        # Combining marks, right-to-left letters and blanks would disturb their neighbours.
        plain = unicodedata.bidirectional(character) in {"L", "ON", "EN"}
        solid = unicodedata.category(character)[0] in "LNPS" and character != "\ufffd"
        return not self.ascii_only and plain and solid


ASCII = Glyphs(
    stop=".",
    newline="$",
    haze=":",
    ellipsis="...",
    separator="|",
    bars=".:-=+*#@",
    left="<",
    right=">",
    yes="yes",
    no="no",
    grid=("+-------+-------+-------+",) * 3 + ("|",),
    ascii_only=True,
)


def glyphs_for(encoding: str | None) -> Glyphs:
    """The glyphs an output of this encoding can carry."""
    sample = Glyphs()
    try:
        everything = "".join((sample.stop, sample.bars, sample.left, sample.haze, *sample.grid))
        (everything + sample.newline + sample.yes).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return sample
