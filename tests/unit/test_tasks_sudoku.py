"""Sudoku: uniqueness by a solver of another kind, symmetries, limits, the bank's file."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.errors import InputError
from sfumato.tasks import solver
from sfumato.tasks.base import generator
from sfumato.tasks.sudoku import (
    MOST_HOLES,
    UNUSED,
    WORDINGS,
    Bytes,
    Sudoku,
    base_grid,
    build_bank,
    cached_bank,
    sample_batch,
    text_of,
    worded,
)

Column = tuple[str, int, int]
# A published puzzle of 17 givens with its solution's first row (Royle's list, number 1).
ROYLE = "000000010400000000020000000000050407008000300001090000300400200050100000000806000"
ROYLE_FIRST_ROW = "693784512"


def row_columns(row: int, column: int, digit: int) -> list[Column]:
    """The four constraints that one placed digit satisfies."""
    box = row // 3 * 3 + column // 3
    return [("cell", row, column), ("row", row, digit), ("col", column, digit), ("box", box, digit)]


def count_solutions(grid: str, limit: int = 2) -> int:
    """Solutions of a grid, counted as exact covers (Knuth's Algorithm X): nothing shared."""
    rows = {
        (r, c, d): row_columns(r, c, d)
        for r in range(9)
        for c in range(9)
        for d in range(1, 10)
        if grid[r * 9 + c] in (".", str(d))
    }
    columns: dict[Column, set[tuple[int, int, int]]] = {}
    for r in range(9):
        for c in range(9):
            for d in range(1, 10):
                for column in row_columns(r, c, d):
                    columns.setdefault(column, set())
    for choice, covered in rows.items():
        for column in covered:
            columns[column].add(choice)
    return cover(columns, rows, limit)


def cover(
    columns: dict[Column, set[tuple[int, int, int]]],
    rows: dict[tuple[int, int, int], list[Column]],
    limit: int,
) -> int:
    """How many exact covers there are, at most `limit`."""
    if not columns:
        return 1
    tightest = min(columns, key=lambda column: len(columns[column]))
    found = 0
    for choice in list(columns[tightest]):
        removed = []
        for column in rows[choice]:
            for other in columns[column]:
                for another in rows[other]:
                    if another != column:
                        columns[another].remove(other)
            removed.append(columns.pop(column))
        found += cover(columns, rows, limit - found)
        for column in reversed(rows[choice]):
            columns[column] = removed.pop()
            for other in columns[column]:
                for another in rows[other]:
                    if another != column:
                        columns[another].add(other)
        if found >= limit:
            break
    return found


def is_solved(grid: str) -> bool:
    """Every row, column and box holds 1..9."""
    lines = [grid[9 * i : 9 * i + 9] for i in range(9)]
    lines += [grid[i::9] for i in range(9)]
    lines += [
        "".join(grid[(r + i) * 9 + c : (r + i) * 9 + c + 3] for i in range(3))
        for r in (0, 3, 6)
        for c in (0, 3, 6)
    ]
    return all(sorted(line) == list("123456789") for line in lines)


@pytest.fixture(scope="module")
def bank() -> Bytes:
    """Twelve bases."""
    return build_bank(3, 12)


def test_the_tests_own_counter_knows_a_published_puzzle() -> None:
    grid = ROYLE.replace("0", ".")
    assert count_solutions(grid) == 1
    assert count_solutions(grid.replace("6", ".")) == 2
    assert count_solutions("11" + "." * 79) == 0
    assert count_solutions("." * 81, limit=5) == 5


def test_solver_agrees_on_a_published_puzzle() -> None:
    found = solver.solve([int(c) for c in ROYLE])
    assert len(found) == 1
    assert text_of(found[0])[:9] == ROYLE_FIRST_ROW
    assert is_solved(text_of(found[0]))
    assert all(a == b for a, b in zip(ROYLE, text_of(found[0]), strict=True) if a != "0")


@pytest.mark.parametrize(
    ("grid", "solutions"),
    [
        ([0] * 81, 2),
        ([1, 1] + [0] * 79, 0),
        ([1, 2, 3, 4, 5, 6, 7, 8, 0, *[0] * 8, 9, *[0] * 63], 0),
    ],
    ids=["empty", "clash", "no digit left"],
)
def test_solver_counts_to_the_limit(grid: list[int], solutions: int) -> None:
    assert len(solver.solve(grid, limit=2)) == solutions


@given(st.integers(0, 2**32))
def test_full_grids_are_solved_and_reproducible(seed: int) -> None:
    grid = solver.full_grid(random.Random(seed))
    assert is_solved(text_of(grid))
    assert solver.full_grid(random.Random(seed)) == grid


@pytest.mark.parametrize("seed", range(4))
def test_every_prefix_of_a_dig_order_is_a_unique_puzzle(seed: int) -> None:
    solution, order = base_grid(random.Random(seed))
    assert 45 <= len(order) <= MOST_HOLES
    assert len(set(order)) == len(order)
    puzzle = solution.copy()
    for taken, cell in enumerate(order, 1):
        puzzle[cell] = 0
        if taken % 8 == 0 or taken == len(order):
            assert count_solutions(text_of(puzzle)) == 1
            assert solver.solve(puzzle) == [solution]


def test_a_full_dig_leaves_no_cell_that_could_go() -> None:
    rng = random.Random(5)
    solution = solver.full_grid(rng)
    order = solver.dig(solution, rng, 81)
    puzzle = [0 if cell in order else digit for cell, digit in enumerate(solution)]
    assert count_solutions(text_of(puzzle)) == 1
    for cell in range(81):
        if puzzle[cell]:
            without = puzzle.copy()
            without[cell] = 0
            assert count_solutions(text_of(without)) == 2


def test_bank_holds_solution_then_order(bank: Bytes) -> None:
    assert bank.shape == (12, 145)
    assert bank.dtype == np.uint8
    for row in bank:
        assert is_solved(text_of(row[:81]))
        order = row[81:]
        used = order[order != UNUSED]
        assert (order[: len(used)] == used).all(), "the unused places come last"
        assert len(set(used.tolist())) == len(used)


def test_bank_is_a_pure_function_of_its_seed(bank: Bytes) -> None:
    assert (build_bank(3, 12) == bank).all()
    assert (build_bank(3, 4) == bank[:4]).all(), "a longer bank begins with the shorter one"
    assert (build_bank(4, 4) != bank[:4]).any()


def test_batches_keep_the_rules_and_the_number_of_holes(bank: Bytes) -> None:
    holes = np.arange(5, 45)
    puzzles, solutions = sample_batch(bank, np.random.default_rng(0), holes)
    assert puzzles.shape == solutions.shape == (40, 81)
    assert puzzles.dtype == solutions.dtype == np.uint8
    assert ((puzzles == 0).sum(axis=1) == holes).all()
    for puzzle, solution in zip(puzzles, solutions, strict=True):
        assert is_solved(text_of(solution))
        assert (puzzle[puzzle > 0] == solution[puzzle > 0]).all()
        assert count_solutions(text_of(puzzle)) == 1


def test_augmentation_reaches_other_grids_than_the_bases(bank: Bytes) -> None:
    holes = np.full(300, 30)
    _, solutions = sample_batch(bank, np.random.default_rng(1), holes)
    assert len({text_of(s) for s in solutions}) == 300
    assert not {text_of(s) for s in solutions} & {text_of(row[:81]) for row in bank}
    first = np.bincount(solutions[:, 0], minlength=10)[1:]
    assert first.min() > 10, "every digit is met in the first cell"


def test_a_base_that_cannot_lose_so_many_loses_what_it_can(bank: Bytes) -> None:
    puzzles, _ = sample_batch(bank[:1], np.random.default_rng(0), np.full(3, 64))
    assert ((puzzles == 0).sum(axis=1) == (bank[0, 81:] != UNUSED).sum()).all()


def test_batches_are_a_function_of_the_generator(bank: Bytes) -> None:
    holes = np.full(6, 20)
    one = sample_batch(bank, np.random.default_rng(7), holes)
    two = sample_batch(bank, np.random.default_rng(7), holes)
    assert all((a == b).all() for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("name", [(10, 40), (41, 50)])
def test_held_out_puzzles_are_unique_and_in_range(name: tuple[int, int]) -> None:
    task = Sudoku(*name)
    for index in range(12):
        example = task.example(0, index, "heldout")
        grid = example.prompt[-81:]
        assert name[0] <= grid.count(".") <= name[1]
        assert example.detail["holes"] == grid.count(".")
        assert count_solutions(grid) == 1
        assert is_solved(example.answer)
        assert all(g in (".", a) for g, a in zip(grid, example.answer, strict=True))


def test_held_out_grids_are_not_the_banks(bank: Bytes) -> None:
    answers = {Sudoku().example(3, index, "heldout").answer for index in range(12)}
    assert len(answers) == 12
    assert not answers & {text_of(row[:81]) for row in bank}


def test_check_wants_the_81_digits_and_forgives_white_space() -> None:
    task = Sudoku(10, 12)
    example = task.example(0, 0)
    lines = "\n".join(example.answer[i : i + 9] for i in range(0, 81, 9))
    assert task.check(example, example.answer)
    assert task.check(example, f" {lines}\n")
    assert not task.check(example, example.answer[:-1])
    assert not task.check(example, example.answer + "1")
    assert not task.check(example, example.prompt[-81:])


@pytest.mark.parametrize("limits", [(0, 4), (20, 10), (10, 55)])
def test_impossible_ranges_are_errors(limits: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="cannot be made"):
        Sudoku(*limits)


def test_wordings_end_in_the_grid_and_seven_in_ten_are_bare() -> None:
    grid = "." * 81
    prompts = [worded(random.Random(i), grid) for i in range(2000)]
    assert all(p.endswith(grid) for p in prompts)
    assert 0.65 < sum(p == grid for p in prompts) / 2000 < 0.75
    assert {p[:-81] for p in prompts} == {"", *WORDINGS}
    assert len(WORDINGS) >= 12


def test_cached_bank_is_written_once_and_refused_for_another_seed(tmp_path: Path) -> None:
    path = tmp_path / "made" / "bank.npy"
    first = cached_bank(path, 3, 3)
    assert [p.name for p in path.parent.iterdir()] == ["bank.npy"]
    assert (cached_bank(path, 3, 3) == first).all()
    with pytest.raises(InputError, match="not the Sudoku bank of seed 4"):
        cached_bank(path, 4, 3)
    with pytest.raises(InputError, match="with 5 grids"):
        cached_bank(path, 3, 5)


def test_generators_of_the_splits_differ() -> None:
    assert (
        generator("sudoku", 1, 2, "train").random() != generator("sudoku", 1, 2, "heldout").random()
    )
