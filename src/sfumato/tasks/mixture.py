"""What a training step sees: a pure function of (seed, step), so a resumed run needs no state."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sfumato.errors import InputError
from sfumato.tasks.base import Example, Task
from sfumato.tasks.registry import task
from sfumato.tasks.sudoku import Bytes, Sudoku, sample_batch, sudoku_example, text_of

TEXT_WEIGHTS: dict[str, float] = {
    "dates": 0.12,
    "numbers": 0.15,
    "units": 0.15,
    "json": 0.25,
    "tools": 0.2,
    "copy": 0.13,
}


@dataclass(frozen=True)
class HoleCurriculum:
    """Uniform 5-25 at first, linearly to 10-55 at `ramp`; then `hard` of it is from 30-55."""

    ramp: float = 0.35
    hard: float = 0.6

    def draw(self, rng: np.random.Generator, progress: float, size: int) -> np.ndarray:
        """Numbers of holes [size] at a progress in [0, 1]."""
        if not 0.0 <= progress <= 1.0:
            raise InputError(f"progress is a share from 0 to 1, not {progress}")
        along = min(1.0, progress / self.ramp) if self.ramp > 0 else 1.0
        low, high = round(5 + 5 * along), round(25 + 30 * along)
        upper = low + round((high - low) * 4 / 9)
        easy = rng.integers(low, high + 1, size=size)
        hard = rng.integers(upper, high + 1, size=size)
        return np.where(rng.random(size) < self.hard * along, hard, easy)


class Mixture:
    """Batches of examples by family; `weights` are those of the text tasks."""

    def __init__(
        self,
        weights: Mapping[str, float] | None,
        seed: int,
        sudoku_bank: Bytes | None = None,
        curriculum: HoleCurriculum | None = None,
    ) -> None:
        self.weights = dict(TEXT_WEIGHTS if weights is None else weights)
        if not self.weights or min(self.weights.values()) < 0 or not sum(self.weights.values()):
            raise InputError("the weights of a mixture must be at least 0, and one above 0")
        self.tasks = [task(name) for name in self.weights]
        self.seed = seed
        self.bank = sudoku_bank
        self.curriculum = curriculum or HoleCurriculum()

    def batch(self, step: int, source: str, size: int, progress: float = 1.0) -> list[Example]:
        """`size` examples of training step `step`; `progress` moves the Sudoku curriculum only.

        `source` is "sudoku" (holes by the curriculum), "text" (all tasks of the weights) or the
        name of one task.
        """
        if source == "text":
            return self._text(step, size, self.tasks, list(self.weights.values()))
        if source == "sudoku":
            return self._sudoku(step, lambda rng: self.curriculum.draw(rng, progress, size))
        chosen = task(source)
        if not isinstance(chosen, Sudoku):
            return self._text(step, size, [chosen], [1.0])
        low, high = chosen.fewest, chosen.most
        return self._sudoku(step, lambda rng: rng.integers(low, high + 1, size=size))

    def _sudoku(
        self, step: int, draw: Callable[[np.random.Generator], np.ndarray]
    ) -> list[Example]:
        if self.bank is None:
            raise InputError("this mixture has no Sudoku bank", hint="pass one from build_bank")
        numpy_rng = np.random.default_rng([self.seed, step])
        rng = random.Random(f"{self.seed}:mixture:sudoku:{step}")
        puzzles, solutions = sample_batch(self.bank, numpy_rng, draw(numpy_rng))
        pairs = zip(puzzles, solutions, strict=True)
        return [sudoku_example(rng, text_of(p), text_of(s)) for p, s in pairs]

    def _text(
        self, step: int, size: int, tasks: Sequence[Task], weights: Sequence[float]
    ) -> list[Example]:
        rng = random.Random(f"{self.seed}:mixture:text:{step}")
        chosen = rng.choices(tasks, weights, k=size)
        return [t.example(self.seed, rng.getrandbits(62), "train") for t in chosen]
