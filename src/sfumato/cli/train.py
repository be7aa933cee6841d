"""`sfumato train`: train a model from a configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The run's configuration.")],
) -> None:
    """Train."""
    print(config)
