"""Learning rates as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """The factor on every learning rate: linear warm-up, then one of two shapes.

    "wsd" (warm-up, stable, decay) stays at 1 and falls linearly over the last `decay_share` of
    `max_steps`, so that a run can be extended from any point before the fall. "cosine" falls all
    along. Both end at `final_share`.
    """

    kind: Literal["wsd", "cosine"]
    max_steps: int
    warmup_steps: int = 0
    decay_share: float = 0.25
    final_share: float = 0.0

    def at(self, step: int) -> float:
        """The factor for the step after `step` finished ones."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return warm * (self.final_share + (1.0 - self.final_share) * self._shape(step))

    def _shape(self, step: int) -> float:
        if self.kind == "cosine":
            done = min(1.0, max(0, step - self.warmup_steps) / self._span(self.warmup_steps))
            return 0.5 * (1.0 + math.cos(math.pi * done))
        start = round((1.0 - self.decay_share) * self.max_steps)
        return 1.0 - min(1.0, max(0, step - start) / self._span(start))

    def _span(self, start: int) -> int:
        return max(1, self.max_steps - start)
