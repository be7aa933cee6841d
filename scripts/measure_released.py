"""Measure what a checkpoint of the released shape takes to load and to run, in one process.

Usage: python scripts/measure_released.py CHECKPOINT [--context 8192] [--encode 512] [--steps 3]
           [--threads N] [--cache-dtype int8] [--no-starts] [--drop-caches] [--json]

The context is `--encode` random tokens, timed, and copies of what the layers make of them. With
`--drop-caches`, which root may do, the system forgets its files first: the first reading and the
first start are then the disk's. Starts are processes of their own, timed from outside. Seconds of
the processors are given too: they do not depend on what else runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import sfumato
from sfumato.benchmark.passes import lengthen, random_ids
from sfumato.config.generation import GenerationConfig
from sfumato.diffusion.events import StepEvent
from sfumato.diffusion.loop import Denoising, refine_canvas
from sfumato.diffusion.samplers import draws_for
from sfumato.diffusion.steps import PLAIN, FusedSteps
from sfumato.kv.cache import KVCache
from sfumato.model.diffusion_gemma import DiffusionGemma

BLOCK = 16 * 1024 * 1024  # bytes read at once
MEMORY = ("VmHWM", "VmRSS", "RssAnon", "RssFile")
START = "import sys, sfumato; sfumato.load(sys.argv[1])"
Figures = dict[str, float]


def memory(title: str) -> Figures:
    """What this process holds, in GB: at most so far, now, and of that its own and the files'."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    fields = dict(line.split(":", 1) for line in text.splitlines())
    return {f"{title}, {one}, GB": int(fields[one].split()[0]) * 1024 / 1e9 for one in MEMORY}


def seconds(name: str, work: Callable[[], object]) -> Figures:
    """Wall and processor time of one call, children included."""
    begun, before = time.perf_counter(), os.times()
    work()
    wall, after = time.perf_counter() - begun, os.times()
    used = sum(after[:4]) - sum(before[:4])
    return {f"{name}, s": wall, f"{name}, processors' s": used}


def drop_caches() -> None:
    """Make the system forget the files it holds in memory."""
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("3\n", encoding="ascii")


def read(files: list[Path]) -> None:
    """Read every byte once, as `cat FILES > /dev/null` does."""
    block = bytearray(BLOCK)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass


def starts(folder: Path, *, drop: bool) -> Figures:
    """Seconds of reading the files and of starting, first and again."""
    files = sorted(folder.glob("*.safetensors"))
    found: Figures = {"files, GB": sum(path.stat().st_size for path in files) / 1e9}
    load = [sys.executable, "-c", START, str(folder)]
    works: dict[str, Callable[[], object]] = {
        "reading the files": lambda: read(files),
        "start": lambda: subprocess.run(load, check=True),
    }
    for name, work in works.items():
        if drop:
            drop_caches()
        found |= seconds(f"{name}, {'from the disk' if drop else 'as found'}", work)
        found |= seconds(f"{name}, again", work)
    return found


def refine(network: DiffusionGemma, cache: KVCache, steps: int) -> Figures:
    """Seconds of each of `steps` denoising steps; all but the first look back at the one before."""
    config = GenerationConfig(max_denoising_steps=steps, stability_threshold=steps + 1)
    found: Figures = {}
    last = time.perf_counter(), time.process_time()

    def on_step(event: StepEvent) -> None:
        nonlocal last
        now = time.perf_counter(), time.process_time()
        found[f"step {event.step}, s"] = now[0] - last[0]
        found[f"step {event.step}, processors' s"] = now[1] - last[1]
        last = now

    refine_canvas(
        network,
        cache,
        Denoising.of(config),
        draws_for([0], network.device),
        steps=PLAIN if network.kernels is None else FusedSteps(),
        on_step=on_step,
    )
    return found


@torch.inference_mode()
def run(folder: Path, options: argparse.Namespace) -> Figures:
    """Load, encode, fill the cache and refine one canvas, with the memory after each."""
    made: list[sfumato.Model] = []
    found = seconds("load", lambda: made.append(sfumato.load(folder)))
    network = made[0].network
    network.cache_dtype = options.cache_dtype
    found |= memory("loaded")
    ids = random_ids(network, 1, min(options.encode, options.context), 0)
    cache = network.new_cache()
    found |= seconds(f"encode {ids.shape[1]}", lambda: network.encode(ids, cache))
    found |= memory("encoded")
    if cache.length < options.context:
        lengthen(network, cache, ids, options.context)
    found |= {"context, positions": cache.length, "cache, GB": cache.nbytes / 1e9}
    found |= memory("cache filled")
    return {**found, **refine(network, cache, options.steps), **memory("refined")}


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoint", type=Path)
    for name, value in (("context", 8192), ("encode", 512), ("steps", 3), ("threads", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--cache-dtype", choices=["int8"])
    for name in ("no-starts", "drop-caches", "json"):
        parser.add_argument(f"--{name}", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Print a line a figure, or one JSON object."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    found = {} if options.no_starts else starts(options.checkpoint, drop=options.drop_caches)
    found |= run(options.checkpoint, options)
    if options.json:
        print(json.dumps(found))
        return 0
    for name, value in found.items():
        print(f"{name:<50}{value:>14,.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
