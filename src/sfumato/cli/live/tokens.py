"""How a tokenizer's ids read on the live canvas."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from sfumato.errors import InputError

if TYPE_CHECKING:
    from sfumato.text.pieces import StreamDecoder
    from sfumato.text.tokenizer import Tokenizer

UNKNOWN = "�"


class TokenizerText:
    """`TokenText` of a checkpoint: pieces are exact, a split character stands at its last token."""

    def __init__(self, tokenizer: Tokenizer, stops: Collection[int]) -> None:
        """`stops` are the ids that end an answer."""
        self._tokenizer = tokenizer
        self._stops = frozenset(stops)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each id; a character made of several tokens stands at the last of them."""
        stream = self._tokenizer.stream(skip_control=False)
        pieces = [self._piece(stream, token) for token in ids]
        if pieces:
            pieces[-1] += stream.flush()
        return pieces

    @staticmethod
    def _piece(stream: StreamDecoder, token: int) -> str:
        try:
            return stream.push([token])
        except InputError:
            return UNKNOWN  # an id of the embedding table that the tokenizer gives no text

    def is_control(self, token: int) -> bool:
        """Whether `token` is a control token."""
        return token in self._tokenizer.control_ids

    def is_stop(self, token: int) -> bool:
        """Whether `token` ends an answer."""
        return token in self._stops
