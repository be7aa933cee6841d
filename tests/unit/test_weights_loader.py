"""Folders, shards, names and the loader: complete and exact, or one error that names it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sfumato.errors import CheckpointError, ConfigError, InputError
from sfumato.weights.files import INDEX, SINGLE, WeightFiles
from sfumato.weights.loader import load_network
from sfumato.weights.names import canonical
from tests.unit.checkpoint_files import write_checkpoint, write_tensors

ROOT = Path(__file__).parents[2]

EMBEDDING = "model.decoder.embed_tokens.weight"
NORM = "model.decoder.norm.weight"
NAN = float("nan")


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_network(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change the tensors of a checkpoint of one file."""
    files = WeightFiles(folder)
    tensors = {name: files.tensor(name).clone() for name in files.entries}
    change(tensors)
    write_tensors(folder / SINGLE, tensors)


def test_a_checkpoint_comes_back_equal(tmp_path: Path) -> None:
    network, config = write_checkpoint(tmp_path / "m")
    again, read = load_network(tmp_path / "m")
    assert read.text == config.text
    assert not again.training
    theirs = again.state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
    tensors = [*again.parameters(), *again.buffers()]
    assert not any(tensor.is_meta for tensor in tensors)


def test_encoder_and_decoder_scalars_are_both_loaded(tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for index in range(3):
            tensors[f"model.decoder.layers.{index}.layer_scalar"].fill_(index + 1)
            name = f"model.encoder.language_model.layers.{index}.layer_scalar"
            tensors[name].fill_(-index - 1)

    write_checkpoint(tmp_path / "m")
    rewrite(tmp_path / "m", change)
    network, _ = load_network(tmp_path / "m")
    state = network.state_dict()
    for index in range(3):
        assert state[f"model.decoder.layers.{index}.layer_scalar"].item() == index + 1
        name = f"model.encoder.language_model.layers.{index}.layer_scalar"
        assert state[name].item() == -index - 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", torch.float16])
def test_dtypes_are_converted(tmp_path: Path, dtype: torch.dtype | str) -> None:
    network, _ = write_checkpoint(tmp_path / "m", dtype="bfloat16")
    loaded, config = load_network(tmp_path / "m", dtype=dtype)
    expected = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert {tensor.dtype for tensor in loaded.parameters()} == {expected}
    assert config.dtype == "bfloat16"
    rounded = network.state_dict()[EMBEDDING].to(torch.bfloat16).to(expected)
    assert torch.equal(loaded.state_dict()[EMBEDDING], rounded)


def test_tensors_of_the_files_dtype_are_not_copied(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m", dtype="bfloat16")
    loaded, _ = load_network(tmp_path / "m")
    embedding = loaded.state_dict()[EMBEDDING]
    assert embedding.dtype == torch.bfloat16
    # All tensors of one file share its mapping: their addresses lie within one file's length.
    addresses = [tensor.data_ptr() for tensor in loaded.parameters()]
    assert max(addresses) - min(addresses) < (tmp_path / "m" / SINGLE).stat().st_size


@pytest.mark.parametrize(
    ("dtype", "device"),
    [("int8", "cpu"), (torch.int8, "cpu"), (None, "abacus"), (None, "cuda:99"), (None, "meta")],
)
def test_a_dtype_or_device_that_cannot_be(
    tmp_path: Path, dtype: torch.dtype | str | None, device: str
) -> None:
    write_checkpoint(tmp_path / "m")
    with pytest.raises(InputError, match=r"dtype must be|cannot be used"):
        load_network(tmp_path / "m", dtype=dtype, device=device)


def test_a_network_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Tensor:
        raise RuntimeError("can't allocate memory: you tried to allocate 9 bytes.\nmore")

    write_checkpoint(tmp_path / "m")
    monkeypatch.setattr(WeightFiles, "tensor", refuse)
    assert "cannot be held as float32 on cpu: can't allocate" in refusal(tmp_path / "m")


def test_shards_give_the_same_network(tmp_path: Path) -> None:
    network, _ = write_checkpoint(tmp_path / "m", max_shard_bytes=4000)
    shards = list((tmp_path / "m").glob("model-*.safetensors"))
    assert len(shards) > 3
    again, _ = load_network(tmp_path / "m")
    theirs = again.state_dict()
    assert all(torch.equal(t, theirs[name]) for name, t in network.state_dict().items())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lm_head.weight", EMBEDDING),
        ("model.encoder.language_model.embed_tokens.weight", EMBEDDING),
        ("model.encoder.language_model.norm.weight", NORM),
        (
            "model.encoder.language_model.layers.3.mlp.up_proj.weight",
            "model.decoder.layers.3.mlp.up_proj.weight",
        ),
        ("decoder.norm.weight", NORM),
        ("encoder.vision_tower.std_bias", "model.encoder.vision_tower.std_bias"),
        (
            "encoder.language_model.layers.3.layer_scalar",
            "model.encoder.language_model.layers.3.layer_scalar",
        ),
        ("anything.else", "anything.else"),
    ],
)
def test_dialects(name: str, expected: str) -> None:
    assert canonical(name) == expected
    assert canonical(expected) == expected


