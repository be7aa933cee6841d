"""Measure what NVFP4 costs in squared error, rule by rule, on normal draws and on a checkpoint.

Usage: python scripts/measure_nvfp4.py [CHECKPOINT]     (the small model if left out)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from sfumato.quant.nvfp4 import FOUR_OVER_SIX, MODELOPT, ScaleRule, decode, quantise
from sfumato.weights.files import WeightFiles
from sfumato.weights.inventory import part_of
from sfumato.weights.quantise_plan import QUANTISED_PARTS

SMALL = Path(__file__).resolve().parents[1] / "src" / "sfumato" / "small"
RULES = {
    "6 (ModelOpt)": MODELOPT,
    "6, 4, largest scale 448": ScaleRule((6.0, 4.0), 448.0),
    "6, 4, largest scale 256": FOUR_OVER_SIX,
    "6, 5, 4": ScaleRule((6.0, 5.0, 4.0), 256.0),
    "6, 5, 4, 3.5": ScaleRule((6.0, 5.0, 4.0, 3.5), 224.0),
    "6, 5.5, .. 3": ScaleRule((6.0, 5.5, 5.0, 4.5, 4.0, 3.5, 3.0), 192.0),
}


def loss(weights: Iterable[Tensor], rule: ScaleRule) -> tuple[float, float, float]:
    """Mean squared error, root of it over the root of the mean square, and seconds a value."""
    error = squares = 0.0
    values = 0
    seconds = 0.0
    for weight in weights:
        start = time.process_time()
        stored = quantise(weight, rule)
        seconds += time.process_time() - start
        exact = weight.double()
        error += float((decode(stored).double() - exact).square().sum())
        squares += float(exact.square().sum())
        values += weight.numel()
    return error / values, (error / squares) ** 0.5, seconds / values


def main(arguments: list[str]) -> int:
    """Print one line a rule."""
    if len(arguments) > 1:
        print(__doc__, file=sys.stderr)
        return 2
    files = WeightFiles(arguments[0] if arguments else SMALL)
    names = [
        name
        for name, entry in files.entries.items()
        if part_of(name) in QUANTISED_PARTS and len(entry.shape) >= 2
    ]
    normal = torch.randn(1024, 4096, generator=torch.Generator().manual_seed(0))
    print(f"{'largest becomes':<26}{'normal':>20}{'checkpoint':>22}{'ns a value':>12}")
    for title, rule in RULES.items():
        drawn, drawn_relative, cost = loss([normal], rule)
        mean, relative, _ = loss((files.tensor(name) for name in names), rule)
        print(
            f"{title:<26}{drawn:>12.3e} {drawn_relative:6.2%}{mean:>14.3e} {relative:6.2%}"
            f"{cost * 1e9:>12.0f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
