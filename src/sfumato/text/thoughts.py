"""What the model wrote, taken apart: the thought, the answer, the tool calls.

A thought is `<|channel>thought`, a line break, the thought, `<channel|>`; a tool call stands
between `<|tool_call>` and `<tool_call|>`. Channels do not nest: an opening inside one is
dropped, and the first closing ends it, which is how the released chat template reads them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from sfumato.text.spellings import Spellings
from sfumato.text.tokenizer import Tokenizer

CHANNEL_OPEN, CHANNEL_CLOSE = "<|channel>", "<channel|>"
CALL_OPEN, CALL_CLOSE = "<|tool_call>", "<tool_call|>"
# What ends a turn wherever it stands; a tool's response is for the caller to write.
STOPS = frozenset({"<turn|>", "<eos>", "<|tool_response>"})
_HEADER = "thought\n"

Kind = Literal["answer", "thought", "tool_call"]


@dataclass(frozen=True)
class Piece:
    """A stretch of output as it arrives. A tool call arrives in one piece, when it is closed."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class Parsed:
    """A whole output. `unfinished` is what the end cut off: an open thought or tool call.

    The text of an open thought is in `thought`; that of an open tool call is in `fragment`,
    since half a call is none.
    """

    thought: str = ""
    answer: str = ""
    tool_calls: tuple[str, ...] = ()
    unfinished: Literal["", "thought", "tool_call"] = ""
    fragment: str = ""


class _Splitter:
    """The state between pieces: told of control tokens and of text, it says what the text is."""

    def __init__(self, *, in_channel: bool) -> None:
        self.state: Kind = "thought" if in_channel else "answer"
        self.ended = False
        self.call = ""
        self._header: str | None = "" if in_channel else None
        self._held = ""  # line breaks at the thought's end belong to its closing

    def control(self, spelling: str) -> list[Piece]:
        """A control token. In a tool call the others are part of the call (quotes are one)."""
        if spelling in STOPS:
            self.ended = True
            return []
        if self.state == "tool_call":
            if spelling != CALL_CLOSE:
                self.call += spelling
                return []
            self.state, call, self.call = "answer", self.call, ""
            return [Piece("tool_call", call)]
        before: list[Piece] = []
        if self.state == "thought" and spelling in (CHANNEL_CLOSE, CALL_OPEN):
            before = self.leave_thought()
            self.state = "answer"
        if self.state == "answer" and spelling == CHANNEL_OPEN:
            self.state, self._header = "thought", ""
        elif spelling == CALL_OPEN:
            self.state = "tool_call"
        return before

    def text(self, text: str) -> list[Piece]:
        """Text between control tokens."""
        if not text or self.ended:
            return []
        if self.state == "tool_call":
            self.call += text
            return []
        if self.state == "answer":
            return [Piece("answer", text)]
        if self._header is not None:
            self._header += text
            if _HEADER.startswith(self._header) and self._header != _HEADER:
                return []
            text, self._header = self._header.removeprefix(_HEADER), None
        return self._think(text)

    def leave_thought(self) -> list[Piece]:
        """What a channel that ends here still has to say: a header that turned out to be none."""
        header, self._header = self._header, None
        cut_header = header is not None and header != _HEADER.rstrip("\n")
        pieces = self._think(header) if header and cut_header else []
        self._held = ""
        return pieces

    def _think(self, text: str) -> list[Piece]:
        text = self._held + text
        body = text.rstrip("\n")
        self._held = text[len(body) :]
        if not body:
            return []
        return [Piece("thought", body)]


class OutputStream:
    """Takes a model's output apart token by token.

    The texts it returns, joined by kind, are those of `parse` on all the tokens at once.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, stop_ids: Iterable[int] = (), in_channel: bool = False
    ) -> None:
        """`stop_ids` end the turn besides STOPS; `in_channel` if the prompt opened a thought."""
        self._splitter = _Splitter(in_channel=in_channel)
        self._stop_ids = frozenset(stop_ids)
        self._names = {token: spelling for spelling, token in tokenizer.control.items()}
        self._decoder = tokenizer.stream(strict=False)

    @property
    def ended(self) -> bool:
        """Whether a stop token was seen; what comes after it is left out."""
        return self._splitter.ended

    def push(self, ids: Iterable[int]) -> list[Piece]:
        """The pieces that are complete after `ids`. An id without an entry reads as U+FFFD."""
        pieces: list[Piece] = []
        splitter = self._splitter
        for token in ids:
            if splitter.ended:
                break
            name = self._names.get(token)
            if token in self._stop_ids:
                pieces += splitter.text(self._decoder.flush())
                splitter.ended = True
            elif name is None:
                pieces += splitter.text(self._decoder.push([token]))
            else:
                pieces += splitter.text(self._decoder.flush())
                pieces += splitter.control(name)
        return _merged(pieces)

    def flush(self) -> list[Piece]:
        """What was held back, when no more tokens come."""
        pieces = [] if self.ended else self._splitter.text(self._decoder.flush())
        if self._splitter.state == "thought":
            pieces += self._splitter.leave_thought()
        return _merged(pieces)

    def result(self, pieces: Iterable[Piece]) -> Parsed:
        """The whole of `pieces`, all that this stream returned up to and with `flush`."""
        texts: dict[Kind, list[str]] = {"answer": [], "thought": [], "tool_call": []}
        for piece in pieces:
            texts[piece.kind].append(piece.text)
        state = self._splitter.state
        return Parsed(
            thought="".join(texts["thought"]),
            answer="".join(texts["answer"]),
            tool_calls=tuple(texts["tool_call"]),
            unfinished="" if state == "answer" else state,
            fragment=self._splitter.call,
        )


def parse(
    ids: Iterable[int],
    tokenizer: Tokenizer,
    *,
    stop_ids: Iterable[int] = (),
    in_channel: bool = False,
) -> Parsed:
    """Take a model's output apart. Arguments are those of OutputStream.

    Only control tokens count: the same characters spelled by plain tokens are text. An id that
    the tokenizer has no entry for reads as U+FFFD.
    """
    stream = OutputStream(tokenizer, stop_ids=stop_ids, in_channel=in_channel)
    pieces = stream.push(ids)
    return stream.result(pieces + stream.flush())


def strip_thoughts(text: str) -> str:
    """`text` without thoughts whose tokens are spelled out, closed or not: for earlier turns."""
    kept, thinking, end = [], False, 0
    for start, spelling in _CHANNELS.find(text):
        if not thinking:
            kept.append(text[end:start])
        thinking = spelling == CHANNEL_OPEN
        end = start + len(spelling)
    return "".join(kept) + ("" if thinking else text[end:])


_CHANNELS = Spellings({CHANNEL_OPEN: 0, CHANNEL_CLOSE: 1})


def _merged(pieces: list[Piece]) -> list[Piece]:
    """Neighbours of one kind joined; tool calls stay apart."""
    merged: list[Piece] = []
    for piece in pieces:
        if merged and merged[-1].kind == piece.kind != "tool_call":
            merged[-1] = Piece(piece.kind, merged[-1].text + piece.text)
        else:
            merged.append(piece)
    return merged
