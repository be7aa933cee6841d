"""Linear maps: every layout against exact arithmetic, rows alone, any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfumato.errors import InputError
from sfumato.ops.kernels import Kernels, give
from sfumato.ops.linear import linear, reference
from sfumato.ops.weight import Weight, int8, nvfp4, panels, rows
from sfumato.quant.int8 import Int8Tensor, quantise_rows
from sfumato.quant.int8 import decode as decode_rows
from sfumato.quant.nvfp4 import Nvfp4Tensor, decode, quantise

DTYPES = (torch.float32, torch.bfloat16)
sizes = st.tuples(st.integers(1, 40), st.integers(1, 150), st.integers(1, 700))
many = settings(max_examples=25, deadline=None)


def _matrix(n: int, k: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _exact(x: Tensor, weight: Tensor) -> Tensor:
    return x.double() @ weight.double().t()


def _near(found: Tensor, exact: Tensor, x: Tensor, weight: Tensor) -> None:
    """Within the bound that csrc/linear.hpp states, and bf16's rounding where that is the dtype."""
    k = weight.shape[1]
    size = x.double().abs() @ weight.double().abs().t()
    bound = 1.1 * (k / 512 + 512) * 2.0**-24 * size
    if found.dtype == torch.bfloat16:
        bound = bound + exact.abs() * 2.0**-8
    assert bool(((found.double() - exact).abs() <= bound).all())


def _layouts(weight: Tensor) -> Iterator[Weight]:
    yield rows(weight.float())
    if weight.shape[1] % 2 == 0:
        yield rows(weight)
        yield panels(weight)


@given(sizes, st.sampled_from(DTYPES), st.integers(0, 99))
@many
def test_layouts_are_near_exact_arithmetic(
    kernels: Kernels, size: tuple[int, int, int], dtype: torch.dtype, seed: int
) -> None:
    m, n, k = size
    x, weight = _matrix(m, k, seed, dtype), _matrix(n, k, seed + 100)
    for one in _layouts(weight):
        found = linear(x, one, kernels)
        assert found.dtype == dtype
        _near(found, _exact(x, weight), x, weight)


@given(st.integers(1, 30), st.integers(1, 70), st.integers(1, 40), st.integers(0, 99))
@many
def test_nvfp4_is_exact_in_its_weights(
    kernels: Kernels, m: int, n: int, groups: int, seed: int
) -> None:
    stored = quantise(_matrix(n, 16 * groups, seed, torch.float32))
    x, weight = _matrix(m, 16 * groups, seed + 100, torch.float32), decode(stored)
    packed = nvfp4([stored])
    assert torch.equal(packed.dense()[0], weight)
    _near(linear(x, packed, kernels), _exact(x, weight), x, weight)


