"""Whole numbers 0..999,999 between digits and English words, both ways."""

from __future__ import annotations

import random
from dataclasses import dataclass

from sfumato.tasks.base import Example, Split, exact, generator, held_out, listed, vary

_SMALL = listed(
    """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen
    """
)
_TENS = ("", "", *listed("twenty thirty forty fifty sixty seventy eighty ninety"))
TO_DIGITS = (
    "{}",
    "{}",
    "{}",
    "{} in digits",
    "Write in digits: {}",
    "{} as a number",
    "In digits: {}",
    "Write {} in digits.",
    "Digits: {}",
    "number: {}",
    "Convert to digits: {}",
    "Number: {}",
    "What number is {}?",
    "What is {} in digits?",
    "Convert {} to a number.",
    "{} = ?",
    "Write {} as a number.",
    "{} to digits",
    "Write this number in digits: {}",
    "Numeral: {}",
    "Convert the words {} to digits",
    "Please write {} in figures.",
    "in figures: {}",
)
TO_WORDS = (
    "{} in words",
    "Write in words: {}",
    "Write {} in words.",
    "In words: {}",
    "Words: {}",
    "Spell out {}",
    "Spell out the number {}.",
    "words: {}",
    "Convert to words: {}",
    "What is {} in words?",
    "Convert {} to words.",
    "{} to words",
    "Say {} in words.",
    "How do you write {} in words?",
    "Write the number {} in words",
    "{} as words",
    "How is {} written in words?",
    "Number to words: {}",
    "Please write {} in words.",
)


def _below_thousand(n: int, joiner: str) -> str:
    parts = [f"{_SMALL[n // 100]} hundred"] if n >= 100 else []
    rest = n % 100
    if rest >= 20:
        unit = f"-{_SMALL[rest % 10]}" if rest % 10 else ""
        parts.append(_TENS[rest // 10] + unit)
    elif rest:
        parts.append(_SMALL[rest])
    return joiner.join(parts)


def in_words(n: int, joined: bool = True) -> str:
    """English words of 0 <= n < 1,000,000; `joined` puts the British "and" before the tens.

    417006 -> "four hundred and seventeen thousand and six".
    """
    if n == 0:
        return _SMALL[0]
    joiner = " and " if joined else " "
    thousands, rest = divmod(n, 1000)
    parts = [f"{_below_thousand(thousands, joiner)} thousand"] if thousands else []
    if rest:
        tail = _below_thousand(rest, joiner)
        parts.append(f"and {tail}" if joined and thousands and rest < 100 else tail)
    return " ".join(parts)


def _number(rng: random.Random) -> int:
    roll = rng.random()
    if roll < 0.45:
        return rng.randrange(1_000_000)
    length = rng.randint(1, 6)
    n = rng.randrange(10**length)
    zeros = rng.randrange(length) if roll < 0.65 else 0
    least = 1 if roll < 0.64 else 0
    power: int = 10**zeros
    return max(n // power, least) * power


def number(rng: random.Random, split: Split) -> int:
    """A number of the split; numbers below 100 are all for training."""
    while True:
        n = _number(rng)
        if (n >= 100 and held_out("number", n)) == (split == "heldout"):
            return n


@dataclass(frozen=True)
class Numbers:
    """Number words -> digits (no separators), or digits -> words (with "and", with hyphens)."""

    name: str = "numbers"

    def example(self, seed: int, index: int, split: Split = "train") -> Example:
        """Either direction, equally often."""
        rng = generator(self.name, seed, index, split)
        n = number(rng, split)
        if rng.random() < 0.5:
            words = in_words(n, rng.random() < 0.65)
            roll = rng.random()
            if roll < 0.1:
                words = words.replace("-", " ")
            elif roll < 0.2:
                words = words.replace("thousand ", "thousand, ", 1)
            elif roll < 0.28:
                words = words.capitalize()
            elif roll < 0.31:
                words = words.upper()
            prompt, answer = rng.choice(TO_DIGITS).format(words), str(n)
        else:
            digits = f"{n:,}" if rng.random() < 0.25 else str(n)
            prompt, answer = rng.choice(TO_WORDS).format(digits), in_words(n)
        return Example(self.name, vary(rng, prompt), answer)

    def check(self, example: Example, answer_text: str) -> bool:
        """Exact match."""
        return exact(example, answer_text)
