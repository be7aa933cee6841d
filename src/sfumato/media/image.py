"""One image as patches for the vision tower.

Any picture is decoded under limits, turned upright, laid on white where it is transparent, resized
to whole squares of patches within a budget of soft tokens, and cut up. What comes out is bit for
bit what the reference's image processor gives for the same upright picture; the two decisions that
are ours (EXIF orientation, 16-bit grey) are in docs/decisions.
"""

from __future__ import annotations

import contextlib
import io
import math
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfumato.config.processor import SOFT_TOKEN_BUDGETS, ProcessorConfig
from sfumato.errors import MediaError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    ImageSource = str | Path | bytes | bytearray | memoryview | Image.Image | np.ndarray[Any, Any]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

_EXIF_ORIENTATION = 0x0112
_SMALLER = "make it smaller first: the model sees less than 3 megapixels of it"
# Pillow reports through the process-wide warning filters; one thread at a time may change them.
_WARNINGS_LOCK = threading.Lock()
# What decoders are seen to raise on damaged bytes, besides SfumatoErrors of our own.
_DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How finely images are seen, and what is refused.

    `budget` is the most soft tokens an image may become; `max_bytes` bounds encoded files and
    `max_pixels` is checked from the header, before any pixel is decoded. The patch and pooling
    sizes are those of the checkpoint's vision tower.
    """

    budget: int = 280
    patch_size: int = 16
    pooling_kernel_size: int = 3
    max_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000

    def __post_init__(self) -> None:
        if self.budget not in SOFT_TOKEN_BUDGETS:
            allowed = ", ".join(map(str, SOFT_TOKEN_BUDGETS))
            raise MediaError(
                f"the image budget must be one of {allowed} soft tokens, not {self.budget}"
            )
        for name in ("patch_size", "pooling_kernel_size", "max_bytes", "max_pixels"):
            if getattr(self, name) < 1:
                raise MediaError(f"{name} must be at least 1, not {getattr(self, name)}")

    @classmethod
    def of(cls, processor: ProcessorConfig) -> ImageSettings:
        """The settings of a checkpoint's processor files, with the usual limits."""
        return cls(
            budget=processor.image_budget,
            patch_size=processor.patch_size,
            pooling_kernel_size=processor.pooling_kernel_size,
        )

    @property
    def unit(self) -> int:
        """Side in pixels of the square that becomes one soft token."""
        return self.patch_size * self.pooling_kernel_size

    @property
    def max_patches(self) -> int:
        """The most patches an image may be cut into."""
        return self.budget * self.pooling_kernel_size**2


@dataclass(frozen=True, eq=False)
class ImageInput:
    """An image ready for the tower.

    `pixel_values` [p, 3 * patch^2] fp32 in [0, 1], each patch flattened by row, column, channel;
    `position_ids` [p, 2] the (x, y) of each patch; it will be `num_soft_tokens` soft tokens.
    """

    pixel_values: Tensor
    position_ids: Tensor
    num_soft_tokens: int


def load_image(source: ImageSource, settings: ImageSettings | None = None) -> ImageInput:
    """Read one image from a path, encoded bytes, a Pillow image or a uint8 array [H, W, channels].

    Files and bytes may be PNG, JPEG, WEBP, GIF (its first frame) or BMP. An EXIF orientation is
    obeyed. Addresses are never fetched. Raises MediaError for anything else, with the same text
    whatever is wrong inside the file.
    """
    settings = settings or ImageSettings()
    return patches(read_rgb(source, settings), settings)


def fitted_size(height: int, width: int, settings: ImageSettings) -> tuple[int, int]:
    """The (height, width) that an image is resized to: whole units, within the budget.

    The area is scaled to that of the budget, up or down, and both sides are rounded down to whole
    units; a sliver that would vanish keeps one unit on its short side.
    """
    unit, budget = settings.unit, settings.budget
    scale = math.sqrt(settings.max_patches * settings.patch_size**2 / (height * width))
    rows = math.floor(scale * height / unit)
    columns = math.floor(scale * width / unit)
    if rows == 0:
        rows, columns = 1, min(math.floor(width / height), budget)
    elif columns == 0:
        rows, columns = min(math.floor(height / width), budget), 1
    return rows * unit, columns * unit


def patches(image: Image.Image, settings: ImageSettings) -> ImageInput:
    """Resize an RGB Pillow image with a bicubic filter and cut it into patches."""
    from PIL import Image

    height, width = fitted_size(image.height, image.width, settings)
    if (width, height) != image.size:
        image = image.resize((width, height), resample=Image.Resampling.BICUBIC)
    levels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    side = settings.patch_size
    rows, columns = height // side, width // side
    cut = levels.view(rows, side, columns, side, 3).transpose(1, 2).reshape(rows * columns, -1)
    x = torch.arange(columns).repeat(rows)
    y = torch.arange(rows).repeat_interleave(columns)
    return ImageInput(
        pixel_values=_unit_levels()[cut.long()],
        position_ids=torch.stack([x, y], dim=-1),
        num_soft_tokens=rows * columns // settings.pooling_kernel_size**2,
    )


