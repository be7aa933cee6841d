"""What a task is: examples that are pure functions of (seed, index), and an exact check."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

Split = Literal["train", "heldout"]
T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """One prompt with its only right answer. `detail` holds what a report may group by."""

    task: str
    prompt: str
    answer: str
    detail: dict[str, object] = field(default_factory=dict)


class Task(Protocol):
    """A source of examples. `example` draws no state: equal arguments give equal examples."""

    @property
    def name(self) -> str:
        """The word the task is asked for by, for instance `sudoku:10-40`."""

    def example(self, seed: int, index: int, split: Split = "train") -> Example:
        """Example number `index` of the endless list that `seed` and `split` name."""

    def check(self, example: Example, answer_text: str) -> bool:
        """Whether `answer_text` is right."""


def exact(example: Example, answer_text: str) -> bool:
    """Exact match; white space around the answer does not count."""
    return answer_text.strip() == example.answer.strip()


def generator(task: str, seed: int, index: int, split: Split) -> random.Random:
    """The random state of one example (string seeds are hashed with SHA-512 by `random`)."""
    return random.Random(f"{seed}:{task}:{split}:{index}")


def held_out(kind: str, value: object) -> bool:
    """Whether a value belongs to the tenth that training never sees.

    A property of the value alone, so no seed and no phrasing can leak it.
    """
    return zlib.crc32(f"{kind}:{value}".encode()) % 10 == 0


def draw(kind: str, split: Split, make: Callable[[], T]) -> T:
    """Call `make` until its value belongs to the split."""
    while True:
        value = make()
        if held_out(kind, value) == (split == "heldout"):
            return value


def listed(text: str) -> tuple[str, ...]:
    """The words of a text: how long lists of plain words are written here."""
    return tuple(text.split())


def vary(rng: random.Random, text: str) -> str:
    """The same request as people type it: other first letter, final mark added or dropped."""
    roll = rng.random()
    if roll < 0.12:
        text = text[:1].lower() + text[1:]
    elif roll < 0.24:
        text = text[:1].upper() + text[1:]
    return text
