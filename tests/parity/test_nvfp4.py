"""NVFP4 against compressed-tensors: the same bytes from weights, the same weights from bytes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.quant.nvfp4 import MODELOPT, Nvfp4Tensor, decode, quantise
from sfumato.weights.loader import load_network
from tests.unit.nvfp4_checkpoints import LAYER, write_nvfp4

QUERY = LAYER + "self_attn.q_proj"


def library(name: str) -> Any:
    return importlib.import_module(f"compressed_tensors.{name}")


@pytest.fixture(scope="module")
def scheme() -> Any:
    return library("quantization").preset_name_to_scheme("NVFP4A16", ["Linear"])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_bytes_and_equal_weights(scheme: Any, seed: int, dtype: torch.dtype) -> None:
    """With the library's own global scale, 6 * 448 / largest, and our scales of the groups."""
    generator = torch.Generator().manual_seed(seed)
    weight = (0.02 * torch.randn(64, 256, generator=generator)).to(dtype)
    factor = library("quantization.utils").generate_gparam(weight.min(), weight.max())
    ours = quantise(weight, MODELOPT, (1 / factor).reshape(()))
    compressor = library("compressors.nvfp4.base").NVFP4PackedCompressor
    parts = {
        "weight": weight,
        "weight_scale": ours.scale.float(),
        "weight_global_scale": factor,
    }
    stored = compressor.compress(parts, scheme)
    assert torch.equal(stored["weight_packed"], ours.packed)
    assert torch.equal(stored["weight_scale"].view(torch.uint8), ours.scale.view(torch.uint8))
    theirs = compressor.decompress(stored, scheme)["weight"]
    assert theirs.dtype == torch.bfloat16
    read = Nvfp4Tensor(ours.packed, ours.scale, factor.float().reshape(()), reciprocal=True)
    exact = decode(read, torch.bfloat16)
    # The library rounds scale / global scale to fp32 before it multiplies: now and then a bf16
    # value falls on the other side. Ours is the exact one.
    assert torch.allclose(exact.float(), theirs.float(), rtol=2**-7, atol=0)
    assert (exact == theirs).float().mean() > 0.99


@pytest.mark.parametrize("dialect", ["modelopt", "compressed-tensors"])
def test_what_the_loader_and_the_library_read(scheme: Any, tmp_path: Path, dialect: str) -> None:
    tensors = write_nvfp4(tmp_path / "theirs", "compressed-tensors")
    write_nvfp4(tmp_path / "m", dialect)
    state = load_network(tmp_path / "m", "bfloat16")[0].state_dict()
    parts = {
        name.removeprefix(QUERY + "."): tensor
        for name, tensor in tensors.items()
        if name.startswith(QUERY + ".weight")
    }
    compressor = library("compressors.nvfp4.base").NVFP4PackedCompressor
    weight = compressor.decompress(parts, scheme)["weight"]
    assert torch.equal(state[QUERY + ".weight"], weight)
