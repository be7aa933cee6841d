"""Noise levels, corruption, supervision and the share of self-conditioned canvases."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfumato.training.conditioning import SelfConditioning
from sfumato.training.corruption import Supervision, UniformNoise
from sfumato.training.trainer import generator_for


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_levels_are_flat_by_default() -> None:
    levels = UniformNoise().levels(20_000, seeded())
    assert levels.min() >= 1e-4
    assert levels.max() <= 1 - 1e-4
    shares = torch.histc(levels, 10, 0, 1) / len(levels)
    assert torch.allclose(shares, torch.full((10,), 0.1), atol=0.01)


@pytest.mark.parametrize("power", [0.5, 2.0, 4.0])
def test_power_moves_the_mean(power: float) -> None:
    levels = UniformNoise(0.0, 1.0, power).levels(20_000, seeded())
    assert math.isclose(levels.mean(), power / (power + 1), abs_tol=0.01)


@given(st.integers(1, 60), st.integers(0, 1000))
def test_stratified_levels_have_one_in_each_stratum(count: int, seed: int) -> None:
    levels = UniformNoise(0.0, 1.0, stratified=True).levels(count, seeded(seed))
    strata = (levels.double().clamp(max=1 - 1e-7) * count).floor().long()
    assert (strata.sort().values - torch.arange(count)).abs().max() <= 1  # fp32 rounding at edges


def test_stratified_levels_are_in_random_order() -> None:
    levels = UniformNoise(0.0, 1.0, stratified=True).levels(64, seeded())
    assert not bool((levels.sort().values == levels).all())


def test_corruption_hits_the_share_of_its_level_with_uniform_ids() -> None:
    clean = torch.full((3, 20_000), 7)
    levels = torch.tensor([0.1, 0.5, 0.9])
    noisy = UniformNoise().corrupt(clean, levels, 50, seeded())
    changed = (noisy != clean).float().mean(1)
    assert torch.allclose(changed, levels * 49 / 50, atol=0.012)
    counts = torch.bincount(noisy[2], minlength=50).float()
    others = counts[torch.arange(50) != 7] / 20_000
    assert torch.allclose(others, torch.full((49,), 0.9 / 50), atol=0.006)


def test_corruption_is_a_function_of_its_generator() -> None:
    clean = torch.arange(40).view(2, 20)
    noise = UniformNoise()

    def draw(step: int) -> torch.Tensor:
        generator = generator_for(3, step, 0)
        return noise.corrupt(clean, noise.levels(2, generator), 99, generator)

    assert torch.equal(draw(5), draw(5))
    assert not torch.equal(draw(5), draw(6))


def test_generators_differ_by_seed_step_and_family() -> None:
    drawn = {
        int(torch.randint(1 << 60, (), generator=generator_for(*key)))
        for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 10, 1), (0, 1, 101)]
    }
    assert len(drawn) == 6


def test_supervision_weights() -> None:
    clean = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    noisy = torch.tensor([[1, 9, 3, 4], [9, 9, 7, 9]])
    levels = torch.tensor([0.25, 0.5])
    every = Supervision().weights(noisy, clean, levels)
    assert torch.equal(every, torch.full((2, 4), 1 / 8))
    changed = Supervision("corrupted").weights(noisy, clean, levels)
    assert torch.equal(changed, (noisy != clean).float() / 4)
    bound = Supervision("corrupted", "1/t").weights(noisy, clean, levels)
    assert torch.equal(bound[0], torch.tensor([0, 4.0, 0, 0]) / 8)
    assert torch.equal(bound[1], torch.tensor([2.0, 2.0, 0, 2.0]) / 8)


def test_supervision_of_a_clean_batch_is_no_division_by_zero() -> None:
    clean = torch.ones(2, 3, dtype=torch.long)
    assert Supervision("corrupted").weights(clean, clean, torch.full((2,), 0.5)).sum() == 0


@given(st.integers(1, 33), st.integers(1, 5), st.floats(0.05, 1.0), st.integers(0, 99))
def test_the_share_of_informed_canvases_is_met(
    rows: int, canvases: int, share: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    informed_rows, informed = SelfConditioning(share).grid(rows, canvases, generator)
    assert 0 <= informed <= canvases
    assert 0 <= informed_rows <= rows
    assert abs(informed_rows * informed - share * rows * canvases) <= canvases


@pytest.mark.parametrize(("rows", "canvases"), [(1, 1), (3, 1), (5, 3)])
def test_an_uneven_share_is_right_on_average(rows: int, canvases: int) -> None:
    generator = torch.Generator().manual_seed(1)
    grids = [SelfConditioning(0.5).grid(rows, canvases, generator) for _ in range(2000)]
    mean = sum(r * m for r, m in grids) / len(grids)
    assert abs(mean / (rows * canvases) - 0.5) < 0.05


@pytest.mark.parametrize(
    ("rows", "canvases", "grid"), [(12, 4, (12, 2)), (8, 1, (4, 1)), (6, 3, (3, 3))]
)
def test_half_of_the_canvases_are_informed(rows: int, canvases: int, grid: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    assert SelfConditioning().grid(rows, canvases, generator) == grid
    assert torch.equal(generator.get_state(), before), "nothing is drawn where nothing is open"
