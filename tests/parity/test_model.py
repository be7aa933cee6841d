"""Encode, denoise and generate against `transformers` on random checkpoints, all norms different.

Eight shapes: windows shorter and longer than the prompt, one and three full layers, top-k of 1, 2
and 8, one group and several of key-value heads.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.api import Model
from sfumato.config.generation import GenerationConfig
from tests.helpers import Shape, pair

SHAPES = {
    "short-window": Shape(),
    "long-window": Shape(pattern="SSF", window=64),
    "three-full": Shape(pattern="SFSFSF", window=16, top_k=1),
    "top-8": Shape(pattern="SSSF", experts=8, top_k=8, window=12),
    "top-1": Shape(pattern="SSF", experts=6, top_k=1, kv_heads=1),
    "only-full": Shape(pattern="FFF", global_kv_heads=2, global_head_dim=24),
    "wide-groups": Shape(pattern="SSSSSF", heads=8, kv_heads=4, global_kv_heads=2, window=5),
    "ungrouped": Shape(pattern="SF", heads=2, kv_heads=2, global_kv_heads=2, hidden=48, canvas=7),
}
SETTINGS = GenerationConfig(
    max_new_tokens=36,
    max_denoising_steps=8,
    confidence_threshold=0.4,
    eos_token_id=(5,),
)


@cache
def models(name: str, dtype: torch.dtype = torch.float32) -> tuple[Model, Any]:
    """Our model and the reference for one shape."""
    ours, reference = pair(SHAPES[name], seed=len(name), dtype=dtype)
    return Model(ours, SETTINGS), reference


def ids(rows: int, length: int, seed: int = 0) -> Tensor:
    """Random ids that avoid the three image tokens at the vocabulary's end."""
    return torch.randint(0, 90, (rows, length), generator=torch.Generator().manual_seed(seed))


def close(ours: Tensor, theirs: Tensor, bound: float) -> None:
    """Within `bound` of the largest value."""
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) <= bound * float(theirs.abs().max())


def beliefs(rows: int, length: int, seed: int = 7) -> Tensor:
    """Self-conditioning logits."""
    generator = torch.Generator().manual_seed(seed)
    return 5 * torch.randn(rows, length, 97, generator=generator)


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_encode_and_denoise_equal_the_reference(name: str) -> None:
    model, reference = models(name)
    prompt, canvas = ids(2, 20), ids(2, SHAPES[name].canvas, 1)
    signal = beliefs(2, SHAPES[name].canvas)
    hidden, cache = model.encode_hidden(prompt)
    with_signal = reference(
        input_ids=prompt, decoder_input_ids=canvas, self_conditioning_logits=signal
    )
    close(hidden, with_signal.encoder_last_hidden_state, 5e-5)
    close(model.denoise(canvas, cache, signal), with_signal.logits, 5e-5)
    without = reference(input_ids=prompt, decoder_input_ids=canvas)
    close(model.denoise(canvas, cache), without.logits, 5e-5)


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_bfloat16_stays_within_its_rounding(name: str) -> None:
    """Every logit within one rounding of bf16: the operations and their order are the same."""
    model, reference = models(name, torch.bfloat16)
    prompt, canvas = ids(1, 20), ids(1, SHAPES[name].canvas, 1)
    theirs = reference(input_ids=prompt, decoder_input_ids=canvas).logits
    ours = model.denoise(canvas, model.encode(prompt))
    rounding = 2.0**-8 * theirs.abs().clamp(min=1.0)
    assert bool(((ours - theirs).abs() <= rounding).all())


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_three_canvases_in_a_row(name: str) -> None:
    """Appending canvas after canvas gives the cache that the reference's appending gives."""
    model, reference = models(name)
    length = SHAPES[name].canvas
    prompt = ids(1, 9)
    cache = model.encode(prompt)
    theirs = reference.model.encoder(input_ids=prompt).past_key_values
    for index in range(3):
        canvas = ids(1, length, 10 + index)
        start = 9 + index * length
        expected = reference(
            past_key_values=theirs,
            decoder_input_ids=canvas,
            decoder_position_ids=torch.arange(start, start + length)[None],
        ).logits
        close(model.denoise(canvas, cache), expected, 5e-5)
        model.encode(canvas, cache)
        reference.model.encoder(input_ids=canvas, past_key_values=theirs)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_rows_equal_rows_alone(name: str, side: str) -> None:
    """A batch of unequal prompts gives each row the reference's logits for that row alone."""
    model, reference = models(name)
    length = SHAPES[name].canvas
    lengths = (20, 13, 3)
    prompt, canvas = ids(3, 20), ids(3, length, 1)
    mask = torch.zeros(3, 20, dtype=torch.bool)
    for row, real in enumerate(lengths):
        mask[row, slice(-real, None) if side == "left" else slice(real)] = True
    cache = model.encode(prompt, attention_mask=mask)
    second = model.encode(canvas, cache.fork())
    for row in range(3):
        alone = prompt[row][mask[row]][None]
        expected = reference(input_ids=alone, decoder_input_ids=canvas[row, None])
        close(model.denoise(canvas, cache)[row, None], expected.logits, 5e-5)
        longer = torch.cat([alone, canvas[row, None]], dim=1)
        expected = reference(input_ids=longer, decoder_input_ids=canvas[row, None])
        close(model.denoise(canvas, second)[row, None], expected.logits, 5e-5)


