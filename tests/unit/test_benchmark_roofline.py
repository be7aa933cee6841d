"""The computed section of docs/performance.md: current, and bounded as it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import roofline

from sfumato.benchmark import counting
from sfumato.benchmark.counting import Work

H100, H200, RTX, DESKTOP = roofline.MACHINES
BF16, EIGHT, NVFP4 = roofline.FORMATS


def test_the_page_is_current() -> None:
    assert roofline.main(["--check"]) == 0


def test_other_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert roofline.main(["--chek"]) == 2
    assert "Usage" in capsys.readouterr().err


def test_a_page_that_is_not_current_is_told_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = roofline.PAGE
    text = page.read_text(encoding="utf-8")
    copy = tmp_path / "performance.md"
    copy.write_text(text.replace("| RTX 5090 |", "| RTX 5099 |"), encoding="utf-8")
    monkeypatch.setattr(roofline, "PAGE", copy)
    assert roofline.main(["--check"]) == 1
    assert "out of date" in capsys.readouterr().err
    assert roofline.main([]) == 0
    assert copy.read_text(encoding="utf-8") == text
    copy.write_text("# Performance\n", encoding="utf-8")
    with pytest.raises(ValueError, match="lacks the marks"):
        roofline.main([])


def test_a_part_is_bound_by_arithmetic_or_by_reading() -> None:
    work = Work(operations=1e12, weights=1e9, cached=1e9)
    compute, read = roofline.bound(counting.EXPERTS, work, H100, BF16)
    assert compute == pytest.approx(1 / 989.4)
    assert read == pytest.approx(4e9 / 3.35e12)
    # The head stays in bf16 whatever the layers are stored in.
    assert roofline.bound(counting.HEAD, work, H100, NVFP4) == (compute, read)
    assert roofline.bound(counting.EXPERTS, work, RTX, NVFP4)[0] == pytest.approx(1 / 1676)
    assert roofline.bound(counting.EXPERTS, work, H100, NVFP4)[0] == compute
    assert roofline.bound(counting.EXPERTS, work, H100, EIGHT)[0] < compute


def test_more_bandwidth_and_fewer_bits_are_never_slower() -> None:
    for rows in roofline.BATCHES:
        assert roofline.step(H200, BF16, rows) <= roofline.step(H100, BF16, rows)
        assert roofline.token(H200, NVFP4, rows) < roofline.token(H200, EIGHT, rows)
        assert roofline.step(RTX, NVFP4, rows) < roofline.step(RTX, EIGHT, rows)


def test_diffusion_gains_with_tokens_per_forward() -> None:
    gains = [roofline.advantage(H100, BF16, 1, count) for count in roofline.TOKENS_PER_FORWARD]
    assert gains == sorted(gains)
    assert gains[-1] < 5 * gains[0]  # encoding the canvases does not shrink with the steps


def test_what_fits() -> None:
    assert not roofline.fits(RTX, BF16)
    assert roofline.fits(RTX, NVFP4)
    assert roofline.fits(DESKTOP, BF16)
