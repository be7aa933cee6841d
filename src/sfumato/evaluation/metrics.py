"""What a task's answers come to: accuracy with its interval, and what the answers cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sfumato.errors import EvaluationError
from sfumato.tasks.base import Example

Z_95 = 1.959963984540054  # standard normal quantile at 0.975


@dataclass(frozen=True)
class Outcome:
    """One example answered. `text` is the answer; `seed` decodes it again on its own."""

    index: int  # the example's place in its task set
    example: Example
    text: str
    solved: bool
    seed: int
    tokens: int  # up to and with the first stop id
    steps: int  # forward passes over the canvas, or in autoregressive mode one a token
    canvases: int  # 0 in autoregressive mode


@dataclass(frozen=True)
class TaskResult:
    """A task's figures.

    `low` and `high` bound the accuracy's 95 % interval. `steps_per_canvas` and
    `tokens_per_forward` are means over all canvases and all passes: sums divided by sums, so they
    multiply out to tokens per canvas. `seconds` is wall time of encoding and decoding, without
    rendering prompts and checking answers; `tokens_per_second` is for the whole batch.
    """

    task: str
    examples: int
    solved: int
    accuracy: float
    low: float
    high: float
    steps_per_canvas: float | None  # None in autoregressive mode, which has no canvas
    tokens_per_forward: float
    seconds: float
    tokens_per_second: float

    @classmethod
    def of(cls, task: str, outcomes: Sequence[Outcome], seconds: float) -> TaskResult:
        """The figures of `outcomes`, which took `seconds`. Raises EvaluationError if none."""
        solved, examples = sum(one.solved for one in outcomes), len(outcomes)
        low, high = wilson(solved, examples)
        tokens = sum(one.tokens for one in outcomes)
        steps = sum(one.steps for one in outcomes)
        canvases = sum(one.canvases for one in outcomes)
        return cls(
            task=task,
            examples=examples,
            solved=solved,
            accuracy=solved / examples,
            low=low,
            high=high,
            steps_per_canvas=steps / canvases if canvases else None,
            tokens_per_forward=tokens / steps if steps else 0.0,
            seconds=seconds,
            tokens_per_second=tokens / seconds if seconds > 0 else 0.0,
        )


def wilson(solved: int, examples: int, z: float = Z_95) -> tuple[float, float]:
    """The score interval of a proportion (E. B. Wilson, 1927): (low, high) within [0, 1].

    `z` is the normal quantile of the wanted confidence. Unlike the interval of the normal
    approximation it stays honest near 0 and 1, where a good model's accuracy lies.
    Raises EvaluationError for counts that cannot be.
    """
    if examples < 1 or not 0 <= solved <= examples:
        raise EvaluationError(f"{solved} solved of {examples} examples gives no accuracy")
    share, spread = solved / examples, z * z / examples
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    # At the ends the bound is the estimate itself, which rounding would miss by a bit.
    low = 0.0 if solved == 0 else min(share, middle - half)
    high = 1.0 if solved == examples else max(share, middle + half)
    return max(0.0, low), min(1.0, high)
