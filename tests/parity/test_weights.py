"""Files, both ways, against transformers: its checkpoints load here, ours load there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    DiffusionGemmaGenerationConfig,
    EntropyBoundSamplerConfig,
)

from sfumato.config.generation import GenerationConfig, load_generation_config
from sfumato.config.parse import load_config, parse_config
from sfumato.config.write import to_json
from sfumato.weights.loader import build_on_meta, load_network
from tests.helpers import Shape, pair, randomise, reference_config, tiny_config
from tests.unit.checkpoint_files import write_checkpoint

RELEASED = Path(__file__).parents[1] / "data" / "released_config.json"
SHAPES = [
    Shape(vision=True),
    Shape(pattern="F", vision=True, experts=3, top_k=1),
    Shape(pattern="SFSF", vision=True, global_kv_heads=2, global_head_dim=16),
]


def tied(name: str) -> bool:
    """Whether the reference holds this name only as an alias of a decoder tensor."""
    inside = name.removeprefix("model.encoder.language_model.")
    return name == "lm_head.weight" or (inside != name and not inside.endswith("layer_scalar"))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shards", ["5GB", "40KB"])
def test_what_the_reference_saves_loads_here(tmp_path: Path, shape: Shape, shards: str) -> None:
    reference = DiffusionGemmaForBlockDiffusion(reference_config(tiny_config(shape)))
    randomise(reference, seed=3)
    reference.tie_weights()
    reference.save_pretrained(tmp_path, max_shard_size=shards)
    network, config = load_network(tmp_path)
    theirs = reference.state_dict()
    ours = network.state_dict()
    assert set(ours) == {name for name in theirs if not tied(name)}
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert config.dtype == "float32"
    assert config.text.layers == tiny_config(shape).text.layers


def test_a_tower_of_clipped_layers_comes_with_its_bounds(tmp_path: Path) -> None:
    plain = tiny_config(SHAPES[0])
    assert plain.vision is not None
    config = replace(plain, vision=replace(plain.vision, use_clipped_linears=True))
    reference = DiffusionGemmaForBlockDiffusion(reference_config(config))
    randomise(reference, seed=3)
    reference.tie_weights()
    reference.save_pretrained(tmp_path)
    network, read = load_network(tmp_path)
    assert read.vision == config.vision
    theirs = reference.state_dict()
    bounds = [name for name in theirs if name.endswith("input_min")]
    assert bounds
    assert all(torch.equal(tensor, theirs[n]) for n, tensor in network.state_dict().items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 30_000])
def test_what_is_exported_loads_there(tmp_path: Path, dtype: str, max_shard_bytes: int) -> None:
    network, _ = write_checkpoint(
        tmp_path / "m", shape=SHAPES[0], dtype=dtype, max_shard_bytes=max_shard_bytes
    )
    reference, info = DiffusionGemmaForBlockDiffusion.from_pretrained(
        tmp_path / "m", output_loading_info=True
    )
    assert not any(info[kind] for kind in info), info
    theirs = reference.state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor.to(getattr(torch, dtype)), theirs[name]), name
    assert reference.lm_head.weight is reference.model.decoder.embed_tokens.weight


@pytest.mark.parametrize("shape", [*SHAPES, Shape(pattern="FSSF", vision=True, top_k=4)])
def test_a_written_config_is_the_same_model_there(tmp_path: Path, shape: Shape) -> None:
    config = tiny_config(shape)
    theirs = DiffusionGemmaConfig(**to_json(config))
    with torch.device("meta"):
        expected = DiffusionGemmaForBlockDiffusion(reference_config(config)).state_dict()
        found = DiffusionGemmaForBlockDiffusion(theirs).state_dict()
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in expected.items()}
    theirs.save_pretrained(tmp_path)
    again = load_config(tmp_path)
    assert again == config
    for field in ("sliding_window", "final_logit_softcapping", "use_bidirectional_attention"):
        ours = to_json(config)["text_config"][field]
        assert getattr(theirs.text_config, field) == ours
    assert theirs.text_config.rope_parameters == to_json(config)["text_config"]["rope_parameters"]


def test_a_text_only_checkpoint_loads_there_but_for_the_vision_tower(tmp_path: Path) -> None:
    """The reference has no model without a tower: it makes up a random one of its default size."""
    network, config = write_checkpoint(tmp_path / "m", shape=Shape())
    assert config.vision is None
    reference, info = DiffusionGemmaForBlockDiffusion.from_pretrained(
        tmp_path / "m", output_loading_info=True
    )
    seeing = ("model.encoder.vision_tower.", "model.encoder.embed_vision.")
    assert all(name.startswith(seeing) for name in info["missing_keys"])
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    theirs = reference.state_dict()
    assert all(torch.equal(tensor, theirs[n]) for n, tensor in network.state_dict().items())


def test_the_released_configuration_in_the_reference_s_own_spelling(tmp_path: Path) -> None:
    data: dict[str, Any] = json.loads(RELEASED.read_text())
    DiffusionGemmaConfig(**data).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "per_layer_config" in saved["text_config"]
    assert "global_head_dim" not in saved["text_config"]
    assert load_config(tmp_path) == parse_config(data)


def test_the_released_names_and_shapes_are_the_reference_s() -> None:
    data: dict[str, Any] = json.loads(RELEASED.read_text())
    ours = build_on_meta(parse_config(data)).state_dict()
    with torch.device("meta"):
        reference = DiffusionGemmaForBlockDiffusion(DiffusionGemmaConfig(**data)).state_dict()
    expected = {name: tensor.shape for name, tensor in reference.items() if not tied(name)}
    assert {name: tensor.shape for name, tensor in ours.items()} == expected
    assert len(ours) == 1047


def test_generation_settings_both_ways(tmp_path: Path) -> None:
    text = tiny_config(Shape()).text
    settings = GenerationConfig(
        max_denoising_steps=9, entropy_bound=0.25, t_min=0.1, t_max=1.5, eos_token_id=(7, 8)
    )
    (tmp_path / "generation_config.json").write_text(json.dumps(settings.to_json()))
    theirs = DiffusionGemmaGenerationConfig.from_pretrained(tmp_path)
    assert theirs.sampler_config == EntropyBoundSamplerConfig(0.25)
    assert (theirs.t_min, theirs.t_max, theirs.max_denoising_steps) == (0.1, 1.5, 9)
    assert theirs.eos_token_id == [7, 8]
    theirs.save_pretrained(tmp_path)
    assert load_generation_config(tmp_path, text) == settings


def test_files_and_memory_give_the_same_logits(tmp_path: Path) -> None:
    """The whole way: the reference's weights, saved by it, loaded here, computing the same."""
    ours, reference = pair(SHAPES[0], seed=5)
    reference.save_pretrained(tmp_path)
    loaded, _ = load_network(tmp_path)
    ids = torch.arange(10)[None] % 90
    canvas = torch.arange(12)[None]
    with torch.no_grad():
        expected = ours.denoise(canvas, ours.encode(ids))
        assert torch.equal(loaded.denoise(canvas, loaded.encode(ids)), expected)
