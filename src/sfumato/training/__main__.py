"""`python -m sfumato.training CONFIG.toml [--resume]`: the engine of `sfumato train`."""

from __future__ import annotations

import argparse
import sys

from sfumato.errors import SfumatoError
from sfumato.training.config import load_train_config
from sfumato.training.trainer import train


def main(arguments: list[str] | None = None) -> int:
    """Train; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sfumato.training", description=__doc__)
    parser.add_argument("config", help="a recipe in TOML")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    options = parser.parse_args(arguments)
    try:
        train(load_train_config(options.config), resume=options.resume)
    except SfumatoError as error:
        sys.stderr.write(f"sfumato: {error.message}\n")
        if error.hint:
            sys.stderr.write(f"  {error.hint}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