def test_equal_tied_copies_are_accepted_and_held_once(tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[EMBEDDING][0, 0] = NAN  # equal byte for byte, whatever == says
        tensors["lm_head.weight"] = tensors[EMBEDDING]
        tensors["model.encoder.language_model.norm.weight"] = tensors[NORM]

    write_checkpoint(tmp_path / "m")
    rewrite(tmp_path / "m", change)
    network, _ = load_network(tmp_path / "m")
    assert "lm_head.weight" not in network.state_dict()


def test_a_tied_tensor_under_the_other_name_alone(tmp_path: Path) -> None:
    network, _ = write_checkpoint(tmp_path / "m")

    def change(tensors: dict[str, Tensor]) -> None:
        tensors["model.encoder.language_model.norm.weight"] = tensors.pop(NORM)

    rewrite(tmp_path / "m", change)
    loaded, _ = load_network(tmp_path / "m")
    assert torch.equal(loaded.state_dict()[NORM], network.state_dict()[NORM])


def different_copy(tensors: dict[str, Tensor]) -> None:
    tensors["lm_head.weight"] = tensors[EMBEDDING] + 1


def differently_typed_copy(tensors: dict[str, Tensor]) -> None:
    tensors["lm_head.weight"] = tensors[EMBEDDING].half()


def many_missing(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if ".layers.1." in name]:
        del tensors[name]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(NORM), f"1 missing ({NORM})"),
        (many_missing, " and 20 more)"),
        (lambda t: t.update(stray=torch.ones(1)), "1 not part of the model ('stray')"),
        (lambda t: t.update({NORM: torch.ones(3)}), f"({NORM} is [3], should be [16])"),
        (lambda t: t.update({NORM: torch.ones(16, 1)}), "is [16, 1], should be [16]"),
        (lambda t: t.update({NORM: t[NORM].double()}), f"unsupported dtype ({NORM} is F64)"),
        (lambda t: t.update({NORM: torch.ones(16, dtype=torch.uint8)}), "is U8"),
        (different_copy, f"there twice and different ({EMBEDDING} and lm_head.weight)"),
        (differently_typed_copy, f"there twice and different ({EMBEDDING} and lm_head.weight)"),
    ],
)
def test_tensors_that_do_not_fit(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], None], words: str
) -> None:
    write_checkpoint(tmp_path / "m")
    rewrite(tmp_path / "m", change)
    message = refusal(tmp_path / "m")
    assert words in message
    assert "the weights do not fit config.json" in message


def test_one_error_lists_every_kind(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m")

    def change(tensors: dict[str, Tensor]) -> None:
        tensors["stray"] = tensors.pop(NORM)
        tensors[EMBEDDING] = torch.ones(2)

    rewrite(tmp_path / "m", change)
    message = refusal(tmp_path / "m")
    assert "1 missing" in message
    assert "1 not part of the model" in message
    assert "1 of the wrong shape" in message


def test_folders_without_usable_weights(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m")
    single = tmp_path / "m" / SINGLE
    content = single.read_bytes()
    single.unlink()
    assert f"has no {SINGLE}" in refusal(tmp_path / "m")
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "pickle files can run code" in refusal(tmp_path / "m")
    (tmp_path / "m" / "model-00001-of-00002.safetensors").write_bytes(content)
    assert f"neither {SINGLE} nor {INDEX}" in refusal(tmp_path / "m")
    with pytest.raises(ConfigError, match="no such file"):
        load_network(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="no such folder"):
        WeightFiles(tmp_path / "absent")


def sharded(folder: Path) -> dict[str, str]:
    write_checkpoint(folder, max_shard_bytes=16_000)
    weight_map: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
    return weight_map


def write_index(folder: Path, weight_map: object, **more: object) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map} | more))


