"""Put a checkpoint into NVFP4: streamed, checked against its source, resumed after a kill.

Files are finished one by one in a hidden folder beside the new one. A file that reaches its name
there was written whole; a later run with the same source and settings checks it against the
source and goes on after it. At the end the folder gets its own name.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from sfumato.config.checkpoint_file import is_there
from sfumato.config.json_file import read_json
from sfumato.config.parse import load_config
from sfumato.config.quantisation import FIELD, FILE, load_quantisation
from sfumato.errors import CheckpointError, ConfigError, InputError, QuantisationError
from sfumato.quant.int8 import Int8Tensor, quantise_rows
from sfumato.quant.int8 import is_from as rows_are_from
from sfumato.quant.nvfp4 import (
    FOUR_OVER_SIX,
    SMALLEST_TENSOR_SCALE,
    Nvfp4Tensor,
    ScaleRule,
    decode,
    is_from,
    largest_of,
    quantise,
    tensor_scale_of,
)
from sfumato.weights.disk import copy_file, settle, settle_folder, write_json
from sfumato.weights.files import INDEX, SINGLE, WeightFiles
from sfumato.weights.finite import check_finite
from sfumato.weights.inventory import PARTS, part_of
from sfumato.weights.loader import build_on_meta
from sfumato.weights.names import assign_names
from sfumato.weights.quantise_plan import (
    Job,
    choose,
    cut_shards,
    description,
    kept_modules,
    plan_jobs,
)
from sfumato.weights.safetensors_reader import SafetensorsFile
from sfumato.weights.safetensors_writer import UNFINISHED, write_safetensors

MAX_SHARD_BYTES = 5_000_000_000
_PLAN = "plan.json"
_COMPARED = 1 << 26  # bytes of a copy compared at once


@dataclass
class PartReport:
    """What became of one part of the model, in values, bytes and squared sums."""

    values: int = 0
    quantised: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    squares: float = 0.0
    squared_error: float = 0.0

    @property
    def relative_error(self) -> float | None:
        """The root of the squared error over the squared weights; None where all was kept."""
        if not self.quantised:
            return None
        return float((self.squared_error / self.squares) ** 0.5) if self.squares else 0.0


@dataclass
class Report:
    """What `quantise_checkpoint` did; sizes are of the tensors, without headers."""

    folder: Path
    files: int
    reused: int = 0
    parts: dict[str, PartReport] = field(
        default_factory=lambda: {name: PartReport() for name in PARTS}
    )


class _Source:
    """The source's tensors, and the tensor scales that families of matrices share."""

    def __init__(self, files: WeightFiles, jobs: Sequence[Job], rule: ScaleRule) -> None:
        self.files = files
        self.rule = rule
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


