"""The small programs that CI rests on."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Annotated

import pytest
import typer

from scripts import check_sudoku, check_wheel, cli_reference, readme_command
from tests.unit.source_tree import ROOT

PUZZLE = "16.79.832..7....96..38624...152.496864291..7.9.83.624..3.5471897..18362..8...9.53"
SOLUTION = "164795832827431596593862417315274968642918375978356241236547189759183624481629753"


def test_readme_gives_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme_command.readme_command("main", text) == f'pip install . && sfumato ask "{PUZZLE}"'
    assert "pytest" in readme_command.readme_command("tests", text)


@pytest.mark.parametrize("name", ["none", "ma.n"])
def test_a_command_that_is_not_there_is_an_error(name: str) -> None:
    text = "<!-- command: main -->\n```sh\ntrue\n```\n"
    with pytest.raises(LookupError, match="0 commands"):
        readme_command.readme_command(name, text)


def test_readme_command_wants_one_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert readme_command.main([]) == 2
    assert "Usage" in capsys.readouterr().err
    assert readme_command.main(["tests"]) == 0
    assert "pip install" in capsys.readouterr().out


def test_a_right_sudoku_has_no_faults() -> None:
    assert check_sudoku.faults(PUZZLE, SOLUTION) == []


def test_a_changed_given_is_a_fault() -> None:
    swapped = SOLUTION.translate(str.maketrans("12", "21"))  # a valid grid, of another puzzle
    found = check_sudoku.faults(PUZZLE, swapped)
    assert found
    assert all("was given" in line for line in found)


def test_two_equal_digits_in_a_unit_are_faults() -> None:
    hole = PUZZLE.index(".")
    wrong = SOLUTION[:hole] + "1" + SOLUTION[hole + 1 :]
    kinds = {line.split()[0] for line in check_sudoku.faults(PUZZLE, wrong)}
    assert kinds == {"row", "column", "box"}


@pytest.mark.parametrize("answer", ["", SOLUTION[:-1], SOLUTION[:-1] + "0", "I cannot."])
def test_an_answer_of_another_form_is_a_fault(answer: str) -> None:
    assert "not 81 digits" in check_sudoku.faults(PUZZLE, answer)[0]


@pytest.mark.parametrize(("answer", "code"), [(SOLUTION, 0), ("x", 1)])
def test_check_sudoku_as_a_program(
    answer: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(answer + "\n"))
    assert check_sudoku.main([PUZZLE]) == code
    assert capsys.readouterr().out.startswith("not" if code else "solved")
    assert check_sudoku.main([PUZZLE[1:]]) == 2


def test_the_reference_lists_commands_arguments_and_options() -> None:
    app = typer.Typer(help="What it is.", add_completion=False)
    inner = typer.Typer(help="More of it.")
    app.add_typer(inner, name="more")

    @app.command(hidden=True)
    def secret() -> None:
        """Not for the page."""

    @inner.command()
    def solve(
        grid: Annotated[str, typer.Argument(help="The grid.")],
        steps: Annotated[int, typer.Option(help="How many | at most.")] = 48,
    ) -> None:
        """Solve one grid."""

    page = cli_reference.reference(app)
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == [
        "sfumato", "sfumato more", "sfumato more solve",
    ]  # fmt: skip
    assert "What it is." in page
    assert "Solve one grid." in page
    assert "How many \\| at most. [default: 48] |" in page
    assert "secret" not in page


def test_the_reference_refuses_other_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_reference.main(["--chek"]) == 2
    assert "Usage" in capsys.readouterr().err


MODULE = "sfumato/_kernels.cpython-311-x86_64-linux-gnu.so"
GOOD = [*(f"sfumato/small/{name}" for name in check_wheel.SMALL_MODEL), MODULE]


def test_a_wheel_with_the_small_model_is_right() -> None:
    names = ["sfumato/__init__.py", *GOOD, "sfumato-0.1.0.dist-info/METADATA"]
    assert check_wheel.faults(20_000_000, names) == []


@pytest.mark.parametrize(
    ("size", "names", "message"),
    [
        (30_000_001, GOOD, "more than 30"),
        (1, GOOD[1:], "lacks sfumato/small/config.json"),
        (1, [*GOOD, "tests/conftest.py"], "no business with tests"),
        (1, [*GOOD, "sfumato/__pycache__/a.pyc"], "no business with"),
        (1, GOOD[:-1], "0 compiled modules, not 1"),
    ],
)
def test_a_wrong_wheel_is_told_what_is_wrong(size: int, names: list[str], message: str) -> None:
    [fault] = check_wheel.faults(size, names)
    assert message in fault


def test_a_wheel_made_without_a_compiler_holds_no_kernels() -> None:
    assert check_wheel.faults(1, GOOD[:-1], kernels=0) == []
    assert check_wheel.faults(1, GOOD, kernels=0) == ["the wheel has 1 compiled modules, not 0"]


def test_ci_is_a_program_that_stops_at_the_first_failure() -> None:
    ci = ROOT / ".ci" / "run"
    assert ci.stat().st_mode & 0o111
    assert "set -euo pipefail" in ci.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda p: p.name)
def test_every_script_says_how_it_is_used(path: Path) -> None:
    if path.name != "__init__.py":
        assert "Usage: " in path.read_text(encoding="utf-8")
