"""The only reader of the environment: what it says, checked once, as one frozen value."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from sfumato.errors import UsageError

_PREFIX = "SFUMATO_"
_KNOWN = ("SFUMATO_ACTIVATIONS", "SFUMATO_KERNELS", "SFUMATO_MODEL", "SFUMATO_THREADS")
_TRUE = frozenset({"1", "on", "yes", "true"})  # as huggingface_hub reads its own switches
_MAX_THREADS = 4096
_ALLOCATOR = ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
_WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
_FEW_PROCESSORS = 4
_TURNS = "1000"  # 10 to 40 microseconds, by the processor
_DUMB = frozenset({"", "dumb", "unknown"})  # of TERM; without one, a terminal is what git calls so


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the environment asks for. A flag of the command line goes before any of these.

    `model` (SFUMATO_MODEL) is the checkpoint used when none is named, None for the small model;
    `threads` (SFUMATO_THREADS) the CPU threads of the arithmetic, None for torch's own choice;
    `kernels` (SFUMATO_KERNELS) the compiled kernels: "auto", "reference" for torch alone, or an
    instruction set's name, checked where they are chosen; `activations` (SFUMATO_ACTIVATIONS)
    "int8" rounds activations to 8 bits where weights are quantised, checked likewise; `offline`
    (HF_HUB_OFFLINE) forbids the network, and huggingface_hub itself obeys the same variable; `dumb`
    is True on a terminal that says it can do nothing, or does not say what it is; `allocator` is
    True where the C library has been told how to hold memory (MALLOC_MMAP_THRESHOLD_,
    GLIBC_TUNABLES).
    """

    model: str | None = None
    threads: int | None = None
    kernels: str = "auto"
    activations: str | None = None
    offline: bool = False
    dumb: bool = False
    allocator: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read `environment`, or the process's own when it is None.

        Raises UsageError for a SFUMATO_ variable that does not exist or holds no usable value:
        a misspelt one would otherwise be ignored in silence.
        """
        found = os.environ if environment is None else environment
        for name in sorted(found):
            if name.startswith(_PREFIX) and name not in _KNOWN:
                raise UsageError(
                    f"{name} is set, but sfumato reads no such variable",
                    hint=f"known are {', '.join(_KNOWN)}",
                )
        return cls(
            model=found.get("SFUMATO_MODEL", "").strip() or None,
            threads=_threads(found.get("SFUMATO_THREADS", "").strip()),
            kernels=found.get("SFUMATO_KERNELS", "").strip() or "auto",
            activations=found.get("SFUMATO_ACTIVATIONS", "").strip() or None,
            offline=found.get("HF_HUB_OFFLINE", "").strip().lower() in _TRUE,
            dumb=found.get("TERM", "" if os.name == "posix" else "windows") in _DUMB,
            allocator=any(name in found for name in _ALLOCATOR),
        )


def _threads(text: str) -> int | None:
    if not text:
        return None
    plain = text.isascii() and text.isdigit() and len(text) <= len(str(_MAX_THREADS))
    if not plain or not 1 <= int(text) <= _MAX_THREADS:
        raise UsageError(
            f"SFUMATO_THREADS is {text[:40]!r}, not a number of threads from 1 to {_MAX_THREADS}",
            hint="unset it to let torch choose",
        )
    return int(text)


def prepare_for_torch() -> None:
    """On a few processors, let threads that wait for others sleep after a moment's turning.

    A thread that turns in a loop takes the processor from the one it waits for as soon as other
    programs want theirs: two such programs on two cores were seen to take 80 times as long. But to
    wake one takes longer than most waits of a quiet machine (decision 27). What the user has set
    stays. torch's runtime reads it while it is loaded; where it is already, nothing is done.
    """
    if "torch" in sys.modules or any(name in os.environ for name in _WAITING):
        return
    if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) <= _FEW_PROCESSORS:
        os.environ["GOMP_SPINCOUNT"] = _TURNS
