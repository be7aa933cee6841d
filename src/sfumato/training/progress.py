"""What a run says while it runs: one line that renews itself, or plain lines into a pipe."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TextIO


def clock(seconds: float) -> str:
    """`1:02:03`, or `2:03` below an hour."""
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass
class Progress:
    """Writes to `stream`; on a terminal the step line overwrites itself."""

    stream: TextIO = field(default_factory=lambda: sys.stderr)
    _open: bool = False

    def step(self, text: str) -> None:
        """Show a step."""
        if self.stream.isatty():
            self.stream.write(f"\r\x1b[2K{text}")
            self._open = True
        else:
            self.stream.write(text + "\n")
        self.stream.flush()

    def say(self, text: str) -> None:
        """Show a line that stays."""
        self.stream.write(("\n" if self._open else "") + text + "\n")
        self.stream.flush()
        self._open = False


@dataclass
class Meter:
    """Means over the steps since the last reading."""

    steps: int = 0
    canvases: int = 0
    tokens: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def add(self, losses: dict[str, float], canvases: int, tokens: int) -> None:
        """Count one step. Losses that only some steps have are averaged over those."""
        self.steps += 1
        self.canvases += canvases
        self.tokens += tokens
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.sums[f"{name} count"] = self.sums.get(f"{name} count", 0.0) + 1.0

    def read(self) -> tuple[dict[str, float], dict[str, float]]:
        """Mean losses and rates per second; starts anew."""
        seconds = max(1e-9, time.monotonic() - self.started)
        losses = {
            name: total / self.sums[f"{name} count"]
            for name, total in self.sums.items()
            if not name.endswith(" count")
        }
        rates = {
            "seconds_a_step": seconds / max(1, self.steps),
            "canvases_a_second": self.canvases / seconds,
            "tokens_a_second": self.tokens / seconds,
        }
        self.__init__()  # type: ignore[misc]
        return losses, rates
