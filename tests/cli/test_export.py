"""`sfumato export` and `sfumato train` from the command line."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

import sfumato as library
from sfumato.cli.export import parse_size
from sfumato.errors import InputError
from tests.cli.checkpoints import TEXT_FILES, Program


def test_an_export_answers_as_its_source(sfumato: Program, tiny: Path, tmp_path: Path) -> None:
    dest = tmp_path / "new" / "copy"
    done = sfumato("export", tiny, dest)
    assert (done.code, done.out.strip(), done.err) == (0, str(dest), "")
    assert all((dest / name).is_file() for name in TEXT_FILES)
    assert library.load(dest).answer("hi") == library.load(tiny).answer("hi")


def test_dtype_and_shards(sfumato: Program, tiny: Path, tmp_path: Path) -> None:
    dest = tmp_path / "copy"
    assert (
        sfumato("export", tiny, dest, "--dtype", "bfloat16", "--max-shard-size", "50kB").code == 0
    )
    shards = list(dest.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert json.loads((dest / "config.json").read_text())["dtype"] == "bfloat16"


def test_what_is_there_is_not_touched(sfumato: Program, tiny: Path, tmp_path: Path) -> None:
    dest = tmp_path / "copy"
    assert sfumato("export", tiny, dest).code == 0
    before = (dest / "model.safetensors").stat().st_mtime_ns
    assert sfumato.refuses("export", tiny, dest, code=2)
    assert (dest / "model.safetensors").stat().st_mtime_ns == before
    assert sfumato("export", tiny, dest, "--overwrite").code == 0
    link = tmp_path / "link"
    link.symlink_to(tiny)
    for itself in (tiny, tiny / ".." / tiny.name, link):
        said = sfumato.refuses("export", tiny, itself, "--overwrite", code=2)
        assert "the checkpoint itself" in said
    assert link.is_symlink()
    assert sfumato("export", dest, dest / "inner").code == 0
    said = sfumato.refuses("export", dest / "inner", dest, "--overwrite", code=2)
    assert "a folder that the checkpoint is in" in said


def test_a_full_disk_leaves_nothing_behind(
    sfumato: Program, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sfumato.weights import export as writing

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing, "_write_weights", fail)
    said = sfumato.refuses("export", tiny, tmp_path / "copy", code=1)
    assert "space" in said or "full" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("200 mb", 200 * 10**6), ("1.5kB", 1500), ("7", 7), (" 1GB ", 10**9)],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "0.1", "5TB", "1e9", "9" * 40, "5 G B"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="is no size"):
        parse_size(text)


def test_bad_arguments(sfumato: Program, tiny: Path, tmp_path: Path) -> None:
    dest = tmp_path / "copy"
    assert "dtype" in sfumato.refuses("export", tiny, dest, "--dtype", "int3", code=2)
    sfumato.refuses("export", tiny, dest, "--max-shard-size", "much", code=2)
    sfumato.refuses("export", tiny, code=2)
    sfumato.refuses("export", tmp_path / "nothing", dest, code=1)
    assert not dest.exists()


def test_train_refuses_a_recipe_that_is_none(sfumato: Program, tmp_path: Path) -> None:
    sfumato.refuses("train", tmp_path / "missing.toml", code=1)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("steps = [")
    sfumato.refuses("train", recipe, code=1)
    recipe.write_text("frobnicate = 1\n")
    assert "run_dir is missing" in sfumato.refuses("train", recipe, code=1)
    whole = Path(__file__).parents[2] / "recipes" / "tiny.toml"
    recipe.write_text("frobnicate = 1\n" + whole.read_text())
    assert "frobnicate" in sfumato.refuses("train", recipe, code=1)
    sfumato.refuses("train", code=2)
