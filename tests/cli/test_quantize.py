"""`sfumato quantize` from the command line, and what `show` and `ask` make of its result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.checkpoints import TEXT_FILES, Program

KEEP = ("--keep", "*.experts.*")  # the tiny model's are 24 wide, no multiple of 16


@pytest.fixture(scope="module")
def quantised(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint in NVFP4; never written to."""
    from sfumato.weights.quantise import quantise_checkpoint

    folder = tmp_path_factory.mktemp("quantised") / "q"
    beside = {name: tiny / name for name in (*TEXT_FILES, "generation_config.json")}
    quantise_checkpoint(tiny, folder, keep=KEEP[1:], extra_files=beside)
    return folder


def test_a_table_for_a_person(
    sfumato: Program, tiny: Path, quantised: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "new" / "q"
    done = sfumato("quantize", tiny, dest, "--format", "nvfp4", *KEEP)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].split("  ")[0] == "part"
    rows = {line.split("  ")[0]: line.split()[-1] for line in lines[1:-2]}
    assert (rows["experts"], rows["embedding"]) == ("kept", "kept")
    assert 7 < float(rows["attention"].rstrip("%")) < 11
    assert "of them quantised" in lines[-2]
    assert lines[-1] == str(dest)
    names = {path.name: path.read_bytes() for path in dest.iterdir()}
    assert names == {path.name: path.read_bytes() for path in quantised.iterdir()}
    assert {*TEXT_FILES, "generation_config.json", "hf_quant_config.json"} <= set(names)


def test_json_for_a_program(sfumato: Program, tiny: Path, tmp_path: Path) -> None:
    arguments = (tmp_path / "q", *KEEP, "--json", "--max-shard-size", "50kB", "--scales")
    report = json.loads(sfumato("quantize", tiny, *arguments, "modelopt").out)
    assert (report["format"], report["scales"]) == ("nvfp4", "modelopt")
    assert report["folder"] == str(tmp_path / "q")
    assert report["files"] == len(list((tmp_path / "q").glob("model-*.safetensors"))) > 1
    assert report["files_of_an_earlier_run"] == 0
    parts = report["parts"]
    assert sum(part["bytes_before"] for part in parts.values()) == report["bytes_before"]
    touched = sum(part["quantised_values"] for part in parts.values())
    share = touched / sum(part["values"] for part in parts.values())
    assert report["quantised_share_of_bytes"] == pytest.approx(share)
    assert parts["experts"]["quantised_values"] == 0
    assert "modules" not in parts["experts"]
    errors = parts["attention"]["modules"].values()
    assert min(errors) <= parts["attention"]["relative_error"] <= max(errors)
    assert "model.decoder.layers.0.self_attn.q_proj" in parts["attention"]["modules"]
    assert "vision" not in parts


def test_the_embedding_in_8_bits(sfumato: Program, tiny: Path, tmp_path: Path) -> None:
    done = sfumato("quantize", tiny, tmp_path / "q", *KEEP, "--embedding", "int8", "--json")
    report = json.loads(done.out)
    assert report["embedding"] == "int8"
    assert 0.001 < report["parts"]["embedding"]["relative_error"] < 0.01
    assert "modelopt), the embedding int8, the rest" in sfumato("show", tmp_path / "q").out
    assert sfumato("ask", "--model", tmp_path / "q", "--max-new-tokens", "12", "Hi").code == 0
    wrong = sfumato("quantize", tiny, tmp_path / "r", *KEEP, "--embedding", "int4")
    assert (wrong.code, (tmp_path / "r").exists()) == (2, False)


