"""Products by registers of matrices: the stated order of every sum, and the plain twin's bits.

`portable_amx` computes on any machine what `amx_bf16` computes with AMX; the other tests of this
folder run for both.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sfumato.ops.experts import experts
from sfumato.ops.kernels import Kernels, give, instruction_sets
from sfumato.ops.weight import Weight, int8, nvfp4, panels, rows
from sfumato.quant.int8 import quantise_rows
from sfumato.quant.nvfp4 import decode, quantise
from tests.kernels.test_linear import many

TILES = [name for name in ("portable_amx", "amx_bf16") if (name, True) in instruction_sets()]
STEP = 32


def _matrix(n: int, k: int, seed: int) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed)).bfloat16()


def _in_steps(x: Tensor, weight: Tensor) -> Tensor:
    """x [m, k] times weight [n, k] in fp32, in the order that csrc/matrix_tiles.hpp states."""
    total = torch.zeros(x.shape[0], weight.shape[0])
    for begin in range(0, x.shape[1], STEP):
        parts = [torch.zeros_like(total) for _ in range(2)]
        for at in range(begin, min(begin + STEP, x.shape[1])):  # bf16's products are exact in fp32
            parts[at % 2] += x[:, at, None].float() * weight[:, at].float()
        total += parts[0] + parts[1]
    return total


def _sums(x: Tensor, weight: Weight, name: str) -> Tensor:
    """x times the weight in fp32: written as bf16 it would hide what differs in the last bits."""
    kernels, out = Kernels(name), torch.empty(len(x), weight.n)
    given = (give(x), weight.native(kernels), give(out), weight.gated, kernels.threads)
    kernels.native.linear(kernels.name, *given)
    return out


def _layouts(n: int, k: int, seed: int) -> list[tuple[Weight, Tensor]]:
    """Weights with what they hold in bf16: of scale one, so that nothing is rounded twice."""
    plain, stored = _matrix(n, k, seed), quantise(_matrix(n, k // 16 * 16, seed).float())
    stored = replace(stored, tensor_scale=torch.tensor(1.0))
    narrow = quantise_rows(plain)
    narrow = replace(narrow, scale=torch.ones_like(narrow.scale))
    return [
        (rows(plain), plain),
        (panels(plain), plain),
        (nvfp4([stored]), decode(stored, torch.bfloat16)),
        (int8(narrow), narrow.codes.bfloat16()),
    ]


@pytest.mark.skipif(not TILES, reason="there are no kernels here")
@given(st.integers(1, 70), st.integers(1, 140), st.integers(8, 330), st.integers(0, 99))
@many
def test_sums_have_the_order_that_is_stated(m: int, n: int, half_k: int, seed: int) -> None:
    """For one row, a block of 16, two, and more; with rests of 16 channels and of 32 values."""
    x = _matrix(m, 2 * half_k, seed + 1)
    for weight, values in _layouts(n, 2 * half_k, seed):
        own = x[:, : weight.k].contiguous()
        expected = _in_steps(own, values)
        for name in TILES:
            assert torch.equal(_sums(own, weight, name), expected), (name, weight.layout)


@pytest.mark.skipif(not TILES, reason="there are no kernels here")
@pytest.mark.parametrize(("m", "n"), [(241, 176), (256, 256)])
def test_rows_that_leave_the_cache_have_their_order(m: int, n: int) -> None:
    """Four panels a pass, and three in a last group: of 256 rows of 2,816 values."""
    x, weight = _matrix(m, 2816, 1), _matrix(n, 2816, 2)
    expected = _in_steps(x, weight)
    for name in TILES:
        assert torch.equal(_sums(x, rows(weight), name), expected), name
        stored = nvfp4([quantise(weight.float())])
        whole = _sums(x, stored, name)
        for row in (0, 15, 16, 130, m - 1):
            assert torch.equal(_sums(x[row : row + 1], stored, name)[0], whole[row]), (name, row)


@pytest.mark.skipif(len(TILES) < 2, reason="this processor has no registers of matrices")
def test_amx_and_its_twin_agree() -> None:
    """To the bit in what is multiplied; where an exponential stands between, nearly."""
    twin, own = (Kernels(name) for name in TILES)
    x, weight = _matrix(300, 2816, 1), nvfp4([quantise(_matrix(176, 2816, 2).float())])
    assert torch.equal(_sums(x, weight, own.name), _sums(x, weight, twin.name))
    gate, values, down = (_matrix(96, 64, seed).view(3, 32, 64) for seed in (3, 4, 5))
    up, back = rows(gate, values), rows(down.mT.contiguous())
    chosen, shares = torch.arange(40).remainder(3).view(20, 2), torch.full((20, 2), 0.5)
    own_rows = x[:20, :64].contiguous()
    found, other = (experts(own_rows, chosen, shares, up, back, one) for one in (own, twin))
    torch.testing.assert_close(found, other, rtol=0.02, atol=0.02)
