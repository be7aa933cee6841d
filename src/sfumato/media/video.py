"""A video as a few timed images.

The model sees a video as frames spread evenly over it, each with a small budget of soft tokens and
its time written before it. Frames come from the caller, or from a file through PyAV if that is
installed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.config.processor import ProcessorConfig
from sfumato.errors import MediaError
from sfumato.media.image import (
    ImageInput,
    ImageSettings,
    image_prompt_tokens,
    load_image,
    read_file,
)

if TYPE_CHECKING:
    from PIL import Image

    from sfumato.media.image import ImageSource

# Container by its first bytes. FFmpeg is told which one to expect: left to guess, it would also
# take playlists, which name other files and addresses to open.
_CONTAINERS = (
    (4, b"ftyp", "mov"),
    (0, b"\x1a\x45\xdf\xa3", "matroska"),
    (8, b"AVI ", "avi"),
)


@dataclass(frozen=True, kw_only=True)
class VideoSettings:
    """How densely a video is seen, and what is refused.

    Without `frames_per_second`, `max_frames` frames (or all, if there are fewer) are spread over
    the whole video. With it, that many are taken from each second, and a video longer than
    `max_seconds` is refused. `max_source_frames` and `max_bytes` bound what is decoded at all.
    """

    max_frames: int = 32
    frames_per_second: float | None = None
    max_seconds: float = 60.0
    max_source_frames: int = 20_000
    max_bytes: int = 256 * 2**20
    image: ImageSettings = field(default_factory=lambda: ImageSettings(budget=70))

    def __post_init__(self) -> None:
        for name in ("max_frames", "max_source_frames", "max_bytes"):
            if getattr(self, name) < 1:
                raise MediaError(f"{name} must be at least 1, not {getattr(self, name)}")
        rates = {"max_seconds": self.max_seconds}
        if self.frames_per_second is not None:
            rates["frames_per_second"] = self.frames_per_second
        for name, rate in rates.items():
            if not (math.isfinite(rate) and rate > 0):
                raise MediaError(f"{name} must be a positive number, not {rate}")

    @classmethod
    def of(cls, processor: ProcessorConfig) -> VideoSettings:
        """The settings of a checkpoint's processor files, with the usual limits."""
        image = ImageSettings.of(processor)
        return cls(
            max_frames=processor.video_frames, image=replace(image, budget=processor.video_budget)
        )


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """One sampled frame and its time from the start, in seconds."""

    seconds: float
    image: ImageInput

    @property
    def timestamp(self) -> str:
        """The time as the prompt spells it, `mm:ss`, rounded down."""
        return f"{int(self.seconds // 60):02d}:{int(self.seconds % 60):02d}"


@dataclass(frozen=True, eq=False)
class VideoInput:
    """The sampled frames of one video, in order."""

    frames: tuple[VideoFrame, ...]

    @property
    def images(self) -> list[ImageInput]:
        """The frames' images, ready for `batch_images`."""
        return [frame.image for frame in self.frames]


