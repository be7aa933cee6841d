"""`sfumato list`: the models on this machine."""

from __future__ import annotations

import datetime
from typing import Annotated, Any

import typer

from sfumato.cli.checkpoint import SMALL, small_folder
from sfumato.cli.terminal import human_bytes, print_json, print_table


def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
) -> None:
    """List the models on this machine.

    That is the small one inside this package, and DiffusionGemma checkpoints in the hub's cache.
    """
    from sfumato.weights.hub import cached_models

    found: list[dict[str, Any]] = [_small()]
    found += [
        {
            "model": model.repo,
            "bytes": model.size,
            "last_used": _date(model.last_used),
            "folder": str(model.folder),
        }
        for model in cached_models()
    ]
    if as_json:
        print_json(found)
        return
    rows = [
        (one["model"], human_bytes(one["bytes"]), one["last_used"] or "in the package")
        for one in found
    ]
    print_table(("MODEL", "SIZE", "LAST USED"), rows, "lr")


def _small() -> dict[str, Any]:
    folder = small_folder()
    size = sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
    return {"model": SMALL, "bytes": size, "last_used": None, "folder": str(folder)}


def _date(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC)
    return moment.date().isoformat()
