"""What the scripts that time other programs share: turns, rows of a table, options, the commit."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sfumato.benchmark.statistics import ratio_of_medians, summarise
from sfumato.benchmark.timing import watching

Pair = tuple[Callable[[], float], Callable[[], float]]  # seconds of ours, and of theirs
_BUSY = 0.1  # cores that others may take unmentioned


def alternate(pair: Pair, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of both over `rounds`, after one that is not counted.

    Each goes first in every other round.
    """
    ours: list[float] = []
    theirs: list[float] = []
    for turn in range(rounds + 1):
        order = ((pair[0], ours), (pair[1], theirs))
        for work, kept in order if turn % 2 else reversed(order):
            seconds = work()
            if turn:
                kept.append(seconds)
    return ours, theirs


def compare_parts(
    pairs: Mapping[str, Pair], rounds: int, device: torch.device, peer: str
) -> list[dict[str, Any]]:
    """A row of JSON values for each part; `peer` is how the other program is called in them."""
    rows = []
    for name, pair in pairs.items():
        with watching(device) as watch:
            ours, theirs = alternate(pair, rounds)
        rows.append(
            {
                "part": name,
                "sfumato_seconds": vars(summarise(ours)),
                f"{peer}_seconds": vars(summarise(theirs)),
                "ratio": vars(ratio_of_medians(theirs, ours)),
                "others_cores": watch.others_cores,
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]], peer: str, title: str) -> list[str]:
    """Rows of `compare_parts` for people, under a header that calls the other program `title`."""
    lines = [f"{'':32}{'sfumato ms':>12}{f'{title} ms':>17}{'ratio':>8}  95 %"]
    for row in rows:
        ours, theirs = (1e3 * row[f"{who}_seconds"]["median"] for who in ("sfumato", peer))
        ratio, load = row["ratio"], row["others_cores"]
        busy = "" if load is None or load < _BUSY else f"  others took {load:.1f} cores"
        interval = f"{ratio['low']:.2f}-{ratio['high']:.2f}"
        figures = f"{ours:>12.2f}{theirs:>17.2f}{ratio['value']:>8.2f}"
        lines.append(f"{row['part']:32}{figures}  {interval}{busy}")
    return lines


def whole(most: int) -> Callable[[str], int]:
    """An option's type: whole numbers from 1 to `most`."""

    def number(text: str) -> int:
        if not (text.isascii() and text.isdigit() and 1 <= int(text[:12]) <= most):
            raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {most}")
        return int(text)

    return number


def commit(script: str) -> str:
    """The commit of the working tree that `script` lies in, with a mark if it has changes."""
    folder = Path(script).resolve().parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - git, and a folder of ours
    except OSError:  # there is no git
        return "unknown"
    return done.stdout.strip() or "unknown"
