"""`sfumato quantize`: a checkpoint in four bits a weight."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sfumato.cli.checkpoint import SMALL
from sfumato.cli.export import BESIDE, parse_size
from sfumato.cli.interrupts import leaving_at_once
from sfumato.cli.options import chosen_model
from sfumato.cli.terminal import human_bytes, human_count, note, print_json, print_table, say
from sfumato.config.checkpoint_file import check_inside
from sfumato.errors import CheckpointError

if TYPE_CHECKING:
    from sfumato.weights.quantise import Report

Format = Literal["nvfp4"]
Embedding = Literal["int8"]
Scales = Literal["four-over-six", "modelopt"]
_COPIED = (*BESIDE, "generation_config.json", "sfumato.json")


def quantize(
    model: Annotated[
        str, typer.Argument(metavar="SRC", help=f"{SMALL}, a folder, or a hub repository.")
    ],
    dest: Annotated[Path, typer.Argument(metavar="DST", help="The new checkpoint's folder.")],
    number_format: Annotated[
        Format, typer.Option("--format", help="The format, in ModelOpt's files.")
    ] = "nvfp4",
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Leave the matrices of this name as they are, as '*.self_conditioning.*'; "
            "may be given again.",
        ),
    ] = None,
    embedding: Annotated[
        Embedding | None,
        typer.Option(
            help="int8 puts the embedding table, which is the head too, into 8 bits; it is kept "
            "as stored unless told so. Other programs do not read that."
        ),
    ] = None,
    scales: Annotated[
        Scales,
        typer.Option(help="four-over-six tries two scales a group; modelopt is NVIDIA's rule."),
    ] = "four-over-six",
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="The largest weight file, as 5GB or 200MB.")
    ] = "5GB",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a model with its text matrices in NVFP4.

    Experts, attention, dense MLP and self-conditioning are quantised; norms, router, scalars and
    vision stay as stored, and so does the embedding unless told otherwise. SRC is not changed. What
    is written is read back and compared with it, and the error of each part is printed. DST is
    there complete at the end; a run that was killed goes on where it was, if it is given again.

    vLLM does not read a quantised self-conditioning: keep that for it.
    """
    limit = parse_size(max_shard_size)
    with leaving_at_once():
        from sfumato.cli.checkpoint import weights_folder
        from sfumato.quant.nvfp4 import FOUR_OVER_SIX, MODELOPT
        from sfumato.weights.quantise import quantise_checkpoint

    assert number_format == "nvfp4"
    source = weights_folder(None if model == SMALL else chosen_model(model))
    beside = {name: source / name for name in _COPIED if (source / name).is_file()}
    for path in beside.values():
        check_inside(path, error=CheckpointError)
    report = quantise_checkpoint(
        source,
        dest,
        keep=keep or (),
        int8_embedding=embedding == "int8",
        rule=FOUR_OVER_SIX if scales == "four-over-six" else MODELOPT,
        max_shard_bytes=limit,
        extra_files=beside,
        progress=note,
    )
    described = describe(report, source, scales, embedding)
    if as_json:
        print_json(described)
    else:
        _print(described)


def describe(
    report: Report, source: Path, scales: str, embedding: Embedding | None
) -> dict[str, Any]:
    """The report as JSON values; parts the model does not have are left out."""
    parts = {
        name: {
            "values": part.values,
            "quantised_values": part.quantised,
            "bytes_before": part.bytes_before,
            "bytes_after": part.bytes_after,
            "relative_error": part.relative_error,
        }
        for name, part in report.parts.items()
        if part.values
    }
    before = sum(part.bytes_before for part in report.parts.values())
    touched = sum(
        part.bytes_before * part.quantised / part.values
        for part in report.parts.values()
        if part.values
    )
    return {
        "source": str(source),
        "folder": str(report.folder),
        "format": "nvfp4",
        "scales": scales,
        "embedding": embedding or "as stored",
        "files": report.files,
        "files_of_an_earlier_run": report.reused,
        "bytes_before": before,
        "bytes_after": sum(part.bytes_after for part in report.parts.values()),
        "quantised_share_of_bytes": touched / before,
        "parts": parts,
    }


def _print(report: dict[str, Any]) -> None:
    rows = []
    for name, part in report["parts"].items():
        error = part["relative_error"]
        rows.append(
            (
                name.replace("_", " "),
                human_count(part["values"]),
                human_bytes(part["bytes_before"]),
                human_bytes(part["bytes_after"]),
                "kept" if error is None else f"{error:.2%}",
            )
        )
    print_table(("part", "values", "before", "after", "relative error"), rows, right="lrrrr")
    before, after = (human_bytes(report[f"bytes_{when}"]) for when in ("before", "after"))
    print(f"{before} to {after}, {report['quantised_share_of_bytes']:.1%} of them quantised")
    say(report["folder"])
