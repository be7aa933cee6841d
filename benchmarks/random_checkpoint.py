"""Write a checkpoint of a named shape with random weights, which sfumato and transformers load.

Usage: python benchmarks/random_checkpoint.py DIR SHAPE     (SHAPE: small, released, or released:4)

The weights are those of `sfumato bench --shape SHAPE`, in memory one tensor at a time, 2 GB at
most. The folder takes 8 GB for released:4, 51 GB for released.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sfumato.benchmark.shapes import RandomWeights, default_dtype, named_shape
from sfumato.config.generation import GenerationConfig
from sfumato.errors import SfumatoError
from sfumato.weights.export import export_tensors


def main(arguments: list[str]) -> int:
    """Write the checkpoint; 1 for what failed, 2 for other arguments."""
    if len(arguments) != 2 or arguments[0].startswith("-"):
        sys.stderr.write(f"{__doc__}\n")
        return 2
    folder, shape = Path(arguments[0]), arguments[1]
    try:
        config = named_shape(shape)
        weights = RandomWeights(config, default_dtype(shape))
        export_tensors(
            weights.shapes,
            weights.tensor,
            config,
            folder,
            dtype=weights.dtype,
            generation=GenerationConfig(),
        )
    except SfumatoError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
