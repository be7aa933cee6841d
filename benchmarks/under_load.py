"""Time denoise passes of the small model alone and beside programs that want the processors too.

Usage: python benchmarks/under_load.py [--threads 2] [--passes 50] [--rounds 3]
           [--spin default,0,1000] [--beside nothing,loop,product,sfumato]

Every setting is a process of its own, in turns, as OpenMP reads GOMP_SPINCOUNT once: how long a
thread that waits for others turns in a loop before it sleeps. "default" leaves it unset for OpenMP,
which sfumato itself would not on few processors (settings.py). Beside it run nothing, a loop in
Python, torch's matrix product in as many threads, or the same passes once more. Printed are the
medians of the rounds' medians, and the slowest round's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

DEFAULT = "default"
LOOP = "while True: pass"
PRODUCT = """
import sys, torch
torch.set_num_threads(int(sys.argv[1]))
a = torch.randn(1000, 1000)
while True: a @ a
"""
BESIDE = ("nothing", "loop", "product", "sfumato")


def passes(threads: int, count: int) -> float:
    """Median milliseconds of `count` denoise passes in this process, after a few uncounted."""
    from sfumato.api import load
    from sfumato.benchmark.passes import random_ids

    torch.set_num_threads(threads)
    model = load()
    cache = model.encode(random_ids(model.network, 1, 104, 0))
    canvas = random_ids(model.network, 1, model.config.canvas_length, 1)
    seconds = []
    for _ in range(count + 3):
        began = time.perf_counter()
        model.denoise(canvas, cache)
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds[3:])


@contextmanager
def beside(what: str, threads: int) -> Iterator[None]:
    """Another program at work."""
    if what == "nothing":
        yield
        return
    own = [sys.executable, __file__, "--worker", "1000000000", "--threads", str(threads)]
    commands = {
        "loop": [sys.executable, "-c", LOOP],
        "product": [sys.executable, "-c", PRODUCT, str(threads)],
        "sfumato": own,
    }
    with subprocess.Popen(commands[what]) as program:
        time.sleep(5)  # it loads torch and a model first
        try:
            yield
            if program.poll() is not None:
                raise SystemExit(f"{what} ended by itself: nothing was measured beside it")
        finally:
            program.kill()


def timed(spin: str, threads: int, count: int) -> float:
    """`passes` of a new process."""
    environment = {name: own for name, own in os.environ.items() if name != "GOMP_SPINCOUNT"}
    if spin != DEFAULT:
        environment["GOMP_SPINCOUNT"] = spin
    command = [sys.executable, __file__, "--worker", str(count), "--threads", str(threads)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    """Print a table: programs beside it down, settings across."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--passes", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--spin", default=f"{DEFAULT},0,1000")
    parser.add_argument("--beside", default=",".join(BESIDE))
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        print(passes(options.threads, options.worker))
        return
    others = options.beside.split(",")
    if unknown := [one for one in others if one not in BESIDE]:
        parser.error(f"there is no {unknown[0]!r}; known are {', '.join(BESIDE)}")
    spins = options.spin.split(",")
    print("| beside | " + " | ".join(f"{one}, ms | slowest" for one in spins) + " |")
    print("| --- |" + " ---: |" * 2 * len(spins))
    for what in others:
        found: dict[str, list[float]] = {spin: [] for spin in spins}
        with beside(what, options.threads):
            for _ in range(options.rounds):
                for spin in spins:
                    found[spin].append(timed(spin, options.threads, options.passes))
        cells = (f"{statistics.median(one):.1f} | {max(one):.1f}" for one in found.values())
        print(f"| {what} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
