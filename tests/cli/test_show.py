"""`sfumato show`: what a checkpoint is, with no weights loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sfumato.cli.terminal import human_bytes, human_count
from tests.cli.checkpoints import Program

RELEASED = Path(__file__).resolve().parents[1] / "data" / "released_config.json"


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """The released model's configuration, and none of its weights."""
    shutil.copy(RELEASED, tmp_path / "config.json")
    return tmp_path


def test_the_released_model(sfumato: Program, released: Path) -> None:
    done = sfumato("show", released)
    assert (done.code, done.err) == (0, "")
    assert "25.2 B, 3.8 B active" in done.out
    assert "no weights here" in done.out
    assert "30: 25 sliding, 5 full (SSSSSFSSSSSF" in done.out
    assert "262,144 tokens, window 1,024" in done.out


def test_the_released_model_as_json(sfumato: Program, released: Path) -> None:
    report = json.loads(sfumato("show", released, "--json").out)
    assert round(report["parameters"]["total"] / 1e9, 1) == 25.2
    assert round(report["parameters"]["active"] / 1e9, 1) == 3.8
    assert sum(report["parameters"]["parts"].values()) == report["parameters"]["all"]
    assert report["memory"]["files"] is None
    assert report["memory"]["bfloat16"] == 2 * report["parameters"]["all"]
    assert report["layers"]["pattern"] == "SSSSSF" * 5
    assert report["attention"]["full_attention"] == {"key_value_heads": 2, "head_dim": 512}
    assert report["experts"] == {"count": 128, "per_token": 8, "size": 704}
    assert (report["canvas_length"], report["vocabulary"]) == (256, 262_144)
    assert report["images"] is True
    assert report["decoding"]["max_denoising_steps"] == 48
    assert report["decoding"]["restart_steps"] is None


def test_a_folder_with_weights(sfumato: Program, tiny: Path) -> None:
    report = json.loads(sfumato("show", tiny, "--json").out)
    assert report["memory"]["files"] == (tiny / "model.safetensors").stat().st_size
    assert report["dtype"] == "float32"
    assert report["images"] is False
    assert report["ids"] == {"pad": 0, "bos": 2, "stop": [1, 5], "image": None}
    words = sfumato("show", tiny).out
    assert "2: 1 sliding, 1 full (SF)" in words
    assert "pad 0, bos 2, stop 1, 5" in words
    assert "vision" not in words


def test_weights_that_lead_nowhere_count_as_none(sfumato: Program, released: Path) -> None:
    (released / "model.safetensors").symlink_to("gone")
    assert "no weights here" in sfumato("show", released).out


def test_the_environment_names_the_model(
    sfumato: Program, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFUMATO_MODEL", str(tiny))
    assert json.loads(sfumato("show", "--json").out)["model"] == str(tiny)


def test_what_cannot_be_shown(sfumato: Program, tmp_path: Path, hub_cache: Path) -> None:
    assert "config.json" in sfumato.refuses("show", tmp_path, code=1)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert "llama" in sfumato.refuses("show", tmp_path, code=1)
    assert "no such folder" in sfumato.refuses("show", tmp_path / "x", code=1)
    assert "some/model" in sfumato.refuses("show", "some/model", code=1)


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0"), (999, "999"), (1000, "1.0 K"), (5_600_000, "5.6 M"), (3_823_900_000, "3.8 B"),
     (25_234_000_000, "25.2 B")],
)  # fmt: skip
def test_counts_in_words(count: int, said: str) -> None:
    assert human_count(count) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (51_647_701_024, "51.6 GB"),
     (2 * 10**15, "2000.0 TB")],
)  # fmt: skip
def test_bytes_in_words(count: int, said: str) -> None:
    assert human_bytes(count) == said
