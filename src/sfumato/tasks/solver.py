"""Sudoku on bit masks in plain Python: full grids, uniqueness, digging of holes."""

from __future__ import annotations

import random

ALL = 0x1FF
CELLS = range(81)
ROW = tuple(c // 9 for c in CELLS)
COLUMN = tuple(c % 9 for c in CELLS)
BOX = tuple(c // 27 * 3 + c % 9 // 3 for c in CELLS)
UNITS: tuple[tuple[int, ...], ...] = tuple(
    tuple(c for c in CELLS if of[c] == u) for of in (ROW, COLUMN, BOX) for u in range(9)
)
UNITS_OF = tuple(tuple(u for u in UNITS if c in u) for c in CELLS)
PEERS = tuple(tuple(sorted({p for u in UNITS_OF[c] for p in u} - {c})) for c in CELLS)
COUNT = tuple(m.bit_count() for m in range(512))
BITS = tuple(tuple(1 << d for d in range(9) if m >> d & 1) for m in range(512))


def _assign(candidates: list[int], cell: int, bit: int) -> bool:
    """Fix a cell and follow naked singles; False on a contradiction. `candidates` is changed."""
    candidates[cell] = bit
    stack = [cell]
    while stack:
        fixed = stack.pop()
        value = candidates[fixed]
        for peer in PEERS[fixed]:
            mask = candidates[peer]
            if mask & value:
                mask ^= value
                if not mask:
                    return False
                candidates[peer] = mask
                if not mask & (mask - 1):
                    stack.append(peer)
    return True


def _hidden_singles(candidates: list[int]) -> int:
    """Place every digit that has one cell left in a unit. -1: contradiction, else how many."""
    placed = 0
    for unit in UNITS:
        once = twice = 0
        for cell in unit:
            mask = candidates[cell]
            twice |= once & mask
            once |= mask
        if once != ALL:
            return -1
        once &= ~twice
        if not once:
            continue
        for cell in unit:
            mask = candidates[cell]
            single = mask & once
            if single and mask & (mask - 1):
                if single & (single - 1) or not _assign(candidates, cell, single):
                    return -1
                placed += 1
    return placed


def search(candidates: list[int], limit: int, rng: random.Random | None = None) -> list[list[int]]:
    """Up to `limit` solutions (as 81 single-bit masks) of a candidate list, which is used up."""
    while placed := _hidden_singles(candidates):
        if placed < 0:
            return []
    best, fewest = -1, 10
    for cell in CELLS:
        count = COUNT[candidates[cell]]
        if 1 < count < fewest:
            best, fewest = cell, count
            if count == 2:
                break
    if best < 0:
        return [candidates]
    options = list(BITS[candidates[best]])
    if rng is not None:
        rng.shuffle(options)
    found: list[list[int]] = []
    for bit in options:
        trial = candidates.copy()
        if _assign(trial, best, bit):
            found += search(trial, limit - len(found), rng)
            if len(found) >= limit:
                break
    return found


def candidates_of(grid: list[int]) -> list[int] | None:
    """Masks after placing the givens (0 is a hole); None if two givens clash."""
    candidates = [ALL] * 81
    for cell, digit in enumerate(grid):
        if digit:
            bit = 1 << (digit - 1)
            if not candidates[cell] & bit:
                return None
            if candidates[cell] != bit and not _assign(candidates, cell, bit):
                return None
    return candidates


def solve(grid: list[int], limit: int = 2) -> list[list[int]]:
    """Up to `limit` solutions of a grid of 81 digits with 0 for a hole."""
    candidates = candidates_of(grid)
    if candidates is None:
        return []
    return [[m.bit_length() for m in s] for s in search(candidates, limit)]


def full_grid(rng: random.Random) -> list[int]:
    """A random complete grid: three diagonal boxes at random, the rest by randomised search."""
    grid = [0] * 81
    for box in (0, 4, 8):
        digits = rng.sample(range(1, 10), 9)
        for cell, digit in zip(UNITS[18 + box], digits, strict=True):
            grid[cell] = digit
    candidates = candidates_of(grid)
    assert candidates is not None
    return [m.bit_length() for m in search(candidates, 1, rng)[0]]


def _forced(masks: list[int], used: list[int], cell: int, bit: int) -> bool:
    """Whether the givens alone force `bit` here: a naked single, or a hidden one in a unit."""
    if not ALL & ~(used[cell] | bit):
        return True
    return any(all(masks[c] or used[c] & bit for c in unit if c != cell) for unit in UNITS_OF[cell])


def dig(solution: list[int], rng: random.Random, most: int) -> list[int]:
    """An order of cells such that every prefix, taken out, leaves a puzzle with one solution.

    A cell that cannot go now can never go later, so one pass is a full dig; it ends at `most`.
    """
    masks = [1 << (d - 1) for d in solution]
    order: list[int] = []
    for cell in rng.sample(CELLS, 81):
        if len(order) == most:
            break
        bit, masks[cell] = masks[cell], 0
        used = [0] * 81
        for around in (cell, *(p for p in PEERS[cell] if not masks[p])):
            for peer in PEERS[around]:
                used[around] |= masks[peer]
        if _forced(masks, used, cell, bit) or not _other_solution(masks, cell, bit):
            order.append(cell)
        else:
            masks[cell] = bit
    return order


def _other_solution(masks: list[int], cell: int, bit: int) -> bool:
    """Whether some completion of the givens has another digit than `bit` in `cell`."""
    grid = [m.bit_length() for m in masks]
    candidates = candidates_of(grid)
    if candidates is None or not candidates[cell] & ~bit:
        return False
    for other in BITS[candidates[cell] & ~bit]:
        trial = candidates.copy()
        if _assign(trial, cell, other) and search(trial, 1):
            return True
    return False