@pytest.mark.parametrize(
    "file_name",
    [
        "../m/model-00001-of-00002.safetensors",
        "/etc/passwd.safetensors",
        "..",
        "",
        ".hidden.safetensors",
        "a\\b.safetensors",
        "c:x.safetensors",
        "model.bin",
        "a\x00.safetensors",
        "x" * 300 + ".safetensors",
        3,
        None,
    ],
)
def test_an_index_names_plain_files_only(tmp_path: Path, file_name: object) -> None:
    weight_map: dict[str, object] = dict(sharded(tmp_path / "m"))
    write_index(tmp_path / "m", weight_map | {NORM: file_name})
    assert "no plain name of a .safetensors file" in refusal(tmp_path / "m")


def test_an_index_must_match_what_the_files_hold(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    weight_map = sharded(folder)
    files = sorted(set(weight_map.values()))
    write_index(folder, weight_map | {"ghost": files[0]})
    assert "'ghost' is in model-00001" in refusal(folder)
    write_index(folder, weight_map | {NORM: next(f for f in files if f != weight_map[NORM])})
    assert f"; it is in {weight_map[NORM]}" in refusal(folder)
    write_index(folder, {name: file for name, file in weight_map.items() if name != NORM})
    assert "which model.safetensors.index.json leaves out" in refusal(folder)
    write_index(folder, weight_map | {NORM: "model-9.safetensors"})
    assert "No such file" in refusal(folder)
    write_index(folder, {})
    assert "weight_map must map" in refusal(folder)
    write_index(folder, weight_map, code="x")
    assert "unknown field 'code'" in refusal(folder)
    write_index(folder, weight_map)
    load_network(folder)
    (folder / SINGLE).write_bytes(b"")
    assert "has both" in refusal(folder)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    weight_map = sharded(folder)
    write_tensors(folder / "model-extra.safetensors", {NORM: torch.ones(16)})
    write_index(folder, weight_map | {"other": "model-extra.safetensors"})
    assert f"'{NORM}' is in both" in refusal(folder)


def test_links_may_lead_into_the_hub_cache_only(tmp_path: Path) -> None:
    repo = tmp_path / "hub" / "models--a--b"
    snapshot = repo / "snapshots" / "abc"
    write_checkpoint(snapshot)
    (repo / "blobs").mkdir()
    (snapshot / SINGLE).rename(repo / "blobs" / "0123")
    (snapshot / SINGLE).symlink_to("../../blobs/0123")
    load_network(snapshot)

    outside = tmp_path / "elsewhere.safetensors"
    outside.write_bytes((repo / "blobs" / "0123").read_bytes())
    (snapshot / SINGLE).unlink()
    (snapshot / SINGLE).symlink_to(outside)
    assert "leads out of the checkpoint's folder" in refusal(snapshot)

    plain = tmp_path / "blobs-are-nothing" / "special" / "m"
    write_checkpoint(plain)
    (plain / SINGLE).unlink()
    (plain / SINGLE).symlink_to(repo / "blobs" / "0123")
    assert "leads out of the checkpoint's folder" in refusal(plain)

    (plain / SINGLE).unlink()
    (plain / SINGLE).symlink_to(SINGLE)
    assert "is a link to nothing" in refusal(plain)


def test_building_the_shapes_does_not_import_torchs_compiler() -> None:
    """It did, through `nn.init` on the meta device, and took a second of every start."""
    program = (
        "import sys\n"
        "from sfumato.weights.loader import build_on_meta\n"
        "from tests.helpers import Shape, tiny_config\n"
        "network = build_on_meta(tiny_config(Shape(vision=True)))\n"
        "assert all(tensor.is_meta for tensor in network.state_dict().values())\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
