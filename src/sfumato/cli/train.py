"""`sfumato train`: train a model from a recipe."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.interrupts import INTERRUPTED, leaving_at_once
from sfumato.cli.terminal import print_json, say


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The run's recipe, in TOML.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's newest checkpoint.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print how the run ended as one JSON object.")
    ] = False,
) -> None:
    """Train a model from a recipe.

    Everything goes into the recipe's run_dir: checkpoints, a log as JSON lines, the exported
    weights. Ctrl-C stops at the next step with a checkpoint, and --resume goes on from there bit
    for bit; a second Ctrl-C stops at once. Prints the folder of the weights.
    """
    with leaving_at_once():
        from sfumato.training.config import load_train_config
        from sfumato.training.trainer import train as run

    outcome = run(load_train_config(config), resume=resume)
    if as_json:
        report = dataclasses.asdict(outcome)
        print_json({**report, "export": str(outcome.export) if outcome.export else None})
    elif outcome.export is not None:
        say(str(outcome.export))
    if outcome.ended == "stopped":
        raise typer.Exit(INTERRUPTED)