def test_calibrated_by_a_task_and_a_file(sfumato: Program, tiny: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text('{"prompt": "Hello there"}\n{"prompt": "Two"}\n')
    how = (*KEEP, "--calibrate", "units", "--calibrate", own, "--calibration-prompts", "2")
    report = json.loads(sfumato("quantize", tiny, tmp_path / "q", *how, "--json").out)
    part = report["parts"]["attention"]
    assert part["outputs_relative_error"] < part["outputs_relative_error_uncalibrated"]
    assert "outputs_relative_error" not in report["parts"]["experts"]
    table = sfumato("quantize", tiny, tmp_path / "r", *how).out.splitlines()
    assert table[0].split("  ")[-1] == "uncalibrated"
    attention = next(line for line in table if line.startswith("attention"))
    assert attention.split()[-2] == f"{part['outputs_relative_error']:.2%}"
    same = [path.read_bytes() for path in sorted((tmp_path / "q").iterdir())]
    assert [path.read_bytes() for path in sorted((tmp_path / "r").iterdir())] == same
    assert sfumato("ask", "-m", tmp_path / "q", "hi").code == 0


def test_calibration_that_cannot_be(sfumato: Program, tiny: Path, tmp_path: Path) -> None:
    dest, short = tmp_path / "q", tmp_path / "short.jsonl"
    short.write_text('{"prompt": "One"}\n')
    for how, why, code in (
        (("--calibration-prompts", "3"), "for --calibrate", 2),
        (("--calibration-seed", "3"), "for --calibrate", 2),
        (("--calibrate", "poetry"), "no task 'poetry'", 2),
        (("--calibrate", tmp_path / "none.jsonl"), "cannot be read", 1),
        (("--calibrate", short, "--calibration-prompts", "2"), "holds 1 prompts, not 2", 1),
        (("--calibrate", "units", "--calibration-prompts", "0"), "", 2),
    ):
        assert why in sfumato.refuses("quantize", tiny, dest, *KEEP, *how, code=code)
    short.write_text('{"promt": "One"}\n')
    refused = sfumato.refuses("quantize", tiny, dest, *KEEP, "--calibrate", short, code=1)
    assert "line 1 has an unknown field 'promt'" in refused
    assert not dest.exists()


def test_show_says_how_it_is_stored(sfumato: Program, tiny: Path, quantised: Path) -> None:
    report = json.loads(sfumato("show", quantised, "--json").out)
    assert report["quantisation"]["format"] == "nvfp4"
    assert report["quantisation"]["dialect"] == "modelopt"
    assert "lm_head" in report["quantisation"]["kept"]
    assert (
        report["memory"]["files"]
        < json.loads(sfumato("show", tiny, "--json").out)["memory"]["files"]
    )
    assert json.loads(sfumato("show", tiny, "--json").out)["quantisation"] is None
    assert "NVFP4 (modelopt), the rest float32" in sfumato("show", quantised).out


def test_it_answers_and_exports(sfumato: Program, quantised: Path, tmp_path: Path) -> None:
    answer = sfumato("ask", "-m", quantised, "hi")
    assert (answer.code, answer.err) == (0, "")
    assert sfumato("export", quantised, tmp_path / "plain").code == 0
    assert sfumato("ask", "-m", tmp_path / "plain", "hi").out == answer.out


def test_what_cannot_be(sfumato: Program, tiny: Path, quantised: Path, tmp_path: Path) -> None:
    dest = tmp_path / "q"
    assert "multiple of 16" in sfumato.refuses("quantize", tiny, dest, code=2)
    assert "names no matrix" in sfumato.refuses("quantize", tiny, dest, "--keep", "x", code=2)
    assert "'int3'" in sfumato.refuses("quantize", tiny, dest, "--format", "int3", code=2)
    assert "'best'" in sfumato.refuses("quantize", tiny, dest, "--scales", "best", code=2)
    sfumato.refuses("quantize", tiny, dest, *KEEP, "--max-shard-size", "much", code=2)
    sfumato.refuses("quantize", tiny, code=2)
    sfumato.refuses("quantize", tmp_path / "nothing", dest, code=1)
    assert "exists already" in sfumato.refuses("quantize", tiny, quantised, *KEEP, code=2)
    assert "quantised already" in sfumato.refuses("quantize", quantised, dest, *KEEP, code=2)
    assert "itself" in sfumato.refuses("quantize", tiny, tiny, *KEEP, code=2)
    assert list(tmp_path.iterdir()) == []
