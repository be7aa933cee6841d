"""The joint pass against encode + denoise, the losses against a naive loop, gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sfumato.model.diffusion_gemma import DiffusionGemma, with_experts
from sfumato.training.conditioning import SelfConditioning
from sfumato.training.corruption import Supervision
from sfumato.training.init import new_network
from sfumato.training.losses import (
    IGNORED,
    Batch,
    Beliefs,
    Passes,
    canvas_inputs,
    cross_entropy,
    first_pass,
    joint_losses,
)
from tests.helpers import Shape, randomise, tiny_config
from tests.unit.training_runs import config

B, C, T, L, V = 3, 2, 20, 12, 97
PASSES = Passes()


@pytest.fixture
def net() -> DiffusionGemma:
    net = DiffusionGemma(tiny_config(Shape(pattern="SFSF", window=6, canvas=L)))
    randomise(net, 3)
    return with_experts(net, "dense")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(*, encoder: bool = True) -> Batch:
    """Prompts of 5, 9 and 8 tokens with answers of 12, 4 and 7 behind them."""
    starts, answers = torch.tensor([5, 9, 8]), torch.tensor([12, 4, 7])
    generator = seeded(1)
    targets = torch.randint(3, 90, (B, L), generator=generator)
    targets = torch.where(torch.arange(L) < answers[:, None], targets, 1)
    ids = torch.randint(3, 90, (B, T), generator=generator)
    for row in range(B):
        ids[row, starts[row] : starts[row] + answers[row]] = targets[row, : answers[row]]
    lengths = starts + answers
    places = (starts[:, None] - 1 + torch.arange(L)).clamp(max=T - 2)
    inside = torch.arange(L) < answers[:, None]
    labels = torch.where(inside, ids.gather(1, places + 1), IGNORED)
    return Batch(
        encode_ids=ids,
        encode_real=torch.arange(T) < lengths[:, None],
        starts=starts,
        targets=targets,
        prompt_width=10,
        places=places if encoder else None,
        labels=labels if encoder else None,
    )


def two_passes(
    net: DiffusionGemma, given: Batch, row: int, canvas: Tensor, soft: Tensor | None
) -> Tensor:
    """Logits [L, V] of one canvas by encode, then denoise."""
    cache = net.encode(given.encode_ids[row : row + 1, : given.starts[row]])
    return net.denoise(canvas[None], cache, None if soft is None else soft[None])[0]


@torch.no_grad()
def test_losses_equal_two_passes_and_a_naive_sum(net: DiffusionGemma) -> None:
    given = batch()
    noisy = torch.randint(0, V, (B * C, L), generator=seeded(2))
    soft = torch.randn(B, L, V, generator=seeded(3)) * 3
    weights = torch.rand(B * C, L, generator=seeded(4))
    found = joint_losses(net, PASSES, given, noisy, weights, Beliefs(B, 1, soft))
    total = torch.zeros(())
    for row in range(B):
        for canvas in range(C):
            index = row * C + canvas
            logits = two_passes(net, given, row, noisy[index], soft[row] if canvas == 0 else None)
            log_p = torch.log_softmax(logits, -1).gather(1, given.targets[row][:, None])[:, 0]
            total -= (weights[index] * log_p).sum()
    assert torch.allclose(found.diffusion, total, rtol=2e-5)
    assert found.encoder is not None
    assert torch.allclose(found.encoder, naive_encoder_loss(net, given), rtol=2e-5)


def naive_encoder_loss(net: DiffusionGemma, given: Batch) -> Tensor:
    """Mean next-token cross entropy of the answers, a row at a time."""
    losses = []
    for row in range(B):
        length = int(given.encode_real[row].sum())
        hidden, _ = net.encode_hidden(given.encode_ids[row : row + 1, :length])
        start = int(given.starts[row])
        logits = net.head(hidden)[0, start - 1 : -1]
        losses.append(
            functional.cross_entropy(logits, given.encode_ids[row, start:length], reduction="none")
        )
    return torch.cat(losses).mean()


@torch.no_grad()
def test_first_pass_equals_two_passes(net: DiffusionGemma) -> None:
    given = batch()
    noisy = torch.randint(0, V, (4, L), generator=seeded(2))
    logits = first_pass(net, PASSES, given, noisy, (2, 2))
    for index in range(4):
        wanted = two_passes(net, given, index // 2, noisy[index], None)
        assert torch.allclose(logits[index], wanted, atol=2e-5 * float(wanted.abs().max()))


def test_the_noisy_canvas_never_sees_the_clean_answer(net: DiffusionGemma) -> None:
    given = batch(encoder=False)
    noisy = torch.randint(0, V, (B * C, L), generator=seeded(2))
    weights = torch.full((B * C, L), 1.0)
    changed = given.encode_ids.clone()
    for row in range(B):
        changed[row, given.starts[row] :] = 5
    other = Batch(changed, given.encode_real, given.starts, given.targets, given.prompt_width)
    first = joint_losses(net, PASSES, given, noisy, weights, None)
    second = joint_losses(net, PASSES, other, noisy, weights, None)
    assert torch.equal(first.diffusion, second.diffusion)
    assert first.encoder is None


def test_checkpointed_layers_give_equal_gradients(net: DiffusionGemma) -> None:
    def gradients(*, checkpointed: bool) -> list[Tensor]:
        net.checkpoint_layers = checkpointed
        net.zero_grad()
        noisy = torch.randint(0, V, (B * C, L), generator=seeded(2))
        found = joint_losses(net, PASSES, batch(), noisy, torch.ones(B * C, L), None)
        assert found.encoder is not None
        (found.diffusion + found.encoder).backward()
        return [p.grad.clone() for p in net.parameters() if p.grad is not None]

    for plain, again in zip(
        gradients(checkpointed=False), gradients(checkpointed=True), strict=True
    ):
        assert torch.equal(plain, again)


def test_ignored_labels_count_nothing(net: DiffusionGemma) -> None:
    hidden = torch.randn(4, 64, generator=seeded())
    labels = torch.tensor([3, IGNORED, 5, IGNORED])
    loss = cross_entropy(net, hidden, labels, torch.ones(4))
    kept = cross_entropy(net, hidden[[0, 2]], labels[[0, 2]], torch.ones(2))
    assert torch.allclose(loss, kept)


@pytest.mark.parametrize("grid", [(B, 1), (2, C), (B, C), (1, 1)])
def test_only_the_grid_is_informed(net: DiffusionGemma, grid: tuple[int, int]) -> None:
    rows, canvases = grid
    noisy = torch.randint(0, V, (B, C, L), generator=seeded(2))
    logits = torch.randn(rows * canvases, L, V, generator=seeded(3))
    inputs = canvas_inputs(net, noisy, Beliefs(rows, canvases, logits)).view(B, C, L, -1)
    plain = canvas_inputs(net, noisy, None).view(B, C, L, -1)
    same = (inputs == plain).flatten(2).all(-1)
    wanted = torch.ones(B, C, dtype=torch.bool)
    wanted[:rows, :canvases] = False
    assert torch.equal(same, wanted)


def test_conditioning_divides_by_a_decoding_temperature(net: DiffusionGemma) -> None:
    given = batch()
    noisy = torch.randint(0, V, (B * C, L), generator=seeded(2))
    kept, beliefs = SelfConditioning(0.5, 0.4, 0.8).beliefs(net, PASSES, given, noisy, seeded(5))
    assert torch.equal(kept, noisy)
    assert beliefs is not None
    assert (beliefs.rows, beliefs.canvases) == (B, 1)
    plain = first_pass(net, PASSES, given, noisy.view(B, C, L)[:, 0], (B, 1))
    temperatures = (plain / beliefs.logits).flatten(1)
    assert torch.allclose(temperatures, temperatures[:, :1].expand_as(temperatures), rtol=1e-3)
    assert temperatures[:, 0].min() >= 0.4 - 1e-4
    assert temperatures[:, 0].max() <= 0.8 + 1e-4
    assert len(set(temperatures[:, 0].tolist())) == B


def test_no_conditioning_when_its_probability_is_zero(net: DiffusionGemma) -> None:
    noisy = torch.randint(0, V, (B * C, L), generator=seeded(2))
    kept, beliefs = SelfConditioning(0.0).beliefs(net, PASSES, batch(), noisy, seeded(5))
    assert beliefs is None
    assert kept is noisy


def test_rollout_moves_only_the_informed_canvases(net: DiffusionGemma) -> None:
    given = batch()
    noisy = torch.randint(0, V, (B * C, L), generator=seeded(2))
    rolled = SelfConditioning(0.5, rollout_steps=3)
    kept, beliefs = rolled.beliefs(net, PASSES, given, noisy, seeded(5))
    again, _ = rolled.beliefs(net, PASSES, given, noisy, seeded(5))
    assert beliefs is not None
    assert torch.equal(kept, again)
    moved = (kept != noisy).view(B, C, L).any(-1)
    assert bool(moved[:, 0].all())
    assert not bool(moved[:, 1].any())
    never = SelfConditioning(0.5, rollout_steps=3, rollout_probability=0.0)
    assert torch.equal(never.beliefs(net, PASSES, given, noisy, seeded(5))[0], noisy)


def test_bfloat16_products_stay_close_to_fp32(net: DiffusionGemma) -> None:
    noisy = torch.randint(0, V, (B * C, L), generator=seeded(2))
    weights = Supervision().weights(noisy, noisy, torch.ones(B * C))
    exact = joint_losses(net, PASSES, batch(), noisy, weights, None)
    rounded = joint_losses(net, Passes(bfloat16=True), batch(), noisy, weights, None)
    assert rounded.diffusion.dtype == torch.float32
    assert torch.allclose(exact.diffusion, rounded.diffusion, rtol=0.05)


def test_a_new_network_is_a_function_of_its_seed(tmp_path: Path) -> None:
    shape = config(tmp_path).model.build()
    one, same, other = (new_network(shape, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    name = "model.decoder.layers.0.mlp.up_proj.weight"
    assert not torch.equal(one[name], other[name])
    assert abs(float(one[name].std()) * 32**0.5 - 1) < 0.1
    assert one["model.decoder.self_conditioning.down_proj.weight"].abs().max() == 0
    assert torch.allclose(one["model.decoder.layers.1.self_attn.q_norm.weight"], torch.tensor(0.25))


def test_a_new_network_starts_near_the_uniform_loss(tmp_path: Path) -> None:
    run = config(tmp_path)
    net = new_network(run.model.build(), 1)
    given = batch()
    noisy = torch.randint(0, V, (B * C, L), generator=seeded(2))
    loss = joint_losses(net, PASSES, given, noisy, torch.full((B * C, L), 1 / (B * C * L)), None)
    assert 7.0 < loss.diffusion.item() < 9.5  # ln 2048 = 7.6
