"""The program as a whole: help, version, speed, completion, options in groups."""

from __future__ import annotations

import dataclasses
import inspect
import os
import subprocess
import sys
import time
from typing import Annotated

import pytest
import typer

from sfumato import __version__
from sfumato.cli import main
from sfumato.cli.grouped import grouped
from sfumato.cli.options import DecodingOptions
from sfumato.cli.program import app
from tests.cli.checkpoints import Program

COMMANDS = [
    "ask", "chat", "show", "list", "pull", "rm", "eval", "bench", "train", "export", "doctor",
    "completion",
]  # fmt: skip
HELP_SECONDS = 0.3


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sfumato.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def test_help_lists_every_command(sfumato: Program) -> None:
    done = sfumato("--help")
    assert done.code == 0
    for name in COMMANDS:
        assert f"  {name} " in done.out
    assert sfumato("-h").out == done.out
    assert sfumato().out.rstrip() == done.out.rstrip()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(sfumato: Program, command: str) -> None:
    done = sfumato(command, "--help")
    assert done.code == 0
    assert done.out.startswith(f"Usage: sfumato {command}")
    assert done.err == ""


def test_help_says_the_first_sentence_whole(sfumato: Program) -> None:
    listing = sfumato("--help").out.split("Commands:")[1]
    assert "..." not in listing


def test_help_is_quick_and_light() -> None:
    best = float("inf")
    for _ in range(8):  # the best of a few: other work on the machine is not the program's
        begun = time.perf_counter()
        assert run("--help").returncode == 0
        best = min(best, time.perf_counter() - begun)
        if best <= HELP_SECONDS:
            break
    assert best <= HELP_SECONDS


def test_help_of_a_command_imports_nothing_heavy() -> None:
    code = (
        "import sys; from sfumato.cli import app; app(['ask', '--help'], standalone_mode=False); "
        "print(sorted({'torch', 'rich', 'numpy', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_version(sfumato: Program) -> None:
    done = sfumato("--version")
    assert (done.code, done.out) == (0, f"sfumato {__version__}\n")


def test_main_leaves_with_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["nonsense"])
    assert left.value.code == 2
    assert "no such command" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(sfumato: Program, shell: str) -> None:
    done = sfumato("completion", shell)
    assert done.code == 0
    assert f"complete_{shell}" in done.out


def test_completion_for_another_shell(sfumato: Program) -> None:
    assert "csh" in sfumato.refuses("completion", "csh", code=2)


def test_the_bash_script_is_one_and_completes() -> None:
    script = run("completion", "bash").stdout
    check = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert check.stderr == ""
    done = run(_SFUMATO_COMPLETE="complete_bash", COMP_WORDS="sfumato e", COMP_CWORD="1")
    assert done.stdout.split() == ["eval", "export"]
    words = "sfumato ask --ent"
    done = run(_SFUMATO_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD="2")
    assert done.stdout.split() == ["--entropy-bound"]


@dataclasses.dataclass(frozen=True)
class Pair:
    left: Annotated[int, typer.Option(help="One.")] = 1
    right: Annotated[str, typer.Option(help="Two.")] = "two"


def test_a_group_is_spread_and_gathered() -> None:
    seen: list[object] = []

    def command(pair: Pair, name: Annotated[str, typer.Argument()] = "n") -> None:
        """Say."""
        seen.append((pair, name))

    flat = grouped(command)
    assert list(inspect.signature(flat).parameters) == ["left", "right", "name"]
    assert flat.__doc__ == "Say."
    small = typer.Typer(rich_markup_mode=None)
    small.command()(flat)
    small(["--left", "5", "you"], standalone_mode=False)
    small([], standalone_mode=False)
    assert seen == [(Pair(5, "two"), "you"), (Pair(), "n")]


def test_every_decoding_option_is_one_of_ask_and_chat() -> None:
    from typer.main import get_command

    commands = get_command(app).commands  # type: ignore[attr-defined]
    for name in ("ask", "chat", "eval"):
        have = {parameter.name for parameter in commands[name].params}
        assert {field.name for field in dataclasses.fields(DecodingOptions)} <= have
