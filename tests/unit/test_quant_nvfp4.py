"""NVFP4 to the bit: nearest codes, exact decoding, ModelOpt's rule, and the edges of all three."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfumato.errors import InputError, QuantisationError
from sfumato.quant.nvfp4 import (
    CODE_VALUES,
    FOUR_OVER_SIX,
    GROUP,
    MODELOPT,
    Nvfp4Tensor,
    ScaleRule,
    bytes_of,
    code_values,
    decode,
    nearest_codes,
    pack,
    quantise,
    tensor_scale_of,
    unpack,
)

E4M3_BYTES = st.integers(0, 0x7E)
RULES = pytest.mark.parametrize(
    "rule", [MODELOPT, FOUR_OVER_SIX], ids=["modelopt", "four_over_six"]
)


def nvfp4(
    codes: list[list[int]], scales: list[list[int]], tensor_scale: float, **more: Any
) -> Nvfp4Tensor:
    """A matrix from its codes, the bytes of its scales, and its tensor scale."""
    return Nvfp4Tensor(
        pack(torch.tensor(codes, dtype=torch.uint8)),
        torch.tensor(scales, dtype=torch.uint8).view(torch.float8_e4m3fn),
        torch.tensor(tensor_scale),
        **more,
    )


def e4m3(byte: int) -> Fraction:
    """What a byte stands for: 4 bits of exponent with bias 7, 3 bits of mantissa."""
    exponent, mantissa = byte >> 3, byte & 7
    if exponent == 0:
        return Fraction(mantissa, 8) / 2**6
    return (1 + Fraction(mantissa, 8)) * Fraction(2) ** (exponent - 7)


def value_of(code: int) -> Fraction:
    return (-1 if code & 8 else 1) * Fraction(CODE_VALUES[code & 7])


def nearest_of(exact: Fraction, dtype: torch.dtype) -> float:
    """The number of `dtype` nearest to `exact`, a tie going to the even mantissa."""
    guess = torch.tensor(float(abs(exact))).to(dtype)
    bits = int(guess.view(torch.int32 if dtype == torch.float32 else torch.int16))
    whole = torch.int32 if dtype == torch.float32 else torch.int16
    around = [max(bits - 1, 0), bits, bits + 1]
    values = torch.tensor(around, dtype=whole).view(dtype).tolist()
    distance = [abs(Fraction(one) - abs(exact)) for one in values]
    chosen = min(range(3), key=lambda index: (distance[index], around[index] % 2))
    return float(values[chosen]) * (-1 if exact < 0 else 1)


def test_the_sixteen_codes() -> None:
    values = code_values(torch.arange(16, dtype=torch.uint8)).tolist()
    assert values == [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]
    assert torch.equal(nearest_codes(torch.tensor(values[:8])), torch.arange(8).to(torch.uint8))
    signed = nearest_codes(code_values(torch.arange(16, dtype=torch.uint8)))
    assert torch.equal(signed, torch.arange(16).to(torch.uint8))  # -0.0 keeps its sign


@pytest.mark.parametrize(
    ("value", "code"),
    [(0.25, 0), (0.75, 2), (1.25, 2), (1.75, 4), (2.5, 4), (3.5, 6), (5.0, 6), (1e30, 7)],
)
def test_ties_go_to_the_even_code(value: float, code: int) -> None:
    around = torch.tensor([value, -value])
    assert nearest_codes(around).tolist() == [code, code + 8]
    if value < 6:
        low, high = (torch.nextafter(around[:1], torch.tensor([end])) for end in (0.0, 9.0))
        assert code in (int(nearest_codes(low)), int(nearest_codes(high)))
        assert int(nearest_codes(high)) == int(nearest_codes(low)) + 1


@given(st.lists(st.floats(-7, 7, width=32), min_size=1, max_size=50))
def test_no_other_code_is_nearer(values: list[float]) -> None:
    for value, code in zip(values, nearest_codes(torch.tensor(values)).tolist(), strict=True):
        distance = abs(value_of(code) - Fraction(value))
        assert distance == min(abs(value_of(other) - Fraction(value)) for other in range(16))


def test_the_low_nibble_is_the_even_k() -> None:
    codes = torch.tensor([[1, 2, 3, 15]], dtype=torch.uint8)
    assert pack(codes).tolist() == [[0x21, 0xF3]]
    assert torch.equal(unpack(pack(codes)), codes)


@settings(max_examples=25)
@given(
    st.lists(st.integers(0, 15), min_size=16, max_size=16),
    E4M3_BYTES,
    st.floats(2**-60, 2**60, width=32),
    st.booleans(),
)
def test_decoding_is_the_exact_product_rounded_once(
    codes: list[int], scale: int, tensor_scale: float, reciprocal: bool
) -> None:
    tensor = nvfp4([codes], [[scale]], tensor_scale, reciprocal=reciprocal)
    factor = Fraction(tensor_scale)
    for dtype in (torch.float32, torch.bfloat16):
        decoded = decode(tensor, dtype)
        assert decoded.dtype == dtype
        for index, code in enumerate(codes):
            product = value_of(code) * e4m3(scale)
            exact = product / factor if reciprocal else product * factor
            assert decoded[0, index].item() == nearest_of(exact, dtype)


def test_a_tie_between_bf16_values_is_told_from_what_is_just_above_it() -> None:
    """Rounding to fp32 first would make these two products one tie."""
    tie = 1 + 2.0**-8
    above = torch.nextafter(torch.tensor(tie / 1.5), torch.tensor(2.0)).item()
    codes = [[3] * GROUP]
    decoded = decode(nvfp4(codes, [[0x38]], above), torch.bfloat16)
    exact = Fraction(3, 2) * Fraction(above)
    assert float(torch.tensor(1.5) * torch.tensor(above)) in (tie, float(exact)) or exact > tie
    assert decoded[0, 0].item() == nearest_of(exact, torch.bfloat16) == 1 + 2.0**-7


@given(
    st.lists(st.integers(0, 15), min_size=32, max_size=32),
    st.lists(st.integers(1, 0x7E), min_size=2, max_size=2),
    st.integers(-100, 90),
)
def test_what_nvfp4_holds_comes_back_to_the_bit(
    codes: list[int], scales: list[int], exponent: int
) -> None:
    """Each group has a 6, so that the scales are found again; the tensor scale is given."""
    codes[0] = codes[GROUP] = 7
    stored = nvfp4([codes[:GROUP], codes[GROUP:]], [scales[:1], scales[1:]], 2.0**exponent)
    weight = decode(stored)
    again = quantise(weight, MODELOPT, stored.tensor_scale)
    assert torch.equal(again.packed, stored.packed)
    assert torch.equal(again.scale.view(torch.uint8), stored.scale.view(torch.uint8))
    assert torch.equal(decode(again).view(torch.int32), weight.view(torch.int32))


def modelopt(weight: Tensor) -> tuple[list[list[int]], list[list[int]], float]:
    """ModelOpt's rule, value by value, with fp32 arithmetic: codes, scale bytes, tensor scale."""
    tensor_scale = weight.abs().max() / torch.tensor(6.0 * 448.0)
    codes: list[list[int]] = []
    scales: list[list[int]] = []
    for row in weight:
        codes.append([])
        scales.append([])
        for group in row.split(GROUP):
            wanted = group.abs().max() / (6.0 * tensor_scale)
            wanted = wanted.clamp(2**-9, 448) if wanted else torch.tensor(1.0)
            scale = wanted.to(torch.float8_e4m3fn)
            scales[-1].append(int(scale.view(torch.uint8)))
            for value in group / (scale.float() * tensor_scale):
                codes[-1].append(int(nearest_codes(value)))
    return codes, scales, float(tensor_scale)


