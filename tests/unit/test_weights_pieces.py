"""NVFP4 checkpoints of others: read to the bit in both dialects, or one error that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.errors import CheckpointError
from sfumato.quant.nvfp4 import Nvfp4Tensor, decode
from sfumato.weights.loader import load_network
from tests.unit.nvfp4_checkpoints import (
    CACHE,
    COMPRESSED_FIELD,
    EXPERT,
    LAYER,
    MODELOPT_FIELD,
    rewrite,
    write_nvfp4,
)

QUERY = LAYER + "self_attn.q_proj"
NORM = "model.decoder.norm.weight"


def weight_of(tensors: dict[str, Tensor], module: str, dtype: torch.dtype) -> Tensor:
    """A matrix of a ModelOpt checkpoint, decoded."""
    codes, scale, tensor_scale = (
        tensors[f"{module}.weight{end}"] for end in ("", "_scale", "_scale_2")
    )
    return decode(Nvfp4Tensor(codes, scale, tensor_scale), dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
def test_experts_are_fused_gate_first(tmp_path: Path, dtype: str) -> None:
    tensors = write_nvfp4(tmp_path / "m")
    network, config = load_network(tmp_path / "m", dtype)
    wanted = getattr(torch, dtype)
    state = network.state_dict()
    assert {tensor.dtype for tensor in state.values()} == {wanted}
    gate, up, down = (
        weight_of(tensors, f"{EXPERT}{part}_proj", wanted) for part in ("gate", "up", "down")
    )
    assert torch.equal(state[LAYER + "experts.gate_up_proj"][1], torch.cat((gate, up)))
    assert torch.equal(state[LAYER + "experts.down_proj"][1], down)
    assert torch.equal(state[QUERY + ".weight"], weight_of(tensors, QUERY, wanted))
    assert torch.equal(state[NORM], tensors[NORM].to(wanted))
    assert config.dtype == "bfloat16"


def test_both_dialects_are_one_network(tmp_path: Path) -> None:
    write_nvfp4(tmp_path / "ours", "modelopt")
    write_nvfp4(tmp_path / "theirs", "compressed-tensors")
    for dtype in ("bfloat16", "float32"):
        ours, _ = load_network(tmp_path / "ours", dtype)
        theirs, _ = load_network(tmp_path / "theirs", dtype)
        other = theirs.state_dict()
        assert all(torch.equal(t, other[name]) for name, t in ours.state_dict().items())


def test_the_activations_scale_may_be_missing(tmp_path: Path) -> None:
    write_nvfp4(tmp_path / "m")

    def weight_only(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(".input_scale")]:
            del tensors[name]

    whole = load_network(tmp_path / "m", "float32")[0].state_dict()
    whole = {name: tensor.clone() for name, tensor in whole.items()}
    rewrite(tmp_path / "m", weight_only)
    again = load_network(tmp_path / "m", "float32")[0].state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_single_experts_may_be_plain(tmp_path: Path) -> None:
    tensors = write_nvfp4(tmp_path / "m")
    plain = torch.randn(32, 32).bfloat16()

    def keep_one(tensors: dict[str, Tensor]) -> None:
        for end in ("weight_scale", "weight_scale_2", "input_scale"):
            del tensors[f"{EXPERT}up_proj.{end}"]
        tensors[EXPERT + "up_proj.weight"] = plain

    rewrite(tmp_path / "m", keep_one)
    network, _ = load_network(tmp_path / "m")
    fused = network.state_dict()[LAYER + "experts.gate_up_proj"][1]
    assert torch.equal(fused[32:], plain)
    assert torch.equal(fused[:32], weight_of(tensors, EXPERT + "gate_proj", torch.bfloat16))


def test_tied_copies_must_be_equal(tmp_path: Path) -> None:
    write_nvfp4(tmp_path / "m")
    copy = QUERY.replace("model.decoder.", "model.encoder.language_model.")

    def tie(tensors: dict[str, Tensor]) -> None:
        for end in ("weight", "weight_scale", "weight_scale_2", "input_scale"):
            tensors[f"{copy}.{end}"] = tensors[f"{QUERY}.{end}"].clone()

    rewrite(tmp_path / "m", tie)
    load_network(tmp_path / "m")
    rewrite(tmp_path / "m", lambda t: t[copy + ".weight"].add_(1))
    with pytest.raises(CheckpointError, match="1 there twice and different"):
        load_network(tmp_path / "m")


def test_scales_of_a_kv_cache_are_known_where_one_is_announced(tmp_path: Path) -> None:
    write_nvfp4(tmp_path / "m", field=MODELOPT_FIELD | {"kv_cache_scheme": CACHE})
    write_nvfp4(tmp_path / "n")
    for folder in ("m", "n"):
        rewrite(
            tmp_path / folder,
            lambda t: t.update({LAYER + "self_attn.k_proj.k_scale": torch.tensor(1.0)}),
        )
    load_network(tmp_path / "m")
    with pytest.raises(CheckpointError, match=r"1 not part of the model \(.*k_scale"):
        load_network(tmp_path / "n")


def as_plain(tensors: dict[str, Tensor]) -> None:
    """The file without a quantised matrix."""
    for name in [name for name in tensors if "weight_scale" in name or "input_scale" in name]:
        del tensors[name]
    for name in [name for name in tensors if ".experts." in name]:
        del tensors[name]
    for layer in range(2):
        experts = f"model.decoder.layers.{layer}.experts."
        tensors[experts + "gate_up_proj"] = torch.zeros(4, 64, 32)
        tensors[experts + "down_proj"] = torch.zeros(4, 32, 32)
    for name, tensor in tensors.items():
        if tensor.dtype == torch.uint8:
            tensors[name] = torch.zeros(tensor.shape[0], 2 * tensor.shape[1])


Change = Callable[[dict[str, Tensor]], Any]
DOWN = EXPERT + "down_proj"
REFUSED: list[tuple[Change, str]] = [
    (lambda t: t.pop(DOWN + ".weight"), f"1 missing ({DOWN}.weight)"),
    (lambda t: t.pop(DOWN + ".weight_scale"), f"1 missing ({DOWN}.weight_scale)"),
    (lambda t: t.pop(DOWN + ".weight_scale_2"), f"1 missing ({DOWN}.weight_scale_2)"),
    (lambda t: t.pop(NORM), f"1 missing ({NORM})"),
    (
        lambda t: [t.pop(name) for name in list(t) if name.startswith(LAYER + "experts.")],
        f"2 missing ({LAYER}experts.gate_up_proj, {LAYER}experts.down_proj)",
    ),
    (lambda t: t.update(stray=torch.ones(1)), "1 not part of the model ('stray')"),
    (lambda t: t.update({DOWN + ".bias": torch.ones(1)}), "down_proj.bias"),
    (lambda t: t.update({DOWN + ".weight_packed": t[DOWN + ".weight"].clone()}), "weight_packed"),
    (
        lambda t: t.update({LAYER + "experts.4.up_proj.weight_scale": torch.ones(1)}),
        "1 not part of the model ('model.decoder.layers.0.experts.4.up_proj.weight_scale')",
    ),
    (
        lambda t: t.update({DOWN + ".weight": torch.zeros(32, 15, dtype=torch.uint8)}),
        f"({DOWN}.weight is [32, 15], should be [32, 16])",
    ),
    (
        lambda t: t.update({DOWN + ".weight_scale": t[DOWN + ".weight_scale"][:, :1].clone()}),
        f"({DOWN}.weight_scale is [32, 1], should be [32, 2])",
    ),
    (
        lambda t: t.update({DOWN + ".weight_scale_2": torch.ones(2)}),
        f"({DOWN}.weight_scale_2 is [2], should be [])",
    ),
    (lambda t: t.update({DOWN + ".input_scale": torch.ones(2)}), "input_scale is [2]"),
    (
        lambda t: t.update({DOWN + ".weight_scale": t[DOWN + ".weight_scale"].bfloat16()}),
        f"({DOWN}.weight_scale is BF16, should be F8_E4M3)",
    ),
    (
        lambda t: t.update({DOWN + ".weight_scale_2": torch.tensor(1.0).double()}),
        f"({DOWN}.weight_scale_2 is F64, should be F32)",
    ),
    (lambda t: t.update({DOWN + ".weight": t[DOWN + ".weight"].to(torch.int8)}), "is I8"),
    (lambda t: t[DOWN + ".weight_scale_2"].fill_(float("nan")), "impossible tensor scale"),
    (lambda t: t[DOWN + ".weight_scale_2"].fill_(0), "impossible tensor scale"),
    (
        lambda t: t[DOWN + ".weight_scale"].view(torch.uint8)[3].fill_(0x7F),
        f"'{DOWN}.weight' holds a group scale that is NaN or negative",
    ),
    (as_plain, "says NVFP4 of modelopt, and no tensor is in it"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_tensors_that_do_not_fit(tmp_path: Path, change: Change, words: str) -> None:
    write_nvfp4(tmp_path / "m")
    rewrite(tmp_path / "m", change)
    with pytest.raises(CheckpointError) as caught:
        load_network(tmp_path / "m")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dialect", "kept"),
    [
        ("modelopt", EXPERT + "down_proj"),
        ("modelopt", "model.decoder.layers.0.experts*"),
        ("modelopt", "*.experts.1.down_p?oj"),
        ("compressed-tensors", EXPERT + "down_proj"),
    ],
)
def test_what_is_listed_as_kept_may_not_be_quantised(
    tmp_path: Path, dialect: str, kept: str
) -> None:
    field = MODELOPT_FIELD if dialect == "modelopt" else COMPRESSED_FIELD
    write_nvfp4(tmp_path / "m", dialect, field=field | {"ignore": [kept]})
    with pytest.raises(CheckpointError, match="in NVFP4, though the configuration keeps them"):
        load_network(tmp_path / "m")


def test_the_other_dialects_tensors(tmp_path: Path) -> None:
    write_nvfp4(tmp_path / "m", "modelopt", field=COMPRESSED_FIELD)
    with pytest.raises(CheckpointError, match=r"84 not part of the model .*28 of an unsupp"):
        load_network(tmp_path / "m")


def test_codes_without_a_configuration_are_not_guessed(tmp_path: Path) -> None:
    write_nvfp4(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(path.read_text().replace("quantization_config", "_name_or_path"))
    with pytest.raises(CheckpointError, match=r"q_proj\.weight is U8.*NVFP4 where the conf"):
        load_network(tmp_path / "m")
