"""Put a checkpoint into NVFP4: streamed, checked against its source, resumed after a kill.

Files are finished one by one in a hidden folder beside the new one. A file that reaches its name
there was written whole; a later run with the same source and settings checks it against the
source and goes on after it. At the end the folder gets its own name.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from sfumato.config.checkpoint_file import DECODING, SPEAKING, is_there
from sfumato.config.json_file import read_json
from sfumato.config.parse import load_config
from sfumato.config.quantisation import FIELD, FILE, load_quantisation
from sfumato.errors import CheckpointError, ConfigError, InputError
from sfumato.quant.nvfp4 import FOUR_OVER_SIX, ScaleRule
from sfumato.weights.disk import copy_file, settle, settle_folder, write_json
from sfumato.weights.files import INDEX, SINGLE, WeightFiles
from sfumato.weights.inventory import PARTS
from sfumato.weights.loader import build_on_meta
from sfumato.weights.moments import Moments
from sfumato.weights.names import assign_names
from sfumato.weights.quantise_check import PartReport, check_shard
from sfumato.weights.quantise_plan import (
    Job,
    choose,
    cut_shards,
    description,
    kept_modules,
    plan_jobs,
)
from sfumato.weights.quantise_source import Source, tensors
from sfumato.weights.safetensors_writer import UNFINISHED, write_safetensors

MAX_SHARD_BYTES = 5_000_000_000
_PLAN = "plan.json"
_MOMENTS = "moments"
# What, beside the weights, says what a model answers.
_BESIDE = ("config.json", *SPEAKING, *DECODING)


@dataclass(frozen=True)
class Calibration:
    """Where the moments of a network's inputs come from.

    `note` runs the network on something and has them noted. `identity`, JSON values, tells runs
    with another something apart.
    """

    identity: Mapping[str, Any]
    note: Callable[[Moments], None]


@dataclass
class Report:
    """What `quantise_checkpoint` did; sizes are of the tensors, without headers."""

    folder: Path
    files: int
    reused: int = 0
    parts: dict[str, PartReport] = field(
        default_factory=lambda: {name: PartReport() for name in PARTS}
    )


def quantise_checkpoint(
    source: str | Path,
    folder: str | Path,
    *,
    keep: Sequence[str] = (),
    int8_embedding: bool = False,
    rule: ScaleRule = FOUR_OVER_SIX,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    extra_files: Mapping[str, Path] | None = None,
    calibration: Calibration | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Write the checkpoint in `source` into `folder`, with its text matrices in ModelOpt's NVFP4.

    Experts, attention, dense MLP and self-conditioning are quantised, less what `keep` names
    (see `quantise_plan.choose`); the rest is copied as stored, but the embedding table put into 8
    bits with `int8_embedding`. `extra_files` maps names of files
    beside the weights to where they are copied from. Memory for one tensor is needed.

    With `calibration` errors make up for each other under the inputs that it notes; its moments
    lie beside the files while they are written. The inverse of K columns' moments then takes 17 K^2
    bytes for a while, 1.1 GB where K is 8,192.

    Every file is read back: codes must be the nearest, or those that calibration led to, scales the
    rule's, copies equal to the byte. Raises InputError for settings that cannot be or a folder that
    is taken, ConfigError or CheckpointError for a source that cannot be read or is not all numbers,
    a full disk, or a file that reads back wrong.
    """
    source, folder = Path(source), Path(folder).absolute()
    if max_shard_bytes < 1:
        raise InputError(f"max_shard_bytes must be at least 1, not {max_shard_bytes}")
    config = load_config(source)
    if load_quantisation(source) is not None:
        raise InputError(f"{source} is quantised already", hint="give the BF16 checkpoint")
    _clear_remnant(folder)
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
    settings = {"keep": sorted(keep), "int8_embedding": int8_embedding, "rule": repr(rule)}
    report = Report(folder, len(shards))
    kept = kept_modules(expected, chosen, int8_embedding=int8_embedding)
    try:
        plan = _plan(source, shards, settings, calibration)
        with _aside(folder, plan) as aside:
            moments = None if calibration is None else Moments(aside / _MOMENTS, config)
            _check_space(aside, jobs, moments)
            if calibration is not None and moments is not None:
                _note(moments, calibration, progress)
            own = Source(files, jobs, rule, moments)
            _write_shards(aside, shards, own, report, progress)
            _describe(aside, source, kept, int8_embedding=int8_embedding)
            for name, path in (extra_files or {}).items():
                copy_file(path, aside / name)
            _give_name(aside, folder)
    except OSError as problem:
        raise CheckpointError(
            f"{folder}: not written: {problem.strerror or problem}",
            hint="what is finished is kept: the same command goes on from there",
        ) from None
    return report


def _describe(aside: Path, source: Path, kept: Sequence[str], *, int8_embedding: bool) -> None:
    """Both of ModelOpt's files that say what is quantised."""
    field_of_config, beside = description(kept, int8_embedding=int8_embedding)
    original = read_json(source / "config.json") | {FIELD: field_of_config}
    write_json(aside / "config.json", original)
    write_json(aside / FILE, beside)


