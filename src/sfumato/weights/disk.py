"""Files that are whole, and on the disk, by the time they have their names."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

CHUNK = 16 * 1024 * 1024  # bytes written or copied at once


def settle(file: BinaryIO) -> None:
    """See what was written into `file` onto the disk."""
    file.flush()
    os.fsync(file.fileno())


def settle_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a crash, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """`data` as indented JSON in a folder that has no name of its own yet."""
    with path.open("wb") as file:
        file.write(json.dumps(data, indent=2, sort_keys=True).encode() + b"\n")
        settle(file)


def copy_file(source: Path, target: Path) -> None:
    """A file's bytes into a folder that has no name of its own yet."""
    with source.open("rb") as reading, target.open("wb") as writing:
        shutil.copyfileobj(reading, writing, CHUNK)
        settle(writing)