def sample_indices(total: int, count: int) -> list[int]:
    """`count` of `total` frame numbers, evenly spread from the first: floor(i * total / count)."""
    if not 1 <= count <= total:
        raise MediaError(f"{count} frames cannot be sampled from {total}")
    return [index * total // count for index in range(count)]


def frame_count(total: int, fps: float, settings: VideoSettings) -> int:
    """How many of a video's `total` frames at `fps` are sampled."""
    if total < 1:
        raise MediaError("the video has no frames")
    if not (math.isfinite(fps) and fps > 0):
        raise MediaError(f"a video's frame rate must be a positive number, not {fps}")
    if settings.frames_per_second is None:
        return min(settings.max_frames, total)
    if total / fps > settings.max_seconds:
        raise MediaError(
            f"the video is {total / fps:.0f} s long, more than the {settings.max_seconds:g} s "
            f"that are seen at {settings.frames_per_second:g} frames a second",
            hint="cut it, or leave frames_per_second out to spread frames over all of it",
        )
    return min(total, max(1, int(total / fps * settings.frames_per_second)))


def load_frames(
    frames: Sequence[ImageSource], fps: float, settings: VideoSettings | None = None
) -> VideoInput:
    """Sample a video given as all of its frames, at `fps` frames a second.

    Only the sampled frames are read. Raises MediaError for no frames, a rate that is no rate, or a
    frame that cannot be read.
    """
    settings = settings or VideoSettings()
    chosen = sample_indices(len(frames), frame_count(len(frames), fps, settings))
    return VideoInput(
        tuple(
            VideoFrame(index / fps, load_image(frames[index], settings.image)) for index in chosen
        )
    )


def load_video(source: str | Path | bytes, settings: VideoSettings | None = None) -> VideoInput:
    """Decode and sample a video file (MP4 or MOV, WEBM or Matroska, AVI) through PyAV.

    Raises MediaError if PyAV is missing, and for files that are damaged, too large or too long.
    """
    settings = settings or VideoSettings()
    av = _pyav()
    data = read_file(source, settings.max_bytes) if isinstance(source, str | Path) else source
    if len(data) > settings.max_bytes:
        raise MediaError(f"the video file has more than the {settings.max_bytes} bytes allowed")
    container = _container(data)
    try:
        total, fps = _measure(av, data, container, settings)
        chosen = sample_indices(total, frame_count(total, fps, settings))
        images = _decode(av, data, container, chosen, settings)
    except (av.error.FFmpegError, ValueError, LookupError, ArithmeticError) as error:
        raise _unreadable() from error
    frames = (
        VideoFrame(index / fps, load_image(image, settings.image))
        for index, image in zip(chosen, images, strict=False)
    )
    return VideoInput(tuple(frames))


def video_prompt(video: VideoInput, boi: int, image: int, eoi: int) -> list[str | list[int]]:
    """A video's place in a prompt, as text and token ids by turns.

    Each frame is its timestamp, a space and the ids of its image; frames are a space apart.
    """
    parts: list[str | list[int]] = []
    for frame in video.frames:
        parts.append(f"{' ' if parts else ''}{frame.timestamp} ")
        parts.append(image_prompt_tokens(frame.image.num_soft_tokens, boi, image, eoi))
    return parts


def _pyav() -> Any:
    """PyAV's module; typed loosely because it may be absent."""
    try:
        import av
        import av.error
    except ImportError as error:
        raise MediaError(
            "reading video files needs PyAV, which is not installed",
            hint="pip install av, or give the frames as images with their frame rate",
        ) from error
    return av


def _unreadable() -> MediaError:
    return MediaError(
        "the video cannot be read: it is damaged or of another format",
        hint="MP4, MOV, WEBM, Matroska and AVI are read",
    )


def _container(data: bytes) -> str:
    for offset, magic, name in _CONTAINERS:
        if data[offset : offset + len(magic)] == magic:
            return name
    raise _unreadable()


def _open(av: Any, data: bytes, container: str, settings: VideoSettings) -> Any:
    """An open container whose first video stream is within the pixel limit."""
    opened = av.open(io.BytesIO(data), mode="r", format=container)
    if not opened.streams.video:
        opened.close()
        raise MediaError("the file has no video in it")
    stream = opened.streams.video[0]
    codec = stream.codec_context  # None for a codec that this PyAV does not know
    if codec is None or codec.width < 1 or codec.height < 1:
        opened.close()
        raise _unreadable()
    if codec.width * codec.height > settings.image.max_pixels:
        opened.close()
        raise MediaError(
            f"the video's frames are {codec.width} x {codec.height} pixels, more than the "
            f"{settings.image.max_pixels} allowed"
        )
    return opened


def _measure(av: Any, data: bytes, container: str, settings: VideoSettings) -> tuple[int, float]:
    """Number of frames, counted without decoding, and frames a second."""
    with _open(av, data, container, settings) as opened:
        stream = opened.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate
        total = 0
        for packet in opened.demux(stream):
            total += packet.size > 0
            if total > settings.max_source_frames:
                raise MediaError(
                    f"the video has more than the {settings.max_source_frames} frames allowed",
                    hint="cut it first",
                )
        return total, float(rate or 0)


def _decode(
    av: Any, data: bytes, container: str, chosen: list[int], settings: VideoSettings
) -> list[Image.Image]:
    """The frames of the numbers in `chosen`, ascending."""
    wanted, images = set(chosen), []
    with _open(av, data, container, settings) as opened:
        for number, frame in enumerate(opened.decode(video=0)):
            if frame.width * frame.height > settings.image.max_pixels:
                raise MediaError("a frame of the video has more pixels than allowed")
            if number in wanted:
                images.append(_turned(frame.to_image(), getattr(frame, "rotation", 0)))
            if number >= chosen[-1]:
                break
    if not images:
        raise _unreadable()
    return images


def _turned(image: Image.Image, degrees: int) -> Image.Image:
    """A frame as it is meant to be seen: turned by the file's angle, counter-clockwise."""
    return image.rotate(degrees, expand=True) if degrees else image
