"""Freed memory goes back to the system, which only a process of its own can show."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HELD = """
import sys
from pathlib import Path
import torch
from sfumato.weights.heap import give_back_freed

def held():
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in l)
    return int(line.split()[1]) * 1024

done = sys.argv[1] == "yes" and give_back_freed()
first = torch.ones(31 << 18)
del first  # from here on glibc maps only what is larger
before, pieces = held(), []
for _ in range(30):
    pieces += [torch.ones(1 << 20), torch.ones(1 << 10)]
del pieces[::2]
print(done, held() - before)
"""


def freed(answer: str, **environment: str) -> tuple[str, int]:
    """Whether it was done, and the bytes still held of 126 MB that were freed."""
    known = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "THP_"))}
    out = subprocess.run(
        [sys.executable, "-c", HELD, answer],
        env=known | environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return out[0], int(out[1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_memory_is_given_back() -> None:
    done, left = freed("yes")
    if done == "False":
        pytest.skip("another C library")
    assert left < 20e6
    assert freed("no")[1] > 100e6


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_the_environment_says_stays() -> None:
    assert freed("yes", MALLOC_MMAP_THRESHOLD_="65536")[0] == "False"
