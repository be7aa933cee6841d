"""Reading images: limits, damage, and what comes out."""

from __future__ import annotations

import io
import os
import random
import struct
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sfumato.config.processor import SOFT_TOKEN_BUDGETS, ProcessorConfig
from sfumato.errors import MediaError
from sfumato.media.image import (
    FORMATS,
    ImageSettings,
    batch_images,
    fitted_size,
    image_prompt_tokens,
    load_image,
    read_rgb,
)

SMALL = ImageSettings(budget=70)
DAMAGED = "the image cannot be read: it is damaged or of another format"


def encoded(name: str, size: tuple[int, int] = (20, 14), mode: str = "RGB") -> bytes:
    """A small gradient in a file format."""
    width, height = size
    ramp = np.add.outer(np.arange(height) * 7, np.arange(width) * 5) % 256
    image = Image.fromarray(np.stack([ramp, ramp[::-1], 255 - ramp], -1).astype(np.uint8))
    file = io.BytesIO()
    image.convert(mode).save(file, name)
    return file.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A tiny PNG whose header promises a huge picture."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(100))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read(name: str) -> None:
    image = load_image(encoded(name), SMALL)
    patches = image.num_soft_tokens * 9
    assert image.pixel_values.shape == (patches, 768)
    assert image.pixel_values.dtype == torch.float32
    assert image.position_ids.shape == (patches, 2)
    assert 0 <= image.pixel_values.min() <= image.pixel_values.max() <= 1
    assert image.num_soft_tokens <= 70


@pytest.mark.parametrize("name", ["TIFF", "ICO", "PPM", "TGA", "PCX"])
def test_other_formats_are_refused(name: str) -> None:
    with pytest.raises(MediaError, match=DAMAGED):
        load_image(encoded(name), SMALL)


def test_patches_are_flattened_by_row_column_channel() -> None:
    settings = ImageSettings(budget=70, patch_size=2, pooling_kernel_size=1)
    height, width = 2, 140  # as large as the budget allows: nothing is resampled
    assert fitted_size(height, width, settings) == (height, width)
    array = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    image = load_image(array, settings)
    assert image.position_ids[:3].tolist() == [[0, 0], [1, 0], [2, 0]]
    expected = array[0:2, 2:4].reshape(-1)
    assert torch.equal(
        image.pixel_values[1], (torch.tensor(expected, dtype=torch.float64) * (1 / 255)).float()
    )


def test_positions_run_along_rows() -> None:
    image = load_image(Image.new("RGB", (96, 48)), SMALL)
    x, y = image.position_ids.unbind(-1)
    columns = int(x.max()) + 1
    assert x[:columns].tolist() == list(range(columns))
    assert y[: columns + 1].tolist() == [0] * columns + [1]


def test_transparency_is_laid_on_white() -> None:
    image = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    assert read_rgb(image, SMALL).getpixel((3, 3)) == (255, 255, 255)


def test_sixteen_bit_grey_keeps_its_brightness() -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), 0x4020, dtype=np.uint16)).save(file, "PNG")
    assert read_rgb(file.getvalue(), SMALL).getpixel((0, 0)) == (0x40, 0x40, 0x40)
    big_endian = Image.frombytes("I;16B", (1, 1), b"\x40\x20")
    assert read_rgb(big_endian, SMALL).getpixel((0, 0)) == (0x40, 0x40, 0x40)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_without_a_range_are_refused(mode: str) -> None:
    with pytest.raises(MediaError, match=f"mode {mode}"):
        load_image(Image.new(mode, (8, 8)), SMALL)


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert read_rgb(file.getvalue(), SMALL).getpixel((0, 0)) == (255, 0, 0)


def test_paths_as_text_and_as_path(tmp_path: Path) -> None:
    path = tmp_path / "bild ü.png"
    path.write_bytes(encoded("PNG"))
    by_text = load_image(str(path), SMALL)
    assert torch.equal(by_text.pixel_values, load_image(path, SMALL).pixel_values)
    by_bytes = load_image(memoryview(path.read_bytes()), SMALL)
    assert torch.equal(by_text.pixel_values, by_bytes.pixel_values)


def test_an_absent_file_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="cannot be opened: No such file"):
        load_image(tmp_path / "absent.png", SMALL)
    with pytest.raises(MediaError, match="not a regular file"):
        load_image(tmp_path, SMALL)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(MediaError, match="not a regular file"):
        load_image(pipe, SMALL)
    with pytest.raises(MediaError, match="no usable path"):
        load_image("a\0b", SMALL)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1/a.png", "file:///etc/passwd", "data:image/png;base64,AAAA"]
)
def test_addresses_are_not_fetched(address: str) -> None:
    with pytest.raises(MediaError, match="not fetched"):
        load_image(address, SMALL)


def test_the_byte_limit_holds_for_files_and_bytes(tmp_path: Path) -> None:
    data = encoded("BMP")
    path = tmp_path / "large.bmp"
    path.write_bytes(data)
    exact = ImageSettings(max_bytes=len(data))
    short = ImageSettings(max_bytes=len(data) - 1)
    load_image(path, exact)
    for source in (path, data):
        with pytest.raises(MediaError, match="bytes allowed"):
            load_image(source, short)


