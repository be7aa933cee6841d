"""Images and sampled frames against the reference's processors, bit for bit."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers.models.gemma4.image_processing_pil_gemma4 import (
    Gemma4ImageProcessorPil,
    get_aspect_ratio_preserving_size,
)
from transformers.video_utils import VideoMetadata, default_sample_indices_fn

from sfumato.config.processor import SOFT_TOKEN_BUDGETS
from sfumato.media.image import (
    ImageSettings,
    batch_images,
    fitted_size,
    load_image,
    read_rgb,
)
from sfumato.media.video import VideoFrame, sample_indices

if TYPE_CHECKING:
    from sfumato.media.image import ImageSource


def picture(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Noise over a gradient, so that both flat and busy parts are resampled."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(0, 200, width)[None, :, None]
    noise = rng.integers(0, 56, (height, width, channels))
    return (slope + noise).astype(np.uint8)


def assert_equal_to_the_reference(
    source: ImageSource, given: Image.Image | np.ndarray, budget: int
) -> None:
    """`source` through ours and `given` through theirs make the same tensors."""
    settings = ImageSettings(budget=budget)
    expected = Gemma4ImageProcessorPil(max_soft_tokens=budget)(given, return_tensors="pt")

    image = load_image(source, settings)
    pixels, positions = batch_images([image], pad_to=settings.max_patches)

    assert torch.equal(pixels, expected["pixel_values"])
    assert torch.equal(positions, expected["image_position_ids"])
    assert image.num_soft_tokens == expected["num_soft_tokens_per_image"][0]


@pytest.mark.parametrize(
    ("width", "height", "budget"),
    [
        (640, 480, 280),
        (480, 640, 140),
        (31, 17, 70),
        (1, 1, 70),
        (768, 768, 280),  # needs no resizing at 256 soft tokens of 280
        (672, 960, 280),
        (900, 7, 70),
        (5, 1200, 70),
        (97, 1000, 560),
        (1500, 1100, 1120),
    ],
)
def test_sizes_and_budgets(width: int, height: int, budget: int) -> None:
    array = picture(width, height, seed=width)
    image = Image.fromarray(array)
    assert_equal_to_the_reference(image, image, budget)
    if height > 4:  # below, the reference takes the height for channels
        assert_equal_to_the_reference(array, array, budget)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_modes(mode: str) -> None:
    alpha = Image.fromarray(picture(60, 40, 4, seed=2))
    image = alpha.convert("RGB").convert("P").convert(mode) if mode == "PA" else alpha.convert(mode)
    assert_equal_to_the_reference(image, image, 70)


@pytest.mark.parametrize("channels", [1, 4])
def test_arrays_of_grey_and_of_transparency(channels: int) -> None:
    array = picture(50, 70, channels, seed=3)
    assert_equal_to_the_reference(array, array, 70)


def test_palette_with_a_transparent_colour() -> None:
    image = Image.fromarray(picture(40, 40)).convert("P")
    file = io.BytesIO()
    image.save(file, "PNG", transparency=int(np.array(image)[3, 3]))
    opened = Image.open(io.BytesIO(file.getvalue()))
    assert_equal_to_the_reference(file.getvalue(), opened, 70)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    Image.fromarray(picture(120, 90, seed=4)).save(path, name)
    with Image.open(path) as opened:
        opened.load()
        assert_equal_to_the_reference(path, opened, 70)
    data = path.read_bytes()
    assert_equal_to_the_reference(data, Image.open(io.BytesIO(data)), 70)


@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation_as_the_reference_loads_files(orientation: int) -> None:
    image = Image.fromarray(picture(64, 30, seed=5))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(file))

    upright = read_rgb(file.getvalue(), ImageSettings())

    assert upright.size == expected.size
    assert upright.tobytes() == expected.convert("RGB").tobytes()


def test_fitted_sizes_over_many_shapes() -> None:
    rng = np.random.default_rng(7)
    shapes = np.exp(rng.uniform(0, np.log(9000), (3000, 2))).astype(int)
    for index, (height, width) in enumerate(shapes.tolist()):
        settings = ImageSettings(budget=SOFT_TOKEN_BUDGETS[index % 5])
        expected = get_aspect_ratio_preserving_size(height, width, 16, settings.max_patches, 3)
        assert fitted_size(height, width, settings) == expected


def test_sampled_frames_are_those_of_the_reference() -> None:
    for total in range(1, 400):
        count = min(32, total)
        metadata = VideoMetadata(total_num_frames=total, fps=24.0)
        expected = default_sample_indices_fn(metadata, num_frames=count)
        assert sample_indices(total, count) == expected.tolist()


def test_timestamps_are_spelled_as_the_reference_does() -> None:
    image = load_image(picture(48, 48), ImageSettings(budget=70))
    for seconds in (0.0, 0.99, 59.999, 60.0, 61.5, 600.2, 6000.0):
        expected = f"{int(seconds // 60):02d}:{int(seconds % 60):02d}"
        assert VideoFrame(seconds, image).timestamp == expected
