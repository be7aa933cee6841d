"""Whether a model fits this machine, before a byte of it is fetched or loaded."""

from __future__ import annotations

from dataclasses import dataclass

from sfumato.cli.terminal import human_bytes

# torch and its libraries, the activations of one canvas, a cache of some thousand positions.
_PROGRAM = 700_000_000
_WORK_SHARE = 0.05


@dataclass(frozen=True)
class Fit:
    """A model in one format, and whether this machine can hold it."""

    model: str
    format: str
    needed: int  # bytes of memory
    fits: bool | None  # None where the machine's memory is unknown
    reason: str


def needed_bytes(weights: int) -> int:
    """Memory for a model of so many bytes of weights: they, the program, and what it works on."""
    return int(weights * (1 + _WORK_SHARE)) + _PROGRAM


def judge(model: str, form: str, weights: int, memory: int | None) -> Fit:
    """Compare what a model needs with the machine's memory in all."""
    needed = needed_bytes(weights)
    if memory is None:
        return Fit(model, form, needed, None, "this system does not say how much memory it has")
    if needed > memory:
        short = human_bytes(needed - memory)
        return Fit(model, form, needed, False, f"{short} of memory too little")
    return Fit(model, form, needed, True, f"needs about {human_bytes(needed)}")
