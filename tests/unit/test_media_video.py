"""Sampling frames, timestamps, and reading video files."""

from __future__ import annotations

import io
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sfumato.config.processor import ProcessorConfig
from sfumato.errors import MediaError
from sfumato.media.image import ImageSettings, batch_images
from sfumato.media.video import (
    VideoSettings,
    frame_count,
    load_frames,
    load_video,
    sample_indices,
    video_prompt,
)

DAMAGED = "the video cannot be read|the file has no video in it"


def frames(count: int) -> list[Image.Image]:
    """`count` plain frames, each a little brighter than the one before."""
    return [Image.new("RGB", (64, 48), (index * 2, 0, 0)) for index in range(count)]


@given(st.integers(1, 5000), st.integers(1, 64))
def test_samples_ascend_from_the_first_frame_and_stay_inside(total: int, count: int) -> None:
    count = min(count, total)
    chosen = sample_indices(total, count)
    assert len(set(chosen)) == count
    assert chosen == sorted(chosen)
    assert chosen[0] == 0
    assert chosen[-1] < total
    gaps = {later - earlier for earlier, later in pairwise(chosen)}
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(("total", "count"), [(3, 4), (3, 0), (0, 1)])
def test_samples_that_cannot_be_are_refused(total: int, count: int) -> None:
    with pytest.raises(MediaError, match="cannot be sampled"):
        sample_indices(total, count)


@pytest.mark.parametrize(
    ("total", "fps", "per_second", "expected"),
    [
        (7, 24.0, None, 7),
        (32, 24.0, None, 32),
        (90_000, 25.0, None, 32),
        (250, 25.0, 1.0, 10),
        (1500, 25.0, 1.0, 60),
        (3, 25.0, 1.0, 1),
        (10, 2.0, 5.0, 10),
    ],
)
def test_how_many_frames(total: int, fps: float, per_second: float | None, expected: int) -> None:
    settings = VideoSettings(frames_per_second=per_second)
    assert frame_count(total, fps, settings) == expected


def test_a_video_beyond_the_seconds_seen_is_refused() -> None:
    with pytest.raises(MediaError, match="61 s long, more than the 60 s"):
        frame_count(1525, 25.0, VideoSettings(frames_per_second=1.0))


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_no_rate_is_refused(fps: float) -> None:
    with pytest.raises(MediaError, match="frame rate must be a positive number"):
        load_frames(frames(2), fps)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_frames": 0}, "max_frames must be at least 1"),
        ({"frames_per_second": 0.0}, "frames_per_second must be a positive number"),
        ({"max_seconds": float("nan")}, "max_seconds must be a positive number"),
    ],
)
def test_settings_are_checked(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(MediaError, match=words):
        VideoSettings(**fields)


def test_settings_of_a_checkpoint() -> None:
    processor = ProcessorConfig(patch_size=8, video_budget=140, video_frames=5)
    settings = VideoSettings.of(processor)
    assert settings.max_frames == 5
    assert settings.image == ImageSettings(budget=140, patch_size=8)
    assert VideoSettings.of(ProcessorConfig()) == VideoSettings()


def test_frames_given_as_images() -> None:
    video = load_frames(frames(100), fps=2.0, settings=VideoSettings(max_frames=4))
    assert [frame.seconds for frame in video.frames] == [0.0, 12.5, 25.0, 37.5]
    assert [frame.timestamp for frame in video.frames] == ["00:00", "00:12", "00:25", "00:37"]
    brightness = [float(image.pixel_values[0, 0]) for image in video.images]
    assert brightness == pytest.approx([0, 50 / 255, 100 / 255, 150 / 255])
    assert all(image.num_soft_tokens <= 70 for image in video.images)
    pixels, _ = batch_images(video.images)
    assert len(pixels) == 4


def test_only_sampled_frames_are_read(tmp_path: Path) -> None:
    sources: list[Any] = [tmp_path / "absent.png"] * 40
    sources[0] = sources[20] = Image.new("RGB", (48, 48))
    assert len(load_frames(sources, 1.0, VideoSettings(max_frames=2)).frames) == 2
    with pytest.raises(MediaError, match="cannot be opened"):
        load_frames(sources, 1.0, VideoSettings(max_frames=4))


def test_no_frames_is_no_video() -> None:
    with pytest.raises(MediaError, match="no frames"):
        load_frames([], 24.0)


def test_the_prompt_writes_a_time_before_each_frame() -> None:
    settings = VideoSettings(max_frames=2)
    video = load_frames(frames(130), fps=1.0, settings=settings)
    count = video.images[0].num_soft_tokens
    ids = [7, *[8] * count, 9]
    assert video_prompt(video, 7, 8, 9) == ["00:00 ", ids, " 01:05 ", ids]


def test_without_pyav_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MediaError, match="pip install av"):
        load_video(b"")


