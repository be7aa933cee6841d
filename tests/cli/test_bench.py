"""`sfumato bench`: the small model, a named shape, the report's places, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sfumato.benchmark import ceilings
from sfumato.benchmark.run import Plan
from sfumato.benchmark.shapes import named_shape
from sfumato.cli import bench
from sfumato.cli.interrupts import INTERRUPTED
from sfumato.cli.machine import Machine, look_at_machine
from tests.cli.checkpoints import Done, Program

BRIEF = ("--repeats", "1", "--seconds", "0", "--threads", "1")


@pytest.fixture(autouse=True)
def _short_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(ceilings, "_SIZES", (64,))


def report(done: Done) -> dict[str, Any]:
    """The JSON of a run that went well."""
    assert (done.code, done.err) == (0, "")
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_the_small_model(sfumato: Program, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    asked = ("--prompt", "16", "--context", "32", "--commit", "abc", "--output", path)
    data = report(sfumato("bench", *BRIEF, *asked, "--json"))
    assert (data["kind"], data["model"], data["dtype"]) == ("benchmark", "small", "float32")
    assert (data["commit"], data["canvas_length"]) == ("abc", 84)
    assert [one["part"] for one in data["results"]] == [
        "encode 16", "layers", "denoise, no self-conditioning", "denoise", "head", "first step",
        "whole step", "encode a canvas", "autoregressive token",
    ]  # fmt: skip
    assert len(data["comparisons"]) == len(data["ceilings"]) == 1
    assert json.loads(path.read_text(encoding="utf-8")) == data
    assert [one.name for one in tmp_path.iterdir()] == ["report.json"]


def test_the_table_is_for_people(sfumato: Program, tiny: Path) -> None:
    done = sfumato("bench", tiny, *BRIEF, "--parts", "ceilings,head,step", "--context", "8")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"{tiny} in float32")
    assert "whole step" in done.out
    assert "Diffusion against" not in done.out


def test_rows_are_shown_while_later_ones_are_measured(
    sfumato: Program, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(bench, "say", said.append)
    seen: dict[str, str] = {}  # by the part that is measured next
    monkeypatch.setattr(
        bench.Progress, "tell", lambda _, part: seen.update({part.split(":")[0]: "\n".join(said)})
    )
    sfumato("bench", tiny, *BRIEF, "--parts", "denoise,head", "--context", "8")
    assert "layers" not in seen["layers"]
    assert "layers" in seen["denoise"]
    assert "denoise " in seen["head"]
    assert "head" not in seen["head"]


def test_a_sweep(sfumato: Program, tiny: Path) -> None:
    swept = ("--batch", "1,2", "--context", "8, 1K", "--parts", "denoise")
    data = report(sfumato("bench", "-m", tiny, *BRIEF, *swept, "--json"))
    tried = {(one["batch"], one["context"]) for one in data["results"]}
    assert tried == {(1, 8), (1, 1024), (2, 8), (2, 1024)}


def test_a_named_shape_in_another_dtype(sfumato: Program) -> None:
    asked = ("--shape", "small", "--dtype", "bfloat16", "--parts", "head", "--context", "4")
    data = report(sfumato("bench", *BRIEF, *asked, "--json"))
    assert (data["model"], data["dtype"]) == ("shape small, random weights", "bfloat16")
    assert data["checkpoint"] == {"folder": "", "revision": None}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch", "0"], "--batch must be from 1 to 1,024, not 0"),
        (["--batch", "-1"], "--batch wants whole numbers"),
        (["--batch", "99999999999999999999"], "--batch wants whole numbers"),
        (["--batch", "1,1"], "--batch names a value twice"),
        (["--batch", ",".join(map(str, range(1, 40)))], "--batch takes 32 values at most"),
        (["--batch", ""], "--batch wants whole numbers"),
        (["--context", "0"], "--context must be from 1"),
        (["--context", "999999K"], "--context must be from 1"),
        (["--context", "1.5K"], "--context wants whole numbers"),
        (["--context", "²"], "--context wants whole numbers"),
        (["--prompt", "8,,9"], "--prompt wants whole numbers"),
        (["--threads", "0"], "--threads must be from 1 to"),
        (["--threads", "100000"], "--threads must be from 1 to"),
        (["--repeats", "0"], "--repeats must be from 1 to 10,000, not 0"),
        (["--repeats", str(10**12)], "--repeats must be from 1"),
        (["--steps-per-canvas", "0"], "--steps-per-canvas must be from 1"),
        (["--seconds", "-1"], "--seconds must be from 0 to 3600"),
        (["--seconds", "nan"], "--seconds must be from 0 to 3600"),
        (["--seconds", "inf"], "--seconds must be from 0 to 3600"),
        (["--seconds", "soon"], "valid number"),
        (["--speed"], "--speed"),
        (["--parts", "heads"], "there is no part 'heads'"),
        (["--parts", "head,head"], "--parts names a value twice"),
        (["--prompt", "1M"], "--prompt wants whole numbers"),
        (["--prompt", "5K"], "a prompt of 5,120 passes"),
        (["--context", "4K"], "pass this model's 4,096 positions"),
        (["--shape", "large"], "there is no shape 'large'"),
        (["--shape", "small", "small"], "--shape stands in for a model"),
        (["--shape", "small", "--dtype", "int3"], "--dtype must be one of"),
        (["--model", "a", "b"], "two models are named"),
    ],
)
def test_what_cannot_be_meant_is_an_error_of_usage(
    sfumato: Program, arguments: list[str], said: str
) -> None:
    assert said in sfumato.refuses("bench", *arguments, code=2)


@pytest.mark.parametrize(("place", "said"), [("/", "is a folder"), ("/none/a", "no folder")])
def test_a_place_that_cannot_be_written_is_told_first(
    sfumato: Program, place: str, said: str
) -> None:
    assert said in sfumato.refuses("bench", "/no/such/model", "--output", place, code=1)


def machine(available: int | None) -> Machine:
    """This machine with so much memory."""
    here = look_at_machine(Path.cwd())
    return replace(here, memory=available, memory_available=available)


def test_a_shape_that_does_not_fit_is_refused_in_clear_words(
    sfumato: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, tiny = machine(19_000_000_000), machine(10_000_000)
    monkeypatch.setattr(bench, "look_at_machine", lambda cache: large)
    told = sfumato.refuses("bench", "--shape", "released", code=2)
    assert "shape 'released' in bfloat16 needs about 54" in told
    assert "19.0 GB is available" in told
    assert "--shape released:9 fits" in told
    monkeypatch.setattr(bench, "look_at_machine", lambda cache: tiny)
    assert "not even one layer fits" in sfumato.refuses("bench", "--shape", "released", code=2)
    assert "fewer rows" in sfumato.refuses("bench", "--shape", "small", code=2)


def test_memory_grows_with_rows_and_context() -> None:
    config = named_shape("released:4")
    one = bench.memory_needed(config, "bfloat16", Plan((1024,), (1,)))
    assert 8e9 < one < 10e9
    assert bench.memory_needed(config, "bfloat16", Plan((1024,), (1,), (1, 8))) > one + 7 * 4e8
    assert bench.memory_needed(config, "bfloat16", Plan((1024, 262_144), (1,))) > one + 5e8
    assert bench.memory_needed(config, "float32", Plan((1024,), (1,))) > 1.8 * one


def test_progress_is_one_line_for_a_terminal(
    sfumato: Program, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    done = sfumato("bench", tiny, *BRIEF, "--parts", "head", "--context", "8")
    assert done.code == 0
    assert "measuring head: 1 threads, 1 rows, 8 cached" in done.err
    assert done.err.endswith("\r\x1b[2K")


def test_interrupted_it_leaves_at_once_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    # A part of a tiny network has all its samples in a second, whatever seconds it may take.
    asked = ["--seconds", "600", "--parts", "denoise", "--context", "8", "--output", str(path)]
    command = [sys.executable, "-m", "sfumato.cli", "bench", "small", *asked]
    program = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ}
    )
    try:
        time.sleep(2)  # wherever it is by then: loading or measuring
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=60)
    finally:
        program.kill()
    assert (program.returncode, err) == (INTERRUPTED, b"")
    # What was shown until then are whole lines of the report.
    assert out == b"" or (out.startswith(b"small in float32") and out.endswith(b"\n"))
    assert list(tmp_path.iterdir()) == []