@settings(max_examples=15)
@given(st.integers(0, 2**31), st.sampled_from([1e-6, 0.02, 1.0, 300.0]), st.booleans())
def test_the_rule_is_modelopts(seed: int, spread: float, narrow: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = spread * torch.randn(2, 48, generator=generator) ** 3  # heavy tails
    weight[1, 16:32] = 0
    weight = weight.bfloat16() if narrow else weight
    codes, scales, tensor_scale = modelopt(weight.float())
    stored = quantise(weight, MODELOPT)
    assert unpack(stored.packed).tolist() == codes
    assert stored.scale.view(torch.uint8).tolist() == scales
    assert stored.tensor_scale.item() == tensor_scale


def step_of(stored: Nvfp4Tensor) -> Tensor:
    """What one unit of a code is worth, in each place of the weight, fp64."""
    scale = stored.scale.double() * stored.tensor_scale.double()[..., None, None]
    return scale.repeat_interleave(GROUP, dim=-1)


@RULES
@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), spread=st.floats(1e-30, 1e30))
def test_errors_are_bounded(rule: ScaleRule, seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = spread * torch.randn(2, 5, 64, generator=generator)
    stored = quantise(weight, rule)
    error = (decode(stored).double() - weight.double()).abs()
    step = step_of(stored)
    # One step is the most between 4 and 6; above 6 comes what the rounding of the scale adds.
    over = (weight.double().abs() - 6 * step).clamp(min=0)
    assert bool((error <= step * (1 + 2**-20) + over).all())
    assert bool((over <= 6 * step * 2**-3).all())
    relative = error.square().sum().sqrt() / weight.double().square().sum().sqrt()
    assert relative < 0.12


@given(st.integers(0, 2**31), st.floats(1, 4))
def test_choosing_among_scales_never_loses(seed: int, power: float) -> None:
    """Against the same scales without the choice, in every group."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 64, generator=generator)
    weight = weight.sign() * weight.abs() ** power
    single = ScaleRule((6.0,), FOUR_OVER_SIX.largest_scale)
    errors = []
    for rule in (FOUR_OVER_SIX, single):
        error = decode(quantise(weight, rule)).double() - weight.double()
        errors.append(error.square().unflatten(-1, (-1, GROUP)).sum(-1))
    assert bool((errors[0] <= errors[1] * (1 + 1e-5)).all())


def test_four_over_six_loses_a_sixth_less() -> None:
    weight = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    loss = {
        rule: (decode(quantise(weight, rule)) - weight).square().mean().item()
        for rule in (MODELOPT, FOUR_OVER_SIX)
    }
    assert 0.80 < loss[FOUR_OVER_SIX] / loss[MODELOPT] < 0.87


def test_each_matrix_of_a_stack_has_its_own_tensor_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    stack = torch.randn(2, 3, 4, 32, generator=generator) * torch.tensor([1.0, 8, 64]).view(3, 1, 1)
    stored = quantise(stack)
    assert stored.tensor_scale.shape == (2, 3)
    decoded = decode(stored, torch.bfloat16)
    for index in ((0, 1), (1, 2)):
        alone = quantise(stack[index])
        assert torch.equal(alone.packed, stored.packed[index])
        assert alone.tensor_scale == stored.tensor_scale[index]
        assert torch.equal(decode(alone, torch.bfloat16), decoded[index])
    shared = quantise(stack, MODELOPT, torch.tensor(0.5))
    assert shared.tensor_scale.tolist() == [[0.5] * 3] * 2


def test_a_matrix_larger_than_one_piece_of_work() -> None:
    weight = torch.randn(130, 1024, generator=torch.Generator().manual_seed(0))
    stored = quantise(weight, MODELOPT)
    last = quantise(weight[129:], MODELOPT, stored.tensor_scale)
    assert torch.equal(stored.packed[129:], last.packed)
    assert torch.equal(decode(stored)[129:], decode(last))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@RULES
def test_zeros(dtype: torch.dtype, rule: ScaleRule) -> None:
    stored = quantise(torch.zeros(2, 32, dtype=dtype), rule)
    assert stored.tensor_scale == 1
    assert stored.scale.view(torch.uint8).unique().tolist() == [0x38]  # 1.0
    assert decode(stored, dtype).count_nonzero() == 0
    mixed = torch.zeros(2, 32)
    mixed[0, 0] = -3
    stored = quantise(mixed, rule)
    assert torch.allclose(decode(stored), mixed, rtol=2**-23, atol=0)
    assert stored.scale.view(torch.uint8)[1].tolist() == [0x38, 0x38]


@pytest.mark.parametrize(
    ("small", "byte", "codes"),
    [
        (448 / 2**8 * 6, 0x3E, 7),  # a normal scale: 1.75
        (6 * 2.0**-9, 0x01, 7),  # the smallest scale there is
        (0.3 * 2.0**-9, 0x01, 1),  # less than the smallest step is left
        (0.25 * 2.0**-9, 0x01, 0),  # nothing is left
        (6 * 2.5 * 2.0**-9, 0x02, 7),  # a subnormal scale rounds by a quarter: saturated
    ],
)
def test_groups_far_below_the_tensor(small: float, byte: int, codes: int) -> None:
    weight = torch.zeros(1, 32)
    weight[0, 0], weight[0, 16] = 6 * 448.0, small
    stored = quantise(weight, MODELOPT)
    assert stored.tensor_scale == 1
    assert stored.scale.view(torch.uint8).tolist() == [[0x7E, byte]]
    assert unpack(stored.packed)[0, [0, 16]].tolist() == [7, codes]


@pytest.mark.parametrize("largest", [1e-45, 1e-38, 1e-34, 1e38, 3.4028234663852886e38])
@RULES
def test_weights_at_the_ends_of_fp32(largest: float, rule: ScaleRule) -> None:
    weight = torch.full((1, 16), largest)
    stored = quantise(weight, rule)
    assert stored.tensor_scale >= 2**-126
    decoded = decode(stored)
    assert bool(decoded.isfinite().all())
    smallest = 2.0**-136  # half the smallest scale times the smallest tensor scale
    assert abs(decoded[0, 0].item() - largest) <= max(largest / 16, smallest)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_infinities_and_nan_are_refused(bad: float, dtype: torch.dtype) -> None:
    weight = torch.ones(3, 2, 16, dtype=dtype)
    weight[1, 1, 5] = bad
    with pytest.raises(QuantisationError, match="an infinity or a NaN"):
        quantise(weight)
    with pytest.raises(QuantisationError, match="an infinity or a NaN"):
        quantise(weight, MODELOPT, torch.tensor(1.0))
    with pytest.raises(QuantisationError, match="an infinity or a NaN"):
        tensor_scale_of(torch.tensor(bad).abs())


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (torch.ones(2, 24), "rows of 24 values, and NVFP4 wants a multiple of 16"),
        (torch.ones(0, 16), "multiple of 16"),
        (torch.ones(2, 0), "multiple of 16"),
        (torch.ones(16), "is no weight matrix"),
        (torch.ones(2, 16, dtype=torch.int8), "is no weight matrix"),
    ],
)
def test_what_is_no_matrix_of_groups(weight: Tensor, words: str) -> None:
    with pytest.raises(QuantisationError, match=words):
        quantise(weight)


@pytest.mark.parametrize(
    ("scale", "tensor_scale", "reciprocal", "words"),
    [
        (0x7F, 1.0, False, "NaN or negative"),
        (0xFF, 1.0, False, "NaN or negative"),
        (0xB8, 1.0, False, "NaN or negative"),
        (0x38, float("nan"), False, "impossible tensor scale"),
        (0x38, float("inf"), False, "impossible tensor scale"),
        (0x38, 0.0, False, "impossible tensor scale"),
        (0x38, -1.0, False, "impossible tensor scale"),
        (0x38, 1e36, False, "impossible tensor scale"),
        (0x38, 0.0, True, "impossible tensor scale"),
        (0x38, -1.0, True, "impossible tensor scale"),
        (0x38, 1e-36, True, "impossible tensor scale"),
        (0x38, float("inf"), True, "impossible tensor scale"),
    ],
)
def test_scales_no_weight_can_have(
    scale: int, tensor_scale: float, reciprocal: bool, words: str
) -> None:
    tensor = nvfp4([[0] * 32], [[0x38, scale]], tensor_scale, reciprocal=reciprocal)
    with pytest.raises(QuantisationError, match=words):
        decode(tensor)


def test_parts_that_do_not_fit_together() -> None:
    packed = torch.zeros(2, 8, dtype=torch.uint8)
    scale = torch.ones(2, 1).to(torch.float8_e4m3fn)
    Nvfp4Tensor(packed, scale, torch.tensor(1.0))
    for parts in (
        (packed, scale.float(), torch.tensor(1.0)),
        (packed.to(torch.int8), scale, torch.tensor(1.0)),
        (packed, scale, torch.tensor(1.0).double()),
        (packed, scale, torch.ones(1)),
        (packed, scale[:1], torch.tensor(1.0)),
        (packed[:, :7], scale, torch.tensor(1.0)),
        (packed[0], scale[0], torch.tensor(1.0)),
    ):
        with pytest.raises(QuantisationError):
            Nvfp4Tensor(*parts)
    with pytest.raises(InputError, match="decoded to float32, bfloat16 or float16"):
        decode(Nvfp4Tensor(packed, scale, torch.tensor(1.0)), torch.float64)


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(-40, 40))
def test_the_dialects_say_the_same_where_a_reciprocal_is_exact(seed: int, exponent: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(2, 32, generator=generator) * 2.0**exponent
    ours = quantise(weight, MODELOPT, torch.tensor(2.0**exponent / 448))
    theirs = Nvfp4Tensor(ours.packed, ours.scale, 1 / ours.tensor_scale, reciprocal=True)
    assert torch.allclose(decode(ours), decode(theirs), rtol=2**-22, atol=0)
    ours = quantise(weight, MODELOPT, torch.tensor(2.0**exponent / 256))
    theirs = Nvfp4Tensor(ours.packed, ours.scale, 1 / ours.tensor_scale, reciprocal=True)
    assert torch.equal(decode(ours), decode(theirs))
    assert torch.equal(decode(ours, torch.bfloat16), decode(theirs, torch.bfloat16))


@pytest.mark.parametrize(
    "fields",
    [
        {"largest_as": ()},
        {"largest_as": (7.0,)},
        {"largest_as": (6.0, 0.0)},
        {"largest_scale": 449.0},
        {"largest_scale": float("nan")},
    ],
)
def test_rules_that_cannot_be(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        ScaleRule(**fields)


def test_bytes() -> None:
    stored = quantise(torch.randn(3, 4, 32))
    held = (stored.packed, stored.scale, stored.tensor_scale)
    assert bytes_of(stored.shape) == sum(part.numel() * part.element_size() for part in held)
