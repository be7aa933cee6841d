"""The safetensors reader against sound, damaged and hostile files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from sfumato.errors import CheckpointError
from sfumato.weights.safetensors_reader import MAX_HEADER_BYTES, SafetensorsFile
from tests.unit.checkpoint_files import entry, safetensors_bytes, write_tensors

PER_EXAMPLE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(path)
    message = str(caught.value)
    assert str(path) in message
    assert message.isprintable()
    return message


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    return path


def test_what_the_library_writes_is_read_without_a_copy(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.randn(2, 2, 2).to(torch.bfloat16),
        "c": torch.tensor(7, dtype=torch.int64),
        "d": torch.empty(0, 4),
        "e": torch.tensor([True, False]),
    }
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    file = SafetensorsFile(path)
    assert set(file.entries) == set(tensors)
    for name, tensor in tensors.items():
        ours = file.tensor(name)
        assert ours.dtype == tensor.dtype
        assert ours.shape == tensor.shape
        assert torch.equal(ours, tensor)
    assert file.tensor("a").data_ptr() == file.tensor("a").data_ptr()


def test_writing_to_a_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(4)}, path)
    before = path.read_bytes()
    SafetensorsFile(path).tensor("a").mul_(5)
    assert path.read_bytes() == before
    assert torch.equal(SafetensorsFile(path).tensor("a"), torch.ones(4))


def test_misaligned_tensors_are_copied(tmp_path: Path) -> None:
    header = {"a": entry("U8", [1], 0, 1), "b": entry("F32", [2], 1, 9)}
    data = b"\x07" + torch.tensor([1.5, -2.0]).numpy().tobytes()
    file = SafetensorsFile(written(tmp_path, safetensors_bytes(header, data)))
    assert file.tensor("b").tolist() == [1.5, -2.0]


ONE = entry("F32", [2], 0, 8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cut short: 0 bytes"),
        (b"\x08\x00\x00", "cut short: 3 bytes"),
        (safetensors_bytes({}, length=MAX_HEADER_BYTES + 1), "over the limit"),
        (safetensors_bytes({}, length=2**64 - 1), "over the limit"),
        (safetensors_bytes({}, length=1000), "cut short: the header says 1,000 bytes"),
        (safetensors_bytes(b"{not json"), "not valid JSON"),
        (safetensors_bytes(b"\xff\xff"), "not valid JSON"),
        (safetensors_bytes(b"[]"), "a JSON object was expected"),
        (safetensors_bytes(b"[" * 60_000), "nested too deeply"),
        (safetensors_bytes({"__metadata__": {"a": 1}}), "must map strings to strings"),
        (safetensors_bytes({"__metadata__": []}), "must map strings to strings"),
        (safetensors_bytes({"a": 5}), "needs exactly dtype, shape"),
        (safetensors_bytes({"a": ONE | {"code": "x"}}), "needs exactly dtype, shape"),
        (safetensors_bytes({"a": entry("F33", [2], 0, 8)}, b"8" * 8), "unknown dtype 'F33'"),
        (safetensors_bytes({"a": ONE | {"dtype": 4}}, b"8" * 8), "unknown dtype 4"),
        (safetensors_bytes({"a": entry("F32", [-2], 0, 8)}, b"8" * 8), "holds -2"),
        (safetensors_bytes({"a": ONE | {"shape": [2.0]}}, b"8" * 8), "holds 2.0"),
        (safetensors_bytes({"a": ONE | {"shape": [True, 2]}}, b"8" * 8), "holds True"),
        (safetensors_bytes({"a": ONE | {"shape": "2"}}, b"8" * 8), "must be a list"),
        (safetensors_bytes({"a": ONE | {"data_offsets": [0]}}, b"8" * 8), "impossible shape"),
        (safetensors_bytes({"a": ONE | {"data_offsets": [8, 0]}}, b"8" * 8), "impossible shape"),
        (safetensors_bytes({"a": entry("F32", [1] * 9, 0, 4)}, b"4" * 4), "impossible shape"),
        (safetensors_bytes({"a": entry("F32", [2**62, 8], 0, 8)}, b"8" * 8), "needs"),
        (safetensors_bytes({"a": entry("F32", [2**70], 0, 8)}, b"8" * 8), "not a possible size"),
        (safetensors_bytes({"a": entry("F32", [3], 0, 8)}, b"8" * 8), "needs 12 bytes"),
        (safetensors_bytes({"a": ONE}, b"8" * 7), "ends at byte"),
        (safetensors_bytes({"a": ONE}, b"8" * 9), "1 bytes after the last tensor"),
        (safetensors_bytes({"a": entry("F32", [2], 4, 12)}, b"8" * 12), "4 unused bytes"),
        (safetensors_bytes({"a": ONE, "b": entry("F32", [1], 4, 8)}, b"8" * 8), "overlaps"),
        (safetensors_bytes({"a": ONE, "b": ONE}, b"8" * 8), "overlaps"),
        (safetensors_bytes({"": ONE}, b"8" * 8), "not a possible tensor name"),
        (safetensors_bytes({"\x1b[2J": ONE}, b"8" * 8), "not a possible tensor name"),
        (safetensors_bytes({"a" * 600: ONE}, b"8" * 8), "not a possible tensor name"),
    ],
)
def test_broken_files_are_refused_in_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    assert words in refusal(written(tmp_path, content))


def test_duplicate_keys_which_the_library_accepts(tmp_path: Path) -> None:
    one = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    content = safetensors_bytes(b'{"a":' + one + b',"a":' + one + b"}", b"4444")
    assert "the key 'a' is there twice" in refusal(written(tmp_path, content))


def test_what_is_no_file(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "absent.safetensors")
    assert "not a regular file" in refusal(tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "not a regular file" in refusal(pipe)


@PER_EXAMPLE
@given(st.data())
def test_any_truncation_and_any_flipped_byte_is_refused_or_read(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(1)})
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        file = SafetensorsFile(path)
    except CheckpointError as problem:
        assert str(problem).isprintable()  # noqa: PT017 - either outcome is right
        return
    for name in file.entries:
        assert file.tensor(name).numel() >= 0


@PER_EXAMPLE
@given(
    st.dictionaries(
        st.text("abc.", min_size=1, max_size=4),
        st.lists(st.integers(0, 4), max_size=3),
        min_size=1,
        max_size=5,
    )
)
def test_whatever_is_written_is_read_back(tmp_path: Path, shapes: dict[str, Any]) -> None:
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    path = tmp_path / "x.safetensors"
    write_tensors(path, tensors)
    file = SafetensorsFile(path)
    assert {name: list(found.shape) for name, found in file.entries.items()} == shapes
    assert all(torch.equal(file.tensor(name), tensor) for name, tensor in tensors.items())
