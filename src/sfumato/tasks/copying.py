"""Copying practice, for training only: what extraction and tool calls need, without the sense."""

from __future__ import annotations

import random
from dataclasses import dataclass

from sfumato.tasks import words
from sfumato.tasks.base import Example, Split, exact, generator
from sfumato.tasks.extraction import clock, compact, day_text, email

REPEAT = (
    "Repeat: {}",
    "Repeat: {}",
    "Copy: {}",
    "Say: {}",
    "Echo: {}",
    "Repeat after me: {}",
    "Repeat this: {}",
    "Write exactly: {}",
    "Type this: {}",
    "Copy this text: {}",
    "Say this again: {}",
    "Output: {}",
)
SPELL = (
    "Spell: {}",
    "Spell {}",
    "Spell the word {}",
    "Letters of {}",
    "Letter by letter: {}",
    "Spell it: {}",
)
JOIN = (
    "Join: {}",
    "Join the letters: {}",
    "Unspell: {}",
    "Put together: {}",
    "Join {}",
    "Word from: {}",
)
LIST = (
    "As a JSON list: {}",
    "JSON list: {}",
    "List as JSON: {}",
    "To a JSON array: {}",
    "JSON array: {}",
)
QUOTE = ("Quote: {}", "Put in quotes: {}", "In quotes: {}", "Quote this: {}", "Add quotes: {}")


def _piece(rng: random.Random, split: Split) -> str:
    roll = rng.random()
    if roll < 0.4:
        return words.person(rng, split, 0.4)
    if roll < 0.52:
        return words.city(rng, split)
    if roll < 0.6:
        return words.title(rng, split)
    if roll < 0.9:
        return words.word(rng, split)
    if roll < 0.94:
        return email(rng, split)
    return clock(rng, split) if roll < 0.97 else day_text(rng, split)


@dataclass(frozen=True)
class Copying:
    """Repeat, quote, list, spell and join."""

    name: str = "copy"

    def example(self, seed: int, index: int, split: Split = "train") -> Example:
        """Half repeats; the rest other shapes of the same thing."""
        rng = generator(self.name, seed, index, split)
        roll = rng.random()
        pieces = [_piece(rng, split) for _ in range(rng.randint(1, 5))]
        text = " ".join(pieces)
        if roll < 0.5:
            prompt, answer = rng.choice(REPEAT).format(text), text
        elif roll < 0.6:
            prompt, answer = rng.choice(QUOTE).format(text), f'"{text}"'
        elif roll < 0.76:
            pieces = pieces[:4]
            prompt, answer = rng.choice(LIST).format(", ".join(pieces)), compact_list(pieces)
        else:
            word = rng.choice((words.person(rng, split, 0), words.word(rng, split)))
            spelled = " ".join(word)
            ways = ((SPELL, word, spelled), (JOIN, spelled, word))
            wordings, given, answer = ways[roll > 0.92]
            prompt = rng.choice(wordings).format(given)
        return Example(self.name, prompt, answer)

    def check(self, example: Example, answer_text: str) -> bool:
        """Exact match."""
        return exact(example, answer_text)


def compact_list(pieces: list[str]) -> str:
    """A JSON list without spaces."""
    return "[" + ",".join(compact_string(p) for p in pieces) + "]"


def compact_string(piece: str) -> str:
    """One JSON string."""
    return compact({"": piece})[4:-1]
