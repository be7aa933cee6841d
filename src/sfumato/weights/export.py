"""Write a checkpoint that transformers and sfumato load: aside, streamed, whole or not at all."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.config.checkpoint_file import is_there
from sfumato.config.generation import OWN_FILE, GenerationConfig
from sfumato.config.model import ModelConfig
from sfumato.config.write import to_json
from sfumato.errors import CheckpointError, InputError
from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.weights.disk import copy_file, settle_folder, write_json
from sfumato.weights.files import INDEX, SINGLE
from sfumato.weights.finite import check_finite
from sfumato.weights.loader import DTYPES
from sfumato.weights.safetensors_reader import DTYPES as FILE_DTYPES
from sfumato.weights.safetensors_writer import Written, write_safetensors

__all__ = ["MAX_SHARD_BYTES", "export", "export_tensors", "plan_shards", "settle_folder"]

MAX_SHARD_BYTES = 5_000_000_000
_CODES = {dtype: code for code, dtype in FILE_DTYPES.items()}
_OURS = ("config.json", "generation_config.json", OWN_FILE, SINGLE, INDEX)


def export(
    network: DiffusionGemma,
    config: ModelConfig,
    folder: str | Path,
    *,
    generation: GenerationConfig | None = None,
    extra_files: Mapping[str, Path] | None = None,
    dtype: torch.dtype | str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
) -> Path:
    """Write `network` as a checkpoint into `folder` and return it.

    `dtype` (by default the network's) is what the tensors are stored in; `extra_files` maps the
    names of tokenizer, template or processor files to where they are copied from. Everything is
    written into a hidden folder beside `folder` and renamed at the end, so that `folder` is there
    complete or as it was before. A tensor at a time is held besides the network itself.

    Raises InputError for settings that cannot be or a folder that is taken (with `overwrite`, a
    checkpoint's folder is replaced and any other still refused), CheckpointError when a weight is
    an infinity or a NaN, the disk is full or a file cannot be written.
    """
    network.need_unpacked("be exported")
    tensors = network.state_dict()
    return export_tensors(
        tensors,
        tensors.__getitem__,
        config,
        folder,
        dtype=_dtype(dtype, network),
        generation=generation,
        extra_files=extra_files,
        max_shard_bytes=max_shard_bytes,
        overwrite=overwrite,
    )


def export_tensors(
    shapes: Mapping[str, Tensor],
    read: Callable[[str], Tensor],
    config: ModelConfig,
    folder: str | Path,
    *,
    dtype: torch.dtype,
    generation: GenerationConfig | None = None,
    extra_files: Mapping[str, Path] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
) -> Path:
    """`export` of tensors that need not be in memory together.

    `shapes` are tensors of the shapes, on the meta device or elsewhere, and `read` gives those that
    are written, by name. Each is asked for once, when the one before it has been let go.
    """
    folder = Path(folder).absolute()
    if max_shard_bytes < 1:
        raise InputError(f"max_shard_bytes must be at least 1, not {max_shard_bytes}")
    extra = _checked_extra(extra_files or {})
    _check_folder(folder, overwrite)
    shards = plan_shards(shapes, dtype, max_shard_bytes)
    written = dataclasses.replace(config, dtype=_name(dtype))
    try:
        _check_space(folder, shapes, dtype, extra)
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    except OSError as problem:
        raise _failed(folder, problem) from None
    try:
        _write_weights(aside, shapes, read, shards, dtype, str(folder))
        write_json(aside / "config.json", to_json(written))
        if generation is not None:
            write_json(aside / "generation_config.json", generation.to_json())
            if (own := generation.own_json()) is not None:
                write_json(aside / OWN_FILE, own)
        for name, source in extra.items():
            copy_file(source, aside / name)
        _publish(aside, folder)
    except OSError as problem:
        raise _failed(folder, problem) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)  # gone already, unless something went wrong
    return folder


def plan_shards(
    tensors: Mapping[str, Tensor], dtype: torch.dtype, max_shard_bytes: int
) -> list[list[str]]:
    """Names in order, cut into shards of at most `max_shard_bytes` (or of one larger tensor)."""
    shards: list[list[str]] = [[]]
    held = 0
    for name in sorted(tensors):
        size = tensors[name].numel() * dtype.itemsize
        if shards[-1] and held + size > max_shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards


def _converted(
    names: Sequence[str], read: Callable[[str], Tensor], dtype: torch.dtype, where: str
) -> Iterator[Tensor]:
    """The tensors in `dtype`. Raises CheckpointError for the first that is not all numbers."""
    for name in names:
        yield _checked(name, read(name), dtype, where)  # no name here holds it any longer


def _checked(name: str, tensor: Tensor, dtype: torch.dtype, where: str) -> Tensor:
    stored = tensor.detach().to(device="cpu", dtype=dtype)
    check_finite(name, tensor, where, stored)
    return stored


def _write_weights(
    folder: Path,
    shapes: Mapping[str, Tensor],
    read: Callable[[str], Tensor],
    shards: Sequence[Sequence[str]],
    dtype: torch.dtype,
    where: str,
) -> None:
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        several = len(shards) > 1
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if several else SINGLE
        entries = [
            Written(name, _CODES[dtype], tuple(one.shape), one.numel() * dtype.itemsize)
            for name, one in ((name, shapes[name]) for name in names)
        ]
        write_safetensors(folder / file, entries, _converted(names, read, dtype, where))
        weight_map.update(dict.fromkeys(names, file))
    if len(shards) == 1:
        return
    total = sum(tensor.numel() for tensor in shapes.values())
    metadata = {"total_parameters": total, "total_size": total * dtype.itemsize}
    write_json(folder / INDEX, {"metadata": metadata, "weight_map": weight_map})


def _publish(aside: Path, folder: Path) -> None:
    """Give the finished folder its name; what had the name before is moved away, then removed."""
    umask = os.umask(0)
    os.umask(umask)
    aside.chmod(0o777 & ~umask)
    settle_folder(aside)
    if not is_there(folder):
        aside.rename(folder)
    else:
        before = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".old", dir=folder.parent))
        folder.rename(before)
        try:
            aside.rename(folder)
        except BaseException:  # Ctrl-C too
            before.rename(folder)
            raise
        shutil.rmtree(before, ignore_errors=True)
    settle_folder(folder.parent)


def _check_folder(folder: Path, overwrite: bool) -> None:
    if not is_there(folder):
        if not folder.name:
            raise InputError(f"{folder}: cannot be a checkpoint's folder")
        return
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file, and a checkpoint is a folder")
    empty = next(folder.iterdir(), None) is None
    if not empty and not overwrite:
        raise InputError(f"{folder}: exists already", hint="choose another folder, or overwrite it")
    if not empty and not is_there(folder / "config.json"):
        raise InputError(f"{folder}: is no checkpoint (no config.json) and is left alone")


def _checked_extra(extra: Mapping[str, Path]) -> dict[str, Path]:
    for name, source in extra.items():
        if Path(name).name != name or name.startswith(".") or name in _OURS:
            raise InputError(f"{name!r} cannot be the name of an extra file in a checkpoint")
        if not source.is_file():
            raise InputError(f"{source}: there is no such file to put into the checkpoint")
    return dict(extra)


def _check_space(
    folder: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, extra: Mapping[str, Path]
) -> None:
    """Say so at once when the weights cannot fit, instead of after an hour of writing."""
    needed = sum(tensor.numel() for tensor in tensors.values()) * dtype.itemsize
    needed += sum(source.stat().st_size for source in extra.values())
    free = shutil.disk_usage(next(place for place in folder.parents if is_there(place))).free
    if needed > free:
        raise CheckpointError(
            f"{folder}: needs {needed / 1e6:,.1f} MB and the disk has {free / 1e6:,.1f} MB left",
            hint="nothing was written",
        )


def _failed(folder: Path, problem: OSError) -> CheckpointError:
    return CheckpointError(
        f"{folder}: not written: {problem.strerror or problem}",
        hint="what was begun has been removed",
    )


def _dtype(dtype: torch.dtype | str | None, network: DiffusionGemma) -> torch.dtype:
    wanted = DTYPES.get(dtype) if isinstance(dtype, str) else (dtype or network.dtype)
    if wanted not in DTYPES.values():
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype or wanted}")
    assert wanted is not None
    return wanted


def _name(dtype: torch.dtype) -> Any:
    return next(name for name, known in DTYPES.items() if known == dtype)
