"""Read back what quantising wrote: is it what the source gives, and what did it cost?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sfumato.config.json_file import read_json
from sfumato.errors import CheckpointError, ConfigError
from sfumato.quant.int8 import Int8Tensor
from sfumato.quant.int8 import is_from as rows_are_from
from sfumato.quant.nvfp4 import Nvfp4Tensor, decode, is_from, quantise
from sfumato.weights.inventory import part_of
from sfumato.weights.quantise_plan import Job
from sfumato.weights.quantise_source import Source, digest, with_last
from sfumato.weights.safetensors_reader import SafetensorsFile

_COMPARED = 1 << 26  # bytes of a copy compared at once
_SAMPLE = 16  # rows of a matrix whose outputs' error is looked at


@dataclass
class PartReport:
    """What became of one part of the model, in values, bytes and squared sums.

    `errors` are the relative errors of its quantised matrices, by their names.

    Of a calibrated run, `outputs` are the squares of what a sample of rows gives for the inputs
    met, `output_error` what was lost of them, and `plain_error` what the nearest codes would lose.
    """

    values: int = 0
    quantised: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    squares: float = 0.0
    squared_error: float = 0.0
    outputs: float = 0.0
    output_error: float = 0.0
    plain_error: float = 0.0
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def relative_error(self) -> float | None:
        """The root of the squared error over the squared weights; None where all was kept."""
        if not self.quantised:
            return None
        return float((self.squared_error / self.squares) ** 0.5) if self.squares else 0.0

    @property
    def relative_output_errors(self) -> tuple[float, float] | None:
        """The same of outputs, as written and of the nearest codes; None without calibration."""
        if not self.outputs:
            return None
        return (self.output_error / self.outputs) ** 0.5, (self.plain_error / self.outputs) ** 0.5

    def add(self, more: PartReport) -> None:
        """Count what another report has."""
        self.errors |= more.errors
        for name, value in vars(more).items():
            if name != "errors":
                setattr(self, name, getattr(self, name) + value)


def check_shard(
    path: Path, jobs: Sequence[Job], source: Source, digests: Path | None
) -> dict[str, PartReport] | None:
    """What a finished file holds, part by part; None if it is not what the source gives.

    `digests` is the file of a calibrated run with the hashes of what came of each matrix.
    """
    known: dict[str, str] = {}
    try:
        file = SafetensorsFile(path)
        if digests is not None:
            known = read_json(digests)
    except (CheckpointError, ConfigError):
        return None
    wanted = {one.name: (one.dtype, one.shape) for job in jobs for one in job.written}
    if {name: (entry.dtype, entry.shape) for name, entry in file.entries.items()} != wanted:
        return None
    parts: dict[str, PartReport] = {}
    for job, last in with_last(jobs):
        sums = _check_job(file, job, source, known if digests is not None else None)
        if sums is None:
            return None
        if sums.relative_error is not None:
            sums.errors[job.module or job.target.removesuffix(".weight")] = sums.relative_error
        parts.setdefault(part_of(job.target), PartReport()).add(sums)
        for written in job.written:
            file.release(written.name)
        if last:
            source.files.release(job.source)
    return parts


def _check_job(
    file: SafetensorsFile, job: Job, source: Source, digests: dict[str, str] | None
) -> PartReport | None:
    weight = source.weight(job)
    stored = [file.tensor(one.name) for one in job.written]
    before = weight.numel() * weight.element_size()
    sums = PartReport(weight.numel(), 0, before, job.size)
    if job.int8:
        return _check_rows(Int8Tensor(stored[0], stored[1]), weight, sums)
    if not job.quantised:
        return sums if _is_copy(file, job, source) else None
    matrix = Nvfp4Tensor(stored[0], stored[1], stored[2])
    if not torch.equal(matrix.tensor_scale, source.tensor_scale(job)):
        return None
    if digests is None:
        right = is_from(matrix, weight, source.rule)
    else:
        right = digests.get(job.module) == digest(matrix)
    if not right:
        return None
    weight = weight.float()
    sums.quantised = weight.numel()
    sums.squares = float(weight.double().square().sum())
    decoded = decode(matrix)
    sums.squared_error = float((decoded - weight).double().square().sum())
    if source.moments is not None:
        _look_at_outputs(job, source, weight, decoded, sums)
    return sums


def _look_at_outputs(
    job: Job, source: Source, weight: Tensor, decoded: Tensor, sums: PartReport
) -> None:
    """Add what a sample of the matrix's rows gives for the inputs met, and what is lost of it."""
    assert source.moments is not None
    moments, rows = source.moments.moments(job.module)
    if rows == 0:
        return
    every = slice(None, None, -(-len(weight) // _SAMPLE))
    sample = weight[every].contiguous()
    nearest = decode(quantise(sample, source.rule, source.tensor_scale(job)))
    unit = float(sample.abs().max()) or 1.0  # fp32 has no room for squares of the largest numbers

    def of(values: Tensor) -> float:
        values = values / unit
        return float(((values @ moments) * values).sum(dtype=torch.float64)) * unit * unit

    sums.outputs = of(sample)
    sums.output_error = of(decoded[every] - sample)
    sums.plain_error = of(nearest - sample)


def _check_rows(stored: Int8Tensor, weight: Tensor, sums: PartReport) -> PartReport | None:
    if not rows_are_from(stored, weight):
        return None
    sums.quantised = sums.values
    for piece, part in stored.pieces(torch.float32):
        wide = weight[piece].float()
        sums.squares += float(wide.double().square().sum())
        sums.squared_error += float((part - wide).double().square().sum())
    return sums


def _is_copy(file: SafetensorsFile, job: Job, source: Source) -> bool:
    """Whether a tensor was copied to the byte.

    Both are let go of behind the comparison: two embeddings of the released shape are 3 GB.
    """
    name = job.written[0].name
    ours, theirs = (
        one.reshape(-1).view(torch.uint8) for one in (source.weight(job), file.tensor(name))
    )
    for start in range(0, len(theirs), _COMPARED):
        piece = slice(start, start + _COMPARED)
        if not torch.equal(ours[piece], theirs[piece]):
            return False
        file.release(name)
        source.files.release(job.source)
    return True
