"""The edges of the kernels: what is no number, what overflows, what is nothing at all."""

from __future__ import annotations

import pytest
import torch

from sfumato.errors import InputError, UsageError
from sfumato.ops import norm as norm_op
from sfumato.ops.attention import attention
from sfumato.ops.attention import reference as attention_reference
from sfumato.ops.experts import experts
from sfumato.ops.head import head, scores, soft, soft_reference
from sfumato.ops.kernels import Kernels, choose, give, instruction_sets
from sfumato.ops.linear import linear, reference
from sfumato.ops.route import reference as route_reference
from sfumato.ops.route import route
from sfumato.ops.weight import int8, nvfp4, rows
from sfumato.quant.int8 import quantise_rows
from sfumato.quant.nvfp4 import Nvfp4Tensor, decode


def test_route_is_the_reference_and_its_edges_are_its_own(kernels: Kernels) -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(50, 12, generator=generator)
    scales = torch.rand(12, generator=generator) + 0.5
    for slots in (1, 3, 12):
        chosen, shares = route(values, scales, slots, kernels)
        expected = route_reference(values, scales, slots)
        assert torch.equal(chosen, expected[0])
        torch.testing.assert_close(shares, expected[1], rtol=1e-5, atol=1e-6)
    odd = torch.tensor([[1.0, -torch.inf, -torch.inf], [1.0, 2.0, torch.nan], [5.0, 5.0, 5.0]])
    chosen, shares = route(odd, torch.ones(3), 2, kernels)
    assert chosen[0].tolist() == [0, 1]
    assert shares[0].tolist() == [1.0, 0.0]
    assert bool(shares[1].isnan().all())
    assert chosen[2].tolist() == [0, 1]


def test_the_gate_far_out(kernels: Kernels) -> None:
    """GELU where its exponential overflows: zero, not a small number times a large one."""
    gate, values = torch.zeros(16, 16), torch.zeros(16, 16)
    gate[:, 0], values[:, 1] = 1.0, 1.0
    x = torch.zeros(6, 16)
    x[:, 0] = torch.tensor([-1e20, -200.0, -8.0, 0.0, 8.0, 1e10])
    x[:, 1] = torch.tensor([-1e20, 1e30, 1.0, 1.0, 1.0, 1.0])
    weight = rows(gate, values)
    torch.testing.assert_close(
        linear(x, weight, kernels), reference(x, weight), rtol=1e-5, atol=1e-7
    )


def test_subnormals_may_be_switched_off(kernels: Kernels) -> None:
    codes = torch.full((16, 8), 0x77, dtype=torch.uint8)
    scales = torch.arange(1, 17, dtype=torch.uint8)[:, None].contiguous()
    stored = Nvfp4Tensor(codes, scales.view(torch.float8_e4m3fn), torch.tensor(1.0))
    expected = decode(stored).sum(1)[None]
    packed = nvfp4([stored])
    supported = torch.set_flush_denormal(True)
    try:
        found = linear(torch.ones(1, 16), packed, kernels)
    finally:
        torch.set_flush_denormal(False)
    assert supported or torch.equal(found, expected)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("exponent", [-95, -103, -110, -120])
