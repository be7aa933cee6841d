"""How the temperature falls while a canvas is refined."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LinearTemperature:
    """t_min + (t_max - t_min) * n / N with n of N steps left, so the first step is the hottest."""

    t_min: float
    t_max: float
    steps: int

    def at(self, remaining: Tensor) -> Tensor:
        """Temperatures, fp32, for integer counts of `remaining` steps, of the same shape."""
        return self.t_min + (self.t_max - self.t_min) * (remaining / self.steps)
