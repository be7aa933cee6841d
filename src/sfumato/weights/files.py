"""The weight files of a checkpoint folder: one file, or shards under an index."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.config.checkpoint_file import check_inside, is_there
from sfumato.config.fields import short
from sfumato.config.json_file import read_json
from sfumato.errors import CheckpointError
from sfumato.weights.safetensors_reader import SafetensorsFile, TensorEntry

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_INDEX_BYTES = 64 * 1024 * 1024
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_MAX_FILE_NAME = 255


class WeightFiles:
    """Every tensor of a checkpoint by the name its file uses. Raises CheckpointError.

    `entries` are the headers' words; nothing is read of a tensor until `tensor` is called.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not is_there(self.folder) or not self.folder.is_dir():
            raise CheckpointError(f"{self.folder}: there is no such folder")
        self._file_of: dict[str, SafetensorsFile] = {}
        single, index = self.folder / SINGLE, self.folder / INDEX
        if is_there(single) and is_there(index):
            raise CheckpointError(
                f"{self.folder}: has both {SINGLE} and {INDEX}", hint="remove the stale one"
            )
        if is_there(index):
            self._read_shards(_read_index(index))
        elif is_there(single):
            self._open(SINGLE)
        else:
            raise _no_weights(self.folder)
        self.entries: dict[str, TensorEntry] = {
            name: file.entries[name] for name, file in self._file_of.items()
        }

    def tensor(self, name: str) -> Tensor:
        """The tensor called `name` in its file, in place."""
        return self._file_of[name].tensor(name)

    def release(self, name: str) -> None:
        """Let go of the memory that reading the tensor took: see `SafetensorsFile.release`."""
        self._file_of[name].release(name)

    def _read_shards(self, weight_map: Mapping[str, str]) -> None:
        for file_name in sorted(set(weight_map.values())):
            self._open(file_name)
        for name, file_name in weight_map.items():
            held = self._file_of.get(name)
            if held is None or held.path.name != file_name:
                where = "in no file" if held is None else f"in {held.path.name}"
                raise CheckpointError(
                    f"{self.folder / INDEX}: says {short(name)} is in {file_name}; it is {where}"
                )
        for name, file in self._file_of.items():
            if name not in weight_map:
                raise CheckpointError(f"{file.path}: holds {short(name)}, which {INDEX} leaves out")

    def _open(self, file_name: str) -> None:
        path = self.folder / file_name
        check_inside(path, error=CheckpointError)
        file = SafetensorsFile(path)
        for name in file.entries:
            if name in self._file_of:
                raise CheckpointError(
                    f"{self.folder}: {short(name)} is in both {self._file_of[name].path.name} and "
                    f"{file.path.name}"
                )
            self._file_of[name] = file


def _read_index(path: Path) -> dict[str, str]:
    data = read_json(path, limit=MAX_INDEX_BYTES, error=CheckpointError)
    unknown = sorted(set(data) - {"metadata", "weight_map"})
    if unknown:
        raise CheckpointError(f"{path}: unknown field {short(unknown[0])}")
    weight_map: Any = data.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: weight_map must map tensor names to file names")
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or not _is_plain(file_name):
            raise CheckpointError(
                f"{path}: {short(name)} is said to be in {short(file_name)}, which is no plain "
                "name of a .safetensors file in the folder"
            )
    return weight_map


def _is_plain(name: str) -> bool:
    """Whether `name` can only mean a file in the folder itself."""
    return (
        len(name) <= _MAX_FILE_NAME
        and name.isprintable()
        and name.endswith(".safetensors")
        and not name.startswith(".")
        and not set(name) & set("/\\:")
    )


def _no_weights(folder: Path) -> CheckpointError:
    for name in (SINGLE, INDEX):
        if (folder / name).is_symlink():
            return CheckpointError(
                f"{folder / name}: is a link to nothing", hint="fetch the checkpoint again"
            )
    names = sorted(entry.name for entry in folder.iterdir())
    shards = [name for name in names if name.endswith(".safetensors")]
    pickles = [name for name in names if name.endswith(_PICKLE_SUFFIXES)]
    if shards:
        return CheckpointError(
            f"{folder}: has {short(shards[0])} but neither {SINGLE} nor {INDEX}",
            hint="fetch the checkpoint again, with its index",
        )
    if pickles:
        return CheckpointError(
            f"{folder}: has only {short(pickles[0])}: pickle files can run code and are never read",
            hint="convert the checkpoint to safetensors",
        )
    return CheckpointError(f"{folder}: has no {SINGLE}", hint="is this a checkpoint's folder?")