def batch_images(
    images: Sequence[ImageInput], *, pad_to: int | None = None
) -> tuple[Tensor, Tensor]:
    """Pad images to one length: pixels [n, P, 3 * patch^2] with zeros, positions [n, P, 2] with -1.

    P is the longest image's number of patches, or `pad_to` if given.
    """
    if not images:
        raise MediaError("there are no images to batch")
    widths = {image.pixel_values.shape[-1] for image in images}
    if len(widths) > 1:
        raise MediaError("images cut with different patch sizes cannot be batched")
    longest = max(len(image.pixel_values) for image in images)
    length = longest if pad_to is None else pad_to
    if length < longest:
        raise MediaError(f"an image of {longest} patches cannot be padded to {length}")
    pixel_values = torch.zeros(len(images), length, widths.pop())
    position_ids = torch.full((len(images), length, 2), -1)
    for index, image in enumerate(images):
        pixel_values[index, : len(image.pixel_values)] = image.pixel_values
        position_ids[index, : len(image.position_ids)] = image.position_ids
    return pixel_values, position_ids


def image_prompt_tokens(num_soft_tokens: int, boi: int, image: int, eoi: int) -> list[int]:
    """The ids that stand for one image in a prompt: boi, a run of image tokens, eoi."""
    if num_soft_tokens < 1:
        raise MediaError(f"an image is at least one soft token, not {num_soft_tokens}")
    return [boi, *[image] * num_soft_tokens, eoi]


def read_rgb(source: ImageSource, settings: ImageSettings) -> Image.Image:
    """Decode `source` under the limits of `settings`: an upright RGB Pillow image."""
    pillow = _pillow()
    if isinstance(source, str | Path):
        source = read_file(source, settings.max_bytes)
    if isinstance(source, bytes | bytearray | memoryview):
        if len(source) > settings.max_bytes:
            raise _too_many_bytes(settings.max_bytes)
        with _decoding():
            with _quiet():
                image = pillow.open(io.BytesIO(source), formats=FORMATS)
            return _flatten(image, settings)
    if isinstance(source, pillow.Image):
        with _decoding():
            return _flatten(source, settings)
    if hasattr(source, "__array_interface__"):
        return _flatten(_from_array(source, settings), settings)
    raise MediaError(
        f"an image cannot be read from a {type(source).__name__}",
        hint="give a path, the bytes of a file, a Pillow image or a uint8 array",
    )


def _pillow() -> Any:
    """The module PIL.Image; typed loosely because it may be absent."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MediaError(
            "images need Pillow, which is not installed", hint="pip install 'sfumato[media]'"
        ) from error
    return Image


def read_file(path: str | Path, max_bytes: int) -> bytes:
    """The bytes of a regular file within the limit."""
    if isinstance(path, str) and (path.startswith("data:") or "://" in path):
        raise MediaError(
            "images are not fetched from addresses", hint="give a path or the file's bytes"
        )
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise MediaError(f"{path} is not a regular file")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no usable path"
        raise MediaError(f"the image {path} cannot be opened: {reason}") from error
    if len(data) > max_bytes:
        raise _too_many_bytes(max_bytes)
    return data


def _too_many_bytes(max_bytes: int) -> MediaError:
    return MediaError(f"the image file has more than the {max_bytes} bytes allowed")


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    """Turn whatever a decoder raises into one constant error."""
    from PIL import Image

    try:
        yield
    except Image.DecompressionBombError as error:
        raise MediaError("the image has more pixels than allowed", hint=_SMALLER) from error
    except _DECODER_ERRORS as error:
        raise MediaError(
            "the image cannot be read: it is damaged or of another format",
            hint="PNG, JPEG, WEBP, GIF and BMP are read",
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Pillow's warnings about headers: what matters is checked here."""
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _from_array(array: Any, settings: ImageSettings) -> Image.Image:
    shape = tuple(array.shape)
    channels = shape[2] if len(shape) == 3 else 1
    if str(array.dtype) != "uint8" or len(shape) not in (2, 3) or channels not in (1, 3, 4):
        raise MediaError(
            f"an image array must be uint8 of shape [height, width] or [height, width, 1, 3 or 4], "
            f"not {array.dtype} of shape {list(shape)}"
        )
    _check_size(shape[1], shape[0], settings)
    image: Image.Image = _pillow().fromarray(array[:, :, 0] if shape[2:] == (1,) else array)
    return image


def _check_size(width: int, height: int, settings: ImageSettings) -> None:
    if width < 1 or height < 1:
        raise MediaError("the image is empty")
    if width * height > settings.max_pixels:
        raise MediaError(
            f"the image is {width} x {height} pixels, more than the {settings.max_pixels} allowed",
            hint=_SMALLER,
        )


def _flatten(image: Image.Image, settings: ImageSettings) -> Image.Image:
    """Check the size, decode, lay on white, turn upright."""
    _check_size(*image.size, settings)
    image.load()
    with _quiet():
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    return _upright(_rgb(image), orientation)


def _rgb(image: Image.Image) -> Image.Image:
    """RGB, transparency composited onto white."""
    from PIL import Image

    if image.mode in ("I;16", "I;16L", "I;16B"):
        # A plain conversion would clip 16-bit grey to white; the high byte is what is visible.
        start = 0 if image.mode == "I;16B" else 1
        return Image.frombytes("L", image.size, image.tobytes()[start::2]).convert("RGB")
    if image.mode in ("I", "F"):
        raise MediaError(
            f"images of mode {image.mode} have no agreed range of brightness",
            hint="convert it to 8 bits a channel first",
        )
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _upright(image: Image.Image, orientation: object) -> Image.Image:
    """Undo an EXIF orientation (2 to 8); anything else means upright already."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = turns.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _unit_levels() -> Tensor:
    """The 256 brightness levels as fp32 in [0, 1], rounded once, from double precision."""
    return (torch.arange(256, dtype=torch.float64) * (1 / 255)).float()
