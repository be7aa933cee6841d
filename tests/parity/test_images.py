"""Images inside prompts against the reference, with the masks its `generate` builds.

The reference's encoder, called on its own, throws away the masks that let an image's tokens see
each other and goes on causally; `generate` passes them in. What `generate` does is the rule here:
in full and in sliding layers alike, causal (and windowed) or in the same run of image tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    DiffusionGemmaGenerationConfig,
    EntropyBoundSamplerConfig,
)

from sfumato.api import Model
from sfumato.config.generation import GenerationConfig
from sfumato.diffusion.loop import generate
from sfumato.diffusion.samplers import SharedDraws
from sfumato.media.image import ImageInput, image_prompt_tokens
from sfumato.model.diffusion_gemma import DiffusionGemma
from tests.helpers import Shape, pair

BASE = Shape(vision=True)
IMAGE, BOI, EOI = BASE.vocab - 1, BASE.vocab - 2, BASE.vocab - 3
GRIDS = [(2, 3), (3, 1), (1, 1), (4, 2)]  # soft tokens across and down


@dataclass(frozen=True)
class Prompt:
    """Ids [B, T], which of them are real, and the patches of every image in order."""

    ids: Tensor
    real: Tensor
    pixels: Tensor
    positions: Tensor

    @property
    def types(self) -> Tensor:
        """The reference's modality of each token: 1 for images."""
        return (self.ids == IMAGE).long()


def prompt(rows: list[list[int]], seed: int = 0) -> Prompt:
    """Rows of runs, padded on the left: n tokens of text, or for -n the image of `GRIDS[n - 1]`."""
    generator = torch.Generator().manual_seed(seed)
    ids, grids = [], []
    for row in rows:
        line: list[int] = []
        for run in row:
            if run > 0:
                line += torch.randint(3, EOI, (run,), generator=generator).tolist()
            else:
                grid = GRIDS[-run - 1]
                grids.append(grid)
                line += image_prompt_tokens(grid[0] * grid[1], BOI, IMAGE, EOI)
        ids.append(line)
    longest = max(map(len, ids))
    padded = torch.tensor([[0] * (longest - len(line)) + line for line in ids])
    real = torch.tensor([[0] * (longest - len(line)) + [1] * len(line) for line in ids]).bool()
    return Prompt(padded, real, *patches(grids, generator))


