"""`sfumato eval`: tasks, files, sweeps, reports, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sfumato.cli import evaluate as evaluating
from sfumato.cli.evaluate import tell
from sfumato.cli.machine import look_at_machine
from sfumato.evaluation.run import Progress
from sfumato.tasks.heldout import heldout, write_heldout
from sfumato.tasks.registry import TASKS
from tests.cli.checkpoints import Done, Program


def report(done: Done) -> dict[str, Any]:
    """The JSON of a run that went well."""
    assert (done.code, done.err) == (0, "")
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_tasks_of_a_checkpoint(sfumato: Program, tiny: Path) -> None:
    asked = ("--task", "dates", "--task", "sudoku:10-40", "-n", "3", "--seed", "4", "--steps", "2")
    data = report(sfumato("eval", tiny, *asked, "--json"))
    assert (data["kind"], data["model"], data["seed"]) == ("evaluation", str(tiny), 4)
    assert data["settings"]["max_denoising_steps"] == 2
    assert [one["task"] for one in data["results"]] == ["dates", "sudoku:10-40"]
    assert [one["examples"] for one in data["results"]] == [3, 3]
    prompts = [one["prompt"] for one in data["failures"] if one["task"] == "dates"]
    assert prompts == [one.prompt for one in heldout("dates", 3, 4)]


def test_the_table_is_for_people(sfumato: Program, tiny: Path) -> None:
    done = sfumato("eval", "-m", tiny, "--task", "units", "--examples", "2")
    assert (done.code, done.err) == (0, "")
    last = done.out.splitlines()[-1].split()
    assert last[:4] == ["units", "0", "of", "2"]


def test_equal_seeds_give_equal_figures_in_any_batch(sfumato: Program, tiny: Path) -> None:
    runs = [
        report(sfumato("eval", tiny, "--task", "copy", "-n", "5", "--json", "--batch-size", size))
        for size in ("1", "4")
    ]
    assert runs[0]["failures"] == runs[1]["failures"]
    assert runs[0]["batch_size"] != runs[1]["batch_size"]


def test_every_task_if_none_is_named(sfumato: Program, tiny: Path) -> None:
    data = report(sfumato("eval", tiny, "-n", "1", "--steps", "1", "--json"))
    assert [one["task"] for one in data["results"]] == list(TASKS)


def test_a_file_of_ones_own(sfumato: Program, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    write_heldout(path, "dates", 4, 1)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"task": "mine", "prompt": "hello", "answer": "you"}\n')
    asked: list[tuple[list[str], int]] = [([], 4), (["-n", "2"], 2)]
    for first, dates in asked:
        data = report(sfumato("eval", tiny, "--file", path, "--json", *first))
        counts = {one["task"]: one["examples"] for one in data["results"]}
        assert counts == {"dates": dates, "mine": 1}


def test_autoregressive_mode(sfumato: Program, tiny: Path) -> None:
    common = ("eval", tiny, "--task", "dates", "-n", "2", "--mode", "autoregressive", "--json")
    data = report(sfumato(*common))
    assert data["mode"] == "autoregressive"
    assert data["results"][0]["steps_per_canvas"] is None


def test_a_sweep_with_everything(sfumato: Program, tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = sfumato(
        "eval", tiny, "--task", "dates", "-n", "2", "--sweep-steps", "1,3",
        "--sweep-entropy-bound", "0.1, 2", "--sweep-confidence", "0.5",
        "--sweep-temperatures", "0.4:0.8,0.1:0.2", "--baseline", "--commit", "abc",
        "--plot", tmp_path / "a.svg", "--table", tmp_path / "a.md", "--output", tmp_path / "a.json",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    data = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert (data["kind"], data["commit"], len(data["rows"])) == ("sweep", "abc", 2 * 2 * 2 + 1)
    assert data["rows"][-1]["mode"] == "autoregressive"
    assert data["rows"][1]["settings"]["t_max"] == 0.2
    table = (tmp_path / "a.md").read_text(encoding="utf-8")
    assert table.count("| dates |") == 9
    assert "commit abc" in table
    assert "<svg" in (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert len(list(tmp_path.iterdir())) == 3


def test_one_setting_at_a_time(sfumato: Program, tiny: Path) -> None:
    common = ("eval", tiny, "--task", "dates", "-n", "1", "--json", "--one-at-a-time")
    swept = ("--steps", "4", "--sweep-steps", "1,2", "--sweep-entropy-bound", "2")
    data = report(sfumato(*common, *swept))
    tried = [
        (row["settings"]["max_denoising_steps"], row["settings"]["entropy_bound"])
        for row in data["rows"]
    ]
    assert tried == [(4, 0.1), (1, 0.1), (2, 0.1), (4, 2.0)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--task", "poems"], "there is no task 'poems'"),
        (["--task", "sudoku:50-10"], "50 to 10 holes"),
        (["--task", "dates", "--task", "dates"], "given twice"),
        (["-n", "0"], "--examples must be from 1 to 1,000,000, not 0"),
        (["-n", str(2**63)], "--examples must be from 1 to 1,000,000"),
        (["--batch-size", "0"], "--batch-size must be 1 or more"),
        (["--seed", "-1"], "--seed"),
        (["--sweep-steps", "4,x"], "--sweep-steps wants whole numbers"),
        (["--sweep-steps", "4,4"], "names a value twice"),
        (["--sweep-entropy-bound", ""], "--sweep-entropy-bound wants numbers"),
        (["--sweep-temperatures", "0.4"], "--sweep-temperatures wants pairs"),
        (["--sweep-temperatures", "0.4:0.8:1"], "--sweep-temperatures wants pairs"),
        (["--sweep-steps", "4", "--mode", "autoregressive"], "--baseline"),
        (["--sweep-steps", "4", "--steps", "3"], "--steps and --sweep-steps set the same"),
        (["--sweep-temperatures", "0.1:0.2", "--t-max", "3"], "--t-max and --sweep-temperatures"),
        (["--one-at-a-time"], "--one-at-a-time is for a sweep"),
        (["--plot", "a.svg"], "--plot draws a sweep"),
        (["--sweep-steps", "4", "--plot", "a.pdf"], ".svg or .png"),
        (["--table", "/nowhere/at/all/a.md"], "no folder"),
        (["--output", "/"], "is a folder"),
        (["--output", "/dev/null"], "is not a regular file"),
        (["--output", "a.json", "--table", "./a.json"], "name one file twice"),
        (["--file", "gone.jsonl"], "gone.jsonl cannot be read"),
        (["--file", "gone.jsonl", "--task", "dates"], "leave --task out"),
        (["--model", "/nowhere/at/all"], "two models are named"),
    ],
)
def test_what_cannot_be_meant_is_told_before_a_model_is_loaded(
    sfumato: Program, arguments: list[str], said: str
) -> None:
    done = sfumato("eval", "/no/such/model", *arguments)
    assert done.code in (1, 2)
    assert said in done.err
    assert done.out == ""
    assert "/no/such/model" not in done.err


def test_settings_no_model_can_take(sfumato: Program, tiny: Path) -> None:
    common = ("eval", tiny, "--task", "dates", "-n", "1")
    assert "max_denoising_steps" in sfumato.refuses(*common, "--sweep-steps", "0", code=2)
    assert "t_max" in sfumato.refuses(*common, "--sweep-temperatures", "0.8:0.4", code=2)


def test_a_bad_line_of_a_file_is_named(sfumato: Program, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"task": "a", "prompt": "b", "answer": "c"}\n{"task": 1}\n', encoding="utf-8")
    assert f"{path}, line 2" in sfumato.refuses("eval", tiny, "--file", path, code=1)


@pytest.mark.parametrize(
    ("slow", "memory", "options", "hinted"),
    [
        (True, 10**12, (), True),
        (False, 10**12, (), False),
        (True, 10**6, (), False),  # float32 does not fit
        (True, None, (), False),
        (True, 10**12, ("--dtype", "float32"), False),
        (True, 10**12, ("--json",), False),
    ],
)
def test_a_hint_at_the_faster_dtype(
    sfumato: Program, tiny: Path, monkeypatch: pytest.MonkeyPatch, slow: bool, memory: int | None,
    options: tuple[str, ...], hinted: bool,
) -> None:  # fmt: skip
    monkeypatch.setenv("SFUMATO_KERNELS", "reference")
    here = dataclasses.replace(look_at_machine(tiny), bfloat16_is_slow=slow, memory=memory)
    monkeypatch.setattr(evaluating, "look_at_machine", lambda _folder: here)
    dtype = () if "--dtype" in options else ("--dtype", "bfloat16")
    asked = ("--task", "copy", "-n", "1", "--steps", "1", *dtype, *options)
    done = sfumato("eval", tiny, *asked)
    assert done.code == 0
    assert ("--dtype float32 is many times faster" in done.err) == hinted
    assert len(done.lines) == hinted
    assert "faster" not in done.out


def test_progress_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    tell(Progress("dates", 16, 1000, 12, 3.2, "steps 4"))
    told = capsys.readouterr()
    assert told.out == ""
    assert "\n" not in told.err
    assert "dates (steps 4): 16 of 1000, 75.0 % right, 3 s" in told.err


def test_progress_is_for_a_terminal_and_leaves_nothing(
    sfumato: Program, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    done = sfumato("eval", tiny, "--task", "dates", "-n", "2", "--batch-size", "1")
    assert done.code == 0
    assert "1 of 2" in done.err
    assert done.err.endswith("\r\x1b[2K")
