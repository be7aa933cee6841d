"""What a report looks like: terminal, Markdown, JSON, and the files they go to."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import BinaryIO

import pytest

from sfumato.config.generation import GenerationConfig
from sfumato.errors import EvaluationError
from sfumato.evaluation import facts, report
from sfumato.evaluation.facts import Facts
from sfumato.evaluation.files import check_target, write_text, write_whole
from sfumato.evaluation.metrics import TaskResult
from sfumato.evaluation.run import EvaluationReport, Failure, Plan
from sfumato.evaluation.sweep import Sweep, SweepReport, SweepRow
from tests.unit.evaluation_models import Oracle

KNOWN = Facts(
    model="small",
    checkpoint="/models/small",
    revision=None,
    commit="1234abc",
    dtype="float32",
    kernels="avx2",
    device="cpu",
    system="Linux x86_64",
    processor="Zen 5",
    cores=2,
    threads=1,
    python="3.11.9",
    torch="2.13.0",
    sfumato="0.1.0",
    date="2026-11-23T22:00:00+00:00",
)
DATES = TaskResult("dates", 1000, 982, 0.982, 0.9717, 0.9886, 3.25, 8.04, 12.34, 2345.6)
SUDOKU = TaskResult("sudoku:10-40", 1000, 951, 0.951, 0.9358, 0.9627, 9.0, 9.1, 61.0, 1344.2)
LEFT = TaskResult("dates", 1000, 900, 0.9, 0.88, 0.917, None, 1.0, 30.0, 400.0)
PLAN = Plan(GenerationConfig(), "diffusion", 0, 16)
FAILURE = Failure("dates", 3, 77, "the 5th", "2021-03-05", "2021-03-06")
PLAIN = EvaluationReport(PLAN, (SUDOKU, DATES), (FAILURE,))


def swept(*, baseline: bool = False) -> SweepReport:
    sweep = Sweep(max_denoising_steps=(4, 48), autoregressive=baseline)
    rows = [SweepRow(Plan(one), (SUDOKU, DATES)) for one in sweep.settings(PLAN.generation)]
    if baseline:
        rows.append(SweepRow(Plan(PLAN.generation, "autoregressive"), (LEFT, LEFT)))
    return SweepReport(sweep, PLAN, tuple(rows))


def test_table_of_an_evaluation() -> None:
    header, rows = report.table(PLAIN)
    assert dict(zip(header, rows[1], strict=True)) == {
        "task": "dates",
        "solved": "982 of 1,000",
        "accuracy": "98.2 %",
        "95 % interval": "97.2-98.9",
        "steps per canvas": "3.2",
        "tokens per forward": "8.0",
        "tokens/s": "2,346",
        "seconds": "12.3",
    }


def test_table_of_a_sweep_keeps_a_task_together() -> None:
    header, rows = report.table(swept(baseline=True))
    assert header[:2] == ("task", "steps")
    assert [row[:2] for row in rows] == [
        ("sudoku:10-40", "4"),
        ("sudoku:10-40", "48"),
        ("dates", "autoregressive"),
        ("dates", "4"),
        ("dates", "48"),
        ("dates", "autoregressive"),
    ]
    assert rows[2][header.index("steps per canvas")] == "-"


def test_table_of_a_comparison_without_axes() -> None:
    sweep = Sweep(autoregressive=True)
    rows = (
        SweepRow(PLAN, (DATES,)),
        SweepRow(dataclasses.replace(PLAN, mode="autoregressive"), (LEFT,)),
    )
    header, cells = report.table(SweepReport(sweep, PLAN, rows))
    assert header[:2] == ("task", "settings")
    assert [row[1] for row in cells] == ["unchanged", "autoregressive"]


def test_text_has_a_line_a_row_and_cuts_nothing() -> None:
    name = "a-very-long-name-of-a-task-" * 5
    long = EvaluationReport(PLAN, (dataclasses.replace(DATES, task=name), SUDOKU), ())
    lines = report.text(long).splitlines()
    assert len(lines) == 5
    assert name in lines[3]
    assert lines[3].rstrip() == lines[3]
    assert "61.0" in lines[4]


def test_text_fits_a_terminal() -> None:
    assert max(map(len, report.text(PLAIN).splitlines())) <= 100


def test_text_takes_brackets_for_what_they_are() -> None:
    odd = EvaluationReport(PLAN, (dataclasses.replace(DATES, task="[red]x[/red] :smile:"),), ())
    assert "[red]x[/red] :smile:" in report.text(odd)


def test_markdown_is_a_table_and_its_origin() -> None:
    lines = report.markdown(PLAIN, KNOWN).splitlines()
    assert lines[0].startswith("| task | solved | accuracy | 95 % interval |")
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert lines[3].startswith("| dates | 982 of 1,000 | 98.2 % | 97.2-98.9 |")
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert lines[4] == ""
    for part in (
        "2026-11-23",
        "1234abc",
        "Zen 5",
        "1 threads of 2 cores",
        "torch 2.13.0",
        "1,000 examples a task",
        "seed 0",
        "at most 48 steps",
        "entropy bound 0.1",
    ):
        assert part in lines[5]


def test_markdown_survives_names_with_bars_and_breaks() -> None:
    odd = EvaluationReport(PLAN, (dataclasses.replace(DATES, task="a|b\nc"),), ())
    row = report.markdown(odd, KNOWN).splitlines()[2]
    assert row.startswith("| a\\|b c | 982")


def test_origin_of_other_runs() -> None:
    greedy = EvaluationReport(Plan(GenerationConfig(), "autoregressive"), (LEFT,), ())
    assert "autoregressive, greedy" in report.provenance(greedy, KNOWN)
    warm = GenerationConfig(do_sample=True, temperature=0.7)
    sampled = EvaluationReport(Plan(warm, "autoregressive"), (LEFT,), ())
    assert "sampled at 0.7" in report.provenance(sampled, KNOWN)
    uneven = EvaluationReport(PLAN, (DATES, dataclasses.replace(SUDOKU, examples=40)), ())
    assert "40 to 1,000 examples" in report.provenance(uneven, KNOWN)
    sweep = report.provenance(swept(), KNOWN)
    assert "steps" not in sweep  # which the rows name
    assert "entropy bound 0.1" in sweep
    pinned = dataclasses.replace(KNOWN, revision="main")
    assert "small revision main" in report.provenance(PLAIN, pinned)


HEAD = [
    "schema",
    "kind",
    "model",
    "checkpoint",
    "commit",
    "date",
    "machine",
    "versions",
    "dtype",
    "seed",
    "batch_size",
    "mode",
    "settings",
]


def test_json_of_an_evaluation_keeps_its_shape() -> None:
    data = report.to_json(PLAIN, KNOWN)
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert list(data) == [*HEAD, "results", "failures"]
    assert (data["schema"], data["kind"], data["commit"]) == (1, "evaluation", "1234abc")
    assert data["checkpoint"] == {"folder": "/models/small", "revision": None}
    assert list(data["machine"]) == ["system", "processor", "cores", "threads", "device"]
    assert list(data["versions"]) == ["sfumato", "torch", "python"]
    assert data["settings"]["eos_token_id"] == [1, 106, 50]
    assert data["results"][1] == {
        "task": "dates",
        "examples": 1000,
        "solved": 982,
        "accuracy": 0.982,
        "low": 0.9717,
        "high": 0.9886,
        "steps_per_canvas": 3.25,
        "tokens_per_forward": 8.04,
        "seconds": 12.34,
        "tokens_per_second": 2345.6,
    }
    assert data["failures"] == [
        {
            "task": "dates",
            "index": 3,
            "seed": 77,
            "prompt": "the 5th",
            "expected": "2021-03-05",
            "got": "2021-03-06",
        }
    ]


def test_json_of_a_sweep_keeps_its_shape() -> None:
    data = report.to_json(swept(baseline=True), KNOWN)
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert list(data) == [*HEAD, "sweep", "rows"]
    assert [list(row) for row in data["rows"]] == [["mode", "settings", "results"]] * 3
    assert data["rows"][2]["results"][0]["steps_per_canvas"] is None


def test_facts_of_this_machine() -> None:
    known = facts.gather(Oracle(str).model, "mine")
    assert (known.model, known.commit, known.checkpoint) == ("mine", "unknown", "")
    assert (known.dtype, known.device) == ("float32", "cpu")
    assert known.processor
    assert known.threads >= 1
    assert known.date.endswith("+00:00")


def test_the_processor_is_asked_of_the_system_where_linux_says_nothing(tmp_path: Path) -> None:
    said = tmp_path / "cpuinfo"
    said.write_text("processor\t: 0\nmodel name\t: A chip: fast\n\nmodel name: other\n")
    assert facts._processor(said) == "A chip: fast"
    said.write_text("model name\t:\n")
    assert facts._processor(said)
    assert facts._processor(tmp_path / "gone")


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = write_text(tmp_path / "out.md", "né\n")
    assert path.read_bytes() == "né\n".encode()
    write_text(path, "again")
    assert path.read_text(encoding="utf-8") == "again"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [one.name for one in tmp_path.iterdir()] == ["out.md"]


@pytest.mark.parametrize(
    ("error", "raised"), [(OSError(28, "No space left"), EvaluationError), (KeyError(), KeyError)]
)
def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, error: Exception, raised: type[Exception]
) -> None:
    path = write_text(tmp_path / "out.md", "before")

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise error

    with pytest.raises(raised, match=r"out\.md|") as caught:
        write_whole(path, fail)
    if raised is EvaluationError:
        assert "cannot be written: No space left" in str(caught.value)
    assert path.read_text(encoding="utf-8") == "before"
    assert [one.name for one in tmp_path.iterdir()] == ["out.md"]


def test_targets_are_checked(tmp_path: Path) -> None:
    assert check_target(str(tmp_path / "a.md")) == tmp_path / "a.md"
    with pytest.raises(EvaluationError, match="is a folder"):
        check_target(tmp_path)
    with pytest.raises(EvaluationError, match="no folder"):
        check_target(tmp_path / "b" / "a.md")
    with pytest.raises(EvaluationError, match="is not a regular file"):
        check_target("/dev/null")
