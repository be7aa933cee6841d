"""Where control tokens are spelled out in a text, and the segments of a prompt."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

# Added tokens of these forms steer the model even where a tokenizer file forgets to call them
# special: Gemma 4's turn, channel, tool and image tokens, and the reserved entries no text uses.
_CONTROL_FORM = re.compile(
    r"<\|.{0,64}>|<.{0,64}\|>|<(?:unused|reserved)\d*>|<mask>|\[@BOS@\]|\[multimodal\]", re.DOTALL
)


@dataclass(frozen=True)
class Control:
    """One control token that the template (never a user) wrote."""

    spelling: str


Segment = str | Control


def looks_like_control(spelling: str) -> bool:
    """Whether an added token of this spelling is a control token whatever its flags say."""
    return _CONTROL_FORM.fullmatch(spelling) is not None


class Spellings:
    """Finds the control tokens `ids` (spelling to id) in text: leftmost, then longest."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = dict(ids)
        by_first: dict[str, set[int]] = {}
        for spelling in self.ids:
            by_first.setdefault(spelling[0], set()).add(len(spelling))
        self._lengths = {first: sorted(sizes, reverse=True) for first, sizes in by_first.items()}
        firsts = "".join(re.escape(first) for first in sorted(by_first))
        self._first = re.compile(f"[{firsts}]") if firsts else re.compile(r"(?!)")

    def at(self, text: str, start: int) -> str | None:
        """The longest control spelling that begins at `start`, if one does."""
        for size in self._lengths.get(text[start : start + 1], ()):
            if text[start : start + size] in self.ids:
                return text[start : start + size]
        return None

    def find(self, text: str) -> Iterator[tuple[int, str]]:
        """Every control spelling in `text` with its offset; none overlaps another."""
        end = 0
        for match in self._first.finditer(text):
            if match.start() >= end and (spelling := self.at(text, match.start())) is not None:
                yield match.start(), spelling
                end = match.start() + len(spelling)

    def mark(self, text: str, mark: str) -> str:
        """`text` with `mark` before every control spelling: the form trusted text has."""
        parts, end = [], 0
        for start, spelling in self.find(text):
            parts += [text[end:start], mark, spelling]
            end = start + len(spelling)
        return "".join([*parts, text[end:]])

    def split(self, text: str, mark: str) -> list[Segment]:
        """Segments of a rendered prompt: only a spelling right after `mark` is a control token.

        A mark that the template parted from its spelling (by slicing, say) is dropped.
        """
        segments: list[Segment] = []
        plain = ""
        first, *rest = text.split(mark)
        plain += first
        for piece in rest:
            spelling = self.at(piece, 0)
            if spelling is None:
                plain += piece
                continue
            segments += [plain, Control(spelling)] if plain else [Control(spelling)]
            plain = piece[len(spelling) :]
        return [*segments, plain] if plain else segments


def free_mark(text: str) -> str | None:
    """A character that does not occur in `text`, fit to mark trusted spellings; None if none is.

    Unicode's noncharacters come first: they have no meaning in exchanged text, no case, and are
    not white space, so filters such as `trim` and `upper` leave them alone.
    """
    used = set(text) if chr(0xFDD0) in text else frozenset()
    candidates = chain(range(0xFDD0, 0xFDF0), range(0xE000, 0xF900), range(0xF0000, 0xFFFFE))
    return next((chr(code) for code in candidates if chr(code) not in used), None)