def quantise_checkpoint(
    source: str | Path,
    folder: str | Path,
    *,
    keep: Sequence[str] = (),
    int8_embedding: bool = False,
    rule: ScaleRule = FOUR_OVER_SIX,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    extra_files: Mapping[str, Path] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Write the checkpoint in `source` into `folder`, with its text matrices in ModelOpt's NVFP4.

    Experts, attention, dense MLP and self-conditioning are quantised, less what `keep` names
    (see `quantise_plan.choose`); the rest is copied as stored, but the embedding table put into 8
    bits with `int8_embedding`. `extra_files` maps names of files
    beside the weights to where they are copied from. Memory for one tensor is needed.

    Every file is read back: codes must be the nearest, scales the rule's, copies equal to the
    byte. Raises InputError for settings that cannot be or a folder that is taken, ConfigError or
    CheckpointError for a source that cannot be read or is not all numbers, a full disk, or a file
    that reads back wrong.
    """
    source, folder = Path(source), Path(folder).absolute()
    if max_shard_bytes < 1:
        raise InputError(f"max_shard_bytes must be at least 1, not {max_shard_bytes}")
    config = load_config(source)
    if load_quantisation(source) is not None:
        raise InputError(f"{source} is quantised already", hint="give the BF16 checkpoint")
    _check_places(source, folder)
    files = WeightFiles(source)
    state = build_on_meta(config).state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    sources = assign_names(files.entries, expected, files.tensor, str(source))
    chosen = choose(expected, keep)
    if not chosen:
        raise InputError("--keep leaves nothing to quantise", hint="`sfumato export` copies")
    jobs = plan_jobs(expected, sources, files.entries, chosen, int8_embedding=int8_embedding)
    shards = cut_shards(jobs, max_shard_bytes)
    plan = {
        "source": _identity(source),
        "keep": sorted(keep),
        "int8_embedding": int8_embedding,
        "rule": repr(rule),
        "shards": [[one.name for job in shard for one in job.written] for shard in shards],
    }
    report = Report(folder, len(shards))
    kept = kept_modules(expected, chosen, int8_embedding=int8_embedding)
    field_of_config, beside = description(kept, int8_embedding=int8_embedding)
    try:
        with _aside(folder, plan) as aside:
            _check_space(aside, jobs)
            _write_shards(aside, shards, _Source(files, jobs, rule), report, progress)
            original = read_json(source / "config.json") | {FIELD: field_of_config}
            write_json(aside / "config.json", original)
            write_json(aside / FILE, beside)
            for name, path in (extra_files or {}).items():
                copy_file(path, aside / name)
            (aside / _PLAN).unlink()
            settle_folder(aside)
            if is_there(folder):
                folder.rmdir()  # it was empty, and stays if it no longer is
            aside.rename(folder)
            settle_folder(folder.parent)
    except OSError as problem:
        raise CheckpointError(
            f"{folder}: not written: {problem.strerror or problem}",
            hint="what is finished is kept: the same command goes on from there",
        ) from None
    return report


def _check_places(source: Path, folder: Path) -> None:
    if source.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise InputError(f"{folder} is in the checkpoint itself", hint="choose another folder")
    if is_there(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists already", hint="choose another folder")
    if folder.is_symlink() or (is_there(folder) and folder.is_mount()):
        # Whole at the end means renamed to this name, which neither of them gives away.
        raise InputError(
            f"{folder} is a link or the root of a disk", hint="give a new folder inside it"
        )


def _identity(source: Path) -> dict[str, Any]:
    """What tells that a later run reads the same files."""
    found = {path.name: path.stat() for path in sorted(source.glob("*.safetensors"))}
    sizes = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in found.items()}
    return {"folder": str(source.resolve()), "files": sizes}


@contextmanager
def _aside(folder: Path, plan: Mapping[str, Any]) -> Iterator[Path]:
    """The hidden folder of a run, new or an earlier one's with the same plan, for one at a time."""
    aside = folder.parent / f".{folder.name}.nvfp4.part"
    aside.mkdir(parents=True, exist_ok=True)
    path = aside / _PLAN
    with path.open("a+b") as file:
        if not _lock(file):
            raise InputError(f"{folder} is being written by another run")
        if path.stat().st_size:
            try:
                same = read_json(path) == json.loads(json.dumps(plan))
            except ConfigError:  # killed while it was written, before anything else was
                same = False
                if len(list(aside.iterdir())) == 1:
                    file.truncate(0)
                    same = True
            if not same:
                raise InputError(
                    f"{aside} is of a run with another source or other settings",
                    hint="remove it to begin anew, or give the same ones to go on",
                )
        if not path.stat().st_size:
            file.write(json.dumps(plan).encode())
            settle(file)
        try:
            yield aside
        except BaseException:
            if not any(aside.glob("*.safetensors")):  # nothing to go on from
                shutil.rmtree(aside, ignore_errors=True)
            raise


def _lock(file: BinaryIO) -> bool:
    """Whether this process alone has the file, where the system can say."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _check_space(aside: Path, jobs: Sequence[Job]) -> None:
    """Say so at once when the files cannot fit, instead of after an hour of writing."""
    for begun in aside.glob(f"*{UNFINISHED}"):
        begun.unlink()
    finished = sum(path.stat().st_size for path in aside.glob("*.safetensors"))
    needed = sum(job.size for job in jobs) - finished
    free = shutil.disk_usage(aside).free
    if needed > free:
        raise CheckpointError(
            f"{aside}: {needed / 1e6:,.1f} MB are to be written and the disk has "
            f"{free / 1e6:,.1f} MB left",
            hint="free some space, then the same command goes on",
        )


def _write_shards(
    aside: Path,
    shards: Sequence[Sequence[Job]],
    source: _Source,
    report: Report,
    progress: Callable[[str], None],
) -> None:
    weight_map: dict[str, str] = {}
    for number, jobs in enumerate(shards, start=1):
        several = len(shards) > 1
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if several else SINGLE
        path = aside / name
        parts = None
        if is_there(path):
            progress(f"checking {name}")
            parts = _check_shard(path, jobs, source)
            report.reused += parts is not None
        if parts is None:
            progress(f"writing {name}")
            _write_shard(path, jobs, source)
            parts = _check_shard(path, jobs, source)
        if parts is None:
            path.unlink()
            raise CheckpointError(
                f"{path}: does not read back as it was written", hint="is the disk sound?"
            )
        for part, sums in parts.items():
            _add(report.parts[part], sums)
        weight_map.update(dict.fromkeys((w.name for job in jobs for w in job.written), name))
    if len(shards) > 1:
        total = sum(job.size for jobs in shards for job in jobs)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(aside / INDEX, index)
    # A run that was killed between giving up its plan and its folder's name may have left others.
    own = {*weight_map.values(), INDEX if len(shards) > 1 else ""}
    for path in (*aside.glob("*.safetensors"), aside / INDEX):
        if path.name not in own:
            path.unlink(missing_ok=True)


def _write_shard(path: Path, jobs: Sequence[Job], source: _Source) -> None:
    """Write one safetensors file, a tensor at a time."""
    entries = [one for job in jobs for one in job.written]
    write_safetensors(path, entries, _tensors(jobs, source))


def _tensors(jobs: Sequence[Job], source: _Source) -> Iterator[Tensor]:
    """What the jobs write, in order; the source's memory is let go of behind each."""
    for job, last in _with_last(jobs):
        weight = source.weight(job)
        if job.quantised:
            stored = quantise(weight, source.rule, source.tensor_scale(job))
            yield from (stored.packed, stored.scale, stored.tensor_scale)
        elif job.int8:
            rows = source.rows(job)
            yield from (rows.codes, rows.scale)
        else:
            check_finite(job.source, weight, str(source.files.folder))
            yield weight
        if last:
            source.files.release(job.source)


def _with_last(jobs: Sequence[Job]) -> Iterator[tuple[Job, bool]]:
    """Each job, and whether the next one has another source."""
    for job, after in zip(jobs, [*jobs[1:], None], strict=True):
        yield job, after is None or after.source != job.source


def _check_shard(path: Path, jobs: Sequence[Job], source: _Source) -> dict[str, PartReport] | None:
    """What a finished file holds, part by part; None if it is not what the source gives."""
    try:
        file = SafetensorsFile(path)
    except CheckpointError:
        return None
    wanted = {one.name: (one.dtype, one.shape) for job in jobs for one in job.written}
    if {name: (entry.dtype, entry.shape) for name, entry in file.entries.items()} != wanted:
        return None
    parts: dict[str, PartReport] = {}
    for job, last in _with_last(jobs):
        sums = _check_job(file, job, source)
        if sums is None:
            return None
        _add(parts.setdefault(part_of(job.target), PartReport()), sums)
        for written in job.written:
            file.release(written.name)
        if last:
            source.files.release(job.source)
    return parts


def _check_job(file: SafetensorsFile, job: Job, source: _Source) -> PartReport | None:
    weight = source.weight(job)
    stored = [file.tensor(one.name) for one in job.written]
    before = weight.numel() * weight.element_size()
    sums = PartReport(weight.numel(), 0, before, job.size)
    if job.int8:
        return _check_rows(Int8Tensor(stored[0], stored[1]), weight, sums)
    if not job.quantised:
        return sums if _is_copy(file, job, source) else None
    matrix = Nvfp4Tensor(stored[0], stored[1], stored[2])
    scale = source.tensor_scale(job)
    if not torch.equal(matrix.tensor_scale, scale) or not is_from(matrix, weight, source.rule):
        return None
    weight = weight.float()
    sums.quantised = weight.numel()
    sums.squares = float(weight.square().sum(dtype=torch.float64))
    sums.squared_error = float((decode(matrix) - weight).square_().sum(dtype=torch.float64))
    return sums


def _check_rows(stored: Int8Tensor, weight: Tensor, sums: PartReport) -> PartReport | None:
    if not rows_are_from(stored, weight):
        return None
    sums.quantised = sums.values
    for piece, part in stored.pieces(torch.float32):
        wide = weight[piece].float()
        sums.squares += float(wide.double().square().sum())
        sums.squared_error += float((part - wide).double().square().sum())
    return sums


def _is_copy(file: SafetensorsFile, job: Job, source: _Source) -> bool:
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


def _add(total: PartReport, more: PartReport) -> None:
    total.values += more.values
    total.quantised += more.quantised
    total.bytes_before += more.bytes_before
    total.bytes_after += more.bytes_after
    total.squares += more.squares
    total.squared_error += more.squared_error
