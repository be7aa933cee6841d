"""The tasks by name. `sudoku:10-40` is Sudoku with that range of holes."""

from __future__ import annotations

import re

from sfumato.errors import InputError
from sfumato.tasks.base import Task
from sfumato.tasks.copying import Copying
from sfumato.tasks.dates import Dates
from sfumato.tasks.extraction import Extraction
from sfumato.tasks.numbers import Numbers
from sfumato.tasks.sudoku import Sudoku
from sfumato.tasks.tools import ToolCalls
from sfumato.tasks.units import Conversions

TASKS: dict[str, Task] = {
    "sudoku:10-40": Sudoku(10, 40),
    "sudoku:41-50": Sudoku(41, 50),
    "dates": Dates(),
    "numbers": Numbers(),
    "units": Conversions(),
    "json": Extraction(),
    "tools": ToolCalls(),
    "copy": Copying(),
}


def task(name: str) -> Task:
    """The task of that name; `sudoku` alone means 10 to 50 holes. Unknown names are errors."""
    if name in TASKS:
        return TASKS[name]
    if name == "sudoku":
        return Sudoku()
    if found := re.fullmatch(r"sudoku:(\d{1,2})-(\d{1,2})", name):
        return Sudoku(int(found[1]), int(found[2]))
    raise InputError(
        f"there is no task {name!r}", hint=f"tasks: {', '.join(TASKS)}, sudoku:LOW-HIGH"
    )