def video_file(container: str = "mp4", count: int = 48, codec: str = "mpeg4") -> bytes:
    """`count` frames at 24 a second, from black to bright red, left half green."""
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, mode="w", format=container) as opened:
        stream = opened.add_stream(codec, rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(count):
            image = Image.new("RGB", (64, 48), (index * 5, 0, 0))
            image.paste((0, 200, 0), (0, 0, 32, 48))
            for packet in stream.encode(av.VideoFrame.from_image(image)):
                opened.mux(packet)
        for packet in stream.encode(None):
            opened.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("mp4", "mpeg4"),
        ("mov", "mpeg4"),
        ("matroska", "mpeg4"),
        ("avi", "mpeg4"),
        ("webm", "libvpx"),
    ],
)
def test_video_files(container: str, codec: str, tmp_path: Path) -> None:
    path = tmp_path / "clip"
    path.write_bytes(video_file(container, codec=codec))
    video = load_video(path, VideoSettings(max_frames=4))
    assert [frame.seconds for frame in video.frames] == [0.0, 0.5, 1.0, 1.5]
    last_pixel = [float(image.pixel_values[-1, -3]) for image in video.images]
    assert last_pixel == pytest.approx([0, 60 / 255, 120 / 255, 180 / 255], abs=0.06)


def test_a_turned_video_is_seen_upright() -> None:
    """A phone held upright writes sideways frames and a matrix: a quarter turn clockwise."""
    data = bytearray(video_file("mov", count=2))
    unit, turn = 1 << 16, 1 << 30
    upright = b"".join(v.to_bytes(4, "big") for v in (unit, 0, 0, 0, unit, 0, 0, 0, turn))
    quarter = [0, unit, 0, 2**32 - unit, 0, 0, 48 * unit, 0, turn]
    start = data.index(upright, data.index(b"tkhd"))
    data[start : start + 36] = b"".join(v.to_bytes(4, "big") for v in quarter)

    image = load_video(bytes(data)).images[0]

    columns, rows = (image.position_ids.max(0).values + 1).tolist()
    assert rows > columns
    top, bottom = image.pixel_values[0].view(-1, 3), image.pixel_values[-1].view(-1, 3)
    # Left of the frame as stored is on top of the frame as seen.
    assert float(top[:, 1].mean()) > 0.5
    assert float(bottom[:, 1].mean()) < 0.2


def test_video_limits(tmp_path: Path) -> None:
    data = video_file(count=10)
    path = tmp_path / "clip.mp4"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(MediaError, match="bytes allowed"):
            load_video(source, VideoSettings(max_bytes=len(data) - 1))
    with pytest.raises(MediaError, match="more than the 9 frames"):
        load_video(data, VideoSettings(max_source_frames=9))
    with pytest.raises(MediaError, match="64 x 48 pixels"):
        load_video(data, VideoSettings(image=ImageSettings(budget=70, max_pixels=64 * 48 - 1)))


def test_files_that_are_no_video_are_refused() -> None:
    pytest.importorskip("av")
    data = video_file(count=4)
    playlist = b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n"
    for damaged in (b"", b"GIF89a", playlist, data[:40], data[: len(data) // 2]):
        with pytest.raises(MediaError, match=DAMAGED):
            load_video(damaged)


def test_a_file_with_sound_only_is_refused() -> None:
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, mode="w", format="mp4") as opened:
        stream = opened.add_stream("aac", rate=8000)
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.sample_rate = 8000
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            opened.mux(packet)
    with pytest.raises(MediaError, match="no video in it"):
        load_video(file.getvalue())