@pytest.mark.parametrize("size", [(30_000, 30_000), (9_500, 9_500), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_from_its_header_without_a_word(size: tuple[int, int]) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(MediaError, match="allowed"):
            load_image(png_claiming(*size))
    assert not seen


def test_the_pixel_limit_is_exact() -> None:
    settings = ImageSettings(max_pixels=20 * 14)
    data = encoded("PNG")
    load_image(data, settings)
    tight = ImageSettings(max_pixels=20 * 14 - 1)
    for source in (data, Image.open(io.BytesIO(data)), np.zeros((14, 20, 3), np.uint8)):
        with pytest.raises(MediaError, match="20 x 14 pixels"):
            load_image(source, tight)


@pytest.mark.parametrize("name", FORMATS)
def test_truncated_files_have_one_constant_error(name: str) -> None:
    data = encoded(name, (40, 30))
    for length in (0, 1, 10, len(data) // 3, len(data) // 2):
        with pytest.raises(MediaError) as caught:
            load_image(data[:length], SMALL)
        assert caught.value.message in (DAMAGED, "the image is empty")


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_never_raise_anything_else(name: str) -> None:
    data = encoded(name, (24, 18))
    rng = random.Random(name)
    settings = ImageSettings(budget=70, max_pixels=10_000)
    for _ in range(120):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 6)):
            damaged[rng.randrange(min(len(damaged), 120))] = rng.randrange(256)
        try:
            image = load_image(bytes(damaged), settings)
        except MediaError:
            continue
        assert image.num_soft_tokens <= 70


def test_damaged_exif_does_no_harm() -> None:
    file = io.BytesIO()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12broken"
    Image.new("RGB", (10, 8)).save(file, "JPEG", exif=exif)
    assert read_rgb(file.getvalue(), SMALL).size == (10, 8)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_arrays_of_other_kinds_are_refused(array: np.ndarray) -> None:
    with pytest.raises(MediaError, match="must be uint8"):
        load_image(array, SMALL)


def test_an_empty_array_and_other_objects_are_refused() -> None:
    with pytest.raises(MediaError, match="empty"):
        load_image(np.zeros((0, 4, 3), np.uint8), SMALL)
    with pytest.raises(MediaError, match="from a int"):
        load_image(3, SMALL)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"budget": 281}, "one of 70, 140, 280, 560, 1120"),
        ({"max_bytes": 0}, "max_bytes must be at least 1"),
        ({"patch_size": -1}, "patch_size must be at least 1"),
    ],
)
def test_settings_are_checked(fields: dict[str, int], words: str) -> None:
    with pytest.raises(MediaError, match=words):
        ImageSettings(**fields)


def test_settings_of_a_checkpoint() -> None:
    processor = ProcessorConfig(patch_size=8, pooling_kernel_size=2, image_budget=560)
    settings = ImageSettings.of(processor)
    assert (settings.unit, settings.max_patches) == (16, 2240)
    assert ImageSettings.of(ProcessorConfig()) == ImageSettings()


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.sampled_from(SOFT_TOKEN_BUDGETS))
def test_fitted_sizes_are_whole_units_within_the_budget(
    height: int, width: int, budget: int
) -> None:
    fitted = fitted_size(height, width, ImageSettings(budget=budget))
    assert min(fitted) >= 48
    assert fitted[0] % 48 == fitted[1] % 48 == 0
    assert fitted[0] * fitted[1] <= budget * 48 * 48


def test_batching_pads_to_the_longest() -> None:
    images = [load_image(Image.new("RGB", size, "white"), SMALL) for size in ((48, 48), (9, 900))]
    pixels, positions = batch_images(images)
    lengths = [len(image.pixel_values) for image in images]
    assert pixels.shape == (2, max(lengths), 768)
    assert positions.shape == (2, max(lengths), 2)
    shorter = lengths.index(min(lengths))
    assert bool((positions[shorter, lengths[shorter] :] == -1).all())
    assert bool((pixels[shorter, lengths[shorter] :] == 0).all())
    padded = batch_images(images, pad_to=630)
    assert padded[0].shape == (2, 630, 768)
    assert torch.equal(padded[1][:, : max(lengths)], positions)


def test_batches_that_cannot_be_are_refused() -> None:
    image = load_image(Image.new("RGB", (48, 48)), SMALL)
    other = load_image(Image.new("RGB", (48, 48)), ImageSettings(budget=70, patch_size=8))
    with pytest.raises(MediaError, match="no images"):
        batch_images([])
    with pytest.raises(MediaError, match="different patch sizes"):
        batch_images([image, other])
    with pytest.raises(MediaError, match="cannot be padded to 9"):
        batch_images([image], pad_to=9)


def test_the_ids_of_an_image() -> None:
    assert image_prompt_tokens(3, 7, 8, 9) == [7, 8, 8, 8, 9]
    with pytest.raises(MediaError, match="at least one"):
        image_prompt_tokens(0, 7, 8, 9)


def test_without_pillow_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MediaError, match=r"pip install 'sfumato\[media\]'"):
        load_image(b"", SMALL)


def test_threads_decode_side_by_side() -> None:
    data, results = encoded("JPEG", (64, 48)), []
    expected = load_image(data, SMALL).pixel_values

    def work() -> None:
        results.append(torch.equal(load_image(data, SMALL).pixel_values, expected))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8
