"""What quantising reads: the source's tensors, and what becomes of each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sfumato.errors import CheckpointError, QuantisationError
from sfumato.quant.compensated import ROWS, Feedback, quantise_compensated
from sfumato.quant.int8 import Int8Tensor, quantise_rows
from sfumato.quant.nvfp4 import (
    SMALLEST_TENSOR_SCALE,
    Nvfp4Tensor,
    ScaleRule,
    largest_of,
    quantise,
    tensor_scale_of,
)
from sfumato.weights.files import WeightFiles
from sfumato.weights.finite import check_finite
from sfumato.weights.moments import Moments
from sfumato.weights.quantise_plan import Job


class Source:
    """The source's tensors, the tensor scales that families of matrices share, and moments if any.

    With `moments` errors are passed on, where a matrix met inputs. What came of it is told by
    `digests`, as a check cannot tell it from the weight again without the whole work.
    """

    def __init__(
        self,
        files: WeightFiles,
        jobs: Sequence[Job],
        rule: ScaleRule,
        moments: Moments | None = None,
    ) -> None:
        self.files = files
        self.rule = rule
        self.moments = moments
        self.digests: dict[str, str] = {}
        self._families: dict[str, list[Job]] = {}
        self._scales: dict[str, Tensor] = {}
        for job in jobs:
            if job.quantised:
                self._families.setdefault(job.family, []).append(job)

    def weight(self, job: Job) -> Tensor:
        """The matrix of a job [N, K], or its whole tensor, in place."""
        tensor = self.files.tensor(job.source)
        if not job.quantised:
            return tensor
        return tensor.view(job.count, -1, tensor.shape[-1])[job.index]

    def rows(self, job: Job) -> Int8Tensor:
        """The job's matrix in 8 bits. Raises CheckpointError, naming the tensor."""
        try:
            return quantise_rows(self.weight(job))
        except QuantisationError as problem:
            raise CheckpointError(f"{self.files.folder}: {job.source} {problem.message}") from None

    def tensor_scale(self, job: Job) -> Tensor:
        """The tensor scale of the job's family. Raises CheckpointError, naming the tensor."""
        if job.family not in self._scales:
            scales = [self._scale_alone(one) for one in self._families[job.family]]
            self._scales[job.family] = torch.stack(scales).max()
        return self._scales[job.family]

    def _scale_alone(self, job: Job) -> Tensor:
        largest = largest_of(self.weight(job))
        if not largest:  # a matrix of zeros takes any scale: let the others of its family decide
            return torch.tensor(SMALLEST_TENSOR_SCALE)
        try:
            return tensor_scale_of(largest, self.rule)
        except QuantisationError as problem:
            raise CheckpointError(f"{self.files.folder}: {job.source} {problem.message}") from None

    def quantised(self, jobs: Sequence[Job]) -> list[Nvfp4Tensor]:
        """The matrices of one of `runs` in NVFP4. Raises CheckpointError, naming one."""
        if self.moments is None:
            return [quantise(self.weight(job), self.rule, self.tensor_scale(job)) for job in jobs]
        try:
            found = self._compensated(jobs, self.moments.feedback(jobs[0].module))
        except QuantisationError as problem:
            where = f"{self.files.folder}: {jobs[0].module}"
            raise CheckpointError(f"{where} {problem.message}") from None
        for job, stored in zip(jobs, found, strict=True):
            self.digests[job.module] = digest(stored)
        return found

    def _compensated(self, jobs: Sequence[Job], feedback: Feedback | None) -> list[Nvfp4Tensor]:
        weights = [self.weight(job) for job in jobs]
        scales = [self.tensor_scale(job) for job in jobs]
        if feedback is None:
            return [
                quantise(weight, self.rule, scale)
                for weight, scale in zip(weights, scales, strict=True)
            ]
        heights = [len(one) for one in weights]
        each = torch.cat([one.expand(rows) for one, rows in zip(scales, heights, strict=True)])
        parts = quantise_compensated(torch.cat(weights), feedback, each, self.rule)
        codes, bits = (torch.split(one, heights) for one in parts)
        return [
            Nvfp4Tensor(one.contiguous(), other.contiguous(), scale.clone())
            for one, other, scale in zip(codes, bits, scales, strict=True)
        ]

    def runs(self, jobs: Sequence[Job]) -> Iterator[list[Job]]:
        """The jobs in order, those together whose matrices are quantised at once.

        Matrices with the same inputs: of few rows torch's price for a call would be most of it.
        """
        run: list[Job] = []
        rows = 0
        for job in jobs:
            height = job.written[0].shape[0] if job.quantised else 0
            fits = run and rows + height <= ROWS and self._same_inputs(run[-1], job)
            if run and not fits:
                yield run
                run, rows = [], 0
            run.append(job)
            rows += height
        if run:
            yield run

    def _same_inputs(self, one: Job, other: Job) -> bool:
        if self.moments is None or not (one.quantised and other.quantised):
            return False
        return self.moments.key(one.module) == self.moments.key(other.module)


def digest(stored: Nvfp4Tensor) -> str:
    """A hash of the codes and scales."""
    found = hashlib.blake2b(stored.packed.contiguous().numpy().data, digest_size=16)
    found.update(stored.scale.view(torch.uint8).contiguous().numpy().data)
    return found.hexdigest()


def tensors(jobs: Sequence[Job], source: Source) -> Iterator[Tensor]:
    """What the jobs write, in order; the source's memory is let go of behind them."""
    last = {id(job) for job, last in with_last(jobs) if last}
    for run in source.runs(jobs):
        if run[0].quantised:
            for stored in source.quantised(run):
                yield from (stored.packed, stored.scale, stored.tensor_scale)
        elif run[0].int8:
            rows = source.rows(run[0])
            yield from (rows.codes, rows.scale)
        else:
            weight = source.weight(run[0])
            check_finite(run[0].source, weight, str(source.files.folder))
            yield weight
        for job in run:
            if id(job) in last:
                source.files.release(job.source)


def with_last(jobs: Sequence[Job]) -> Iterator[tuple[Job, bool]]:
    """Each job, and whether the next one has another source."""
    for job, after in zip(jobs, [*jobs[1:], None], strict=True):
        yield job, after is None or after.source != job.source