def _random_nvfp4(n: int, k: int, seed: int, offset: int = 0) -> Nvfp4Tensor:
    """Any codes and scales, in a file's pages at any address: here at `offset` of a buffer."""
    generator = torch.Generator().manual_seed(seed)

    def placed(high: int, *shape: int) -> Tensor:
        count = shape[0] * shape[1]
        room = torch.randint(high, (count + offset,), dtype=torch.uint8, generator=generator)
        return room[offset:].view(shape)

    scale = placed(0x7F, n, k // 16).view(torch.float8_e4m3fn)
    return Nvfp4Tensor(placed(256, n, k // 2), scale, torch.tensor(1.0))


@given(st.integers(1, 20), st.integers(1, 70), st.integers(1, 70), st.integers(0, 9), st.booleans())
@many
def test_nvfp4_has_the_bits_of_its_decoded_rows(
    kernels: Kernels, m: int, n: int, groups: int, offset: int, gated: bool
) -> None:
    n, k = 16 * n if gated else n, 16 * groups
    stored = [_random_nvfp4(n, k, seed, offset) for seed in (m, m + 1)]
    whole = [decode(one, torch.bfloat16) for one in stored]
    packed = nvfp4(stored[:1], stored[1:]) if gated else nvfp4(stored[:1])
    plain = rows(*whole) if gated else rows(whole[0])
    assert packed.data[0].data_ptr() == stored[0].packed.data_ptr()
    for dtype in DTYPES:
        x = _matrix(m, k, offset, dtype) / 2**12
        assert torch.equal(linear(x, packed, kernels), linear(x, plain, kernels))


def test_gated_nvfp4_halves_have_scales_of_their_own(kernels: Kernels) -> None:
    gate, values = (quantise(_matrix(48, 64, seed, torch.float32) * seed) for seed in (1, 5))
    both = nvfp4([gate], [values])
    assert torch.equal(both.dense()[0], torch.cat([decode(gate), decode(values)]))
    x = _matrix(9, 64, 3, torch.float32)
    torch.testing.assert_close(linear(x, both, kernels), reference(x, both), rtol=1e-5, atol=1e-4)


def test_nvfp4_takes_every_code_and_the_ends_of_the_scales(kernels: Kernels) -> None:
    codes = torch.arange(256, dtype=torch.uint8).repeat(32, 1)  # every byte in every row
    scales = torch.arange(32, dtype=torch.uint8)[:, None].repeat(1, 32)
    scales[8:16, :] = 0x7E  # 448
    scales[16:24, :] = 0x01  # the smallest, subnormal
    stored = Nvfp4Tensor(codes, scales.view(torch.float8_e4m3fn), torch.tensor(2.0**-3))
    packed, x = nvfp4([stored]), torch.eye(512)
    assert torch.equal(linear(x, packed, kernels), decode(stored).t())


@given(st.integers(1, 5), st.integers(1, 40), st.integers(2, 300), st.integers(0, 99))
@many
def test_gated(kernels: Kernels, tens: int, m: int, half_k: int, seed: int) -> None:
    n, k = 32 * tens, 2 * half_k
    x, weight = _matrix(m, k, seed, torch.float32), _matrix(n, k, seed + 100) / k**0.5
    gate, values = weight.chunk(2)
    for one in (rows(gate, values), panels(weight, gated=True), rows(gate.float(), values.float())):
        assert torch.equal(one.dense()[0].bfloat16(), weight)
        # An error in one factor shows times the other. In double, as the plain path rounds as much.
        wide_gate, wide_values = (x.double() @ half.double().t() for half in (gate, values))
        active = torch.nn.functional.gelu(wide_gate, approximate="tanh")
        error = (linear(x, one, kernels).double() - active * wide_values).abs()
        # That of k products grows with the root of k: at most 0.7 of this in 4,500 random cases.
        bound = 2.0**-24 * (8 + 2 * k**0.5)
        assert bool((error <= bound * (1 + active.abs() + wide_values.abs())).all())


@given(st.integers(2, 60), st.integers(1, 100), st.integers(1, 600), st.integers(0, 99))
@many
def test_a_row_has_its_bits_alone_and_with_any_threads(
    kernels: Kernels, m: int, n: int, half_k: int, seed: int
) -> None:
    weight = _matrix(n, 2 * half_k, seed + 100)
    before = torch.get_num_threads()
    try:
        for dtype in DTYPES:
            x = _matrix(m, 2 * half_k, seed, dtype)
            for one in _layouts(weight):
                torch.set_num_threads(1)
                whole = linear(x, one, kernels)
                torch.set_num_threads(3)
                assert torch.equal(linear(x, one, kernels), whole)
                for row in (0, m // 2, m - 1):
                    assert torch.equal(linear(x[row : row + 1], one, kernels)[0], whole[row])
    finally:
        torch.set_num_threads(before)


@given(
    st.integers(1, 5), st.integers(1, 200), st.integers(1, 80), st.booleans(), st.integers(0, 99)
)
@many
def test_a_quantised_row_has_its_bits_alone(
    kernels: Kernels, tiles: int, n: int, sixteens: int, gated: bool, seed: int
) -> None:
    """Of one row some sets take weights another way, if in whole groups of 64 channels."""
    k = 16 * sixteens
    halves = [quantise(_matrix(16 * tiles if gated else n, k, seed + i).float()) for i in range(2)]
    if gated:
        weights = [nvfp4(halves[:1], halves[1:])]
    else:
        weights = [nvfp4(halves[:1]), int8(quantise_rows(_matrix(n, k + 2 * (seed % 8), seed)))]
    for weight in weights:
        for dtype in DTYPES:
            x = _matrix(3, weight.k, seed + 3, dtype)
            x[0, :: seed % 5 + 1] = 0.0
            x[1, seed % k] = 1e-38
            together = linear(x, weight, kernels)
            for row in range(3):
                assert torch.equal(linear(x[row : row + 1], weight, kernels)[0], together[row])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 1e-39])
def test_a_row_alone_has_its_bits_with_what_is_no_number(
    kernels: Kernels, value: float, dtype: torch.dtype
) -> None:
    stored = _matrix(130, 160, 1)
    for weight in (nvfp4([quantise(stored.float())]), int8(quantise_rows(stored)), rows(stored)):
        x = _matrix(2, 160, 2, dtype)
        x[0, 137] = value
        together, alone = linear(x, weight, kernels), linear(x[:1], weight, kernels)
        bits = torch.int32 if dtype == torch.float32 else torch.int16
        assert torch.equal(alone[0].view(bits), together[0].view(bits))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_alone_takes_every_code_and_every_scale(kernels: Kernels, dtype: torch.dtype) -> None:
    """Of a whole group of channels, which some sets look up by the bits of code and scale."""
    scales = torch.arange(127, dtype=torch.uint8).repeat(192)[: 192 * 16].view(192, 16)
    codes = torch.arange(256, dtype=torch.uint8).repeat(96).view(192, 128)
    codes[64:128] = codes[64:128].flip(1)
    stored = Nvfp4Tensor(codes, scales.view(torch.float8_e4m3fn), torch.tensor(0.25))
    packed, exact = nvfp4([stored]), decode(stored)
    assert packed.n == 192
    for k in range(0, 256, 3):
        x = torch.zeros(1, 256, dtype=dtype)
        x[0, k] = 2.0
        assert torch.equal(linear(x, packed, kernels)[0], (2 * exact[:, k]).to(dtype)), k


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_alone_takes_every_byte(kernels: Kernels, dtype: torch.dtype) -> None:
    line = torch.arange(-128, 128, dtype=torch.int8)
    values = torch.stack([line.roll(row) for row in range(64)])
    stored, met = Int8Tensor(values, torch.ones(64)), set()
    for k in range(0, 256, 5):
        x = torch.zeros(1, 256, dtype=dtype)
        x[0, k] = 2.0
        assert torch.equal(linear(x, int8(stored), kernels)[0], 2 * values[:, k].to(dtype))
        met |= set(values[:, k].tolist())
    assert len(met) == 256


@given(st.integers(2, 70), st.integers(1, 6), st.integers(1, 40), st.integers(0, 99))
@many
def test_sums_of_a_row_alone_have_their_bits(
    kernels: Kernels, m: int, groups: int, sixteens: int, seed: int
) -> None:
    """In fp32: written as bf16 they would hide what differs in their last sixteen bits.

    Down to where products are subnormal, which some sets take for zero.
    """
    n, k = 64 * groups, 16 * sixteens
    x, weight = _matrix(m, k, seed), _matrix(n, k, seed + 100)
    x *= 2.0 ** -(0, 0, 116, 122)[seed % 4]
    pair = [quantise(one.float()) for one in (weight, weight.flip(0))]
    kinds = (rows(weight), int8(quantise_rows(weight)), nvfp4(pair[:1]), nvfp4(pair[:1], pair[1:]))
    for one in kinds:
        found = []
        for some in (x, x[m // 2, None]):
            out = torch.empty(len(some), n, dtype=torch.float32)
            given = (give(some), one.native(kernels), give(out), one.gated, kernels.threads)
            kernels.native.linear(kernels.name, *given)
            found.append(out)
        assert torch.equal(found[1][0], found[0][m // 2])


@pytest.mark.parametrize("m", [255, 256, 257, 258, 513])
def test_rows_at_the_end_of_a_chunk_have_the_bits_of_rows_alone(kernels: Kernels, m: int) -> None:
    x, weight = _matrix(m, 96, 1), rows(_matrix(70, 96, 2))
    whole = linear(x, weight, kernels)
    for row in (0, 254, m - 2, m - 1):
        assert torch.equal(linear(x[row, None], weight, kernels)[0], whole[row])


def test_layouts_agree_to_the_bit(kernels: Kernels) -> None:
    weight, x = _matrix(50, 1200, 1), _matrix(33, 1200, 2, torch.float32)
    assert torch.equal(linear(x, rows(weight), kernels), linear(x, panels(weight), kernels))


@given(st.integers(1, 40), st.integers(1, 100), st.integers(1, 600), st.integers(0, 99))
@many
def test_rows_in_8_bits(kernels: Kernels, m: int, n: int, half_k: int, seed: int) -> None:
    """Scales are applied to sums: with powers of two the bits are those of the decoded rows."""
    stored = quantise_rows(_matrix(n, 2 * half_k, seed + 100))
    even = Int8Tensor(stored.codes, torch.exp2(stored.scale.log2().round()))
    for dtype in DTYPES:
        x = _matrix(m, 2 * half_k, seed, dtype)
        found = linear(x, int8(stored), kernels)
        bound = {torch.float32: 2e-5, torch.bfloat16: 1e-2}[dtype] * (2 * half_k) ** 0.5
        torch.testing.assert_close(found, reference(x, int8(stored)), rtol=1e-2, atol=bound)
        decoded = rows(decode_rows(even, torch.bfloat16))
        assert torch.equal(linear(x, int8(even), kernels), linear(x, decoded, kernels))


def test_what_cannot_be_rows_in_8_bits_is_refused(kernels: Kernels) -> None:
    codes, scale = torch.zeros(6, 8, dtype=torch.int8), torch.ones(6, 1)
    with pytest.raises(InputError, match="even number"):
        int8(Int8Tensor(codes[:, :7].contiguous(), scale))
    with pytest.raises(InputError, match="gaps"):
        int8(Int8Tensor(codes[:, ::2], scale))
    make = kernels.native.Weight
    with pytest.raises(ValueError, match="int8"):
        make("i8_rows", [codes[None].float()], [], [], [], scale[:, 0], 6)
    with pytest.raises(ValueError, match=r"fp32 \[n\]"):
        make("i8_rows", [codes[None]], [], [], [], scale[:5, 0], 6)
    with pytest.raises(ValueError, match="a scale belongs"):
        make("i8_rows", [codes[None]], [], [], [], None, 6)
    with pytest.raises(ValueError, match="values do not fit"):
        make("i8_rows", [codes[None]], [codes[None]], [], [], scale[:, 0], 6)


def test_shapes_and_views(kernels: Kernels) -> None:
    weight = rows(_matrix(24, 32, 1))
    x = _matrix(12, 64, 2, torch.float32)
    assert linear(x.view(3, 4, 64)[..., :32], weight, kernels).shape == (3, 4, 24)
    assert torch.equal(
        linear(x[::2, :32], weight, kernels), linear(x[::2, :32].contiguous(), weight, kernels)
    )
    assert linear(x[:0, :32], weight, kernels).shape == (0, 24)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_number_stays_in_its_row(
    kernels: Kernels, value: float, dtype: torch.dtype
) -> None:
    weight, x = _matrix(20, 40, 1), _matrix(9, 40, 2, dtype)
    clean = linear(x, rows(weight), kernels)
    x[4, 7] = value
    found = linear(x, rows(weight), kernels)
    assert not bool(found[4].isfinite().any())
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(found[others], clean[others])


def test_what_cannot_be_a_weight_is_refused() -> None:
    with pytest.raises(InputError, match="even number"):
        rows(torch.zeros(4, 3, dtype=torch.bfloat16))
    with pytest.raises(InputError, match="float32 or bfloat16"):
        rows(torch.zeros(4, 4, dtype=torch.float16))
    with pytest.raises(InputError, match="halves"):
        rows(torch.zeros(8, 4), torch.zeros(8, 4))
    with pytest.raises(InputError, match="one shape"):
        rows(torch.zeros(16, 4), torch.zeros(32, 4))
    with pytest.raises(InputError, match="gaps"):
        rows(torch.zeros(8, 8)[:, ::2])


def test_what_cannot_be_an_nvfp4_weight_is_refused(kernels: Kernels) -> None:
    one, other, wide = (_random_nvfp4(n, 32, 1) for n in (16, 8, 32))
    with pytest.raises(InputError, match="one shape"):
        nvfp4([one, other])
    with pytest.raises(InputError, match="each gate"):
        nvfp4([one, one], [one])
    with pytest.raises(InputError, match="16s"):
        nvfp4([other], [other])
    with pytest.raises(InputError, match="gaps"):
        nvfp4([Nvfp4Tensor(wide.packed[::2], wide.scale[::2], wide.tensor_scale)])
    held = nvfp4([one])
    codes, scales = held.data[0], held.scales[0]
    for data, bits, scale, words in (
        ([codes], [], held.scale, "one for each"),
        ([codes[:, :8]], [scales], held.scale, r"uint8 \[1, 16, 16\]"),
        ([codes], [scales[:, :, :1]], held.scale, r"uint8 \[1, 16, 2\]"),
        ([codes[:, :, :4]], [scales], held.scale, "multiple of 16"),
        ([codes], [scales], None, "a scale belongs"),
        ([codes], [scales], torch.ones(2, 2), r"\[matrices, 2\]"),
        ([], [], held.scale, "has matrices"),
    ):
        with pytest.raises(ValueError, match=words):
            kernels.native.Weight("nvfp4_rows", data, [], bits, [], scale, 16)


def test_the_module_checks_what_it_is_given(kernels: Kernels) -> None:
    native, weight = kernels.native, rows(_matrix(8, 4, 1)).native(kernels)
    x, out = torch.zeros(2, 4), torch.zeros(2, 8)
    for wrong, words in (
        ((x[:, :2], weight, out, False, 1), "4 wide"),
        ((x, weight, out[:, :4], False, 1), "8 wide"),
        ((x, weight, out[:1], False, 1), "as many rows"),
        ((x.double(), weight, out, False, 1), "fp32 or bf16"),
        ((x, weight, out, False, 0), "threads"),
        ((x, weight, out, True, 1), "32s"),
    ):
        with pytest.raises(ValueError, match=words):
            native.linear(kernels.name, *wrong)
    with pytest.raises(ValueError, match="no kernels for"):
        native.linear("mmx", x, weight, out, False, 1)
