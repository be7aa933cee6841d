"""Files of a checkpoint's folder: no link out of it but into the hub cache, no pipe, no flood."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sfumato.config.checkpoint_file import check_inside, is_there, read_bounded
from sfumato.errors import ConfigError, SfumatoError, TemplateError, TokenizerError
from sfumato.text.template import ChatTemplate
from sfumato.text.tokenizer import Tokenizer
from tests.unit.text_samples import write_folder

HASH = "ab" * 32


def refusal(path: Path, limit: int = 100) -> str:
    with pytest.raises(ConfigError) as caught:
        read_bounded(path, limit)
    return str(caught.value)


def snapshot_file(root: Path) -> tuple[Path, Path]:
    """A file's place in a snapshot of the hub's cache, and its repository's blobs."""
    repo = root / "models--a--b"
    snapshot = repo / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    return snapshot / "file", repo / "blobs"


def test_a_plain_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    assert read_bounded(tmp_path / "file", 100) == b"x" * 100
    assert "longer than 99 bytes" in refusal(tmp_path / "file", 99)
    assert "there is no such file" in refusal(tmp_path / "other")
    assert "is not a regular file" in refusal(tmp_path / ".." / tmp_path.name)
    assert not is_there(tmp_path / "x\0y")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "file")
    assert "is not a regular file" in refusal(tmp_path / "file")


def test_a_link_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "file").symlink_to("../secret")
    assert "leads out of the checkpoint's folder" in refusal(folder / "file")
    (folder / "other").write_text("x")
    (folder / "inside").symlink_to("other")
    assert read_bounded(folder / "inside", 10) == b"x"


def test_links_into_the_hub_cache_as_releases_before_2_4_keep_it(tmp_path: Path) -> None:
    path, blobs = snapshot_file(tmp_path)
    (blobs / "0").write_text("x")
    path.symlink_to("../../blobs/0")
    check_inside(path)


def test_links_into_the_store_that_repositories_share_since_2_4(tmp_path: Path) -> None:
    path, blobs = snapshot_file(tmp_path)
    store = tmp_path / "blobs" / HASH[:2]
    store.mkdir(parents=True)
    (store / HASH).write_text("x")
    (blobs / "0").symlink_to(f"../../blobs/{HASH[:2]}/{HASH}")
    path.symlink_to("../../blobs/0")
    check_inside(path)
    (store / "odd").write_text("x")
    (blobs / "0").unlink()
    (blobs / "0").symlink_to(f"../../blobs/{HASH[:2]}/odd")
    with pytest.raises(ConfigError, match="leads out"):
        check_inside(path)


def test_a_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "file").symlink_to("file")
    with pytest.raises(ConfigError, match="file: "):
        check_inside(tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "error"),
    [("tokenizer.json", TokenizerError), ("chat_template.jinja", TemplateError)],
)
def test_text_files_too(tmp_path: Path, name: str, error: type[SfumatoError]) -> None:
    folder = write_folder(tmp_path / "m")

    def read() -> None:
        ChatTemplate.from_folder(folder, Tokenizer.from_folder(folder))

    read()
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(error, match="leads out"):
        read()
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(error, match="not a regular file"):
        read()
