"""NVFP4 with errors passed on: what it promises, and the same by inverses updated one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfumato.errors import InputError, QuantisationError
from sfumato.quant.compensated import Feedback, feedback_of, quantise_compensated
from sfumato.quant.nvfp4 import (
    CODE_VALUES,
    FOUR_OVER_SIX,
    MODELOPT,
    Nvfp4Tensor,
    ScaleRule,
    decode,
    group_scales,
    largest_of,
    nearest_codes,
    quantise,
    tensor_scale_of,
)

SEEDS = st.integers(0, 2**31 - 1)


def inputs_of(rows: int, size: int, seed: int) -> Tensor:
    """Inputs that depend on each other, as a network's do."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(rows, max(2, size // 8), generator=generator)
    mix = torch.randn(few.shape[1], size, generator=generator)
    return few @ mix + 0.3 * torch.randn(rows, size, generator=generator)


def weight_of(n: int, size: int, seed: int) -> Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed + 1))


def compensated(
    weight: Tensor, own: Feedback, tensor_scale: Tensor, rule: ScaleRule = FOUR_OVER_SIX
) -> Nvfp4Tensor:
    return Nvfp4Tensor(*quantise_compensated(weight, own, tensor_scale, rule), tensor_scale)


def feedback(inputs: Tensor) -> Feedback:
    found = feedback_of(inputs.t() @ inputs, len(inputs))
    assert found is not None
    return found


def scale_of(weight: Tensor) -> Tensor:
    return tensor_scale_of(largest_of(weight), FOUR_OVER_SIX)


@settings(max_examples=25)
@given(st.integers(16, 40), st.sampled_from([48, 160, 272]), SEEDS)
def test_outputs_lose_less_than_by_nearest_codes(n: int, size: int, seed: int) -> None:
    inputs, weight = inputs_of(2 * size, size, seed), weight_of(n, size, seed)
    scale = scale_of(weight)
    stored = compensated(weight, feedback(inputs), scale)
    plain = quantise(weight, FOUR_OVER_SIX, scale)
    assert stored.shape == weight.shape
    lost, before = (((decode(one) - weight) @ inputs.t()).square().sum() for one in (stored, plain))
    assert lost < 0.8 * before


@given(st.integers(1, 20), st.sampled_from([16, 32, 144]), SEEDS)
def test_independent_inputs_want_the_nearest_codes(n: int, size: int, seed: int) -> None:
    weight = weight_of(n, size, seed)
    scale = scale_of(weight)
    found = feedback_of(torch.eye(size) * 7, 10 * size)
    assert found is not None
    stored = compensated(weight, found, scale)
    plain = quantise(weight, FOUR_OVER_SIX, scale)
    same = stored.scale.view(torch.uint8) == plain.scale.view(torch.uint8)
    wide = same.repeat_interleave(8, dim=1)
    assert torch.equal(stored.packed[wide], plain.packed[wide])
    lost, before = ((decode(one) - weight).square().sum() for one in (stored, plain))
    assert float(lost) == pytest.approx(float(before), rel=1e-5)  # a near tie of two scales


def one_by_one(row: np.ndarray, moments: np.ndarray, tensor_scale: Tensor) -> np.ndarray:
    """A row's values, rounded a column at a time; the inverse loses each column as it is done."""
    left, inverse = row.astype(np.float64).copy(), np.linalg.inv(moments)
    out = np.zeros_like(left)
    values = np.array([*CODE_VALUES, *(-one for one in CODE_VALUES)])
    for begin in range(0, len(row), 16):
        largest = torch.tensor([np.abs(left[begin : begin + 16]).max()], dtype=torch.float32)
        step = float(group_scales(largest, 6.0, tensor_scale).float()) * float(tensor_scale)
        for i in range(begin, begin + 16):
            code = int(nearest_codes(torch.tensor([left[i] / step], dtype=torch.float32))[0])
            out[i] = values[code] * step
            left -= (left[i] - out[i]) / inverse[i, i] * inverse[i]
            inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
            inverse[i, i] = 1.0  # done with: nothing more reaches it
            left[: i + 1] = out[: i + 1]
    return out


