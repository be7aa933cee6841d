"""Medians, their spread, and ratios with an interval; who wins against left to right."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.benchmark.compare import ANSWERS, Costs, compare
from sfumato.benchmark.statistics import quantile, ratio_of_medians, summarise
from sfumato.errors import UsageError

TIMES = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=30)


@given(TIMES)
def test_a_summary_is_in_order(samples: list[float]) -> None:
    found = summarise(samples)
    assert found.best <= found.low <= found.median <= found.high <= max(samples)
    assert found.best == min(samples)
    assert found.median == statistics.median(samples)
    assert found.samples == len(samples)
    assert found.spread >= 0


def test_quartiles_lie_between_samples() -> None:
    found = summarise([4.0, 1.0, 2.0, 3.0])
    assert (found.low, found.median, found.high) == (1.75, 2.5, 3.25)
    assert found.spread == pytest.approx(0.3)
    assert summarise([2.0]).spread == 0


@given(TIMES, st.floats(0, 1))
def test_quantiles_stay_within_the_samples(samples: list[float], share: float) -> None:
    ordered = sorted(samples)
    slack = 1e-9 * ordered[-1]
    assert ordered[0] - slack <= quantile(ordered, share) <= ordered[-1] + slack
    assert quantile(ordered, 0) == ordered[0]
    assert quantile(ordered, 1) == ordered[-1]


def test_no_samples_no_median() -> None:
    with pytest.raises(UsageError):
        summarise([])


def test_a_ratio_holds_its_value_and_repeats() -> None:
    above, below = [4.0, 4.4, 4.2, 3.9, 4.1], [2.0, 2.1, 1.9, 2.2, 2.0]
    found = ratio_of_medians(above, below)
    assert found.value == pytest.approx(4.1 / 2.0)
    assert found.low <= found.value <= found.high
    assert ratio_of_medians(above, below) == found
    assert found.low >= 3.9 / 2.2
    assert found.high <= 4.4 / 1.9


def test_what_slows_both_leaves_the_ratio() -> None:
    noise = [1.0, 3.0, 1.2, 2.0, 5.0, 1.1]
    found = ratio_of_medians([2 * one for one in noise], noise)
    assert (found.low, found.value, found.high) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(("above", "below"), [([], []), ([1.0], []), ([1.0], [1.0, 2.0])])
def test_samples_without_a_partner_are_refused(above: list[float], below: list[float]) -> None:
    with pytest.raises(UsageError, match="no pairs"):
        ratio_of_medians(above, below)


@pytest.mark.parametrize("zero", [0.0, -1.0])
def test_times_of_nothing_are_refused(zero: float) -> None:
    with pytest.raises(UsageError, match="no ratio"):
        ratio_of_medians([1.0, zero], [1.0, 1.0])


def test_both_modes_are_added_up() -> None:
    costs = Costs(rows=2, length=10, first=3.0, step=5.0, commit=2.0, token=4.0)
    assert costs.diffusion(1, 1) == costs.diffusion(10, 1) == 3
    assert costs.diffusion(10, 4) == 3 + 3 * 5
    assert costs.diffusion(11, 4) == 2 * 18 + 2
    assert costs.autoregressive(11) == 44
    found = compare(costs, 4, threads=1, context=7)
    assert [one.tokens for one in found.answers] == list(ANSWERS)
    assert found.answers[0].diffusion_rate == pytest.approx(2 * 8 / 18)
    assert found.answers[0].autoregressive_rate == pytest.approx(2 / 4)
    assert found.answers[0].quicker == "diffusion"


def test_from_where_on_diffusion_wins() -> None:
    costs = Costs(rows=1, length=10, first=3.0, step=5.0, commit=2.0, token=4.0)
    found = compare(costs, 4, 1, 0)  # 18 s a canvas: 5 tokens are 20 s; 11 tokens 38 against 44
    assert (found.wins_from, found.wins_always_from) == (5, 5)
    # A canvas of 38 s is as long as 9.5 tokens; two are 78 s, 20 tokens 80, and 19 tokens 76.
    found = compare(costs, 8, 1, 0)
    assert (found.wins_from, found.most_steps) == (10, 8)
    assert found.wins_always_from is not None
    assert found.wins_always_from > 10


_COSTS = st.builds(
    Costs,
    rows=st.just(1),
    length=st.integers(1, 40),
    first=st.floats(0.1, 10),
    step=st.floats(0.1, 10),
    commit=st.floats(0.1, 10),
    token=st.floats(0.01, 10),
)


@given(_COSTS, st.integers(1, 30))
def test_the_verdict_agrees_with_the_times(costs: Costs, steps: int) -> None:
    found = compare(costs, steps, 1, 0)
    lengths = range(1, 16 * costs.length + 1)
    wins = [costs.diffusion(one, steps) < costs.autoregressive(one) for one in lengths]
    assert found.wins_from == next((one for one, won in zip(lengths, wins) if won), None)  # noqa: B905
    if found.wins_always_from is not None:
        assert all(wins[found.wins_always_from - 1 :])
        assert found.wins_always_from == 1 or not wins[found.wins_always_from - 2]
        assert steps <= found.most_steps
    if found.most_steps:
        canvas = costs.first + (found.most_steps - 1) * costs.step
        assert canvas + costs.commit <= costs.length * costs.token * (1 + 1e-9)
        assert found.least_tokens_per_forward == costs.length / found.most_steps


def test_a_step_that_is_too_slow_never_wins() -> None:
    found = compare(Costs(1, 10, first=50.0, step=50.0, commit=1.0, token=1.0), 12, 1, 0)
    assert found.wins_from is None
    assert found.wins_always_from is None
    assert (found.most_steps, found.least_tokens_per_forward) == (0, None)
    assert {one.quicker for one in found.answers} == {"autoregressive"}