def _give_name(aside: Path, folder: Path) -> None:
    """The finished folder's own name, without what only the work needed.

    Moments are deleted last of all, elsewhere: a run that is killed before finds them whole.
    """
    if is_there(folder):
        folder.rmdir()  # it was empty; if it no longer is, nothing has been given up yet
    if is_there(aside / _MOMENTS):
        (aside / _MOMENTS).rename(_doomed(aside))
    (aside / _PLAN).unlink()
    settle_folder(aside)
    aside.rename(folder)
    settle_folder(folder.parent)
    shutil.rmtree(_doomed(aside), ignore_errors=True)


def _doomed(aside: Path) -> Path:
    """Where the moments of a run wait for the end that they are not needed after."""
    return aside.with_name(f"{aside.name}.moments")


def _take_up(aside: Path, *, same: bool) -> None:
    """Moments that a killed run had given up: to their place if it goes on, else away."""
    if same and is_there(_doomed(aside)) and not is_there(aside / _MOMENTS):
        _doomed(aside).rename(aside / _MOMENTS)
    shutil.rmtree(_doomed(aside), ignore_errors=True)


def _hidden(folder: Path) -> Path:
    """The hidden folder beside `folder` where a run writes."""
    return folder.parent / f".{folder.name}.nvfp4.part"


def _clear_remnant(folder: Path) -> None:
    """Delete moments that a run left when its files had their name, and it was killed."""
    if is_there(folder) and not is_there(_hidden(folder)):
        shutil.rmtree(_doomed(_hidden(folder)), ignore_errors=True)


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


def _plan(
    source: Path,
    shards: Sequence[Sequence[Job]],
    settings: Mapping[str, Any],
    calibration: Calibration | None,
) -> dict[str, Any]:
    """What must be the same, as JSON, for a later run to go on from where this one stops."""
    return {
        **settings,
        "source": _identity(source),
        "calibration": None if calibration is None else dict(calibration.identity),
        "shards": [[one.name for job in shard for one in job.written] for shard in shards],
    }


def _identity(source: Path) -> dict[str, Any]:
    """What tells that a later run reads the same files."""
    found = {path.name: path.stat() for path in sorted(source.glob("*.safetensors"))}
    sizes = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in found.items()}
    # Settings, tokenizer and template too: what is answered to calibrate hangs on them.
    beside = {name: _digest(source / name) for name in _BESIDE if (source / name).is_file()}
    return {"folder": str(source.resolve()), "files": sizes, "beside": beside}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@contextmanager
def _aside(folder: Path, plan: Mapping[str, Any]) -> Iterator[Path]:
    """The hidden folder of a run, new or an earlier one's with the same plan, for one at a time."""
    aside = _hidden(folder)
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
        _take_up(aside, same=path.stat().st_size > 0)
        if not path.stat().st_size:
            file.write(json.dumps(plan).encode())
            settle(file)
        try:
            yield aside
        except BaseException:
            if not (any(aside.glob("*.safetensors")) or Moments.finished_in(aside / _MOMENTS)):
                # nothing to go on from
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


def _check_space(aside: Path, jobs: Sequence[Job], moments: Moments | None) -> None:
    """Say so at once when the files cannot fit, instead of after an hour of writing."""
    for begun in aside.glob(f"*{UNFINISHED}"):
        begun.unlink()
    finished = sum(path.stat().st_size for path in aside.glob("*.safetensors"))
    needed = sum(job.size for job in jobs) - finished
    if moments is not None and not Moments.finished_in(moments.folder):
        shutil.rmtree(moments.folder, ignore_errors=True)  # a killed run's, reserved as large
        needed += moments.nbytes
    free = shutil.disk_usage(aside).free
    if needed > free:
        raise CheckpointError(
            f"{aside}: {needed / 1e6:,.1f} MB are to be written and the disk has "
            f"{free / 1e6:,.1f} MB left",
            hint="free some space, then the same command goes on",
        )


def _note(moments: Moments, calibration: Calibration, progress: Callable[[str], None]) -> None:
    """Note the moments of the inputs, or take what an earlier run has noted."""
    if Moments.finished_in(moments.folder):
        moments.resume()
        return
    progress("calibrating")
    moments.begin()
    calibration.note(moments)
    moments.finish()


def _write_shards(
    aside: Path,
    shards: Sequence[Sequence[Job]],
    source: Source,
    report: Report,
    progress: Callable[[str], None],
) -> None:
    weight_map: dict[str, str] = {}
    for number, jobs in enumerate(shards, start=1):
        several = len(shards) > 1
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if several else SINGLE
        path = aside / name
        digests = None if source.moments is None else aside / _MOMENTS / f"{name}.json"
        parts = None
        if is_there(path):
            progress(f"checking {name}")
            parts = check_shard(path, jobs, source, digests)
            report.reused += parts is not None
        if parts is None:
            progress(f"writing {name}")
            _write_shard(path, jobs, source, digests)
            parts = check_shard(path, jobs, source, digests)
        if parts is None:
            path.unlink()
            raise CheckpointError(
                f"{path}: does not read back as it was written", hint="is the disk sound?"
            )
        for part, sums in parts.items():
            report.parts[part].add(sums)
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


def _write_shard(path: Path, jobs: Sequence[Job], source: Source, digests: Path | None) -> None:
    """Write one safetensors file, a tensor at a time, and what tells that it is right."""
    entries = [one for job in jobs for one in job.written]
    source.digests.clear()
    write_safetensors(path, entries, tensors(jobs, source))
    if digests is not None:
        write_json(digests, source.digests)
