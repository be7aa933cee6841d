"""From token to bytes to text: exact, and the same whether done at once or as tokens arrive."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sfumato.errors import TokenizerError

SPACE_MARK = "▁"


def _byte_level_alphabet() -> dict[str, int]:
    """The characters that byte-level BPE writes for bytes: itself if printable, else 256 and on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + index): byte for index, byte in enumerate(hidden)}


BYTE_LEVEL_ALPHABET = _byte_level_alphabet()


def byte_level_bytes(token: str) -> bytes:
    """The bytes of a piece of a byte-level vocabulary (GPT-2's alphabet)."""
    if all(character in BYTE_LEVEL_ALPHABET for character in token):
        return bytes(BYTE_LEVEL_ALPHABET[character] for character in token)
    return token.encode("utf-8")


def gemma_bytes(token: str) -> bytes:
    """The bytes of a piece of Gemma's vocabulary: `▁` is a space, `<0xNN>` one byte."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        digits = token[3:5]
        if all(digit in "0123456789abcdefABCDEF" for digit in digits):
            return bytes([int(digits, 16)])
    return token.replace(SPACE_MARK, " ").encode("utf-8")


def plain_bytes(token: str) -> bytes:
    """The bytes of a token that is spelled as it is."""
    return token.encode("utf-8")


@dataclass(frozen=True)
class PieceReader:
    """How entries become bytes: the model's own pieces, and text that was added to them.

    Gemma's added runs of spaces are written with `▁`; byte-level BPE's added tokens are spelled
    as they are.
    """

    piece: Callable[[str], bytes]
    added: Callable[[str], bytes]


def piece_reader(decoder: Any, source: str) -> PieceReader:
    """How entries become bytes under `decoder`, the decoder of a `tokenizers.Tokenizer`.

    Raises TokenizerError for a decoder other than byte-level BPE's and Gemma's: text would come
    out subtly wrong.
    """
    state: dict[str, Any] = {"type": "none"}
    if decoder is not None:
        state = json.loads(decoder.__getstate__())
    steps = state["decoders"] if state["type"] == "Sequence" else [state]
    if [step["type"] for step in steps] == ["ByteLevel"]:
        return PieceReader(byte_level_bytes, plain_bytes)
    replace = {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "}
    if steps[:2] == [replace, {"type": "ByteFallback"}] and steps[2:] in ([{"type": "Fuse"}], []):
        return PieceReader(gemma_bytes, gemma_bytes)
    names = ", ".join(str(step["type"]) for step in steps)
    raise TokenizerError(
        f"{source}: the decoder ({names}) is not one that sfumato knows",
        hint="byte-level BPE and Gemma's pieces with byte fallback are supported",
    )


class StreamDecoder:
    """Text from tokens as they arrive.

    What `push` returns, concatenated and followed by `flush`, is exactly the text of all the
    tokens at once: a character whose bytes are not all there is held back, never guessed.
    """

    def __init__(self, piece: Callable[[int], bytes | None]) -> None:
        """`piece` gives a token's bytes, or None for a control token that is to be left out."""
        self._piece = piece
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        """The text that is complete after `ids`. Raises InputError for an id out of range."""
        parts = []
        for token in ids:
            data = self._piece(token)
            # A control token ends whatever character was begun: bytes never join across it.
            parts.append(self.flush() if data is None else self._decoder.decode(data))
        return "".join(parts)

    def flush(self) -> str:
        """What is still held back, with U+FFFD for bytes that make no character."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