@pytest.mark.parametrize("name", ["short-window", "three-full"])
@torch.no_grad()
def test_left_padding_equals_the_reference_with_a_mask(name: str) -> None:
    model, reference = models(name)
    length = SHAPES[name].canvas
    prompt, canvas = ids(2, 20), ids(2, length, 1)
    mask = torch.arange(20) >= torch.tensor([[0], [8]])
    expected = reference(
        input_ids=prompt,
        attention_mask=mask,
        decoder_input_ids=canvas,
        decoder_attention_mask=torch.nn.functional.pad(mask, (0, length), value=True),
    ).logits
    cache = model.encode(prompt, attention_mask=mask)
    close(model.denoise(canvas, cache), expected, 5e-5)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("seed", range(5))
def test_generate_equals_the_reference_token_for_token(name: str, seed: int) -> None:
    model, reference = models(name)
    prompt = ids(1, 11, seed)
    out = model.generate(prompt, seed=seed)
    torch.manual_seed(seed)
    expected = reference.generate(prompt, **reference_settings(SETTINGS))
    check_rows(out.tokens, expected.sequences[:, 11:])
    assert out.stats.steps[0] <= 8 * out.stats.canvases[0]
    whole = len(out.tokens[0]) % model.config.canvas_length == 0
    if whole and 0 not in out.tokens[0]:  # the reference counts no pad, and all of every canvas
        assert out.stats.tokens_per_forward[0] == pytest.approx(
            float(expected.tokens_per_forward[0])
        )


@pytest.mark.parametrize("seed", range(3))
def test_a_batch_with_one_generator_equals_the_reference(seed: int) -> None:
    model, reference = models("three-full")
    prompt = ids(3, 11, seed)
    out = model.generate(prompt, seed=seed)
    torch.manual_seed(seed)
    expected = reference.generate(prompt, **reference_settings(SETTINGS))
    check_rows(out.tokens, expected.sequences[:, 11:])


@pytest.mark.parametrize(
    "changes",
    [
        {"stability_threshold": 0, "confidence_threshold": 2.0},
        {"stability_threshold": 3, "confidence_threshold": 5.0, "max_denoising_steps": 12},
        {"entropy_bound": 5.0, "t_min": 0.1, "t_max": 1.5},
        {"max_denoising_steps": 1},
    ],
)
def test_generate_equals_the_reference_whatever_the_settings(changes: dict[str, Any]) -> None:
    model, reference = models("long-window")
    settings = dataclasses.replace(SETTINGS, **changes)
    prompt = ids(1, 6)
    out = model.generate(prompt, seed=3, generation=settings)
    torch.manual_seed(3)
    expected = reference.generate(prompt, **reference_settings(settings))
    check_rows(out.tokens, expected.sequences[:, 6:])


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_autoregressive_mode_is_greedy_decoding_of_the_encoder(name: str) -> None:
    model, reference = models(name)
    prompt = ids(2, 11)
    out = model.generate(prompt, max_new_tokens=24, mode="autoregressive")
    written = prompt
    for _ in range(24):
        hidden = reference.model.encoder(input_ids=written).last_hidden_state[:, -1]
        written = torch.cat([written, reference.lm_head(hidden).argmax(-1, keepdim=True)], dim=1)
    check_rows(out.tokens, written[:, 11:])


def reference_settings(config: GenerationConfig) -> dict[str, Any]:
    """Keyword arguments of the reference's `generate`."""
    from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
        EntropyBoundSamplerConfig,
    )

    return {
        "max_new_tokens": config.max_new_tokens,
        "max_denoising_steps": config.max_denoising_steps,
        "sampler_config": EntropyBoundSamplerConfig(config.entropy_bound),
        "t_min": config.t_min,
        "t_max": config.t_max,
        "stability_threshold": config.stability_threshold,
        "confidence_threshold": config.confidence_threshold,
        "eos_token_id": list(config.eos_token_id),
        "pad_token_id": config.pad_token_id,
    }


def check_rows(ours: list[list[int]], theirs: Tensor) -> None:
    """Equal up to where ours ends: after the first stop id, or at the limit asked for."""
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs.tolist(), strict=True):
        assert mine == other[: len(mine)]
        stopped = mine[-1] == 5
        assert stopped or len(mine) == min(len(other), SETTINGS.max_new_tokens)
        assert 5 not in mine[:-1]
