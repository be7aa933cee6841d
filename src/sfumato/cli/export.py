"""`sfumato export`: write a checkpoint that transformers loads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.checkpoint import SMALL
from sfumato.cli.interrupts import leaving_at_once
from sfumato.cli.options import chosen_model
from sfumato.cli.terminal import note, say
from sfumato.config.checkpoint_file import SPEAKING, check_inside
from sfumato.errors import CheckpointError, InputError

_SIZE = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)\s*(kB|MB|GB|)", re.IGNORECASE)
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}
# Files beside the weights that a checkpoint goes on needing, copied as they are.
BESIDE = (*SPEAKING, "LICENSE", "NOTICE")


def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=f"{SMALL}, a folder, or a hub repository.")
    ],
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="The new checkpoint's folder.")],
    dtype: Annotated[
        str | None,
        typer.Option(metavar="DTYPE", help="float32, bfloat16 or float16; as stored if left out."),
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="The largest weight file, as 5GB or 200MB.")
    ] = "5GB",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a checkpoint that is already there.")
    ] = False,
) -> None:
    """Write a model as a checkpoint of its own.

    It has Hugging Face form: transformers and sfumato load it. DEST is there complete at the end,
    or as it was before. Prints DEST.
    """
    limit = parse_size(max_shard_size)
    with leaving_at_once():
        from sfumato.cli.checkpoint import weights_folder
        from sfumato.config.generation import load_generation_config
        from sfumato.weights.export import export as write
        from sfumato.weights.loader import load_network

    source = weights_folder(None if model == SMALL else chosen_model(model))
    if dest.resolve() == source.resolve():
        raise InputError("DEST is the checkpoint itself", hint="choose another folder")
    if dest.resolve() in source.resolve().parents and overwrite:
        raise InputError("DEST is a folder that the checkpoint is in", hint="choose another folder")
    network, config = load_network(source, dtype)
    note(f"writing {dest}")
    written = write(
        network,
        config,
        dest,
        generation=load_generation_config(source, config.text),
        extra_files=_beside(source),
        dtype=dtype,
        max_shard_bytes=limit,
        overwrite=overwrite,
    )
    say(str(written))


def _beside(source: Path) -> dict[str, Path]:
    """The files to copy. Raises CheckpointError for a link out of the folder."""
    found = {name: source / name for name in BESIDE if (source / name).is_file()}
    for path in found.values():
        check_inside(path, error=CheckpointError)
    return found


def parse_size(text: str) -> int:
    """Bytes of a size as people write it. Raises InputError for anything else."""
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * _UNITS[found[2].lower()]) if found else 0
    if size < 1:
        raise InputError(f"--max-shard-size {text[:40]!r} is no size", hint="as 5GB or 200MB")
    return size