def patches(grids: list[tuple[int, int]], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random pixels and their places for images of these sizes in soft tokens."""
    longest = max(9 * width * height for width, height in grids)
    pixels = torch.zeros(len(grids), longest, 768)
    positions = torch.full((len(grids), longest, 2), -1)
    for index, (width, height) in enumerate(grids):
        count = 9 * width * height
        pixels[index, :count] = torch.rand(count, 768, generator=generator)
        across = torch.arange(3 * width).repeat(3 * height)
        down = torch.arange(3 * height).repeat_interleave(3 * width)
        positions[index, :count] = torch.stack([across, down], -1)
    return pixels, positions


def reference_encode(model: Any, given: Prompt) -> tuple[Tensor, Any]:
    """Final hidden states and cache of the reference's encoder, as its `generate` calls it."""
    cache = DynamicCache(config=model.config.get_text_config())
    places = torch.arange(given.ids.shape[1])[None]
    masks = model.model.encoder.create_masks_for_generate(
        config=model.config,
        inputs_embeds=torch.empty(*given.ids.shape, 0, dtype=model.dtype),
        attention_mask=given.real,
        past_key_values=cache,
        position_ids=places,
        mm_token_type_ids=given.types,
    )
    out = model.model.encoder(
        input_ids=given.ids,
        attention_mask=masks,
        past_key_values=cache,
        position_ids=places,
        pixel_values=given.pixels,
        image_position_ids=given.positions,
        mm_token_type_ids=given.types,
    )
    return out.last_hidden_state, cache


def reference_denoise(model: Any, given: Prompt, cache: Any, canvas: Tensor) -> Tensor:
    """Logits of the reference's decoder after `given`."""
    length, start = canvas.shape[1], given.ids.shape[1]
    out: Tensor = model(
        decoder_input_ids=canvas,
        past_key_values=cache,
        decoder_attention_mask=torch.nn.functional.pad(given.real, (0, length), value=True),
        decoder_position_ids=torch.arange(start, start + length)[None],
    ).logits
    return out


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    difference = (got.float() - expected.float()).abs().max()
    return float(difference / expected.float().abs().max())


def compare(ours: DiffusionGemma, model: Any, given: Prompt) -> tuple[float, float]:
    """Errors of encode's hidden states (real positions) and of denoise's logits."""
    soft = ours.soft_tokens(given.pixels, given.positions)
    mask = None if bool(given.real.all()) else given.real
    hidden, cache = ours.encode_hidden(given.ids, attention_mask=mask, soft_tokens=soft)
    expected_hidden, expected_cache = reference_encode(model, given)
    canvas = torch.randint(
        0,
        EOI,
        (len(given.ids), ours.config.canvas_length),
        generator=torch.Generator().manual_seed(1),
    )
    logits = ours.denoise(canvas, cache)
    expected = reference_denoise(model, given, expected_cache, canvas)
    return (
        relative_error(hidden[given.real], expected_hidden[given.real]),
        relative_error(logits, expected),
    )


SHAPES = {
    "window shorter than the image": replace(BASE, window=4),
    "window longer than the prompt": replace(BASE, window=64),
    "window of two": replace(BASE, window=2, pattern="SF"),
    "full layers alone": replace(BASE, pattern="FF"),
    "three full layers, one expert": replace(BASE, pattern="SFSFSF", top_k=1, window=5),
}
LAYOUTS = {
    "text, image, text": [[5, -1, 7]],
    "image first": [[-1, 4]],
    "image last": [[6, -4]],
    "two images": [[3, -1, 2, -2, 9]],
    "two images side by side": [[2, -1, -4, 3]],
    "a batch, padded": [[3, -1, 2], [8, -3, 1, -2, 6], [1, -4, 2]],
}


@torch.inference_mode()
@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("shape", list(SHAPES))
def test_encode_and_denoise_equal_the_reference(shape: str, layout: str) -> None:
    ours, model = pair(SHAPES[shape], seed=len(shape) + len(layout))
    hidden, logits = compare(ours, model, prompt(LAYOUTS[layout], seed=2))
    assert hidden < 5e-5
    assert logits < 5e-5


@torch.inference_mode()
def test_images_reach_the_logits() -> None:
    """The comparison above is not of models that do not look."""
    ours, model = pair(SHAPES["window shorter than the image"], seed=3)
    given = prompt(LAYOUTS["text, image, text"], seed=2)
    turned = replace(given, pixels=1 - given.pixels)
    seen = reference_encode(model, given)[0]
    assert relative_error(reference_encode(model, turned)[0], seen) > 1e-2
    soft = ours.soft_tokens(given.pixels, given.positions)
    assert relative_error(ours.encode_hidden(given.ids, soft_tokens=soft)[0], seen) < 5e-5
    assert relative_error(ours.encode_hidden(given.ids)[0], seen) > 1e-2


@torch.inference_mode()
def test_bf16_is_as_near_the_truth_as_the_reference() -> None:
    """Both round; ours is no further from the same weights in fp32."""
    ours, model = pair(SHAPES["window shorter than the image"], seed=4, dtype=torch.bfloat16)
    exact, exact_model = pair(SHAPES["window shorter than the image"], seed=4)
    exact.load_state_dict({name: value.float() for name, value in ours.state_dict().items()})
    keep_frequencies(model, exact_model)
    given = prompt(LAYOUTS["two images"], seed=5)
    truth = exact.soft_tokens(given.pixels, given.positions)
    mine = ours.soft_tokens(given.pixels, given.positions)
    theirs = model.model.encoder.get_image_features(given.pixels, given.positions).pooler_output
    assert relative_error(mine, truth) < 1.25 * relative_error(theirs, truth) + 2**-9
    hidden, logits = compare(ours, model, given)
    assert hidden < 0.1
    assert logits < 0.1


@torch.inference_mode()
def test_bf16_pixels_are_centred_before_they_are_rounded() -> None:
    """A pixel near mid-grey keeps its distance from it: the reference rounds after centring."""
    ours, model = pair(BASE, seed=4, dtype=torch.bfloat16)
    _, positions = patches([(2, 2)], torch.Generator())
    near_grey = 0.5 + 1e-3 * torch.randn(1, 36, 768, generator=torch.Generator().manual_seed(1))
    valid = torch.ones(1, 36, dtype=torch.bool)
    seen = ours.soft_tokens(near_grey, positions)
    tower = ours.model.encoder.vision_tower
    assert torch.equal(seen, ours.model.encoder.embed_vision(tower(near_grey, positions)))
    assert torch.equal(
        tower.patch_embedder(near_grey, positions, valid),
        model.model.encoder.vision_tower.patch_embedder(near_grey, positions, ~valid),
    )


def keep_frequencies(rounded: Any, exact: Any) -> None:
    """Give `rounded` the fp32 rotary buffers of `exact`: `from_pretrained` would not round them."""
    buffers = dict(exact.named_buffers())
    for name, buffer in rounded.named_buffers():
        if name.endswith("inv_freq"):
            buffer.data = buffers[name].data


@torch.inference_mode()
def test_without_bidirectional_images_everything_is_causal() -> None:
    ours, model = pair(replace(BASE, window=4), seed=6)
    text = replace(ours.config.text, bidirectional_images=False)
    ours.config = replace(ours.config, text=text)
    model.config.text_config.use_bidirectional_attention = None
    assert max(compare(ours, model, prompt(LAYOUTS["two images"]))) < 5e-5


@torch.inference_mode()
def test_an_image_in_a_later_turn_is_seen_as_in_one_pass() -> None:
    ours, _ = pair(replace(BASE, window=4), seed=7)
    given = prompt([[3, -1, 6, -4, 5]], seed=8)
    soft = ours.soft_tokens(given.pixels, given.positions)
    split = 3 + 8 + 4  # inside the second run of text
    hidden, cache = ours.encode_hidden(given.ids, soft_tokens=soft)
    first = ours.encode(given.ids[:, :split], soft_tokens=soft[:6])
    later, joined = ours.encode_hidden(given.ids[:, split:], first, soft_tokens=soft[6:])
    assert relative_error(later, hidden[:, split:]) < 5e-5
    canvas = torch.full((1, BASE.canvas), 5)
    assert relative_error(ours.denoise(canvas, joined), ours.denoise(canvas, cache)) < 5e-5


@torch.inference_mode()
def test_image_tokens_without_an_image_are_plain_tokens() -> None:
    """The denoiser may write that id, and text may hold it: neither makes an image of it."""
    ours, model = pair(replace(BASE, window=4), seed=9)
    ids = torch.tensor([[5, 6, IMAGE, IMAGE, IMAGE, 7, IMAGE, 8]])
    expected = model.model.encoder(input_ids=ids).last_hidden_state
    assert relative_error(ours.encode_hidden(ids)[0], expected) < 5e-5


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # by the reference's imports
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("window", [4, 64])
def test_generate_is_equal_token_for_token(seed: int, window: int) -> None:
    ours, model = pair(replace(BASE, window=window), seed=20 + seed)
    given = prompt(LAYOUTS["two images" if seed % 2 else "text, image, text"], seed=seed)
    settings: dict[str, Any] = {
        "max_new_tokens": 3 * BASE.canvas,
        "max_denoising_steps": 6,
        "t_min": 0.4,
        "t_max": 0.8,
        "stability_threshold": 1,
        "confidence_threshold": 0.005,
    }

    torch.manual_seed(seed)
    with torch.inference_mode():
        expected = model.generate(
            given.ids,
            generation_config=DiffusionGemmaGenerationConfig(
                sampler_config=EntropyBoundSamplerConfig(entropy_bound=4.0),
                eos_token_id=[1],
                pad_token_id=0,
                **settings,
            ),
            pixel_values=given.pixels,
            image_position_ids=given.positions,
            mm_token_type_ids=given.types,
        ).sequences[0, given.ids.shape[1] :]
        soft = ours.soft_tokens(given.pixels, given.positions)
        out = generate(
            ours,
            ours.encode(given.ids, soft_tokens=soft),
            GenerationConfig(
                entropy_bound=4.0,
                eos_token_id=(1,),
                **settings,
            ),
            SharedDraws(torch.Generator().manual_seed(seed)),
        )

    tokens = out.tokens[0]
    assert tokens == expected[: len(tokens)].tolist()
    assert len(tokens) == len(expected) or tokens[-1] == 1


@torch.inference_mode()
def test_ready_tensors_are_images_too() -> None:
    """What an image processor returns may be given as it is."""
    ours, _ = pair(BASE, seed=4)
    model = Model(ours, GenerationConfig())
    image = torch.rand(1, 9, 768), torch.cartesian_prod(torch.arange(3), torch.arange(3))[None]
    prompt = torch.tensor([[3, BOI, IMAGE, EOI, 4]])
    inputs = [ImageInput(image[0][0], image[1][0], 1)]
    canvas = torch.arange(BASE.canvas)[None]
    from_tensors = model.denoise(canvas, model.encode(prompt, images=image))
    from_inputs = model.denoise(canvas, model.encode(prompt, images=inputs))
    assert torch.equal(from_tensors, from_inputs)
    assert not torch.equal(from_tensors, model.denoise(canvas, model.encode(prompt)))
