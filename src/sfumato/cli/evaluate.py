"""`sfumato eval`: run a task set."""

from __future__ import annotations


def evaluate() -> None:
    """Evaluate."""
