"""9x9 Sudoku with a stated number of holes and one solution, as a task and as training batches."""

from __future__ import annotations

import os
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfumato.errors import InputError
from sfumato.tasks.base import Example, Split, exact, generator
from sfumato.tasks.solver import dig, full_grid

Bytes = NDArray[np.uint8]
MOST_HOLES = 56
ORDER = 64
UNUSED = 255
WORDINGS = (
    "Solve this Sudoku: ",
    "Solve the Sudoku: ",
    "Solve this sudoku:\n",
    "Solve: ",
    "Sudoku: ",
    "sudoku: ",
    "Sudoku:\n",
    "Please solve this puzzle: ",
    "Can you solve this Sudoku? ",
    "Complete the grid: ",
    "Fill in the holes: ",
    "What is the solution of this Sudoku? ",
    "Complete this 9x9 Sudoku: ",
)


def base_grid(rng: random.Random) -> tuple[list[int], list[int]]:
    """A solution (81 digits) and the order in which its cells may be taken out."""
    solution = full_grid(rng)
    return solution, dig(solution, rng, MOST_HOLES)


def build_bank(seed: int, n: int) -> Bytes:
    """Base grids for training, [n, 81 + 64]: the solution, then the dig order (255: no more)."""
    bank = np.full((n, 81 + ORDER), UNUSED, dtype=np.uint8)
    for index in range(n):
        solution, order = base_grid(generator("sudoku", seed, index, "train"))
        bank[index, :81] = solution
        bank[index, 81 : 81 + len(order)] = order
    return bank


def cached_bank(path: str | Path, seed: int, n: int) -> Bytes:
    """`build_bank`, kept in the .npy file `path`; a file of another seed or size is an error."""
    path = Path(path)
    if path.exists():
        bank: Bytes = np.load(path, allow_pickle=False)
        first = build_bank(seed, 1)[0]
        if bank.shape != (n, 81 + ORDER) or bank.dtype != np.uint8 or (bank[0] != first).any():
            raise InputError(
                f"{path} is not the Sudoku bank of seed {seed} with {n} grids",
                hint="name another file, or delete this one to have it built again",
            )
        return bank
    bank = build_bank(seed, n)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    with os.fdopen(handle, "wb") as file:
        np.save(file, bank)
        file.flush()
        os.fsync(file.fileno())
    os.replace(name, path)
    return bank


def _lines(rng: np.random.Generator, b: int) -> NDArray[np.intp]:
    """[b, 9] row orders that keep the three bands together."""
    bands = np.argsort(rng.random((b, 3)), axis=1)
    within = np.argsort(rng.random((b, 3, 3)), axis=2)
    order: NDArray[np.intp] = (bands[:, :, None] * 3 + within).reshape(b, 9)
    return order


def sample_batch(
    bank: Bytes, rng: np.random.Generator, holes: NDArray[np.integer]
) -> tuple[Bytes, Bytes]:
    """Puzzles and solutions [b, 81] from random bases under random symmetries of the game.

    `holes` [b]: how many cells are 0; a base that cannot lose so many loses what it can.
    Digits are relabelled, rows and columns moved inside bands, bands moved, half transposed.
    """
    b = len(holes)
    base = bank[rng.integers(len(bank), size=b)]
    solution, order = base[:, :81], base[:, 81:].astype(np.intp)
    taken = (np.arange(ORDER)[None, :] < holes[:, None]) & (order != UNUSED)
    empty = np.zeros((b, 81), dtype=bool)
    row = np.broadcast_to(np.arange(b)[:, None], order.shape)
    empty[row[taken], order[taken]] = True
    source = _lines(rng, b)[:, :, None] * 9 + _lines(rng, b)[:, None, :]
    flip = rng.random(b) < 0.5
    source[flip] = source[flip].transpose(0, 2, 1)
    source = source.reshape(b, 81)
    labels = np.argsort(rng.random((b, 9)), axis=1).astype(np.uint8) + 1
    every = np.arange(b)[:, None]
    solutions: Bytes = labels[every, solution[every, source] - 1]
    puzzles: Bytes = np.where(empty[every, source], np.uint8(0), solutions)
    return puzzles, solutions


def text_of(grid: Bytes | list[int]) -> str:
    """81 characters, '.' for a hole."""
    return "".join(".123456789"[int(d)] for d in grid)


def worded(rng: random.Random, grid: str) -> str:
    """The prompt: the bare grid seven times in ten, else a wording with the grid last."""
    return grid if rng.random() < 0.7 else rng.choice(WORDINGS) + grid


def sudoku_example(rng: random.Random, puzzle: str, solution: str) -> Example:
    """The example of a puzzle, with its number of holes as detail."""
    holes = puzzle.count(".")
    return Example("sudoku", worded(rng, puzzle), solution, {"holes": holes})


@dataclass(frozen=True)
class Sudoku:
    """Puzzles with `fewest` to `most` holes, uniform. Every index has a grid of its own."""

    fewest: int = 10
    most: int = 50

    def __post_init__(self) -> None:
        if not 1 <= self.fewest <= self.most <= 54:
            raise InputError(
                f"a Sudoku with {self.fewest} to {self.most} holes cannot be made",
                hint="holes go from 1 to 54, the smaller number first",
            )

    @property
    def name(self) -> str:
        """`sudoku:LOW-HIGH`."""
        return f"sudoku:{self.fewest}-{self.most}"

    def example(self, seed: int, index: int, split: Split = "train") -> Example:
        """A puzzle dug from its own random grid; held-out grids share no seed with the bank."""
        rng = generator(f"sudoku:{self.fewest}-{self.most}", seed, index, split)
        holes = rng.randint(self.fewest, self.most)
        while True:
            solution, order = base_grid(rng)
            if len(order) >= holes:
                break
        puzzle = solution.copy()
        for cell in order[:holes]:
            puzzle[cell] = 0
        return sudoku_example(rng, text_of(puzzle), text_of(solution))

    def check(self, example: Example, answer_text: str) -> bool:
        """The 81 digits of the unique solution; white space does not count."""
        return exact(example, "".join(answer_text.split()))
