"""The strategies of the denoising loop, each against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sfumato.config.generation import GenerationConfig
from sfumato.diffusion.loop import Denoising
from sfumato.diffusion.samplers import EntropyBound, RowDraws, SharedDraws, draws_for, entropy
from sfumato.diffusion.schedule import LinearTemperature
from sfumato.diffusion.stopping import Attempts, StableAndConfident, first_stop

CPU = torch.device("cpu")
ENTROPIES = st.lists(st.floats(0, 5, width=32), min_size=1, max_size=24)


def test_temperature_falls_linearly_from_almost_t_max_to_t_min_plus_one_step() -> None:
    schedule = LinearTemperature(0.4, 0.8, 4)
    found = [float(schedule.at(torch.tensor(left))) for left in (4, 3, 2, 1)]
    assert found == pytest.approx([0.8, 0.7, 0.6, 0.5])


def test_temperature_of_rows_at_different_steps() -> None:
    schedule = LinearTemperature(0.0, 1.0, 10)
    assert schedule.at(torch.tensor([10, 5, 1])).tolist() == pytest.approx([1.0, 0.5, 0.1])


@given(st.integers(2, 50))
def test_entropy_of_a_uniform_distribution_is_the_log_of_its_size(size: int) -> None:
    assert float(entropy(torch.zeros(size))) == pytest.approx(math.log(size), rel=1e-5)


def test_entropy_of_a_certain_position_is_zero_and_never_nan() -> None:
    logits = torch.tensor([[0.0, -torch.inf, -torch.inf], [1e4, 0.0, -1e4]])
    assert entropy(logits).tolist() == [0.0, 0.0]


def accepted_by(rule: EntropyBound, entropies: Tensor) -> Tensor:
    """The mask, where accepted positions have what was sampled and the others what is fresh."""
    sampled = torch.arange(entropies.numel()).view(entropies.shape)
    accepted, canvas = rule.accept(entropies, sampled, -1 - sampled)
    assert torch.equal(canvas, torch.where(accepted, sampled, -1 - sampled))
    return accepted


@given(ENTROPIES, st.floats(0.001, 10))
def test_accepted_positions_are_the_surest_and_within_the_bound(
    values: list[float], bound: float
) -> None:
    entropies = torch.tensor([values])
    accepted = accepted_by(EntropyBound(bound), entropies)[0]
    assert bool(accepted.any())
    kept, left = entropies[0][accepted], entropies[0][~accepted]
    if len(left):
        assert float(kept.max()) <= float(left.min())
        assert float(kept.sum()) + 1e-4 >= bound
    assert float(kept.sum() - kept.max()) <= bound + 1e-4


@given(ENTROPIES, st.floats(0.001, 5), st.floats(0, 5))
def test_a_larger_bound_accepts_no_fewer(values: list[float], bound: float, more: float) -> None:
    entropies = torch.tensor([values])
    few = accepted_by(EntropyBound(bound), entropies)
    many = accepted_by(EntropyBound(bound + more), entropies)
    assert not bool((few & ~many).any())


def test_stopping_needs_stability_and_confidence() -> None:
    rule = StableAndConfident(2, 0.1)
    history = rule.history()
    same, other = torch.tensor([[1, 2]]), torch.tensor([[1, 3]])
    sure, unsure = torch.tensor([[0.01, 0.05]]), torch.tensor([[0.3, 0.3]])
    seen = [(same, sure), (same, sure), (same, unsure), (same, sure), (other, sure), (other, sure)]
    done = [bool(rule.done(argmax, spread, history)) for argmax, spread in seen]
    assert done == [False, False, False, True, False, False]
    assert bool(rule.done(other, sure, history))


def test_stability_of_zero_asks_for_confidence_alone() -> None:
    rule = StableAndConfident(0, 0.1)
    assert bool(rule.done(torch.tensor([[4]]), torch.tensor([[0.05]]), rule.history()))


def test_stopping_is_per_row() -> None:
    rule = StableAndConfident(1, 0.5)
    history = rule.history()
    calm = torch.zeros(2, 2)
    rule.done(torch.tensor([[1, 1], [2, 2]]), calm, history)
    assert rule.done(torch.tensor([[1, 1], [2, 3]]), calm, history).tolist() == [True, False]


@pytest.mark.parametrize(
    ("tokens", "stops", "index"),
    [([3, 1, 1], (1,), 1), ([3, 4], (1,), None), ([], (1,), None), ([9], (), None)],
)
def test_first_stop(tokens: list[int], stops: tuple[int, ...], index: int | None) -> None:
    assert first_stop(tokens, stops) == index


def test_the_order_of_draws_is_canvas_sample_canvas() -> None:
    """What the reference draws: `randint`, `multinomial` over all positions, `randint`."""
    draws = draws_for(5, CPU)
    probabilities = torch.softmax(torch.randn(2, 3, 11), -1)
    found = [draws.canvas(2, 3, 11), draws.sample(probabilities), draws.canvas(2, 3, 11)]
    torch.manual_seed(5)
    expected = [
        torch.randint(0, 11, (2, 3)),
        torch.multinomial(probabilities.view(-1, 11), 1).view(2, 3),
        torch.randint(0, 11, (2, 3)),
    ]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_row_draws_give_each_row_what_it_gets_alone() -> None:
    together = draws_for([3, 9], CPU)
    assert isinstance(together, RowDraws)
    probabilities = torch.softmax(torch.randn(2, 4, 7), -1)
    canvas, sample = together.canvas(2, 4, 7), together.sample(probabilities)
    for row, seed in enumerate((3, 9)):
        alone = draws_for(seed, CPU)
        assert isinstance(alone, SharedDraws)
        assert torch.equal(alone.canvas(1, 4, 7)[0], canvas[row])
        assert torch.equal(alone.sample(probabilities[row, None])[0], sample[row])


def test_denoising_takes_every_setting() -> None:
    config = GenerationConfig(
        max_denoising_steps=7,
        entropy_bound=0.3,
        t_min=0.1,
        t_max=0.9,
        stability_threshold=2,
        confidence_threshold=0.02,
    )
    denoising = Denoising.of(config)
    assert denoising.attempts == Attempts(7, 7)
    assert denoising.temperature.steps == 7
    assert denoising.temperature == LinearTemperature(0.1, 0.9, 7)
    assert denoising.acceptance == EntropyBound(0.3)
    assert denoising.stopping == StableAndConfident(2, 0.02)


def test_attempts_share_the_steps() -> None:
    attempts = Attempts.of(7, 3)
    assert [attempts.left(taken) for taken in range(1, 8)] == [3, 2, 1, 3, 2, 1, 3]
    assert Attempts.of(7, None) == Attempts.of(7, 9) == Attempts(7, 7)
    denoising = Denoising.of(GenerationConfig(max_denoising_steps=7, restart_steps=3))
    assert denoising.attempts == attempts
    assert denoising.temperature.steps == 3  # every attempt begins hot
