"""One safetensors file, treated as hostile and mapped into memory.

Layout (safetensors 0.x): 8 bytes little-endian header length, a JSON header that gives every
tensor a dtype, a shape and a byte range, then the bytes. The ranges must cover the data exactly:
inside the file, no overlap, no hole.
"""

from __future__ import annotations

import math
import mmap
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from sfumato.config.checkpoint_file import is_there
from sfumato.config.fields import short
from sfumato.config.json_file import parse_json
from sfumato.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
MAX_NAME_LENGTH = 512
MAX_DIMENSIONS = 8
_PREFIX = 8  # bytes of the header length
_ADDRESS = 2**63 - 1
_FIELDS = {"dtype", "shape", "data_offsets"}

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
}


@dataclass(frozen=True)
class TensorEntry:
    """What the header says of one tensor; `start` and `stop` count bytes from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile:
    """A checked, mapped safetensors file. Raises CheckpointError for anything out of order.

    The mapping is private and copy-on-write: tensors share the file's pages until someone writes
    to them, and what is written stays in memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if is_there(path) and not path.is_file():  # opening a pipe would wait for its writer
            raise CheckpointError(f"{path}: is not a regular file")
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                self.entries = _read_header(path, file, size)
                self._map = _map_privately(file.fileno(), size)
        except OSError as problem:
            reason = problem.strerror or str(problem)
            raise CheckpointError(f"{path}: cannot be read: {reason}") from None

    def tensor(self, name: str) -> Tensor:
        """The tensor's bytes in place, without a copy (with one if they are misaligned)."""
        entry = self.entries[name]
        dtype = DTYPES[entry.dtype]
        if entry.start == entry.stop:
            return torch.empty(entry.shape, dtype=dtype)
        count = math.prod(entry.shape)
        if entry.start % dtype.itemsize:
            copied = bytearray(self._map[entry.start : entry.stop])
            return torch.frombuffer(copied, dtype=dtype).reshape(entry.shape)
        flat = torch.frombuffer(self._map, dtype=dtype, count=count, offset=entry.start)
        return flat.reshape(entry.shape)

    def release(self, name: str) -> None:
        """Let the system take back the memory of a tensor's pages; they are read again if used.

        What was written into the tensor is lost with them.
        """
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        entry = self.entries[name]
        start = entry.start - entry.start % mmap.PAGESIZE
        if entry.stop > start:
            self._map.madvise(mmap.MADV_DONTNEED, start, entry.stop - start)


def _map_privately(descriptor: int, size: int) -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
    flags = mmap.MAP_PRIVATE
    if sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64"):
        # MAP_NORESERVE: a private writable mapping is otherwise counted as memory to be set
        # aside, and a 52 GB file refused on a 24 GB machine that only reads it.
        flags |= 0x4000
    return mmap.mmap(descriptor, size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _read_header(path: Path, file: BinaryIO, size: int) -> dict[str, TensorEntry]:
    prefix = file.read(_PREFIX)
    if len(prefix) < _PREFIX:
        raise CheckpointError(f"{path}: cut short: {len(prefix)} bytes are no safetensors file")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path}: damaged: a header of {length:,} bytes is over the limit of "
            f"{MAX_HEADER_BYTES:,}"
        )
    if _PREFIX + length > size:
        raise CheckpointError(
            f"{path}: cut short: the header says {length:,} bytes and the file has {size:,}",
            hint="fetch the file again",
        )
    header = parse_json(file.read(length), f"{path}: header", error=CheckpointError)
    _check_metadata(path, header.pop("__metadata__", None))
    base = _PREFIX + length
    entries = {name: _entry(path, name, fields, base) for name, fields in header.items()}
    _check_cover(path, sorted(entries.values(), key=lambda e: (e.start, e.stop)), base, size)
    return entries


def _check_metadata(path: Path, metadata: object) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or any(not isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{path}: header: __metadata__ must map strings to strings")


def _entry(path: Path, name: str, fields: object, base: int) -> TensorEntry:
    # Of 35,000 tensors, words are put together for the one that is refused alone.
    if len(name) > MAX_NAME_LENGTH or not name.isprintable() or not name:
        raise CheckpointError(f"{_where(path, name)}: not a possible tensor name")
    if not isinstance(fields, dict) or fields.keys() != _FIELDS:
        raise CheckpointError(f"{_where(path, name)}: needs exactly dtype, shape and data_offsets")
    dtype = fields["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{_where(path, name)}: unknown dtype {short(dtype)}")
    shape, offsets = (_naturals(path, name, fields, one) for one in ("shape", "data_offsets"))
    if len(shape) > MAX_DIMENSIONS or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{_where(path, name)}: impossible shape or data_offsets")
    held = offsets[1] - offsets[0]
    needed = math.prod(shape) * DTYPES[dtype].itemsize
    if held != needed:
        raise CheckpointError(
            f"{_where(path, name)}: shape {list(shape)} of {dtype} needs {needed:,} bytes, its "
            f"offsets hold {held:,}"
        )
    return TensorEntry(name, dtype, shape, base + offsets[0], base + offsets[1])


def _where(path: Path, name: str) -> str:
    return f"{path}: tensor {short(name)}"


def _naturals(path: Path, name: str, fields: dict[str, Any], field: str) -> tuple[int, ...]:
    value = fields[field]
    if not isinstance(value, list):
        raise CheckpointError(f"{_where(path, name)}: {field} must be a list, not {short(value)}")
    for entry in value:
        if type(entry) is not int or not 0 <= entry <= _ADDRESS:  # True is an int as well
            where = f"{_where(path, name)}: {field}"
            raise CheckpointError(f"{where} holds {short(entry)}, not a possible size")
    return tuple(value)


def _check_cover(path: Path, entries: list[TensorEntry], base: int, size: int) -> None:
    """Byte ranges in order must meet end to start, from the header to the end of the file."""
    position = base
    for entry in entries:
        if entry.start == position and entry.stop <= size:
            position = entry.stop
            continue
        where = _where(path, entry.name)
        if entry.stop > size:
            raise CheckpointError(
                f"{where}: ends at byte {entry.stop:,} of a file of {size:,}",
                hint="the file is cut short or damaged: fetch it again",
            )
        if entry.start < position:
            raise CheckpointError(f"{where}: overlaps the tensor before it")
        raise CheckpointError(f"{where}: {entry.start - position:,} unused bytes before it")
    if position != size:
        raise CheckpointError(f"{path}: {size - position:,} bytes after the last tensor")
