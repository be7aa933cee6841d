"""The one writer of safetensors files, and that both commands which write go through it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sfumato.errors import CheckpointError
from sfumato.weights import safetensors_writer as module
from sfumato.weights.quantise import quantise_checkpoint
from sfumato.weights.safetensors_reader import SafetensorsFile
from sfumato.weights.safetensors_writer import Written, write_safetensors
from tests.unit.checkpoint_files import write_checkpoint
from tests.unit.source_tree import package_modules
from tests.unit.test_weights_quantise import write_source

TENSORS = {
    "b": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "a": torch.tensor(1.5, dtype=torch.bfloat16),
    "none": torch.empty(0, 4, dtype=torch.float16),
    "turned": torch.arange(6, dtype=torch.uint8).reshape(2, 3).T,
}
CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8"}
ENTRIES = [
    Written(name, CODES[one.dtype], tuple(one.shape), one.numel() * one.element_size())
    for name, one in TENSORS.items()
]


def test_the_library_and_the_reader_read_it(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"what was there before")
    write_safetensors(path, ENTRIES, iter(TENSORS.values()))
    assert [one.name for one in tmp_path.iterdir()] == ["x.safetensors"]
    theirs, ours = load_file(path), SafetensorsFile(path)
    for name, tensor in TENSORS.items():
        assert torch.equal(theirs[name], tensor)
        assert torch.equal(ours.tensor(name), tensor)
    assert path.read_bytes()[:8] == (len(path.read_bytes()) - 8 - 32).to_bytes(8, "little")


def test_it_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"what was there before")

    def interrupted() -> Iterator[Tensor]:
        yield TENSORS["b"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_safetensors(path, ENTRIES, interrupted())
    assert path.read_bytes() == b"what was there before"


def test_a_header_that_no_reader_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, ENTRIES, TENSORS.values())
    length = int.from_bytes(path.read_bytes()[:8], "little")
    monkeypatch.setattr(module, "MAX_HEADER_BYTES", length)
    write_safetensors(path, ENTRIES, TENSORS.values())
    monkeypatch.setattr(module, "MAX_HEADER_BYTES", length - 1)
    with pytest.raises(CheckpointError, match="its 4 tensors need a header of"):
        write_safetensors(tmp_path / "y.safetensors", ENTRIES, TENSORS.values())
    assert [one.name for one in tmp_path.iterdir()] == ["x.safetensors"]


def test_export_and_quantize_keep_to_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_source(tmp_path / "m")
    monkeypatch.setattr(module, "MAX_HEADER_BYTES", 1000)
    with pytest.raises(CheckpointError, match="need a header"):
        write_checkpoint(tmp_path / "e")
    with pytest.raises(CheckpointError, match="need a header"):
        quantise_checkpoint(tmp_path / "m", tmp_path / "q")
    assert [one.name for one in tmp_path.iterdir()] == ["m"]


def test_nothing_else_writes_headers() -> None:
    writers = [one.name for one in package_modules() if '"data_offsets": ' in one.text]
    assert writers == ["sfumato.weights.safetensors_writer"]
