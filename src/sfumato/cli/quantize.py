"""`sfumato quantize`: a checkpoint in four bits a weight."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sfumato.cli.checkpoint import SMALL
from sfumato.cli.export import BESIDE, parse_size
from sfumato.cli.interrupts import leaving_at_once
from sfumato.cli.options import chosen_model
from sfumato.cli.terminal import human_bytes, human_count, note, print_json, print_table, say
from sfumato.config.checkpoint_file import DECODING, check_inside
from sfumato.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from sfumato.evaluation.calibrate import Prompts
    from sfumato.weights.moments import Moments
    from sfumato.weights.quantise import Calibration, Report

Format = Literal["nvfp4"]
Embedding = Literal["int8"]
Scales = Literal["four-over-six", "modelopt"]
_COPIED = (*BESIDE, *DECODING)
ERASE_LINE = "\r\x1b[2K"


@dataclass(frozen=True)
class FormatOptions:
    """What becomes of the matrices."""

    number_format: Annotated[
        Format, typer.Option("--format", help="The format, in ModelOpt's files.")
    ] = "nvfp4"
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Leave the matrices of this name as they are, as '*.self_conditioning.*'; "
            "may be given again.",
        ),
    ] = None
    embedding: Annotated[
        Embedding | None,
        typer.Option(
            help="int8 puts the embedding table, which is the head too, into 8 bits; it is kept "
            "as stored unless told so. Other programs do not read that."
        ),
    ] = None
    scales: Annotated[
        Scales,
        typer.Option(help="four-over-six tries two scales a group; modelopt is NVIDIA's rule."),
    ] = "four-over-six"


@dataclass(frozen=True)
class CalibrationOptions:
    """What the model answers first, so that errors make up for each other under real inputs."""

    calibrate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK|FILE",
            help="Answer these prompts first, and choose codes by what the matrices met: outputs "
            "lose about half as much. A task of `sfumato eval`, or a .jsonl file of objects with "
            "a 'prompt'; may be given again.",
        ),
    ] = None
    calibration_prompts: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Prompts of each; 24 of a task, a whole file."),
    ] = None
    calibration_seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Seed of the answers.")
    ] = 0

    def plan(self, model: str | Path | None) -> Calibration | None:
        """How moments are noted with `model`, or None. Raises UsageError for N of nothing."""
        if not self.calibrate:
            if self.calibration_prompts is not None or self.calibration_seed:
                raise UsageError(
                    "--calibration-prompts and --calibration-seed are for --calibrate",
                    hint="add --calibrate and what to answer",
                )
            return None
        with leaving_at_once():
            from sfumato.evaluation.calibrate import Prompts, gather_prompts
            from sfumato.weights.quantise import Calibration

        texts = gather_prompts(self.calibrate, self.calibration_prompts)
        prompts = Prompts(texts, self.calibration_seed)
        return Calibration(prompts.identity, partial(_answer, model, prompts))


def _answer(model: str | Path | None, prompts: Prompts, moments: Moments) -> None:
    from sfumato.api import load
    from sfumato.evaluation.calibrate import calibrate

    calibrate(load(model), prompts, moments, _show_answered if sys.stderr.isatty() else None)
    if sys.stderr.isatty():
        print(ERASE_LINE, end="", file=sys.stderr, flush=True)


def _show_answered(done: int, total: int) -> None:
    line = f"{ERASE_LINE}{done} of {total} prompts answered"
    print(line, end="", file=sys.stderr, flush=True)


def quantize(
    model: Annotated[
        str, typer.Argument(metavar="SRC", help=f"{SMALL}, a folder, or a hub repository.")
    ],
    dest: Annotated[Path, typer.Argument(metavar="DST", help="The new checkpoint's folder.")],
    choice: FormatOptions,
    calibrating: CalibrationOptions,
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="The largest weight file, as 5GB or 200MB.")
    ] = "5GB",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a model with its text matrices in NVFP4.

    Experts, attention, dense MLP and self-conditioning are quantised; norms, router, scalars and
    vision stay as stored, and so does the embedding unless told otherwise. SRC is not changed. What
    is written is read back and compared with it, and the error of each part is printed, with --json
    that of each matrix too. DST is there complete at the end; a run that was killed goes on where
    it was, if it is given again.

    With --calibrate codes are not the nearest but those that leave the least of the outputs' error
    together. The model is run for that, and the moments of its inputs take 14 GB of disk beside
    DST for the released shape, until it is done.

    vLLM does not read a quantised self-conditioning: keep that for it.
    """
    limit = parse_size(max_shard_size)
    with leaving_at_once():
        from sfumato.cli.checkpoint import weights_folder
        from sfumato.quant.nvfp4 import FOUR_OVER_SIX, MODELOPT
        from sfumato.weights.quantise import quantise_checkpoint

    assert choice.number_format == "nvfp4"
    source = weights_folder(None if model == SMALL else chosen_model(model))
    beside = {name: source / name for name in _COPIED if (source / name).is_file()}
    for path in beside.values():
        check_inside(path, error=CheckpointError)
    report = quantise_checkpoint(
        source,
        dest,
        keep=choice.keep or (),
        int8_embedding=choice.embedding == "int8",
        rule=FOUR_OVER_SIX if choice.scales == "four-over-six" else MODELOPT,
        max_shard_bytes=limit,
        extra_files=beside,
        calibration=calibrating.plan(None if model == SMALL else source),
        progress=note,
    )
    described = describe(report, source, choice.scales, choice.embedding)
    if as_json:
        print_json(described)
    else:
        _print(described)


def describe(
    report: Report, source: Path, scales: str, embedding: Embedding | None
) -> dict[str, Any]:
    """The report as JSON values; parts the model does not have are left out."""
    parts: dict[str, dict[str, Any]] = {
        name: {
            "values": part.values,
            "quantised_values": part.quantised,
            "bytes_before": part.bytes_before,
            "bytes_after": part.bytes_after,
            "relative_error": part.relative_error,
        }
        | ({"modules": part.errors} if part.errors else {})
        | _outputs(part.relative_output_errors)
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


def _outputs(errors: tuple[float, float] | None) -> dict[str, float]:
    if errors is None:
        return {}
    return {"outputs_relative_error": errors[0], "outputs_relative_error_uncalibrated": errors[1]}


def _print(report: dict[str, Any]) -> None:
    rows = []
    calibrated = any("outputs_relative_error" in part for part in report["parts"].values())
    for name, part in report["parts"].items():
        error = part["relative_error"]
        row = (
            name.replace("_", " "),
            human_count(part["values"]),
            human_bytes(part["bytes_before"]),
            human_bytes(part["bytes_after"]),
            "kept" if error is None else f"{error:.2%}",
        )
        keys = _outputs((0.0, 0.0)) if calibrated else ()
        rows.append((*row, *(f"{part[key]:.2%}" if key in part else "" for key in keys)))
    titles = ("part", "values", "before", "after", "relative error")
    more = ("of outputs", "uncalibrated") if calibrated else ()
    print_table((*titles, *more), rows, right="lrrrr" + "r" * len(more))
    before, after = (human_bytes(report[f"bytes_{when}"]) for when in ("before", "after"))
    print(f"{before} to {after}, {report['quantised_share_of_bytes']:.1%} of them quantised")
    say(report["folder"])
