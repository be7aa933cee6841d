"""The vocabulary head: equal to the written-out logits, and its samples to their distribution."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfumato.errors import InputError
from sfumato.ops.head import (
    Beliefs,
    declines,
    gather,
    head,
    log_probabilities,
    logits,
    reference,
    scores,
    soft,
    soft_reference,
)
from sfumato.ops.kernels import Kernels
from sfumato.ops.weight import Weight, int8, panels, rows
from sfumato.quant.int8 import quantise_rows

CAP = 30.0
many = settings(max_examples=25, deadline=None)


def _case(length: int, vocab: int, hidden: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, table, temperatures and uniforms; the logits spread over a dozen nats."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(length, hidden, generator=generator) * 3 / hidden**0.5
    table = torch.randn(vocab, hidden, generator=generator).bfloat16()
    temperatures = torch.rand(length, generator=generator) * 0.6 + 0.4
    uniforms = torch.rand(length, generator=generator, dtype=torch.float64)
    return x, table, temperatures, uniforms


def _near_boundary(x: Tensor, table: Weight, temperatures: Tensor, uniforms: Tensor) -> Tensor:
    """Rows whose uniform is so near a step of the distribution function that rounding decides."""
    whole = scores(x, table, CAP, temperatures).double().softmax(-1).cumsum(-1)
    return ((whole - uniforms[:, None]).abs() < 1e-6).any(-1)


@given(st.integers(1, 70), st.integers(1, 400), st.integers(1, 80), st.integers(0, 999))
@many
def test_head_is_the_reference(
    kernels: Kernels, length: int, vocab: int, half: int, seed: int
) -> None:
    x, table, temperatures, uniforms = _case(length, vocab, 2 * half, seed)
    for one in (rows(table), rows(table.float()), int8(quantise_rows(table))):
        for own in (x, x.bfloat16()):
            found = head(own, one, CAP, temperatures, uniforms, kernels)
            expected = reference(own, one, CAP, temperatures, uniforms)
            logits = scores(own, one, CAP, temperatures)
            best = logits.gather(1, found.argmax[:, None]).squeeze(1)
            torch.testing.assert_close(best, logits.amax(-1), rtol=0, atol=1e-4)
            torch.testing.assert_close(found.entropy, expected.entropy, rtol=0, atol=1e-4)
            torch.testing.assert_close(found.log_sum, expected.log_sum, rtol=0, atol=1e-4)
            assert found.sample is not None
            assert expected.sample is not None
            differs = found.sample != expected.sample
            assert not bool((differs & ~_near_boundary(own, one, temperatures, uniforms)).any())


@given(st.integers(1, 40), st.integers(1, 400), st.integers(1, 60), st.integers(0, 999))
@example(14, 155, 14, 132)  # a row alone in 8 bits once had another last bit
@many
def test_log_probabilities_are_the_reference_with_the_bits_of_the_logits(
    kernels: Kernels, length: int, vocab: int, half: int, seed: int
) -> None:
    x, table, temperatures, _ = _case(length, vocab, 2 * half, seed)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocab, (length, seed % 5), generator=generator)
    for one in (rows(table), rows(table.float()), int8(quantise_rows(table))):
        for own in (x, x.bfloat16()):
            given_ = (own, one, CAP, temperatures)
            found = log_probabilities(*given_, head(*given_, None, kernels), ids, kernels)
            expected = log_probabilities(*given_, reference(*given_, None), ids)
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)
            warm = (own, one, CAP, torch.ones(length))
            beliefs = head(*warm, None, kernels)
            written = logits(own, one, CAP, kernels).gather(1, ids) - beliefs.log_sum[:, None]
            assert torch.equal(log_probabilities(*warm, beliefs, ids, kernels), written)


@pytest.mark.parametrize("seed", range(4))
def test_logits_of_a_row_alone_have_their_bits(kernels: Kernels, seed: int) -> None:
    """In fp32, where results in bf16 would hide the last ones."""
    x, table, _, _ = _case(40, 320, 700 + 2 * seed, seed)
    for one in (rows(table), rows(table.float()), int8(quantise_rows(table))):
        for own in (x, x.bfloat16()):
            whole = logits(own, one, CAP, kernels)
            for row in range(40):
                assert torch.equal(logits(own[row : row + 1], one, CAP, kernels)[0], whole[row])


def test_log_probabilities_of_ids_that_are_not_there_are_refused(kernels: Kernels) -> None:
    x, table, temperatures, _ = _case(2, 70, 16, 1)
    one = rows(table)
    beliefs = head(x, one, CAP, temperatures, None, kernels)
    for wrong in (-1, 70):
        ids = torch.tensor([[3], [wrong]])
        for own in (kernels, None):
            with pytest.raises(InputError, match="from 0 to 69"):
                log_probabilities(x, one, CAP, temperatures, beliefs, ids, own)


@given(st.integers(1, 50), st.integers(1, 400), st.integers(1, 60), st.integers(0, 999))
@many
def test_soft_embeddings_are_the_reference(
    kernels: Kernels, length: int, vocab: int, half: int, seed: int
) -> None:
    x, table, temperatures, _ = _case(length, vocab, 2 * half, seed)
    for one in (rows(table), rows(table.float()), int8(quantise_rows(table))):
        found = head(x, one, CAP, temperatures, None, kernels)
        out = soft(x, one, CAP, temperatures, found, 16.0, kernels)
        expected = soft_reference(x, one, CAP, temperatures, 16.0)
        # A term at the floor may be in one sum and not in the other: e^-10 of the largest.
        torch.testing.assert_close(out, expected, rtol=0, atol=16 * 5e-5 * float(table.abs().max()))


@given(st.integers(1, 50), st.integers(1, 1300), st.integers(1, 60), st.integers(0, 999))
@many
def test_logits_written_out_and_what_is_gathered_by_them(
    kernels: Kernels, length: int, vocab: int, half: int, seed: int
) -> None:
    x, table, temperatures, _ = _case(length, vocab, 2 * half, seed)
    for one in (rows(table), rows(table.float()), int8(quantise_rows(table))):
        for own in (x, x.bfloat16()):
            written = logits(own, one, CAP, kernels)
            plain = logits(own, one, CAP)
            torch.testing.assert_close(written, plain, rtol=0, atol=1e-4)
            found = head(own, one, CAP, torch.ones(length), None, kernels)
            assert torch.equal(written.amax(-1), found.maximum)
        divided = plain / temperatures[:, None]
        mixed = gather(divided, one, 16.0, torch.float32, kernels)
        expected = gather(divided, one, 16.0, torch.float32)
        torch.testing.assert_close(
            mixed, expected, rtol=0, atol=16 * 5e-5 * float(table.abs().max())
        )
        rounded = gather(divided.bfloat16(), one, 16.0, torch.bfloat16, kernels)
        assert rounded.dtype == torch.bfloat16
        expected = gather(divided.bfloat16(), one, 16.0, torch.float32)
        torch.testing.assert_close(rounded.float(), expected, rtol=2**-8, atol=1e-2)


def test_written_logits_that_are_no_numbers(kernels: Kernels) -> None:
    """NaN shows in its row alone, and minus infinity is no probability."""
    table = rows(torch.randn(150, 32, generator=torch.Generator().manual_seed(1)).bfloat16())
    written = torch.zeros(3, 150)
    written[0, 70], written[1, 3:] = torch.nan, -torch.inf
    found = gather(written, table, 1.0, torch.float32, kernels)
    assert bool(found[0].isnan().all())
    expected = torch.stack([table.dense()[0].float()[:3].mean(0), table.dense()[0].float().mean(0)])
    torch.testing.assert_close(found[1:], expected, rtol=0, atol=1e-5)


def test_many_terms_and_few(kernels: Kernels) -> None:
    """Flat beliefs keep all terms, sharp ones a single one; both exactly as asked."""
    table = torch.randn(3000, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    one, temperatures = rows(table), torch.ones(2)
    x = torch.zeros(2, 32)
    x[1] = table[1234].float() * 4
    found = head(x, one, CAP, temperatures, None, kernels)
    out = soft(x, one, CAP, temperatures, found, 1.0, kernels)
    torch.testing.assert_close(out[0], table.float().mean(0), rtol=0, atol=1e-5)
    assert found.argmax[1] == 1234
    torch.testing.assert_close(found.entropy[0], torch.tensor(3000.0).log(), rtol=0, atol=1e-4)
    torch.testing.assert_close(
        out, soft_reference(x, one, CAP, temperatures, 1.0), rtol=0, atol=1e-4
    )


def test_samples_have_the_distribution(kernels: Kernels) -> None:
    """Chi-squared over 40,000 draws of one row; the bound is passed once in 10^5 by chance."""
    x, table, _, _ = _case(1, 200, 16, 5)
    count = 40_000
    uniforms = torch.rand(count, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    temperatures = torch.full((count,), 0.8)
    found = head(x.expand(count, -1), rows(table), CAP, temperatures, uniforms, kernels)
    assert found.sample is not None
    shares = scores(x, rows(table), CAP, torch.tensor([0.8])).double().softmax(-1)[0]
    expected = shares * count
    seen = torch.bincount(found.sample, minlength=200).double()
    kept = expected >= 5
    statistic = float(((seen - expected) ** 2 / expected)[kept].sum())
    freedom = int(kept.sum()) - 1
    assert statistic < freedom + 4.5 * (2 * freedom) ** 0.5 + 10


def test_the_ends_of_the_uniforms(kernels: Kernels) -> None:
    x, table, temperatures, _ = _case(2, 130, 16, 6)
    ends = torch.tensor([0.0, 1.0 - 2.0**-53], dtype=torch.float64)
    found = head(x, rows(table), CAP, temperatures, ends, kernels)
    assert found.sample is not None
    assert found.sample[0] == 0
    assert 0 <= int(found.sample[1]) < 130


def test_equal_scores_give_the_first(kernels: Kernels) -> None:
    table = torch.ones(200, 16).bfloat16()
    table[70:75] = 2
    found = head(torch.ones(3, 16), rows(table), CAP, torch.ones(3), None, kernels)
    assert found.argmax.tolist() == [70, 70, 70]


@given(st.integers(2, 300), st.booleans(), st.integers(0, 99))
@many
def test_a_row_has_its_bits_alone_and_with_any_threads(
    kernels: Kernels, length: int, in_8_bits: bool, seed: int
) -> None:
    x, table, temperatures, uniforms = _case(length, 333, 24, seed)
    one = int8(quantise_rows(table)) if in_8_bits else rows(table)
    before = torch.get_num_threads()

    def both(at: slice) -> tuple[Beliefs, Tensor]:
        found = head(x[at], one, CAP, temperatures[at], uniforms[at], kernels)
        return found, soft(x[at], one, CAP, temperatures[at], found, 4.0, kernels)

    try:
        torch.set_num_threads(1)
        whole, mixed = both(slice(None))
        torch.set_num_threads(3)
        again, mixed_again = both(slice(None))
        alone, mixed_alone = both(slice(length // 2, length // 2 + 1))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(mixed, mixed_again)
    assert torch.equal(mixed[length // 2], mixed_alone[0])
    for name in ("argmax", "sample", "entropy", "maximum", "log_sum"):
        assert torch.equal(getattr(whole, name), getattr(again, name))
        assert torch.equal(getattr(whole, name)[length // 2], getattr(alone, name)[0])


def test_soft_rows_side_by_side_are_taken_from_where_they_are(kernels: Kernels) -> None:
    """As many as are multiplied at once reach an id, the first of them not at a chunk's begin."""
    x, table, _, _ = _case(300, 128, 32, 3)
    x[:, 0], x[:10, 0] = -20.0, 20.0
    table[:64, 0], table[64:, 0] = 1.0, -1.0
    one, temperatures = rows(table), torch.ones(300)
    for own in (x, x.bfloat16()):
        found = head(own, one, CAP, temperatures, None, kernels)
        assert bool((found.argmax[:10] < 64).all())
        assert bool((found.argmax[10:] >= 64).all())
        out = soft(own, one, CAP, temperatures, found, 4.0, kernels)
        expected = soft_reference(own.float(), one, CAP, temperatures, 4.0)
        torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=2e-2)
        for row in (9, 10, 100, 265, 266, 299):
            at = slice(row, row + 1)
            again = head(own[at], one, CAP, temperatures[at], None, kernels)
            alone = soft(own[at], one, CAP, temperatures[at], again, 4.0, kernels)
            assert torch.equal(alone[0], out[row])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_number_shows_in_its_row_alone(kernels: Kernels, dtype: torch.dtype) -> None:
    x, table, temperatures, _ = _case(5, 100, 16, 7)
    x = x.to(dtype)
    clean = head(x, rows(table), CAP, temperatures, None, kernels)
    x[2, 3] = float("nan")
    found = head(x, rows(table), CAP, temperatures, None, kernels)
    assert bool(found.entropy[2].isnan())
    assert bool(found.log_sum[2].isnan())
    others = [0, 1, 3, 4]
    assert torch.equal(found.entropy[others], clean.entropy[others])


def test_reasons_to_decline() -> None:
    table = torch.zeros(32, 16, dtype=torch.bfloat16)
    assert declines(torch.float32, rows(table)) is None
    assert "panels" in str(declines(torch.float32, panels(table)))
    assert "float16" in str(declines(torch.float16, rows(table)))


def test_a_cap_of_zero_is_refused(kernels: Kernels) -> None:
    x, table, temperatures, _ = _case(2, 10, 16, 8)
    with pytest.raises(ValueError, match="cap"):
        head(x, rows(table), 0.0, temperatures, None, kernels)


def test_no_argmax_lies_beyond_a_small_vocabulary(kernels: Kernels) -> None:
    x, table, temperatures, _ = _case(3, 20, 16, 4)
    x[1] = torch.nan
    found = head(x, rows(table), CAP, temperatures, None, kernels)
    assert bool((found.argmax < 20).all())
    assert bool(found.entropy[1].isnan())
    expected = reference(x[::2], rows(table), CAP, temperatures[::2], None)
    assert torch.equal(found.argmax[::2], expected.argmax)
