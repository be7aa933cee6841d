"""A network in NVFP4 that is not decoded computes what the decoded one does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sfumato.api import load
from sfumato.config.generation import GenerationConfig
from sfumato.config.quantisation import FIELD, INT8_GROUP
from sfumato.diffusion.loop import Denoising, refine_canvas
from sfumato.diffusion.samplers import draws_for
from sfumato.diffusion.steps import FusedSteps
from sfumato.errors import CheckpointError, InputError, UsageError
from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.model.kernels import use_kernels
from sfumato.ops.kernels import Kernels
from sfumato.quant.int8 import Int8Tensor, quantise_rows
from sfumato.quant.int8 import decode as decode_rows
from sfumato.weights.export import export
from sfumato.weights.files import SINGLE
from sfumato.weights.names import EMBEDDING
from tests.unit.nvfp4_checkpoints import EXPERT, LAYER, rewrite, write_nvfp4

IDS = torch.tensor([[5, 9, 11, 30, 7]])


@pytest.mark.parametrize("dialect", ["modelopt", "compressed-tensors"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_is_decoded(kernels: Kernels, tmp_path: Path, dialect: str, dtype: str) -> None:
    """To the bit with the same kernels, the tensor scales here being powers of two."""
    write_nvfp4(tmp_path / "m", dialect)
    packed = load(tmp_path / "m", dtype, kernels=kernels.name)
    decoded = load(tmp_path / "m", dtype, kernels="reference")
    names = {LAYER + f"self_attn.{part}_proj.weight" for part in "qkvo"}
    assert names <= set(packed.network.packed)
    assert packed.network.get_parameter(LAYER + "self_attn.q_proj.weight").is_meta
    assert not packed.network.quantised
    canvas = torch.arange(3, 3 + packed.config.canvas_length)[None]
    with torch.inference_mode():
        found = packed.denoise(canvas, packed.encode(IDS))
        plain = decoded.denoise(canvas, decoded.encode(IDS))
        use_kernels(decoded.network, kernels)
        assert torch.equal(found, decoded.denoise(canvas, decoded.encode(IDS)))
    if dtype == "float32":
        torch.testing.assert_close(found, plain, rtol=0, atol=2e-5 * float(plain.abs().max()))


def _put_embedding_in_8_bits(folder: Path) -> torch.Tensor:
    """With scales that are powers of two; the decoded table."""
    decoded = []

    def change(tensors: dict[str, torch.Tensor]) -> None:
        stored = quantise_rows(tensors[EMBEDDING])
        stored = Int8Tensor(stored.codes, torch.exp2(stored.scale.log2().round()))
        tensors |= {EMBEDDING: stored.codes, f"{EMBEDDING}_scale": stored.scale}
        decoded.append(decode_rows(stored, torch.float32))

    rewrite(folder, change)
    fields = json.loads((folder / "config.json").read_text())
    fields[FIELD]["config_groups"]["group_1"] = dict(INT8_GROUP)
    (folder / "config.json").write_text(json.dumps(fields))
    return decoded[0]


def _refined(network: DiffusionGemma) -> torch.Tensor:
    """A canvas after six steps without written logits."""
    denoising = Denoising.of(GenerationConfig(max_denoising_steps=6))
    cache, draws = network.encode(IDS), draws_for([3], network.device)
    return refine_canvas(network, cache, denoising, draws, steps=FusedSteps())[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_embedding_in_8_bits_is_decoded(kernels: Kernels, tmp_path: Path, dtype: str) -> None:
    write_nvfp4(tmp_path / "m")
    table = _put_embedding_in_8_bits(tmp_path / "m")
    stored = load(tmp_path / "m", dtype, kernels=kernels.name)
    decoded = load(tmp_path / "m", dtype, kernels="reference")
    assert torch.equal(decoded.network.get_parameter(EMBEDDING).float(), table)
    assert stored.network.get_parameter(EMBEDDING).is_meta
    assert stored.network.device.type == "cpu"
    canvas = torch.arange(3, 3 + stored.config.canvas_length)[None]
    with torch.inference_mode():
        logits = stored.denoise(canvas, stored.encode(IDS))
        use_kernels(decoded.network, kernels)
        assert torch.equal(logits, decoded.denoise(canvas, decoded.encode(IDS)))
        soft, plain = (model.network.soft_embeddings(logits) for model in (stored, decoded))
        tolerance = {"float32": 1e-5, "bfloat16": 2e-2}[dtype] * float(plain.abs().max())
        torch.testing.assert_close(soft, plain, rtol=0, atol=tolerance)
        own, other = (_refined(model.network) for model in (stored, decoded))
    assert torch.equal(own, other)
    with pytest.raises(InputError, match="stay quantised"):
        use_kernels(stored.network, None)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_are_the_files_pages(kernels: Kernels, tmp_path: Path) -> None:
    write_nvfp4(tmp_path / "m")
    network = load(tmp_path / "m", kernels=kernels.name).network
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    own = [line[0].split("-") for line in maps if line[-1] == str(tmp_path / "m" / SINGLE)]
    places = [range(int(start, 16), int(stop, 16)) for start, stop in own]
    assert len(network.packed) == 8  # of one layer q, k, v and o, of two the experts
    for weight in network.packed.values():
        for tensor in (*weight.data, *weight.values, *weight.scales, *weight.value_scales):
            assert any(tensor.data_ptr() in place for place in places)


def test_float32_by_name_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SFUMATO_KERNELS", raising=False)
    write_nvfp4(tmp_path / "m")
    model = load(tmp_path / "m", "float32")
    assert model.network.kernels is None
    assert not model.network.packed
    assert not any(one.is_meta for one in model.network.parameters())


def test_what_no_kernel_takes_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SFUMATO_KERNELS", raising=False)
    write_nvfp4(tmp_path / "m")
    half = load(tmp_path / "m", "float16")
    assert half.network.kernels is None
    assert not any(one.is_meta for one in half.network.parameters())
    expected = load(tmp_path / "m", "float16", kernels="reference").network.state_dict()
    state = half.network.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


def test_kernels_named_and_not_served_are_an_error(kernels: Kernels, tmp_path: Path) -> None:
    write_nvfp4(tmp_path / "m")
    with pytest.raises(UsageError, match="float16"):
        load(tmp_path / "m", "float16", kernels=kernels.name)


def test_packed_weights_cannot_move_change_or_leave(kernels: Kernels, tmp_path: Path) -> None:
    write_nvfp4(tmp_path / "m")
    model = load(tmp_path / "m", kernels=kernels.name)
    network = model.network
    state = load(tmp_path / "m", kernels="reference").network.state_dict()
    for act in (network.half, lambda: network.to("cpu"), lambda: network.load_state_dict(state)):
        with pytest.raises(InputError, match="stay quantised"):
            act()
    with pytest.raises(InputError, match="stay quantised"):
        export(network, model.config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert network.packed


def test_kernels_change_but_do_not_go(kernels: Kernels, tmp_path: Path) -> None:
    write_nvfp4(tmp_path / "m")
    network = load(tmp_path / "m", kernels=kernels.name).network
    packed = dict(network.packed)
    assert use_kernels(network, Kernels("portable")) == {}
    assert network.packed == packed
    with pytest.raises(InputError, match="stay quantised"):
        use_kernels(network, None)


def test_experts_of_both_kinds_are_decoded(kernels: Kernels, tmp_path: Path) -> None:
    tensors = write_nvfp4(tmp_path / "m")
    module = f"{EXPERT}up_proj"
    shape = (tensors[f"{module}.weight"].shape[0], 2 * tensors[f"{module}.weight"].shape[1])
    stored = load_file(next((tmp_path / "m").glob("*.safetensors")))
    for end in ("weight_scale", "weight_scale_2", "input_scale"):
        del stored[f"{module}.{end}"]
    stored[f"{module}.weight"] = torch.randn(shape).bfloat16()
    save_file(stored, next((tmp_path / "m").glob("*.safetensors")))
    network = load(tmp_path / "m", kernels=kernels.name).network
    assert not network.get_parameter(LAYER + "experts.gate_up_proj").is_meta
    assert not network.get_parameter(LAYER + "experts.down_proj").is_meta
    assert network.get_parameter(LAYER + "self_attn.q_proj.weight").is_meta


def test_bad_scales_are_named(kernels: Kernels, tmp_path: Path) -> None:
    write_nvfp4(tmp_path / "m")
    name = f"{EXPERT}up_proj.weight_scale"

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(torch.uint8)[0, 0] = 0x7F

    rewrite(tmp_path / "m", spoil)
    with pytest.raises(CheckpointError, match=r"up_proj\.weight' holds a group scale that is NaN"):
        load(tmp_path / "m", kernels=kernels.name)
