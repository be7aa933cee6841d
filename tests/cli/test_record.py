"""The README's picture is drawn by the program itself."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from scripts import record_live_canvas as recording
from tests.cli.checkpoints import PUZZLE, write_tiny

ROOT = Path(__file__).resolve().parents[2]


def words(svg: str) -> str:
    """The text of a picture, its blanks as they are drawn."""
    root = ET.fromstring(svg)
    texts = ["".join(one.itertext()) for one in root.iter("{http://www.w3.org/2000/svg}text")]
    return "\n".join(texts).replace("\xa0", " ")


def test_stages_are_spread_from_first_to_last() -> None:
    assert recording.spread(4) == [0, 1, 2, 3]
    assert recording.spread(2) == [0, 1]
    assert recording.spread(10) == [0, 3, 6, 9]
    assert recording.spread(48, 3) == [0, 24, 47]


def test_the_puzzle_is_the_readmes() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert recording.PUZZLE == PUZZLE
    assert f'sfumato ask "{recording.PUZZLE}"' in readme
    assert recording.PICTURE.relative_to(ROOT).as_posix() in readme


def test_a_grid_in_four_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tiny(tmp_path / "model", canvas=84)
    output = tmp_path / "picture.svg"
    arguments = ["record", "--model", str(folder), "--output", str(output)]
    monkeypatch.setattr("sys.argv", arguments)
    recording.main()
    drawn = words(output.read_text(encoding="utf-8"))
    assert drawn.count("┌───────┬") == 4
    for step in range(1, 5):
        assert f"step {step}, entropy" in drawn
    assert "tokens per forward" in drawn
    assert [one.name for one in tmp_path.glob("*.part")] == []


def test_running_text_and_what_it_may_hold(tiny: Path) -> None:
    svg = recording.record("hello", str(tiny), 1)
    assert "step 1, entropy" in words(svg)
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", svg)
