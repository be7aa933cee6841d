"""With --json and bad input: one clear line on stderr, exit 1 or 2, nothing on stdout."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub
import pytest

from tests.cli.checkpoints import Program

KEEP = ("--keep", "*.experts.*")


@pytest.fixture
def damaged(tiny: Path, tmp_path: Path) -> Path:
    """A checkpoint whose settings are those of another one."""
    folder = tmp_path / "damaged"
    shutil.copytree(tiny, folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 106, 262143]}')
    return folder


@pytest.mark.parametrize("command", ["ask", "show", "eval", "export"])
def test_stop_ids_outside_the_vocabulary(
    sfumato: Program, damaged: Path, tmp_path: Path, command: str
) -> None:
    arguments = {
        "ask": ("ask", "-m", damaged, "hi", "--json"),
        "show": ("show", damaged, "--json"),
        "eval": ("eval", damaged, "--task", "copy", "-n", "1", "--json"),
        "export": ("export", damaged, tmp_path / "copy"),
    }
    said = sfumato.refuses(*arguments[command], code=1)
    assert "eos_token_id holds 262143, outside the vocabulary of 2048" in said


def test_a_checkpoint_that_is_none(sfumato: Program, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe" + b"[" * 100_000)
    for arguments in (
        ("ask", "-m", tmp_path, "hi"), ("show", tmp_path), ("eval", tmp_path, "--task", "copy"),
        ("quantize", tmp_path, tmp_path / "q"),
    ):  # fmt: skip
        assert "not valid JSON" in sfumato.refuses(*arguments, "--json", code=1)


@pytest.mark.parametrize("command", ["ask", "show", "eval", "list", "doctor", "quantize"])
def test_options_and_variables_that_do_not_exist(
    sfumato: Program, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    sfumato.refuses(command, "--json", "--frobnicate", code=2)
    monkeypatch.setenv("SFUMATO_THREADS", "many")
    if command == "doctor":
        assert "SFUMATO_THREADS" in sfumato.refuses(command, "--json", code=2)


def test_a_cache_that_is_a_file(
    sfumato: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "hub"
    path.write_text("no folder")
    scan = huggingface_hub.scan_cache_dir
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: scan(path))
    assert "the hub's cache cannot be read" in sfumato.refuses("list", "--json", code=1)
    assert "the hub's cache cannot be read" in sfumato.refuses("rm", "a/b", "-y", code=1)


def test_names_of_any_length(sfumato: Program, tiny: Path) -> None:
    name = "x" * 100_000
    for arguments in (
        ("show", name), ("ask", "-m", name, "hi"), ("eval", tiny, "--task", name),
        ("eval", tiny, "--file", name), ("quantize", tiny, name, *KEEP),
    ):  # fmt: skip
        done = sfumato(*arguments, "--json")
        assert done.code in (1, 2)
        assert done.out == ""
        assert len(done.err) < 2000
