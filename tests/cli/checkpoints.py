"""A tiny random checkpoint that speaks the small model's tokens, and its program run in-process."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from sfumato.cli import app
from sfumato.cli.failures import run as run_program
from sfumato.config.generation import GenerationConfig
from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.weights.export import export
from tests.helpers import Shape, randomise, tiny_config

SMALL = Path(__file__).resolve().parents[2] / "src" / "sfumato" / "small"
TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
PUZZLE = "16.79.832..7....96..38624...152.496864291..7.9.83.624..3.5471897..18362..8...9.53"
SOLUTION = "164795832827431596593862417315274968642918375978356241236547189759183624481629753"


def write_tiny(folder: Path, *, canvas: int = 16, vision: bool = False) -> Path:
    """A checkpoint of a few layers with the small model's tokenizer; its text is babble."""
    shape = Shape(pattern="SF", vocab=2048, canvas=canvas, hidden=32, window=16, vision=vision)
    network = DiffusionGemma(tiny_config(shape))
    randomise(network, 0)
    generation = GenerationConfig(
        eos_token_id=(1, 5), max_new_tokens=2 * canvas, max_denoising_steps=4
    )
    return export(
        network,
        network.config,
        folder,
        generation=generation,
        extra_files={name: SMALL / name for name in TEXT_FILES},
        dtype="float32",
    )


@dataclass(frozen=True)
class Done:
    """What a run of the program left behind."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Lines on stderr."""
        return self.err.splitlines()


class FakeStdin(io.TextIOWrapper):
    """Bytes as a piped stdin, or as a terminal's."""

    def __init__(self, data: bytes, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@dataclass(frozen=True)
class Program:
    """Runs `sfumato` in this process, as a pipe sees it."""

    monkeypatch: pytest.MonkeyPatch
    capture: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str | Path, stdin: bytes | str = b"") -> Done:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        self.monkeypatch.setattr(sys, "stdin", FakeStdin(data))
        self.capture.readouterr()
        code = run_program(app, [str(one) for one in arguments])
        told = self.capture.readouterr()
        return Done(code, told.out, told.err)

    def refuses(self, *arguments: str | Path, code: int, stdin: bytes | str = b"") -> str:
        """The one clear line of a failure: exit `code`, nothing on stdout, no traceback."""
        done = self(*arguments, stdin=stdin)
        assert done.code == code, done.err
        assert done.out == ""
        assert "Traceback" not in done.err
        first, *hint = done.lines
        assert first.startswith("sfumato: "), done.err
        assert len(hint) <= 1
        assert all(line.startswith("  ") for line in hint)
        return done.err