@settings(max_examples=6)
@given(SEEDS)
def test_the_same_as_one_by_one(seed: int) -> None:
    """Blocks and Cholesky factors change the order of the work and nothing else."""
    size, damping = 144, 0.01
    inputs, weight = inputs_of(3 * size, size, seed), weight_of(4, size, seed)
    moments = (inputs.t() @ inputs).double().numpy()
    level = moments.diagonal().mean() * (damping + damping * size / len(inputs))
    scale = scale_of(weight)
    stored = decode(compensated(weight, feedback(inputs), scale, MODELOPT)).numpy()
    same = 0
    for row, own in zip(weight.numpy(), stored, strict=True):
        wanted = one_by_one(row, moments + level * np.eye(size), scale)
        same += np.array_equal(wanted.astype(np.float32), own)
        # A value at a tie may fall to the other side, and what follows then differs.
        errors = [((one - row) @ moments @ (one - row)) for one in (wanted, own)]
        assert errors[1] == pytest.approx(errors[0], rel=0.25)
    assert same >= 2


def test_a_matrix_of_zeros_and_a_group_of_zeros() -> None:
    inputs = inputs_of(64, 32, 0)
    weight = weight_of(4, 32, 0)
    weight[:, :16] = 0
    weight[2] = 0
    stored = decode(compensated(weight, feedback(inputs), scale_of(weight)))
    assert not stored[2].any()
    assert not stored[:, :16].any()
    assert stored[0, 16:].any()


def test_an_input_that_is_always_zero() -> None:
    inputs = inputs_of(64, 32, 0)
    inputs[:, 5] = 0
    weight = weight_of(4, 32, 0)
    stored = decode(compensated(weight, feedback(inputs), scale_of(weight)))
    assert bool(torch.isfinite(stored).all())
    assert float((stored - weight)[:, 5].abs().max()) < 1


def test_no_inputs_give_no_feedback() -> None:
    assert feedback_of(torch.zeros(16, 16), 0) is None
    assert feedback_of(torch.zeros(16, 16), 9) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number(value: float) -> None:
    moments = torch.eye(16)
    moments[3, 3] = value
    with pytest.raises(QuantisationError, match="not finite"):
        feedback_of(moments, 5)
    weight = weight_of(4, 16, 0)
    weight[1, 1] = value
    with pytest.raises(QuantisationError, match="infinity or a NaN"):
        compensated(weight, feedback(inputs_of(40, 16, 0)), torch.tensor(1.0))


def test_what_does_not_fit() -> None:
    with pytest.raises(InputError, match="square"):
        feedback_of(torch.zeros(4, 5), 3)
    with pytest.raises(QuantisationError, match="rows of 32 values, its inputs have 16"):
        compensated(weight_of(2, 32, 0), feedback(inputs_of(40, 16, 0)), torch.tensor(1.0))


def test_stacked_matrices_are_what_they_are_alone() -> None:
    """Several matrices with scales of their own, in rows enough to be cut."""
    inputs = inputs_of(100, 32, 0)
    matrices = [weight_of(n, 32, n) * n for n in (3, 4100, 5)]
    scales = [scale_of(one) for one in matrices]
    each = torch.cat([one.expand(len(own)) for one, own in zip(scales, matrices, strict=True)])
    codes, bits = quantise_compensated(torch.cat(matrices), feedback(inputs), each)
    parts = zip(codes.split([3, 4100, 5]), bits.split([3, 4100, 5]), strict=True)
    for (packed, scale), weight, own in zip(parts, matrices, scales, strict=True):
        alone = compensated(weight, feedback(inputs), own)
        # Products of other shapes may round otherwise, and a near tie then falls otherwise.
        assert float((packed == alone.packed).float().mean()) > 0.98
        same = scale.view(torch.uint8) == alone.scale.view(torch.uint8)
        assert float(same.float().mean()) > 0.98


@pytest.mark.parametrize("power", [-100, 100, 118])
def test_a_power_of_two_changes_no_bit(power: int) -> None:
    """Weights may be near fp32's largest number: no square of an error may pass it."""
    weight, own = weight_of(5, 96, 3), feedback(inputs_of(200, 96, 4))
    other = weight * 2.0**power
    wanted = compensated(weight, own, scale_of(weight))
    found = compensated(other, own, scale_of(weight) * 2.0**power)
    assert torch.equal(found.packed, wanted.packed)
    assert torch.equal(found.scale.view(torch.uint8), wanted.scale.view(torch.uint8))
