"""The README's Python runs as it stands, on the model that ships."""

from __future__ import annotations

import re
from typing import Any

import pytest

from scripts import check_sudoku, readme_command
from tests.unit.source_tree import PACKAGE, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.skipif(
    not (PACKAGE / "small" / "model.safetensors").exists(), reason="the small model is not trained"
)


def _run(program: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(program, "README.md", "exec"), names)
    return names


def test_there_are_programs() -> None:
    assert len(PROGRAMS) == 2


def test_the_first_program_solves_its_puzzle() -> None:
    names = _run(PROGRAMS[0])
    assert check_sudoku.faults(names["puzzle"], names["answer"].strip()) == []
    assert names["puzzle"] in readme_command.readme_command("main", README)


def test_the_second_program_shows_the_passes(capsys: pytest.CaptureFixture[str]) -> None:
    names = _run(PROGRAMS[1])
    text = names["model"].config.text
    assert names["logits"].shape == (1, names["model"].config.canvas_length, text.vocab_size)
    assert len(names["out"].tokens) == 1
    assert capsys.readouterr().out
