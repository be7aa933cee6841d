"""A layer in two calls of compiled code is the layer composed of single kernels, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sfumato.api import load
from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.model.fast_layer import FastLayer
from sfumato.model.kernels import use_kernels
from sfumato.model.layer import Layer
from sfumato.ops.kernels import Kernels
from sfumato.weights.export import export
from tests.helpers import randomise
from tests.unit.nvfp4_checkpoints import quantisable_config, write_nvfp4

IDS = torch.tensor([[5, 9, 11, 30, 7], [4, 8, 0, 0, 0]])
REAL = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])


def write_plain(folder: Path) -> None:
    config = quantisable_config()
    network = DiffusionGemma(config)
    randomise(network, 3)
    export(network, config, folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", ["plain", "packed", "nvfp4"])
@pytest.mark.parametrize("threads", [1, 2])
def test_compiled_is_composed(
    kernels: Kernels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    stored: str,
    threads: int,
) -> None:
    if stored == "plain":
        monkeypatch.setattr("sfumato.model.kernels.PACKED_BYTES", 0)
    if stored == "nvfp4":
        write_nvfp4(tmp_path / "m")
    else:
        write_plain(tmp_path / "m")
    model = load(tmp_path / "m", dtype, kernels=kernels.name)
    network = model.network
    canvas = torch.arange(6, 6 + 2 * model.config.canvas_length).view(2, -1) % 40
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = []
        for composed in (False, True):
            for layer in network.layers:
                layer.fast = FastLayer(layer, kernels, composed=composed)
                assert (layer.fast._native is None) == composed
            with torch.inference_mode():
                hidden, cache = network.encode_hidden(IDS, attention_mask=REAL)
                found.append((hidden, network.denoise(canvas, cache)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0][0].nan_to_num(7.0), found[1][0].nan_to_num(7.0))
    assert torch.equal(found[0][1], found[1][1])


def test_what_has_no_kernel_is_composed(kernels: Kernels, tmp_path: Path) -> None:
    write_plain(tmp_path / "m")
    network = load(tmp_path / "m", "float32", kernels=kernels.name).network
    layer = network.layers[0]
    layer.mlp.kernel = None
    assert FastLayer(layer, kernels)._native is None


def test_many_rows_are_those_of_single_operations(kernels: Kernels, tmp_path: Path) -> None:
    write_plain(tmp_path / "m")
    network = load(tmp_path / "m", "float32", kernels=kernels.name).network
    layer = network.layers[0]
    x = torch.randn(2, 300, network.config.text.hidden_size)
    heads = layer.self_attn.q_proj.out_features // layer.self_attn.head_dim
    mixed = torch.randn(2, 300, heads, layer.self_attn.head_dim).transpose(1, 2)
    scalar = torch.tensor([0.7])
    with torch.inference_mode():
        whole = FastLayer(layer, kernels).finish(x, mixed, scalar)
        assert torch.equal(whole, FastLayer(layer, kernels, composed=True).finish(x, mixed, scalar))
        last = FastLayer(layer, kernels).finish(x[1:, -1:], mixed[1:, :, -1:], scalar)
    assert torch.equal(whole[1, -1], last[0, 0])


def test_more_rows_than_are_projected_at_once(kernels: Kernels, tmp_path: Path) -> None:
    write_plain(tmp_path / "m")
    network = load(tmp_path / "m", "float32", kernels=kernels.name).network
    x = torch.randn(2, 300, network.config.text.hidden_size)
    for layer in network.layers:
        dim = layer.self_attn.head_dim
        tables = (torch.rand(2, 300, dim), torch.rand(2, 300, dim))
        with torch.inference_mode():
            found = FastLayer(layer, kernels).project(x, tables)
            composed = FastLayer(layer, kernels, composed=True).project(x, tables)
        assert torch.equal(found[0], composed[0])
        for name in ("keys", "values", "raw"):
            own, other = getattr(found[1], name), getattr(composed[1], name)
            assert (own is None and other is None) or torch.equal(own, other)


def test_a_prompt_gives_back_what_it_took(
    kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plain(tmp_path / "m")
    network = load(tmp_path / "m", "float32", kernels=kernels.name).network
    given_back: list[bool] = []
    monkeypatch.setattr(kernels.native, "give_back_scratch", lambda: given_back.append(True))
    network.encode_positions = 2
    with torch.inference_mode():
        network.encode(IDS, attention_mask=REAL)
    assert given_back == [True], "once for all of its passes"


def _layouts(network: DiffusionGemma) -> set[str]:
    kernel = network.layers[0].experts.kernel
    assert isinstance(kernel, partial)
    return {kernel.keywords[name].layout for name in ("gate_up", "down")}


def test_a_small_model_is_packed_if_that_loses_nothing(
    kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit; and experts of which one half is not exact in bf16 stay both as they are."""
    write_plain(tmp_path / "m")
    found = []
    for most, layout in ((0, "f32_rows"), (1 << 28, "bf16_panels")):
        monkeypatch.setattr("sfumato.model.kernels.PACKED_BYTES", most)
        network = load(tmp_path / "m", "bfloat16").network.float()
        assert use_kernels(network, kernels) == {}
        assert _layouts(network) == {layout}
        with torch.inference_mode():
            found.append(network.encode_hidden(IDS, attention_mask=REAL)[0].nan_to_num(7.0))
    assert torch.equal(*found)
    for layer in network.layers:
        layer.experts.down_proj.data += 2.0**-20
    assert use_kernels(network, kernels) == {}
    assert _layouts(network) == {"f32_rows"}


def _with_threads(count: int, work: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return work()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("threads", "each"), [(2, 61), (3, 61), (7, 61), (2, 300)])
def test_rows_in_parts_have_the_bits_of_all(
    kernels: Kernels, tmp_path: Path, dtype: torch.dtype, threads: int, each: int
) -> None:
    """Layers that fit a cache: each thread takes its rows through a half, in uneven parts too.

    Of 600 rows two threads would have more than they take for themselves: kernel by kernel.
    """
    write_plain(tmp_path / "m")
    network = load(tmp_path / "m", "bfloat16").network.to(dtype)
    assert use_kernels(network, kernels) == {}
    in_place = kernels.matrix_registers and dtype == torch.bfloat16
    assert _layouts(network) == {"bf16_rows" if in_place else "bf16_panels"}
    generator = torch.Generator().manual_seed(threads)
    x = torch.randn(2, each, network.config.text.hidden_size, generator=generator).to(dtype)
    tables = network.tables(torch.arange(each).expand(2, -1), dtype)
    with torch.inference_mode():
        for layer in network.layers:

            def both_halves(layer: Layer = layer) -> tuple[Tensor, ...]:
                queries, fresh = layer.project(x, tables[layer.kind])
                mixed = queries.transpose(1, 2).contiguous().transpose(1, 2)
                raw = () if fresh.raw is None else (fresh.raw,)
                out = layer.finish(x, mixed, layer.layer_scalar)
                return queries, fresh.keys, fresh.values, out, *raw

            wanted, found = (_with_threads(count, both_halves) for count in (1, threads))
            for one, other in zip(wanted, found, strict=True):
                assert torch.equal(one, other)
