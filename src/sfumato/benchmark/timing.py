"""How long something takes, what memory it needs, and who else was on the machine meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from sfumato.benchmark.statistics import Summary, summarise

_PROC = Path("/proc")
_MOST_SAMPLES = 1000
_RESET_PEAK = "5"  # what /proc/self/clear_refs takes to forget the highest resident size


@dataclass(frozen=True)
class Effort:
    """How long to measure: at least `repeats` times and at least `seconds`, after `warmups`."""

    repeats: int = 5
    seconds: float = 0.5
    warmups: int = 1


@dataclass(frozen=True)
class Timing:
    """Seconds of a part, its memory, and the load of others while it was measured.

    `peak_bytes` is the most the process (or the accelerator) held meanwhile, `extra_bytes` how much
    more than before; `others_cores` the cores that other processes kept busy. None where the
    system does not say.
    """

    seconds: Summary
    peak_bytes: int | None
    extra_bytes: int | None
    others_cores: float | None


@dataclass
class Watch:
    """What was seen between the two ends of `watching`."""

    peak_bytes: int | None = None
    extra_bytes: int | None = None
    others_cores: float | None = None

    def timing(self, samples: list[float]) -> Timing:
        """The measurement that these `samples`, seconds, belong to."""
        return Timing(summarise(samples), self.peak_bytes, self.extra_bytes, self.others_cores)


def measure(work: Callable[[], object], effort: Effort, device: torch.device) -> Timing:
    """Time `work` as `effort` says. What the accelerator still has to do is waited for."""
    for _ in range(effort.warmups):
        work()
    samples: list[float] = []
    with watching(device) as watch:
        begun = time.perf_counter()
        while len(samples) < _MOST_SAMPLES:
            samples.append(seconds_of(work, device))
            enough = time.perf_counter() - begun >= effort.seconds
            if enough and len(samples) >= effort.repeats:
                break
    return watch.timing(samples)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call of `work`."""
    settle(device)
    begun = time.perf_counter()
    work()
    settle(device)
    return time.perf_counter() - begun


def settle(device: torch.device) -> None:
    """Wait until `device` has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def watching(device: torch.device) -> Iterator[Watch]:
    """Look at memory and load from here to the end of the block, where the `Watch` is filled."""
    watch = Watch()
    before = _reset_peak(device)
    wall, own, busy = time.perf_counter(), _own_seconds(), _busy_seconds()
    yield watch
    wall, own = time.perf_counter() - wall, _own_seconds() - own
    now = _busy_seconds()
    if busy is not None and now is not None and wall > 0:
        watch.others_cores = max(0.0, (now - busy - own) / wall)
    if before is not None:  # else the peak is of the whole life of the process
        watch.peak_bytes = _peak(device)
    if watch.peak_bytes is not None and before is not None:
        watch.extra_bytes = max(0, watch.peak_bytes - before)


def _reset_peak(device: torch.device) -> int | None:
    """Forget the highest memory so far; returns what is held now, None if that cannot be had."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        (_PROC / "self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return None  # not Linux, or not allowed
    return _status("VmRSS")


def _peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def _status(field: str) -> int | None:
    """Bytes of a field of /proc/self/status, None on other systems."""
    for line in _lines("self/status"):
        name, _, value = line.partition(":")
        words = value.split()
        if name == field and words and words[0].isdigit():
            return int(words[0]) * 1024
    return None


def _own_seconds() -> float:
    """Processor time of this process."""
    times = os.times()
    return times.user + times.system


def _busy_seconds() -> float | None:
    """Processor time that all processes of the machine have had, None on other systems."""
    for line in _lines("stat"):
        words = line.split()
        if words[:1] == ["cpu"] and len(words) > 8:
            ticks = [int(word) for word in words[1:9]]
            idle = ticks[3] + ticks[4]
            return (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK")
    return None


def _lines(name: str) -> list[str]:
    try:
        return (_PROC / name).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
