"""Check an answered Sudoku, read from stdin, against its puzzle and the rules; knows no solver.

Usage: sfumato ask PUZZLE | python scripts/check_sudoku.py PUZZLE
"""

from __future__ import annotations

import sys

DIGITS = set("123456789")


def faults(puzzle: str, answer: str) -> list[str]:
    """What is wrong with `answer` (81 digits) for `puzzle` (81 characters, `.` for a hole)."""
    if len(answer) != 81 or not set(answer) <= DIGITS:
        return [f"not 81 digits: {answer!r}"]
    found = [
        f"cell {cell} was given as {given}, answered as {digit}"
        for cell, (given, digit) in enumerate(zip(puzzle, answer, strict=True))
        if given not in {".", digit}
    ]
    for number in range(9):
        row = answer[9 * number : 9 * number + 9]
        column = answer[number::9]
        corner = number // 3 * 27 + number % 3 * 3
        box = "".join(answer[corner + 9 * line :][:3] for line in range(3))
        for kind, unit in (("row", row), ("column", column), ("box", box)):
            if set(unit) != DIGITS:
                found.append(f"{kind} {number + 1} is {unit}")
    return found


def main(arguments: list[str]) -> int:
    """Say whether stdin holds a solution; 1 if it does not, 2 without a puzzle of 81 characters."""
    if len(arguments) != 1 or len(arguments[0]) != 81:
        print(__doc__, file=sys.stderr)
        return 2
    found = faults(arguments[0], sys.stdin.read().strip())
    print("\n".join(found) or "solved")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
