"""How pictures become patches: processor_config.json and the older one-file-a-kind spelling.

Only sizes and budgets vary; everything else (bicubic resize, pixels over 255, no normalisation)
is part of the model, so a file that asks for something else is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sfumato.config.checkpoint_file import is_there
from sfumato.config.fields import Fields, short
from sfumato.config.json_file import read_json
from sfumato.config.model import VisionConfig
from sfumato.errors import ConfigError

SOFT_TOKEN_BUDGETS = (70, 140, 280, 560, 1120)
MAX_FRAMES = 1024
_BICUBIC = 3  # Pillow's number for it
_TOP_HARMLESS = (
    "audio_ms_per_token",
    "audio_seq_length",
    "auto_class",
    "chat_template",
    "feature_extractor",  # audio, which DiffusionGemma does not take
    "image_seq_length",
    "processor_class",
    "transformers_version",
)
_KIND_HARMLESS = (
    "data_format",
    "default_to_square",
    "device",
    "disable_grouping",
    "image_seq_length",
    "input_data_format",
    "processor_class",
    "return_metadata",
    "return_tensors",
    "size",  # met in converted checkpoints; the reference resizes by budget and never reads it
    "transformers_version",
)


@dataclass(frozen=True, kw_only=True)
class ProcessorConfig:
    """Sizes of patches (pixels), of pooling (patches a side) and budgets (soft tokens).

    `image_budget` is for a picture, `video_budget` for a frame; at most `video_frames` are kept.
    """

    patch_size: int = 16
    pooling_kernel_size: int = 3
    image_budget: int = 280
    video_budget: int = 70
    video_frames: int = 32


@dataclass(frozen=True)
class _Kind:
    patch_size: int
    pooling_kernel_size: int
    budget: int
    frames: int


def load_processor_config(folder: str | Path, vision: VisionConfig) -> ProcessorConfig:
    """The picture settings of the checkpoint in `folder`, checked against its vision tower.

    Without any of the files: the tower's own sizes and the released budgets. Raises ConfigError.
    """
    folder = Path(folder)
    image = _found(folder, vision, "image")
    video = _found(folder, vision, "video")
    return ProcessorConfig(
        patch_size=vision.patch_size,
        pooling_kernel_size=vision.pooling_kernel_size,
        image_budget=image.budget,
        video_budget=video.budget,
        video_frames=video.frames,
    )


def _found(folder: Path, vision: VisionConfig, kind: Literal["image", "video"]) -> _Kind:
    """The settings of one kind; the two spellings must agree where both are there."""
    found: dict[str, _Kind] = {}
    joint = folder / "processor_config.json"
    if is_there(joint):
        nested = _nested(read_json(joint), str(joint), kind, vision)
        if nested is not None:
            found[joint.name] = nested
    single = folder / (
        "preprocessor_config.json" if kind == "image" else "video_preprocessor_config.json"
    )
    if is_there(single):
        found[single.name] = _parse_kind(Fields(read_json(single), str(single)), vision, kind)
    if len(set(found.values())) > 1:
        raise ConfigError(f"{folder}: {' and '.join(found)} disagree about the {kind} settings")
    default = _Kind(vision.patch_size, vision.pooling_kernel_size, *_default_budget(kind))
    return next(iter(found.values()), default)


def _nested(
    data: dict[str, Any], source: str, kind: Literal["image", "video"], vision: VisionConfig
) -> _Kind | None:
    top = Fields(data, source)
    name = f"{kind}_processor"
    found = _parse_kind(top.child(name), vision, kind) if top.has(name) else None
    top.ignore((*_TOP_HARMLESS, "image_processor", "video_processor"))
    top.finish()
    return found


def _parse_kind(fields: Fields, vision: VisionConfig, kind: Literal["image", "video"]) -> _Kind:
    fields.ignore(_KIND_HARMLESS)
    for name in (f"{kind}_processor_type", "image_processor_type", "feature_extractor_type"):
        fields.ignore((name,))
    for name in ("do_resize", "do_rescale", "do_convert_rgb"):
        fields.only(name, True, "the model needs it")
    fields.only("resample", _BICUBIC, "pictures are resized bicubically")
    fields.only("do_center_crop", False, "pictures are not cropped")
    fields.ignore(("crop_size",))
    fields.boolean("do_normalize", False)  # whether or not, it is by mean 0 and deviation 1
    _identity(fields, "image_mean", 0.0)
    _identity(fields, "image_std", 1.0)
    factor = fields.number("rescale_factor", 1 / 255)
    if abs(factor * 255 - 1) > 1e-6:
        raise fields.unsupported("rescale_factor", f"pixels are divided by 255 (it is {factor})")
    default_budget, default_frames = _default_budget(kind)
    budget = fields.integer("max_soft_tokens", default_budget)
    if budget not in SOFT_TOKEN_BUDGETS:
        raise fields.error("max_soft_tokens", f"is {budget}, not one of {SOFT_TOKEN_BUDGETS}")
    frames = default_frames
    if kind == "video":
        frames = fields.integer("num_frames", default_frames, high=MAX_FRAMES)
        fields.only("do_sample_frames", True, "frames are sampled evenly")
        if fields.has("fps"):
            raise fields.unsupported("fps", "num_frames decides how many frames are kept")
        fields.ignore(("fps", "video_metadata"))
    sizes = {}
    for name in ("patch_size", "pooling_kernel_size"):
        ours = getattr(vision, name)
        sizes[name] = fields.integer(name, ours)
        if sizes[name] != ours:
            raise fields.error(name, f"is {sizes[name]}, but the vision tower's is {ours}")
    fields.finish()
    return _Kind(sizes["patch_size"], sizes["pooling_kernel_size"], budget, frames)


def _default_budget(kind: Literal["image", "video"]) -> tuple[int, int]:
    """Soft tokens and frames where no file says."""
    return (280, 1) if kind == "image" else (70, 32)


def _identity(fields: Fields, name: str, neutral: float) -> None:
    values = fields.take(name, [neutral])
    listed = values if isinstance(values, list) else [values]
    if any(isinstance(v, bool) or not isinstance(v, int | float) or v != neutral for v in listed):
        raise fields.unsupported(name, f"it must be {neutral:g} everywhere (it is {short(values)})")
