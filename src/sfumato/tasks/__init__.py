"""Tasks with exact answers: training text without end, and held-out sets to measure by."""

from sfumato.tasks.base import Example, Split, Task

__all__ = ["Example", "Split", "Task"]
