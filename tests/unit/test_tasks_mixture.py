"""Batches: pure in seed and step, by family and weight, with a curriculum of holes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from sfumato.errors import InputError
from sfumato.tasks.mixture import TEXT_WEIGHTS, HoleCurriculum, Mixture
from sfumato.tasks.registry import TASKS, task
from sfumato.tasks.sudoku import Bytes, Sudoku, build_bank


@pytest.fixture(scope="module")
def bank() -> Bytes:
    """Ten bases."""
    return build_bank(0, 10)


def holes(mixture: Mixture, progress: float) -> list[int]:
    """The holes of 600 puzzles at a progress."""
    batch = [e for step in range(6) for e in mixture.batch(step, "sudoku", 100, progress)]
    return [e.prompt[-81:].count(".") for e in batch]


@pytest.mark.parametrize("family", ["sudoku", "text"])
def test_a_batch_needs_no_history(bank: Bytes, family: str) -> None:
    first, second = Mixture(None, 1, bank), Mixture(None, 1, bank)
    wanted = {step: first.batch(step, family, 8) for step in range(6)}
    for step in (5, 0, 3):
        assert second.batch(step, family, 8) == wanted[step]
    assert len({e.prompt for batch in wanted.values() for e in batch}) >= 46
    other = Mixture(None, 2, bank).batch(3, family, 8)
    assert other != wanted[3]


def test_text_follows_the_weights() -> None:
    mixture = Mixture(None, 1)
    seen = Counter(e.task for step in range(40) for e in mixture.batch(step, "text", 100))
    total = sum(TEXT_WEIGHTS.values())
    for name, weight in TEXT_WEIGHTS.items():
        assert abs(seen[name] / 4000 - weight / total) < 0.03


def test_one_task_alone() -> None:
    assert {e.task for e in Mixture({"units": 2.0}, 1).batch(0, "text", 20)} == {"units"}


def test_text_batches_are_training_examples() -> None:
    prompts = {
        e.prompt for step in range(10) for e in Mixture({"dates": 1}, 1).batch(step, "text", 50)
    }
    heldout = {TASKS["dates"].example(1, index, "heldout").prompt for index in range(500)}
    assert not prompts & heldout


def test_sudoku_batches_answer_their_grids(bank: Bytes) -> None:
    for example in Mixture(None, 1, bank).batch(0, "sudoku", 30):
        grid = example.prompt[-81:]
        assert example.task == "sudoku"
        assert all(g in (".", a) for g, a in zip(grid, example.answer, strict=True))
        assert example.detail["holes"] == grid.count(".")


@pytest.mark.parametrize(("progress", "low", "high"), [(0.0, 5, 25), (0.175, 7, 40), (1.0, 10, 55)])
def test_the_curriculum_widens(bank: Bytes, progress: float, low: int, high: int) -> None:
    counts = holes(Mixture(None, 1, bank), progress)
    assert low - 1 <= min(counts) <= low + 3
    assert high - 3 <= max(counts) <= high + 1


def test_the_curriculum_ends_on_hard_puzzles() -> None:
    rng = np.random.default_rng(0)
    curriculum = HoleCurriculum()
    drawn = curriculum.draw(rng, 0.35, 20_000)
    assert drawn.min() == 10
    assert drawn.max() == 55
    # uniform 10-55 leaves 26 of 46 above 29; six in ten are drawn there outright
    assert abs((drawn >= 30).mean() - (0.6 + 0.4 * 26 / 46)) < 0.02
    assert (curriculum.draw(np.random.default_rng(0), 0.0, 5000) <= 25).all()
    easy = HoleCurriculum(ramp=0.0, hard=0.0).draw(rng, 0.0, 20_000)
    assert abs((easy >= 30).mean() - 26 / 46) < 0.02


@pytest.mark.parametrize("progress", [-0.1, 1.1, float("nan")])
def test_progress_is_a_share(progress: float) -> None:
    with pytest.raises(InputError, match="share from 0 to 1"):
        HoleCurriculum().draw(np.random.default_rng(0), progress, 1)


def test_one_task_alone_can_be_a_source(bank: Bytes) -> None:
    mixture = Mixture({"dates": 1.0}, 1, bank)
    puzzles = mixture.batch(3, "sudoku:41-44", 64, 0.0)
    holes = [example.detail["holes"] for example in puzzles]
    assert {example.task for example in puzzles} == {"sudoku"}
    assert set(holes) == {41, 42, 43, 44}
    assert [e.task for e in mixture.batch(3, "units", 5)] == ["units"] * 5  # whatever the weights


def test_what_cannot_be_mixed_is_an_error() -> None:
    with pytest.raises(InputError, match="no Sudoku bank"):
        Mixture(None, 1).batch(0, "sudoku", 2)
    with pytest.raises(InputError, match="no Sudoku bank"):
        Mixture(None, 1).batch(0, "sudoku:41-50", 2)
    with pytest.raises(InputError, match="no task 'images'"):
        Mixture(None, 1).batch(0, "images", 2)
    with pytest.raises(InputError, match="no task 'poems'"):
        Mixture({"poems": 1.0}, 1)
    for weights in ({}, {"dates": 0.0}, {"dates": -1.0, "json": 2.0}):
        with pytest.raises(InputError, match="at least 0, and one above 0"):
            Mixture(weights, 1)


def test_registry_names_its_tasks() -> None:
    assert all(source.name == name for name, source in TASKS.items())
    assert task("sudoku") == Sudoku(10, 50)
    assert task("sudoku:12-13") == Sudoku(12, 13)
    assert task("sudoku:12-13").name == "sudoku:12-13"
    for bad in ("sudoku:", "sudoku:1-2-3", "Dates", ""):
        with pytest.raises(InputError, match="there is no task"):
            task(bad)
