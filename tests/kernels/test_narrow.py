"""Activations in 8 bits: every operation against its reference on rounded activations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfumato.api import load
from sfumato.errors import UsageError
from sfumato.evaluation.facts import gather
from sfumato.model.fast_layer import FastLayer
from sfumato.model.kernels import narrowed
from sfumato.ops import experts as experts_op
from sfumato.ops import head as head_op
from sfumato.ops import linear as linear_op
from sfumato.ops.kernels import Kernels
from sfumato.ops.weight import Weight, int8, nvfp4, rows
from sfumato.quant.int8 import quantise_rows
from sfumato.quant.narrow import round_rows
from sfumato.quant.nvfp4 import quantise
from tests.kernels.test_layer import write_plain
from tests.unit.nvfp4_checkpoints import write_nvfp4

DTYPES = (torch.float32, torch.bfloat16)
IDS = torch.tensor([[5, 9, 11, 30, 7]])
many = settings(max_examples=25, deadline=None)


@pytest.fixture
def narrow(kernels: Kernels) -> Kernels:
    """The same instruction set with activations in 8 bits."""
    return replace(kernels, narrow=True)


def _normal(n: int, k: int, seed: int) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def _near(found: Tensor, seen: Tensor, weight: Weight) -> None:
    """Within rounding of the sums of rounded activations."""
    matrix = weight.dense()[0].double()
    exact = seen.double() @ matrix.t()
    bound = (seen.double().abs() @ matrix.abs().t()) * 2.0**-15
    if found.dtype == torch.bfloat16:
        bound = bound + exact.abs() * 2.0**-8
    assert bool(((found.double() - exact).abs() <= bound).all())


@given(st.integers(1, 30), st.integers(1, 70), st.integers(1, 70), st.integers(0, 99))
@many
def test_linear(kernels: Kernels, m: int, n: int, groups: int, seed: int) -> None:
    own = replace(kernels, narrow=True)
    x, matrix = _normal(m, 16 * groups, seed) * 3, _normal(n, 16 * groups, seed + 100)
    for weight in (nvfp4([quantise(matrix)]), int8(quantise_rows(matrix))):
        for dtype in DTYPES:
            cast = x.to(dtype)
            seen = round_rows(cast) if own.narrows(weight.layout, weight.k) else cast
            _near(linear_op.linear(cast, weight, own), seen, weight)


@given(st.integers(2, 60), st.integers(1, 100), st.integers(1, 70), st.integers(0, 99))
@many
def test_a_row_has_its_bits_alone_and_with_any_threads(
    kernels: Kernels, m: int, n: int, groups: int, seed: int
) -> None:
    own, before = replace(kernels, narrow=True), torch.get_num_threads()
    x, matrix = _normal(m, 16 * groups, seed), _normal(n, 16 * groups, seed + 100)
    try:
        for weight in (nvfp4([quantise(matrix)]), int8(quantise_rows(matrix))):
            torch.set_num_threads(1)
            whole = linear_op.linear(x, weight, own)
            torch.set_num_threads(3)
            assert torch.equal(linear_op.linear(x, weight, own), whole)
            for row in (0, m // 2, m - 1):
                assert torch.equal(linear_op.linear(x[row : row + 1], weight, own)[0], whole[row])
    finally:
        torch.set_num_threads(before)


def test_gated(narrow: Kernels) -> None:
    gate, values = (quantise(_normal(48, 80, seed) * seed / 9) for seed in (1, 5))
    weight, x = nvfp4([gate], [values]), _normal(9, 80, 3)
    expected = linear_op.reference(x, weight, narrow=True)
    torch.testing.assert_close(linear_op.linear(x, weight, narrow), expected, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(expected, linear_op.reference(x, weight), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_experts(narrow: Kernels, dtype: torch.dtype) -> None:
    gate, values = (_normal(4 * 32, 64, seed).view(4, 32, 64) / 8 for seed in (1, 2))
    down = _normal(4 * 64, 32, 3).view(4, 64, 32) / 32**0.5
    up, back = nvfp4([quantise(gate)], [quantise(3 * values)]), nvfp4([quantise(down)])
    x = _normal(90, 64, 4).to(dtype)
    chosen = torch.rand(90, 4, generator=torch.Generator().manual_seed(5)).topk(2).indices
    shares = torch.rand(90, 2, generator=torch.Generator().manual_seed(6))
    found = experts_op.experts(x, chosen, shares, up, back, narrow)
    expected = experts_op.reference(x, chosen, shares, up, back, narrow=True)
    # A last bit between the two products can move a code of the second by one: 1 / 127 of a group.
    bound = {torch.float32: 1e-2, torch.bfloat16: 3e-2}[dtype] * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)
    near = (found - expected).float().abs() <= bound / 100
    assert dtype != torch.float32 or float(near.float().mean()) > 0.9


@pytest.mark.parametrize(("inner", "hidden"), [(32, 320), (1600, 64)])
def test_experts_where_memory_cuts(narrow: Kernels, inner: int, hidden: int) -> None:
    """Columns, behind whose parts the rows in 8 bits lie, or rows: each as it is alone."""
    gate, values = (_normal(4 * inner, hidden, seed).view(4, inner, hidden) / 8 for seed in (1, 2))
    down = _normal(4 * hidden, inner, 3).view(4, hidden, inner) / inner**0.5
    up, back = nvfp4([quantise(gate)], [quantise(values)]), nvfp4([quantise(down)])
    x = _normal(3100, hidden, 4).bfloat16()
    chosen = torch.randint(4, (3100, 8), generator=torch.Generator().manual_seed(5))
    shares = torch.rand(3100, 8, generator=torch.Generator().manual_seed(6))
    whole = experts_op.experts(x, chosen, shares, up, back, narrow)
    for begin in range(0, 3100, 155):
        at = slice(begin, begin + 5)
        alone = experts_op.experts(x[at], chosen[at], shares[at], up, back, narrow)
        assert torch.equal(alone, whole[at])


def test_head_and_soft_embeddings(narrow: Kernels) -> None:
    table = int8(quantise_rows(_normal(300, 64, 1)))
    x, temperatures = _normal(20, 64, 2) * 3 / 8, torch.full((20,), 0.7)
    uniforms = torch.rand(20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    small = narrow.narrows("i8_rows", 64)
    found = head_op.head(x, table, 30.0, temperatures, uniforms, narrow)
    expected = head_op.reference(x, table, 30.0, temperatures, uniforms, narrow=small)
    assert torch.equal(found.argmax, expected.argmax)
    assert found.sample is not None
    assert expected.sample is not None
    assert torch.equal(found.sample, expected.sample)
    torch.testing.assert_close(found.entropy, expected.entropy, rtol=0, atol=1e-4)
    mixed = head_op.soft(x, table, 30.0, temperatures, found, 8.0, narrow)
    plain = head_op.soft_reference(x, table, 30.0, temperatures, 8.0, narrow=small)
    torch.testing.assert_close(mixed, plain, rtol=0, atol=2e-3)
    exact = head_op.reference(x, table, 30.0, temperatures, None).log_sum
    assert torch.allclose(found.log_sum, exact, rtol=0, atol=1e-5) == (not small)


def test_what_is_too_large_or_too_small(narrow: Kernels) -> None:
    """An infinity or a NaN makes its row NaN and no other; groups of next to nothing are zero."""
    weight = nvfp4([quantise(_normal(20, 64, 1))])
    x = _normal(6, 64, 2)
    x[1, 5], x[2, 40], x[3, 0] = torch.inf, torch.nan, -torch.inf
    x[4] = 2.0**-110
    found = linear_op.linear(x, weight, narrow)
    assert bool(found[1:4].isnan().all())
    assert not bool(found[4].any())
    _near(found[[0, 5]], round_rows(x[[0, 5]]), weight)


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 999), st.floats(1e-20, 1e20))
@many
def test_rounding(m: int, groups: int, seed: int, size: float) -> None:
    """No value moves by more than half a code, and rounding again changes codes no more."""
    x = _normal(m, 16 * groups, seed) * size
    rounded = round_rows(x)
    largest = (
        x.unflatten(-1, (-1, 16)).abs().amax(-1, keepdim=True).expand(m, groups, 16).flatten(1)
    )
    assert bool(((rounded - x).abs() <= largest / 127 * 0.50001).all())
    torch.testing.assert_close(round_rows(rounded), rounded, rtol=1e-6, atol=0)


def test_a_network(kernels: Kernels, tmp_path: Path) -> None:
    write_nvfp4(tmp_path / "m")
    exact = load(tmp_path / "m", "bfloat16", kernels=kernels.name)
    model = load(tmp_path / "m", "bfloat16", kernels=kernels.name, activations="int8")
    network = model.network
    assert network.kernels == replace(kernels, narrow=True)
    assert narrowed(network)
    assert not narrowed(exact.network)
    assert gather(model, "m").kernels == f"{kernels.name}, activations in 8 bits"
    canvas = torch.arange(3, 3 + model.config.canvas_length)[None]
    with torch.inference_mode():
        plain = exact.denoise(canvas, exact.encode(IDS))
        found = model.denoise(canvas, model.encode(IDS))
        for layer in network.layers:
            layer.fast = FastLayer(layer, network.kernels, composed=True)
        composed = model.denoise(canvas, model.encode(IDS))
    assert torch.equal(found, composed)
    assert not torch.equal(found, plain)
    assert model.generate(IDS, seed=1).tokens == model.generate(IDS, seed=1).tokens


@pytest.mark.usefixtures("kernels")
def test_what_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SFUMATO_KERNELS", raising=False)
    monkeypatch.delenv("SFUMATO_ACTIVATIONS", raising=False)
    write_plain(tmp_path / "plain")
    write_nvfp4(tmp_path / "m")
    with pytest.raises(UsageError, match="none serves here"):
        load(tmp_path / "m", kernels="reference", activations="int8")
    with pytest.raises(UsageError, match="activations cannot be 'int4'"):
        load(tmp_path / "m", activations="int4")
    monkeypatch.setenv("SFUMATO_ACTIVATIONS", "int8")
    with pytest.raises(UsageError, match="this model has none") as caught:
        load(tmp_path / "plain", "bfloat16")
    assert "sfumato quantize" in str(caught.value.hint)
    with pytest.raises(UsageError, match="none serves here"):
        load(tmp_path / "m", "float32")
    with pytest.raises(UsageError, match=r"no kernel serves this model.*float16"):
        load(tmp_path / "m", "float16")
    exact = load(tmp_path / "m", activations="exact")
    assert exact.network.kernels is not None
    assert not exact.network.kernels.narrow


def test_weights_without_codes_take_no_such_activations(narrow: Kernels) -> None:
    weight, x = rows(_normal(30, 64, 1).bfloat16()), _normal(4, 64, 2)
    plain = replace(narrow, narrow=False)
    assert torch.equal(linear_op.linear(x, weight, narrow), linear_op.linear(x, weight, plain))
    assert not narrow.narrows("nvfp4_rows", 40)
    with pytest.raises(ValueError, match="8 bits"):
        narrow.native.Weight("bf16_rows", [weight.data[0]], [], [], [], None, 30, True)
