"""Which examples are asked: held-out sets by name, files, or a caller's own, and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sfumato.errors import EvaluationError, InputError
from sfumato.tasks.base import Example, exact
from sfumato.tasks.heldout import heldout, read_examples
from sfumato.tasks.registry import task

Work = str | Sequence["str | Example | TaskSet"]


@dataclass(frozen=True)
class TaskSet:
    """Examples that are counted together, under one name."""

    name: str
    examples: tuple[Example, ...]

    def __post_init__(self) -> None:
        if not self.examples:
            raise EvaluationError(f"the task set {self.name!r} holds no example")


def read_task_sets(path: str | Path) -> tuple[TaskSet, ...]:
    """The sets of a JSON-lines file of {"task", "prompt", "answer"}, one a task, in file order.

    A task that sfumato does not know is checked by exact match. Raises EvaluationError, naming
    the file and the line.
    """
    return _by_task(read_examples(path))


def task_sets(work: Work, n: int, seed: int) -> tuple[TaskSet, ...]:
    """What `work` stands for.

    A name like "sudoku:10-40" is that task's first `n` held-out examples for `seed`; examples of
    the caller's are all taken and grouped by task. Raises InputError for an unknown name and
    EvaluationError for a name that comes twice or no work at all.
    """
    items = [work] if isinstance(work, str) else list(work)
    if n < 1:
        raise EvaluationError(f"{n} examples cannot be evaluated", hint="ask for 1 or more")
    sets: list[TaskSet] = []
    for item in items:
        if isinstance(item, str):
            sets.append(TaskSet(item, tuple(heldout(item, n, seed))))
        elif isinstance(item, TaskSet):
            sets.append(item)
    sets += _by_task([item for item in items if isinstance(item, Example)])
    if not sets:
        raise EvaluationError("there is nothing to evaluate", hint="name a task, or give a file")
    names = [one.name for one in sets]
    for name in names:
        if names.count(name) > 1:
            raise EvaluationError(
                f"the task {name!r} is given twice", hint="evaluate a file's set on its own"
            )
    return tuple(sets)


def is_solved(example: Example, text: str) -> bool:
    """Whether `text` is right by the check of the example's task, or by exact match without one.

    White space around the answer never counts.
    """
    try:
        known = task(example.task)
    except InputError:  # somebody's own task
        return exact(example, text)
    return known.check(example, text)


def _by_task(examples: Sequence[Example]) -> tuple[TaskSet, ...]:
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.task, []).append(example)
    return tuple(TaskSet(name, tuple(group)) for name, group in groups.items())
