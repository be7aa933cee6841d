"""processor_config.json and the older files: only sizes and budgets may vary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sfumato.config.model import VisionConfig
from sfumato.config.parse import parse_config
from sfumato.config.processor import ProcessorConfig, load_processor_config
from sfumato.errors import ConfigError
from tests.unit.checkpoint_files import config_fields, vision_fields


def tower() -> VisionConfig:
    vision = parse_config(config_fields(vision_config=vision_fields())).vision
    assert vision is not None
    return vision


def image(**changes: Any) -> dict[str, Any]:
    fields = {
        "do_convert_rgb": True,
        "do_normalize": False,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.0, 0.0, 0.0],
        "image_processor_type": "Gemma4ImageProcessor",
        "image_seq_length": 280,
        "image_std": [1.0, 1.0, 1.0],
        "max_soft_tokens": 280,
        "patch_size": 16,
        "pooling_kernel_size": 3,
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
    }
    return fields | changes


def video(**changes: Any) -> dict[str, Any]:
    fields = image() | {
        "do_normalize": True,
        "do_sample_frames": True,
        "max_soft_tokens": 70,
        "num_frames": 32,
        "return_metadata": False,
        "video_processor_type": "Gemma4VideoProcessor",
    }
    del fields["image_processor_type"]
    return fields | changes


def write(folder: Path, name: str, data: dict[str, Any]) -> None:
    (folder / name).write_text(json.dumps(data))


def test_without_files_the_tower_decides(tmp_path: Path) -> None:
    assert load_processor_config(tmp_path, tower()) == ProcessorConfig()


def test_the_nested_file(tmp_path: Path) -> None:
    data = {
        "processor_class": "Gemma4Processor",
        "image_seq_length": 280,
        "audio_seq_length": 750,
        "feature_extractor": {"sampling_rate": 16_000},
        "image_processor": image(max_soft_tokens=560),
        "video_processor": video(num_frames=8),
    }
    write(tmp_path, "processor_config.json", data)
    config = load_processor_config(tmp_path, tower())
    assert (config.image_budget, config.video_budget, config.video_frames) == (560, 70, 8)


def test_the_older_files_and_their_agreement(tmp_path: Path) -> None:
    write(tmp_path, "preprocessor_config.json", image(max_soft_tokens=140))
    write(tmp_path, "video_preprocessor_config.json", video(max_soft_tokens=140))
    config = load_processor_config(tmp_path, tower())
    assert (config.image_budget, config.video_budget) == (140, 140)
    write(tmp_path, "processor_config.json", {"image_processor": image(max_soft_tokens=140)})
    assert load_processor_config(tmp_path, tower()) == config
    write(tmp_path, "processor_config.json", {"image_processor": image(max_soft_tokens=70)})
    with pytest.raises(ConfigError, match="disagree about the image settings"):
        load_processor_config(tmp_path, tower())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"do_resize": False}, "do_resize is unsupported"),
        ({"do_rescale": False}, "do_rescale is unsupported"),
        ({"resample": 2}, "resample is unsupported"),
        ({"rescale_factor": 1.0}, "rescale_factor is unsupported"),
        ({"image_mean": [0.5, 0.5, 0.5]}, "image_mean is unsupported"),
        ({"image_std": [1, 1, True]}, "image_std is unsupported"),
        ({"max_soft_tokens": 100}, "is 100, not one of"),
        ({"patch_size": 14}, "is 14, but the vision tower's is 16"),
        ({"do_center_crop": True}, "do_center_crop is unsupported"),
        ({"auto_map": {}}, "asks for Python code"),
        ({"min_pixels": 1}, "unknown field image_processor.min_pixels"),
    ],
)
def test_pictures_treated_otherwise_are_refused(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    write(tmp_path, "processor_config.json", {"image_processor": image(**change)})
    with pytest.raises(ConfigError) as caught:
        load_processor_config(tmp_path, tower())
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fps": 2.0}, "fps is unsupported"),
        ({"do_sample_frames": False}, "do_sample_frames is unsupported"),
        ({"num_frames": 10_000}, "num_frames must be between"),
    ],
)
def test_video_settings(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    write(tmp_path, "video_preprocessor_config.json", video(**change))
    with pytest.raises(ConfigError) as caught:
        load_processor_config(tmp_path, tower())
    assert words in str(caught.value)
