"""The one writer of safetensors files: streamed, written aside, on the disk before it has a name.

The layout is in `safetensors_reader`. Tensors stand in the order given, without a gap between
them; the header is padded with blanks so that the data begins at a multiple of 8.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from sfumato.errors import CheckpointError
from sfumato.weights.disk import CHUNK, settle, settle_folder
from sfumato.weights.safetensors_reader import DTYPES, MAX_HEADER_BYTES

_ALIGNMENT = 8
UNFINISHED = ".part"  # in place of .safetensors, until the file is whole


@dataclass(frozen=True)
class Written:
    """A tensor of a new file: its name, the code of its dtype, its shape, its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int


def write_safetensors(path: Path, entries: Sequence[Written], tensors: Iterable[Tensor]) -> None:
    """Write one file of `entries`, taking their `tensors` one after the other as they are written.

    Whatever stands at `path` already is replaced, and only when the new file is whole. A failure
    leaves the unfinished file under its own suffix. Raises CheckpointError for a header that no
    reader would take, before anything is written, and OSError.
    """
    header = _header(path, entries)
    unfinished = path.with_suffix(UNFINISHED)
    with unfinished.open("wb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        coming = iter(tensors)
        for entry in entries:  # `zip` would hold each tensor while the next one is made
            _put(file, entry, next(coming))
        assert next(coming, None) is None, "more tensors than entries"
        settle(file)
    unfinished.replace(path)
    settle_folder(path.parent)


def _header(path: Path, entries: Sequence[Written]) -> bytes:
    fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for one in entries:
        offsets = [position, position + one.size]
        fields[one.name] = {
            "dtype": one.dtype,
            "shape": list(one.shape),
            "data_offsets": offsets,
        }
        position += one.size
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path}: its {len(entries):,} tensors need a header of {len(text):,} bytes, and "
            f"readers take {MAX_HEADER_BYTES:,}",
            hint="write smaller files",
        )
    return text


def _put(file: BinaryIO, entry: Written, tensor: Tensor) -> None:
    assert tensor.dtype == DTYPES[entry.dtype], entry.name
    assert tuple(tensor.shape) == entry.shape, entry.name
    file.writelines(_bytes_of(tensor))


def _bytes_of(tensor: Tensor) -> Iterator[memoryview]:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    raw = flat.view(torch.uint8).numpy().data
    for start in range(0, len(raw), CHUNK):
        yield raw[start : start + CHUNK]
