"""The score interval's laws, and a task's figures from its outcomes."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.errors import EvaluationError
from sfumato.evaluation.metrics import Z_95, Outcome, TaskResult, wilson
from sfumato.tasks.base import Example

COUNTS = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def naive(solved: int, examples: int) -> tuple[float, float]:
    """The two roots p of (share - p)^2 = z^2 p (1 - p) / n, which define the interval."""
    share, z2 = solved / examples, Z_95**2
    a, b, c = examples + z2, -(2 * examples * share + z2), examples * share**2
    root = math.sqrt(max(0.0, b * b - 4 * a * c))
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


@given(COUNTS)
def test_interval_holds_the_estimate_and_stays_in_range(counts: tuple[int, int]) -> None:
    solved, examples = counts
    low, high = wilson(solved, examples)
    assert 0 <= low <= solved / examples <= high <= 1
    assert low < high


@given(COUNTS)
def test_interval_is_where_the_defining_equation_has_its_roots(counts: tuple[int, int]) -> None:
    assert wilson(*counts) == pytest.approx(naive(*counts), abs=1e-9)


@given(COUNTS, st.integers(2, 50))
def test_interval_shrinks_with_more_examples(counts: tuple[int, int], times: int) -> None:
    solved, examples = counts
    low, high = wilson(solved, examples)
    more_low, more_high = wilson(solved * times, examples * times)
    assert more_high - more_low < high - low
    assert low <= more_low
    assert more_high <= high


@given(COUNTS)
def test_interval_of_the_wrong_ones_is_the_mirror_image(counts: tuple[int, int]) -> None:
    solved, examples = counts
    low, high = wilson(solved, examples)
    wrong_low, wrong_high = wilson(examples - solved, examples)
    assert (1 - wrong_high, 1 - wrong_low) == pytest.approx((low, high), abs=1e-12)


@given(COUNTS)
def test_one_more_solved_moves_both_bounds_up(counts: tuple[int, int]) -> None:
    solved, examples = counts
    if solved < examples:
        low, high = wilson(solved, examples)
        next_low, next_high = wilson(solved + 1, examples)
        assert low < next_low
        assert high <= next_high


def test_interval_of_known_counts() -> None:
    # Worked by hand: 50 of 100 gives 0.5 -+ z sqrt(0.25/100 + z^2/40000) / (1 + z^2/100).
    assert wilson(50, 100) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    assert wilson(0, 10) == pytest.approx((0.0, Z_95**2 / (10 + Z_95**2)))
    assert wilson(10, 10)[1] == 1.0
    assert wilson(0, 10)[0] == 0.0


def test_wider_confidence_is_a_wider_interval() -> None:
    narrow, wide = wilson(30, 100, z=1.0), wilson(30, 100, z=2.6)
    assert wide[0] < narrow[0] < 0.3 < narrow[1] < wide[1]


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    n, truth = 60, 0.9
    covered = 0.0
    for solved in range(n + 1):
        low, high = wilson(solved, n)
        if low <= truth <= high:
            covered += math.comb(n, solved) * truth**solved * (1 - truth) ** (n - solved)
    assert covered == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (-1, 5), (6, 5), (0, -3)])
def test_impossible_counts_are_errors(counts: tuple[int, int]) -> None:
    with pytest.raises(EvaluationError, match="gives no accuracy"):
        wilson(*counts)


def outcome(solved: bool, tokens: int = 10, steps: int = 5, canvases: int = 1) -> Outcome:
    return Outcome(0, Example("t", "p", "a"), "a", solved, 0, tokens, steps, canvases)


def test_result_divides_sums_by_sums() -> None:
    outcomes = [outcome(True, tokens=80, steps=4), outcome(False, tokens=20, steps=36, canvases=3)]
    result = TaskResult.of("t", outcomes, seconds=2.0)
    assert (result.task, result.examples, result.solved) == ("t", 2, 1)
    assert (result.low, result.high) == wilson(1, 2)
    assert result.steps_per_canvas == 10.0  # 40 steps on 4 canvases
    assert result.tokens_per_forward == 2.5  # 100 tokens in 40 passes
    assert result.tokens_per_second == 50.0
    per_canvas = Fraction(100, 4)
    assert result.steps_per_canvas * result.tokens_per_forward == per_canvas


def test_result_without_canvases() -> None:
    result = TaskResult.of("t", [outcome(True, tokens=6, steps=6, canvases=0)], seconds=1.0)
    assert result.steps_per_canvas is None
    assert result.tokens_per_forward == 1.0


def test_result_of_no_time_and_no_steps_is_finite() -> None:
    result = TaskResult.of("t", [outcome(False, tokens=0, steps=0, canvases=0)], seconds=0.0)
    assert (result.tokens_per_forward, result.tokens_per_second) == (0.0, 0.0)


def test_result_of_nothing_is_an_error() -> None:
    with pytest.raises(EvaluationError):
        TaskResult.of("t", [], seconds=1.0)


def test_result_is_frozen() -> None:
    result = TaskResult.of("t", [outcome(True)], seconds=1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.solved = 2  # type: ignore[misc]