@pytest.mark.parametrize("flush", [False, True])
def test_small_activations_of_a_row_alone(kernels: Kernels, flush: bool, exponent: int) -> None:
    """Where some sets scale a row by 2^-24 for weights in 8 bits, and where that is not exact."""
    generator = torch.Generator().manual_seed(exponent + 200)
    weight = int8(quantise_rows(torch.randn(64, 96, generator=generator).bfloat16()))
    x = torch.randn(30, 96, generator=generator) * 2.0**exponent
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # subnormals are switched off in this thread alone
    torch.set_flush_denormal(flush)
    try:
        together, alone = linear(x, weight, kernels), linear(x[7, None], weight, kernels)
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)
    assert torch.equal(alone[0], together[7])
    assert bool(together.any(dim=1).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_reaches_the_soft_embeddings(kernels: Kernels, dtype: torch.dtype) -> None:
    table = rows(torch.randn(100, 16, generator=torch.Generator().manual_seed(1)).bfloat16())
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(2)).to(dtype)
    x[1, 0] = float("nan")
    warm = torch.ones(3)
    out = soft(x, table, 30.0, warm, head(x, table, 30.0, warm, None, kernels), 1.0, kernels)
    assert bool(out[1].isnan().all())
    expected = soft_reference(x.float(), table, 30.0, warm, 1.0)
    bound = 1e-3 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=bound, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_that_are_no_numbers_show(kernels: Kernels, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    whole = torch.randn(3, 1, 1, 130, 16, generator=generator).to(dtype)
    queries, keys, values = whole.unbind()
    keys[0, 0, :64] = float("nan")
    found = attention(queries, keys, values, None, kernels)
    assert bool(found.isnan().all())
    assert bool(attention_reference(queries, keys, values, None).isnan().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_that_are_no_numbers_show_in_their_column(
    kernels: Kernels, dtype: torch.dtype
) -> None:
    """Infinity too, though it may be NaN then: csrc/attention.hpp."""
    generator = torch.Generator().manual_seed(4)
    whole = torch.randn(3, 1, 1, 130, 16, generator=generator).to(dtype)
    queries, keys, values = whole.unbind()
    clean = attention(queries, keys, values, None, kernels)
    values[0, 0, 70, 3], values[0, 0, 5, 9] = float("nan"), float("inf")
    found = attention(queries, keys, values, None, kernels)
    assert not bool(found[..., [3, 9]].isfinite().any())
    others = [d for d in range(16) if d not in (3, 9)]
    assert torch.equal(found[..., others], clean[..., others])


def test_the_softcap_is_as_near_as_it_says(kernels: Kernels) -> None:
    """csrc/head.hpp: within 5e-6 for a cap of 30 at temperature 1."""
    x = torch.zeros(20_001, 2)
    x[:, 0] = torch.linspace(-90, 90, 20_001)
    table = rows(torch.tensor([[1.0, 0.0]]))
    found = head(x, table, 30.0, torch.ones(20_001), None, kernels).maximum
    exact = scores(x.double(), table, 30.0, torch.ones(20_001, dtype=torch.float64)).squeeze(1)
    assert float((found.double() - exact.double()).abs().max()) <= 5e-6


def test_experts_without_slots_are_refused(kernels: Kernels) -> None:
    gate_up = rows(torch.zeros(2, 16, 8), torch.zeros(2, 16, 8))
    down = rows(torch.zeros(2, 8, 16))
    none = torch.zeros(1, 0)
    with pytest.raises(ValueError, match="slot"):
        experts(torch.zeros(1, 8), none.long(), none, gate_up, down, kernels)


def test_a_gated_weight_in_rows_needs_both_halves(kernels: Kernels) -> None:
    plain = rows(torch.zeros(64, 8)).native(kernels)
    x, out = torch.zeros(2, 8), torch.zeros(2, 32)
    with pytest.raises(ValueError, match="needs its values"):
        kernels.native.linear(kernels.name, x, plain, out, True, 1)


def test_expanded_rows(kernels: Kernels) -> None:
    weight = rows(torch.randn(8, 4, generator=torch.Generator().manual_seed(1)))
    x = torch.randn(1, 4, generator=torch.Generator().manual_seed(2))
    found = linear(x.expand(3, 4), weight, kernels)
    torch.testing.assert_close(found, reference(x.expand(3, 4), weight))


def test_a_norm_of_zeros(kernels: Kernels) -> None:
    x = torch.zeros(2, 20)
    expected = norm_op.reference(x, None, 1e-6, None, 1.0)
    assert torch.equal(norm_op.norm(x, None, 1e-6, kernels), expected)


def test_gradients_are_refused() -> None:
    with pytest.raises(InputError, match="no gradients"):
        give(torch.zeros(2, requires_grad=True))
    with torch.no_grad():
        give(torch.zeros(2, requires_grad=True))


def test_the_choice_of_kernels() -> None:
    usable = [name for name, runs in instruction_sets() if runs]
    best = choose()
    assert (best.name if best else None) == (usable[0] if usable else None)
    assert choose("reference") is None
    with pytest.raises(UsageError, match="mmx"):
        choose("mmx")
    for name, runs in instruction_sets():
        if not runs:
            with pytest.raises(UsageError, match="cannot run"):
                choose(name)
