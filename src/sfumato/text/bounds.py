"""How many tokens a text takes at the least, known from its length before it is tokenised.

No token stands for more bytes of text than the longest of the vocabulary, so a text of n bytes
takes at least n / longest tokens. That holds only where every byte of the text is kept: a
normaliser that folds or strips, a pre-tokenizer that drops, a token that swallows the blanks
beside it or stands for any unknown word can make a long text short. For such a tokenizer nothing
is said, since a prompt that fits must never be refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sfumato.text.pieces import BYTE_LEVEL_ALPHABET, SPACE_MARK, PieceReader, byte_level_bytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_KEEPING = ("Split", "ByteLevel", "Digits")  # pre-tokenizers; Split unless it removes
_NORMALIZER = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}


def longest_token(backend: Backend, reader: PieceReader) -> int | None:
    """The most bytes of text that one token stands for; None where no number can be promised."""
    model: Any = backend.model
    byte_level = reader.piece is byte_level_bytes
    vocabulary = backend.get_vocab(with_added_tokens=True)
    if type(model).__name__ != "BPE" or model.continuing_subword_prefix or model.end_of_word_suffix:
        return None
    if not _keeps_text(backend, byte_level):
        return None
    alphabet = BYTE_LEVEL_ALPHABET if byte_level else [f"<0x{byte:02X}>" for byte in range(256)]
    if not all(one in vocabulary for one in alphabet) or not (byte_level or model.byte_fallback):
        return None  # what the vocabulary lacks is dropped, or is one unknown token in all
    added = backend.get_added_tokens_decoder()
    if any(one.lstrip or one.rstrip for one in added.values()):
        return None
    spelled = {one.content for one in added.values()}
    longest = 1
    for token in sorted(vocabulary, key=len, reverse=True):
        if 4 * len(token) <= longest:  # in UTF-8 no character has more
            break
        # A mark that Gemma's pieces have for a blank may stand in the text itself: three bytes.
        inside = byte_level and token not in spelled
        longest = max(longest, len(byte_level_bytes(token) if inside else token.encode("utf-8")))
    return longest


def _keeps_text(backend: Backend, byte_level: bool) -> bool:
    """Whether all of a text reaches the model, blanks perhaps as marks."""
    normalizer = _state(backend.normalizer)
    if normalizer is not None and (byte_level or normalizer != _NORMALIZER):
        return False
    steps = list(_steps(_state(backend.pre_tokenizer)))
    kinds = [step["type"] for step in steps]
    keeping = all(kind in _KEEPING for kind in kinds)
    removing = any(step.get("behavior") == "Removed" for step in steps)
    return keeping and not removing and ("ByteLevel" in kinds) == byte_level


def _steps(state: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if state is None:
        return
    if state["type"] != "Sequence":
        yield state
        return
    for step in state["pretokenizers"]:
        yield from _steps(step)


def _state(part: Any) -> dict[str, Any] | None:
    if part is None:
        return None
    state: dict[str, Any] = json.loads(part.__getstate__())
    return state
