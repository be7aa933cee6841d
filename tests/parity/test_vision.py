"""The vision tower and projector against the reference, every tensor random and different."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.config.model import VisionConfig
from sfumato.errors import ConfigError, InputError
from sfumato.model.vision import VisionProjector, VisionTower, pool_patches

TEXT_HIDDEN = 40

BASE = VisionConfig(
    hidden_size=32,
    intermediate_size=56,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=16,
    patch_size=4,
    position_embedding_size=40,
)

CONFIGS = {
    "plain": BASE,
    "standardised": replace(BASE, standardize=True),
    "clipped": replace(BASE, use_clipped_linears=True, patch_size=16),
    "standardised and clipped": replace(BASE, standardize=True, use_clipped_linears=True),
    "shared keys": replace(BASE, num_attention_heads=4, num_key_value_heads=2, head_dim=12),
    "pooling of two, other base": replace(
        BASE, pooling_kernel_size=2, rope_theta=37.0, num_hidden_layers=3, head_dim=20
    ),
    "deep, large eps": replace(BASE, num_hidden_layers=4, rms_norm_eps=1e-3, standardize=True),
}


@dataclass(frozen=True)
class Reference:
    """The tower and the projector of the reference."""

    tower: Any
    projector: Any

    def __call__(self, pixels: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        features = self.tower(pixel_values=pixels, pixel_position_ids=positions).last_hidden_state
        return features, self.projector(features)


def reference(config: VisionConfig, attention: str = "sdpa") -> Reference:
    """The same shapes as `transformers` builds them."""
    from transformers.models.diffusion_gemma.modeling_diffusion_gemma import (
        DiffusionGemmaMultimodalEmbedder,
    )
    from transformers.models.gemma4.configuration_gemma4 import Gemma4TextConfig, Gemma4VisionConfig
    from transformers.models.gemma4.modeling_gemma4 import Gemma4VisionModel

    fields = {name: getattr(config, name) for name in vars(config) if name != "rope_theta"}
    spelled = Gemma4VisionConfig(
        **fields, rope_parameters={"rope_type": "axial", "rope_theta": config.rope_theta}
    )
    spelled._attn_implementation = attention
    text = Gemma4TextConfig(hidden_size=TEXT_HIDDEN)
    return Reference(
        Gemma4VisionModel(spelled).eval(), DiffusionGemmaMultimodalEmbedder(spelled, text).eval()
    )


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Draw every tensor: lively matrices, norms around one, bounds that bite, all different."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith(("_min", "_max")):
                sign = -1.0 if name.endswith("_min") else 1.0
                tensor.copy_(sign * (0.6 + 0.3 * noise.abs()))
            elif name == "std_bias":
                tensor.copy_(4.0 * noise)
            elif tensor.dim() >= 2:
                tensor.copy_(1.3 * noise * tensor.shape[-1] ** -0.5)
            else:
                tensor.copy_(1.0 + 0.3 * noise)


def grid(width: int, height: int) -> Tensor:
    """Row-major (x, y) of a grid [width * height, 2]."""
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    return places.flip(-1)


def batch(config: VisionConfig, sizes: list[tuple[int, int]], seed: int) -> tuple[Tensor, Tensor]:
    """Random pixels and positions for images of `sizes` in squares, padded to the longest."""
    kernel = config.pooling_kernel_size
    grids = [grid(width * kernel, height * kernel) for width, height in sizes]
    longest = max(len(places) for places in grids)
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.zeros(len(sizes), longest, 3 * config.patch_size**2)
    positions = torch.full((len(sizes), longest, 2), -1)
    for index, places in enumerate(grids):
        pixels[index, : len(places)] = torch.rand(
            len(places), pixels.shape[-1], generator=generator
        )
        positions[index, : len(places)] = places
    return pixels, positions


def built(
    config: VisionConfig, seed: int, dtype: torch.dtype, attention: str = "sdpa"
) -> tuple[VisionTower, VisionProjector, Reference]:
    """Ours and the reference's with equal random weights in `dtype`."""
    tower = VisionTower(config).eval()
    projector = VisionProjector(config.hidden_size, TEXT_HIDDEN, config.rms_norm_eps).eval()
    other = reference(config, attention)
    randomise(tower, seed)
    randomise(projector, seed + 1)
    other.tower.load_state_dict(tower.state_dict(), strict=True)
    other.projector.load_state_dict(projector.state_dict(), strict=True)
    rotary = other.tower.encoder.rotary_emb
    frequencies = rotary.inv_freq.clone()
    for module in (tower, projector, other.tower, other.projector):
        module.to(dtype)
    # `from_pretrained` leaves this buffer in fp32; only `.to` on a built model rounds it.
    rotary.inv_freq = frequencies
    return tower, projector, other


SIZES = [(2, 3), (1, 1), (4, 2), (3, 1)]


@torch.inference_mode()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_fp32_equals_the_reference(name: str, attention: str) -> None:
    config = CONFIGS[name]
    tower, projector, other = built(
        config, seed=len(name), dtype=torch.float32, attention=attention
    )
    pixels, positions = batch(config, SIZES, seed=5)

    features = tower(pixels, positions)
    tokens = projector(features)

    expected_features, expected_tokens = other(pixels, positions)
    assert features.shape == (sum(w * h for w, h in SIZES), config.hidden_size)
    assert relative_error(features, expected_features) < 5e-5
    assert relative_error(tokens, expected_tokens) < 5e-5


