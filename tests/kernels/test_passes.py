"""Prompts encoded by kernels in several passes: the bits of one."""

from __future__ import annotations

import pytest
import torch

from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.model.kernels import use_kernels
from sfumato.ops.kernels import Kernels
from tests.helpers import Shape, randomise, tiny_config

SHAPE = Shape(pattern="SSF", window=8, vision=True, expert_width=32)


def network(kernels: Kernels, dtype: torch.dtype, derived_bytes: int) -> DiffusionGemma:
    net = DiffusionGemma(tiny_config(SHAPE))
    randomise(net, 11)
    net.requires_grad_(False)
    net.derived_bytes = derived_bytes
    net = net.to(dtype).eval()
    assert not use_kernels(net, kernels)
    return net


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padded", [None, "left", "right"])
@pytest.mark.parametrize(("images", "derived_bytes"), [(False, 1 << 28), (True, 0)])
@pytest.mark.parametrize("positions", [2, 38])
def test_bits_do_not_hang_on_the_passes(
    kernels: Kernels,
    dtype: torch.dtype,
    padded: str | None,
    images: bool,
    derived_bytes: int,
    positions: int,
) -> None:
    net = network(kernels, dtype, derived_bytes)
    ids = torch.randint(3, 90, (2, 150), generator=torch.Generator().manual_seed(4))
    soft, real = None, None
    if images:
        image = net.config.image_token_id
        assert image is not None
        for row, start, length in ((0, 5, 9), (0, 20, 3), (1, 60, 4), (1, 112, 12)):
            ids[row, start : start + length] = image
        count = int((ids == image).sum())
        soft = torch.randn(count, 64, generator=torch.Generator().manual_seed(5)).to(dtype)
    if padded is not None:
        real = torch.ones_like(ids, dtype=torch.bool)
        real[1, slice(0, 2) if padded == "left" else slice(148, 150)] = False
    with torch.inference_mode():
        hidden, cache = net.encode_hidden(ids, attention_mask=real, soft_tokens=soft)
        net.encode_positions = positions
        again, split = net.encode_hidden(ids, attention_mask=real, soft_tokens=soft)
        seen = slice(None) if real is None else real
        assert torch.equal(again[seen], hidden[seen])
        canvas = ids[:, :12]
        assert torch.equal(net.denoise(canvas, split), net.denoise(canvas, cache))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_hang_on_the_parts(
    kernels: Kernels, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Derived keys in parts of 64 slots, all at once, and held: one canvas, the same bits."""
    ids = torch.randint(3, 90, (2, 200), generator=torch.Generator().manual_seed(4))
    found = []
    for derived_bytes, part in ((1 << 28, 1 << 15), (0, 1 << 15), (0, 64)):
        monkeypatch.setattr("sfumato.model.derived.PART", part)
        net = network(kernels, dtype, derived_bytes)
        with torch.inference_mode():
            found.append(net.denoise(ids[:, :12], net.encode(ids)))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])
