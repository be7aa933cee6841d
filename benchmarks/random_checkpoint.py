"""Write a checkpoint of a named shape with random weights, which sfumato and transformers load.

Usage: python benchmarks/random_checkpoint.py DIR SHAPE     (SHAPE: small, released, or released:4)

The weights are those of `sfumato bench --shape SHAPE`, held in memory once; the folder takes
as much disk: 8 GB for released:4.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sfumato.benchmark.shapes import default_dtype, named_shape, random_model
from sfumato.config.generation import GenerationConfig
from sfumato.errors import SfumatoError
from sfumato.weights.export import export


def main(arguments: list[str]) -> int:
    """Write the checkpoint; 1 for what failed, 2 for other arguments."""
    if len(arguments) != 2 or arguments[0].startswith("-"):
        sys.stderr.write(f"{__doc__}\n")
        return 2
    folder, shape = Path(arguments[0]), arguments[1]
    try:
        model = random_model(named_shape(shape), default_dtype(shape))
        export(model.network, model.config, folder, generation=GenerationConfig())
    except SfumatoError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