@torch.inference_mode()
@pytest.mark.parametrize("name", list(CONFIGS))
def test_bf16_is_as_near_the_truth_as_the_reference(name: str) -> None:
    """Against the same bf16 weights computed in fp32, our rounding is no worse than theirs."""
    config = CONFIGS[name]
    tower, projector, other = built(config, seed=3 + len(name), dtype=torch.bfloat16)
    pixels, positions = batch(config, SIZES, seed=6)

    tokens = projector(tower(pixels, positions))
    expected = other(pixels, positions)[1]
    exact_tower, exact_projector = tower.float(), projector.float()
    exact = exact_projector(exact_tower(pixels, positions))

    assert tokens.dtype == expected.dtype == torch.bfloat16
    theirs = relative_error(expected, exact)
    assert relative_error(tokens, exact) < 1.25 * theirs + 2**-9
    assert relative_error(tokens, expected) < 2 * theirs + 2**-9


@torch.inference_mode()
def test_bf16_single_layer_is_bit_equal_before_attention() -> None:
    """Centring, casting and places round in the reference's order."""
    tower, _, other = built(BASE, seed=2, dtype=torch.bfloat16)
    pixels, positions = batch(BASE, [(2, 2), (1, 2)], seed=8)
    valid = (positions != -1).all(dim=-1)
    ours = tower.patch_embedder(pixels, positions, valid)
    assert torch.equal(ours, other.tower.patch_embedder(pixels, positions, ~valid))


@torch.inference_mode()
def test_an_image_is_the_same_alone_and_in_a_batch() -> None:
    tower, _, _ = built(CONFIGS["standardised"], seed=4, dtype=torch.float32)
    pixels, positions = batch(BASE, SIZES, seed=9)
    together = tower(pixels, positions).split([w * h for w, h in SIZES])
    for index, (width, height) in enumerate(SIZES):
        real = width * height * 9
        alone = tower(pixels[index : index + 1, :real], positions[index : index + 1, :real])
        assert relative_error(together[index], alone) < 1e-5


@torch.inference_mode()
def test_padding_never_leaks() -> None:
    tower, _, _ = built(BASE, seed=4, dtype=torch.float32)
    pixels, positions = batch(BASE, SIZES, seed=9)
    noisy = torch.where((positions == -1).all(-1, keepdim=True), 1e3, pixels)
    assert torch.equal(tower(noisy, positions), tower(pixels, positions))


@torch.inference_mode()
def test_the_order_of_patches_does_not_matter() -> None:
    tower, _, _ = built(BASE, seed=4, dtype=torch.float32)
    pixels, positions = batch(BASE, [(3, 2)], seed=9)
    order = torch.randperm(pixels.shape[1], generator=torch.Generator().manual_seed(0))
    shuffled = tower(pixels[:, order], positions[:, order])
    assert relative_error(shuffled, tower(pixels, positions)) < 1e-5


def test_pooling_goes_by_rows_of_squares() -> None:
    places = grid(4, 2)
    hidden = torch.arange(8.0)[:, None]
    assert pool_patches(hidden, places, 2)[:, 0].tolist() == [2.5, 4.5]
    assert pool_patches(hidden, places, 1)[:, 0].tolist() == list(range(8))


def test_state_dict_names_are_those_of_the_reference() -> None:
    config = replace(BASE, standardize=True, use_clipped_linears=True)
    other = reference(config)
    shapes = {name: tensor.shape for name, tensor in VisionTower(config).state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in other.tower.state_dict().items()}
    projector = VisionProjector(config.hidden_size, TEXT_HIDDEN, 1e-6)
    assert list(projector.state_dict()) == list(other.projector.state_dict())


def test_builds_on_the_meta_device() -> None:
    with torch.device("meta"):
        tower = VisionTower(CONFIGS["standardised and clipped"])
    assert all(tensor.is_meta for tensor in tower.state_dict().values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"head_dim": 6}, "multiple of 4"),
        ({"num_key_value_heads": 3}, "cannot share"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1"),
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        VisionTower(replace(BASE, **change))


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("width", r"pixel_values must be \[images, patches, 48\]"),
        ("none", "pixel_values must be"),
        ("positions", "position_ids must be"),
        ("empty", "only padding"),
        ("far", r"0\.\.39"),
        ("negative", r"0\.\.39"),
        ("ragged", "whole 3 x 3 squares"),
        ("twice", "whole 3 x 3 squares"),
    ],
)
def test_inputs_that_are_no_image_are_refused(case: str, words: str) -> None:
    tower = VisionTower(BASE)
    pixels, positions = batch(BASE, [(1, 2), (1, 1)], seed=1)
    if case == "width":
        pixels = pixels[..., :-1]
    elif case == "none":
        pixels, positions = pixels[:0], positions[:0]
    elif case == "positions":
        positions = positions[:, :-1]
    elif case == "empty":
        positions[1] = -1
    elif case == "far":
        positions[0, 3, 1] = 40
    elif case == "negative":
        positions[0, 3, 0] = -2
    elif case == "ragged":
        positions[0, 5] = -1
    else:
        positions[0, 17] = positions[0, 0]
    with pytest.raises(InputError, match=words):
        tower(pixels, positions)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    difference = (got.float() - expected.float()).abs().max()
    return float(difference / expected.float().abs().max())
