"""Muon, AdamW, the average of the weights and the learning rate's course."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sfumato.errors import TrainingError
from sfumato.training.optim import MUON_RMS, Average, Optimiser, Rates, is_muon, orthogonalise
from sfumato.training.schedule import Schedule


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 16, 40), (2, 40, 16), (1, 8, 1)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, ...]) -> None:
    values = torch.linalg.svdvals(orthogonalise(seeded(*shape), 8))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_orthogonalising_keeps_the_singular_vectors() -> None:
    matrix = seeded(1, 12, 12)
    left, _, right = torch.linalg.svd(matrix)
    assert torch.allclose(
        left.transpose(-2, -1) @ orthogonalise(matrix, 8) @ right.transpose(-2, -1),
        torch.eye(12),
        atol=0.35,
    )


def test_a_zero_matrix_stays_zero() -> None:
    assert torch.equal(orthogonalise(torch.zeros(1, 4, 4), 5), torch.zeros(1, 4, 4))


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(10, 8)
        self.a, self.b = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.experts = nn.Parameter(seeded(3, 8, 4, seed=1))
        self.norm = nn.Parameter(torch.ones(8))


def with_gradients(seed: int = 0) -> Toy:
    torch.manual_seed(seed)
    toy = Toy()
    for index, parameter in enumerate(toy.parameters()):
        parameter.grad = seeded(*parameter.shape, seed=seed + index)
    return toy


def test_matrices_go_to_muon_and_the_rest_to_adam() -> None:
    names = {name for name, p in Toy().named_parameters() if is_muon(name, p)}
    assert names == {"a.weight", "b.weight", "experts"}
    assert not is_muon("model.decoder.layers.0.router.proj.weight", torch.zeros(2, 2))


def test_batched_muon_equals_one_matrix_at_a_time() -> None:
    toy = with_gradients()
    before, gradient = toy.experts.detach().clone(), toy.experts.grad
    assert gradient is not None
    Optimiser(toy.named_parameters(), Rates(weight_decay=0.0, muon_lr=0.1)).step(1.0)
    momentum = 0.05 * gradient
    ahead = torch.lerp(gradient, momentum, 0.95)
    for expert in range(3):
        update = orthogonalise(ahead[expert : expert + 1], 5)[0] * MUON_RMS * 8**0.5
        moved = (before[expert] - toy.experts[expert]) / 0.1
        assert torch.allclose(moved, update, atol=2e-2)


def test_muon_updates_have_the_promised_size() -> None:
    toy = with_gradients()
    before = toy.a.weight.detach().clone()
    Optimiser(toy.named_parameters(), Rates(weight_decay=0.0, muon_lr=1.0)).step(0.5)
    rms = (before - toy.a.weight).detach().pow(2).mean().sqrt() / 0.5
    assert 0.6 * MUON_RMS < rms < 1.3 * MUON_RMS


def test_adam_part_equals_torchs() -> None:
    rates = Rates(adam_lr=0.01, weight_decay=0.1, betas=(0.9, 0.99))
    ours, theirs = with_gradients(), with_gradients()
    mine = Optimiser(ours.named_parameters(), rates)
    groups = [
        {"params": [theirs.embed_tokens.weight], "weight_decay": 0.1},
        {"params": [theirs.norm], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.99))
    for step in range(3):
        for net in (ours, theirs):
            net.norm.grad = seeded(8, seed=step)
            net.embed_tokens.weight.grad = seeded(10, 8, seed=50 + step)
        mine.step(1.0)
        reference.step()
    assert torch.allclose(ours.norm, theirs.norm, atol=1e-6)
    assert torch.allclose(ours.embed_tokens.weight, theirs.embed_tokens.weight, atol=1e-6)


def test_clip_scales_the_joint_norm() -> None:
    toy = with_gradients()
    optimiser = Optimiser(toy.named_parameters(), Rates())
    norm = optimiser.clip(0.5)
    assert norm > 0.5
    assert math.isclose(optimiser.clip(0.0), 0.5, rel_tol=1e-4)


def test_state_goes_on_where_it_was() -> None:
    one, other = with_gradients(), with_gradients()
    whole = Optimiser(one.named_parameters(), Rates())
    whole.step(1.0)
    whole.step(1.0)
    first = Optimiser(other.named_parameters(), Rates())
    first.step(1.0)
    state = copy.deepcopy(first.state())
    second = Optimiser(other.named_parameters(), Rates())
    second.load(state)
    second.step(1.0)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_state_of_another_network_is_refused() -> None:
    optimiser = Optimiser(with_gradients().named_parameters(), Rates())
    state = optimiser.state()
    del state["first.norm"]
    with pytest.raises(TrainingError, match=r"first\.norm"):
        optimiser.load(state)


def test_frozen_parameters_are_left_alone() -> None:
    toy = with_gradients()
    toy.norm.requires_grad_(False)
    before = toy.norm.clone()
    Optimiser(toy.named_parameters(), Rates()).step(1.0)
    assert torch.equal(before, toy.norm)


def test_a_parameter_without_gradient_counts_as_zero() -> None:
    toy = with_gradients()
    toy.b.weight.grad = None
    before = toy.b.weight.detach().clone()
    Optimiser(toy.named_parameters(), Rates(weight_decay=0.0)).step(1.0)
    assert torch.equal(before, toy.b.weight)


def test_average_warms_up_and_then_decays() -> None:
    average = Average({"w": torch.zeros(1)}, 0.9)
    average.update({"w": torch.ones(1)}, 1)
    assert torch.allclose(average.weights["w"], torch.tensor([1 - 2 / 11]))
    for step in range(200, 400):
        average.update({"w": torch.full((1,), 3.0)}, step)
    assert torch.allclose(average.weights["w"], torch.tensor([3.0]))


def test_wsd_warms_up_stays_and_falls() -> None:
    schedule = Schedule("wsd", 100, 10, 0.2)
    assert schedule.at(0) == 0.1
    assert schedule.at(9) == schedule.at(50) == schedule.at(80) == 1.0
    assert schedule.at(90) == 0.5
    assert schedule.at(100) == 0.0


def test_cosine_falls_to_its_share() -> None:
    schedule = Schedule("cosine", 110, 10, final_share=0.1)
    assert schedule.at(10) == 1.0
    assert math.isclose(schedule.at(60), 0.55)
    assert math.isclose(schedule.at(110), 0.1)


@given(
    st.sampled_from(["wsd", "cosine"]), st.integers(1, 200), st.integers(0, 250), st.floats(0, 1)
)
def test_factors_are_shares(kind: str, steps: int, warmup: int, share: float) -> None:
    schedule = Schedule(kind, steps, warmup, share)  # type: ignore[arg-type]
    assert all(0.0 <= schedule.at(step) <= 1.0 for step in range(steps + 3))
