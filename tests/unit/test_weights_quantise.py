"""Quantising a checkpoint: what is written, what is left alone, and what a kill leaves behind."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.config.quantisation import load_quantisation
from sfumato.errors import CheckpointError, InputError
from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.quant.int8 import decode as decode_rows
from sfumato.quant.int8 import quantise_rows
from sfumato.quant.nvfp4 import FOUR_OVER_SIX, MODELOPT, Nvfp4Tensor, decode, is_from, quantise
from sfumato.weights import quantise as module
from sfumato.weights import quantise_check as check_module
from sfumato.weights import quantise_source as source_module
from sfumato.weights.export import export
from sfumato.weights.files import INDEX, SINGLE, WeightFiles
from sfumato.weights.loader import DTYPES, load_network
from sfumato.weights.names import EMBEDDING
from sfumato.weights.quantise import quantise_checkpoint
from sfumato.weights.quantise_plan import Job, choose
from sfumato.weights.safetensors_reader import SafetensorsFile
from sfumato.weights.safetensors_writer import write_safetensors
from tests.helpers import Shape, randomise, tiny_config
from tests.unit.checkpoint_files import write_tensors
from tests.unit.nvfp4_checkpoints import LAYER, SHAPE, quantisable_config, rewrite

QUERY, KEY = LAYER + "self_attn.q_proj", LAYER + "self_attn.k_proj"
SMALL_SHARDS = 9_000


def write_source(folder: Path, shape: Shape = SHAPE) -> dict[str, Tensor]:
    config = quantisable_config(shape)
    network = DiffusionGemma(config)
    randomise(network, 0)
    export(network, config, folder, dtype="bfloat16")
    return {name: tensor.bfloat16() for name, tensor in network.state_dict().items()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to quantise; never written to."""
    folder = tmp_path_factory.mktemp("source") / "m"
    write_source(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def aside_of(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.nvfp4.part"


def test_what_is_written(tmp_path: Path) -> None:
    state = write_source(tmp_path / "m")
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "m").iterdir()}
    report = quantise_checkpoint(tmp_path / "m", tmp_path / "q", rule=MODELOPT)
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in before}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "q"]
    loaded = load_network(tmp_path / "q", "float32")[0].state_dict()
    names = ("q_proj", "k_proj", "v_proj")
    matrices = {name: state[f"{LAYER}self_attn.{name}.weight"].float() for name in names}
    shared = max(one.abs().max() for one in matrices.values()) / torch.tensor(6.0 * 448.0)
    for name, weight in matrices.items():
        expected = decode(quantise(weight, MODELOPT, shared))
        assert torch.equal(loaded[f"{LAYER}self_attn.{name}.weight"], expected)
    expert = state[LAYER + "experts.gate_up_proj"][1].float()
    expected = decode(quantise(expert, MODELOPT))
    assert torch.equal(loaded[LAYER + "experts.gate_up_proj"][1], expected)
    kept = [name for name in state if "embed" in name or "norm" in name or "router" in name]
    assert all(torch.equal(loaded[name], state[name].float()) for name in kept)
    experts = report.parts["experts"]
    assert experts.values == experts.quantised == 2 * 4 * 3 * 32 * 32
    assert 3.4 < experts.bytes_before / experts.bytes_after < 3.6
    assert experts.relative_error is not None
    assert 0.08 < experts.relative_error < 0.11
    assert report.parts["embedding"].relative_error is None
    # Each matrix by its name, and together they are the part's.
    assert len(experts.errors) == 2 * 4 * 3
    assert set(report.parts["attention"].errors) >= {f"{LAYER}self_attn.{one}" for one in names}
    for name, weight in matrices.items():
        lost = (loaded[f"{LAYER}self_attn.{name}.weight"] - weight).norm() / weight.norm()
        found = report.parts["attention"].errors[f"{LAYER}self_attn.{name}"]
        assert found == pytest.approx(float(lost), rel=1e-5)
    assert report.parts["embedding"].errors == {}


def test_the_files_are_modelopts(source: Path, tmp_path: Path) -> None:
    quantise_checkpoint(source, tmp_path / "q", max_shard_bytes=SMALL_SHARDS)
    files = WeightFiles(tmp_path / "q")
    index = json.loads((tmp_path / "q" / INDEX).read_text())
    assert len(set(index["weight_map"].values())) > 3
    sizes = sum(entry.stop - entry.start for entry in files.entries.values())
    assert index["metadata"]["total_size"] == sizes
    assert all(size.stat().st_size < 3 * SMALL_SHARDS for size in (tmp_path / "q").glob("model-*"))
    up = LAYER + "experts.3.up_proj."
    kinds = {name: files.entries[up + name].dtype for name in ("weight", "weight_scale")}
    assert kinds == {"weight": "U8", "weight_scale": "F8_E4M3"}
    assert files.entries[up + "weight_scale_2"].shape == ()
    for module_, other in ((QUERY, KEY), (up[:-1], up.replace("up_proj.", "gate_proj"))):
        mine, theirs = (files.tensor(f"{one}.weight_scale_2") for one in (module_, other))
        assert torch.equal(mine, theirs)
    beside = json.loads((tmp_path / "q" / "hf_quant_config.json").read_text())["quantization"]
    assert (beside["quant_algo"], beside["group_size"]) == ("W4A16_NVFP4", 16)
    kept = set(beside["exclude_modules"])
    assert {"lm_head", LAYER + "router.proj", "model.decoder.embed_tokens"} <= kept
    assert not any("self_attn" in name or "experts" in name for name in kept)
    found = load_quantisation(tmp_path / "q")
    assert found is not None
    assert set(found.kept) == kept
    original = json.loads((source / "config.json").read_text())
    written = json.loads((tmp_path / "q" / "config.json").read_text())
    assert {key: written[key] for key in original} == original


def test_the_embedding_in_8_bits(tmp_path: Path) -> None:
    state = write_source(tmp_path / "m")
    report = quantise_checkpoint(tmp_path / "m", tmp_path / "q", int8_embedding=True)
    stored = quantise_rows(state[EMBEDDING])
    files = WeightFiles(tmp_path / "q")
    assert files.entries[EMBEDDING].dtype == "I8"
    assert torch.equal(files.tensor(EMBEDDING), stored.codes)
    assert torch.equal(files.tensor(f"{EMBEDDING}_scale"), stored.scale)
    for dtype in ("float32", "bfloat16"):
        loaded = load_network(tmp_path / "q", dtype)[0].state_dict()
        assert torch.equal(loaded[EMBEDDING], decode_rows(stored, DTYPES[dtype]))
    part = report.parts["embedding"]
    assert part.quantised == part.values == state[EMBEDDING].numel()
    assert part.relative_error is not None
    assert 0.001 < part.relative_error < 0.01
    assert part.errors == {EMBEDDING.removesuffix(".weight"): part.relative_error}
    found = load_quantisation(tmp_path / "q")
    assert found is not None
    assert found.int8_embedding
    assert "model.decoder.embed_tokens" not in found.kept


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ({EMBEDDING: torch.zeros(48, 32)}, "is F32, should be I8"),
        ({f"{EMBEDDING}_scale": torch.zeros(48, 1)}, "row scale that is not above zero"),
        ({f"{EMBEDDING}_scale": torch.ones(48)}, "should be [48, 1]"),
        ({f"{EMBEDDING}_scale": None}, "missing"),
    ],
)
def test_an_embedding_that_is_not_what_is_said(
    tmp_path: Path, spoil: dict[str, Tensor | None], words: str
) -> None:
    write_source(tmp_path / "m")
    quantise_checkpoint(tmp_path / "m", tmp_path / "q", int8_embedding=True)

    def change(tensors: dict[str, Tensor]) -> None:
        for name, tensor in spoil.items():
            del tensors[name]
            if tensor is not None:
                tensors[name] = tensor

    rewrite(tmp_path / "q", change)
    for keep in (False, True):
        with pytest.raises(CheckpointError, match=re.escape(words)):
            load_network(tmp_path / "q", keep_quantised=keep)


def test_an_embedding_of_no_numbers(tmp_path: Path) -> None:
    tensors = write_source(tmp_path / "m")
    tensors[EMBEDDING][3, 4] = float("nan")
    rewrite(tmp_path / "m", lambda stored: stored.update({EMBEDDING: tensors[EMBEDDING]}))
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight holds an infinity or a NaN"):
        quantise_checkpoint(tmp_path / "m", tmp_path / "q", int8_embedding=True)
    assert not (tmp_path / "q").exists()


def test_the_better_rule_is_the_default(source: Path, tmp_path: Path) -> None:
    errors = []
    for name, more in (("a", {}), ("b", {"rule": FOUR_OVER_SIX}), ("c", {"rule": MODELOPT})):
        report = quantise_checkpoint(source, tmp_path / name, **more)  # type: ignore[arg-type]
        errors.append(report.parts["attention"].relative_error)
    assert errors[0] == errors[1]
    assert errors[0] is not None
    assert errors[2] is not None
    assert errors[0] < errors[2]


def test_images_and_what_is_kept_stay_as_they_were(tmp_path: Path) -> None:
    shape = Shape(pattern="SF", hidden=32, heads=2, kv_heads=1, head_dim=16, vocab=48, vision=True)
    state = write_source(tmp_path / "m", shape)
    keep = ["*.self_attn", "*.layers.1.experts.*", "model.decoder.self_conditioning.*"]
    report = quantise_checkpoint(tmp_path / "m", tmp_path / "q", keep=keep)
    loaded = load_network(tmp_path / "q")[0].state_dict()
    same = {name for name, tensor in state.items() if torch.equal(tensor, loaded[name])}
    assert {name for name in state if "vision" in name or "self_attn" in name} <= same
    assert {name for name in state if "layers.1.experts" in name} <= same
    assert LAYER + "experts.down_proj" not in same
    assert report.parts["attention"].quantised == 0
    found = load_quantisation(tmp_path / "q")
    assert found is not None
    assert {QUERY, "model.decoder.layers.1.experts*", "model.encoder.vision_tower*"} <= set(
        found.kept
    )


EXPECTED = {
    name: tuple(tensor.shape)
    for name, tensor in DiffusionGemma(quantisable_config()).state_dict().items()
}


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (["*.selfattn.*"], "'*.selfattn.*' names no matrix that would be quantised"),
        (["*embed*"], "names no matrix"),
        ([""], "names no matrix"),
        (["*q_proj"], "which engines join"),
        (["*.mlp.up_proj*"], "which engines join"),
        (["*.experts.down_proj"], "which engines join"),
    ],
)
def test_what_keep_cannot_mean(keep: list[str], words: str) -> None:
    with pytest.raises(InputError) as caught:
        choose(EXPECTED, keep)
    assert words in str(caught.value)


def test_rows_that_are_no_groups_must_be_kept() -> None:
    state = DiffusionGemma(tiny_config(SHAPE)).state_dict()  # experts are 24 wide
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    with pytest.raises(InputError, match=r"rows of 24 values.*--keep '\*experts\*'"):
        choose(expected, [])
    assert not any("experts" in name for name in choose(expected, ["*experts*"]))


def interrupt_after(monkeypatch: pytest.MonkeyPatch, shards: int, error: BaseException) -> None:
    """Stop the run when that many files are finished, in the middle of the next."""
    real = module._write_shard
    done = 0

    def write(path: Path, jobs: Sequence[Job], source: Any, digests: Path | None) -> None:
        nonlocal done
        if done == shards:
            path.with_suffix(".part").write_bytes(b"half of a file")
            raise error
        done += 1
        real(path, jobs, source, digests)

    monkeypatch.setattr(module, "_write_shard", write)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))]
)
def test_a_run_goes_on_where_it_was(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    quantise_checkpoint(source, tmp_path / "whole", max_shard_bytes=SMALL_SHARDS)
    with monkeypatch.context() as patched:
        interrupt_after(patched, 2, error)
        with pytest.raises((KeyboardInterrupt, CheckpointError)):
            quantise_checkpoint(source, tmp_path / "q", max_shard_bytes=SMALL_SHARDS)
    assert not (tmp_path / "q").exists()
    finished = sorted(aside_of(tmp_path / "q").glob("*.safetensors"))
    assert len(finished) == 2
    with finished[1].open("r+b") as file:  # one bit of the codes
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    report = quantise_checkpoint(source, tmp_path / "q", max_shard_bytes=SMALL_SHARDS)
    assert report.reused == 1
    assert contents(tmp_path / "q") == contents(tmp_path / "whole")
    assert not aside_of(tmp_path / "q").exists()


def test_other_settings_do_not_go_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        interrupt_after(patched, 1, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            quantise_checkpoint(source, tmp_path / "q", max_shard_bytes=SMALL_SHARDS)
    with pytest.raises(InputError, match="another source or other settings"):
        quantise_checkpoint(source, tmp_path / "q", rule=MODELOPT, max_shard_bytes=SMALL_SHARDS)
    with (aside_of(tmp_path / "q") / "plan.json").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="being written by another run"):
            quantise_checkpoint(source, tmp_path / "q", max_shard_bytes=SMALL_SHARDS)
    report = quantise_checkpoint(source, tmp_path / "q", max_shard_bytes=SMALL_SHARDS)
    assert report.reused == 1


def test_a_plan_cut_short_by_a_kill(source: Path, tmp_path: Path) -> None:
    aside_of(tmp_path / "q").mkdir()
    (aside_of(tmp_path / "q") / "plan.json").write_text('{"keep')
    quantise_checkpoint(source, tmp_path / "q")
    assert (tmp_path / "q" / SINGLE).is_file()


def test_what_reads_back_wrong_is_an_error(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(weight: Tensor, *how: Any) -> Nvfp4Tensor:
        stored = quantise(weight, *how)
        stored.packed[0, 0] ^= 1
        return stored

    monkeypatch.setattr(source_module, "quantise", wrong)
    with pytest.raises(CheckpointError, match="does not read back as it was written"):
        quantise_checkpoint(source, tmp_path / "q")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [0, -1])
def test_a_copy_that_differs_is_an_error(
    place: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies are compared a piece at a time: the first byte counts, and the last."""

    def wrong(path: Path, *what: Any) -> None:
        write_safetensors(path, *what)
        entry = SafetensorsFile(path).entries["model.decoder.embed_tokens.weight"]
        held = bytearray(path.read_bytes())
        held[entry.start if place == 0 else entry.stop - 1] ^= 1
        path.write_bytes(held)

    monkeypatch.setattr(check_module, "_COMPARED", 100)
    quantise_checkpoint(source, tmp_path / "right")
    monkeypatch.setattr(module, "write_safetensors", wrong)
    with pytest.raises(CheckpointError, match="does not read back as it was written"):
        quantise_checkpoint(source, tmp_path / "q")


def test_a_full_disk(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(CheckpointError, match=r"the disk has 0\.0 MB left"):
            quantise_checkpoint(source, tmp_path / "q")
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="in the checkpoint itself"):
        quantise_checkpoint(source, source / "q")
    with pytest.raises(InputError, match="in the checkpoint itself"):
        quantise_checkpoint(source, source)
    (tmp_path / "taken").mkdir()
    quantise_checkpoint(source, tmp_path / "taken")  # an empty folder may be filled
    before = contents(tmp_path / "taken")
    with pytest.raises(InputError, match="exists already"):
        quantise_checkpoint(source, tmp_path / "taken")
    with pytest.raises(InputError, match="is quantised already"):
        quantise_checkpoint(tmp_path / "taken", tmp_path / "q")
    with pytest.raises(InputError, match="max_shard_bytes must be at least 1"):
        quantise_checkpoint(source, tmp_path / "q", max_shard_bytes=0)
    with pytest.raises(InputError, match="leaves nothing to quantise"):
        quantise_checkpoint(source, tmp_path / "q", keep=["*"])
    assert contents(tmp_path / "taken") == before
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_matrix_of_zeros_leaves_the_scale_to_its_family(tmp_path: Path) -> None:
    config = quantisable_config()
    network = DiffusionGemma(config)
    randomise(network, 0)
    with torch.no_grad():
        for name in (QUERY, LAYER + "self_attn.o_proj"):
            network.state_dict()[name + ".weight"].zero_()
    export(network, config, tmp_path / "m")
    report = quantise_checkpoint(tmp_path / "m", tmp_path / "q")
    assert report.parts["attention"].relative_error is not None
    assert report.parts["attention"].relative_error < 0.11
    state = load_network(tmp_path / "q")[0].state_dict()
    assert state[QUERY + ".weight"].count_nonzero() == 0


@pytest.mark.parametrize("name", [QUERY + ".weight", "model.decoder.norm.weight"])
def test_weights_that_are_no_numbers(tmp_path: Path, name: str) -> None:
    state = write_source(tmp_path / "m")
    state[name].view(-1)[0] = float("nan")
    write_tensors(tmp_path / "m" / SINGLE, state)
    with pytest.raises(CheckpointError, match=f"{name} holds an infinity or a NaN"):
        quantise_checkpoint(tmp_path / "m", tmp_path / "q")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("rule", [MODELOPT, FOUR_OVER_SIX], ids=["modelopt", "four_over_six"])
def test_checking_notices_every_kind_of_change(rule: Any) -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    stored = quantise(weight, rule)
    assert is_from(stored, weight, rule)
    assert not is_from(stored, weight[:3], rule)
    assert not is_from(stored, -weight, rule)
    codes = stored.packed.clone()
    codes[2, 7] ^= 0x10
    assert not is_from(Nvfp4Tensor(codes, stored.scale, stored.tensor_scale), weight, rule)
    scales = stored.scale.clone()
    scales.view(torch.uint8)[1, 1] += 1
    assert not is_from(Nvfp4Tensor(stored.packed, scales, stored.tensor_scale), weight, rule)
    twice = 2 * stored.tensor_scale
    assert not is_from(Nvfp4Tensor(stored.packed, stored.scale, twice), weight, rule)


def test_what_a_run_without_a_plan_left_is_not_published(source: Path, tmp_path: Path) -> None:
    """Killed after its plan was given up and before the folder had its name."""
    whole = tmp_path / "whole"
    quantise_checkpoint(source, whole)
    shutil.copytree(whole, aside_of(tmp_path / "q"))
    quantise_checkpoint(source, tmp_path / "q", max_shard_bytes=SMALL_SHARDS)
    assert not (tmp_path / "q" / SINGLE).exists()
    load_network(tmp_path / "q")
    shutil.copytree(tmp_path / "q", aside_of(tmp_path / "again"))
    quantise_checkpoint(source, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(whole)


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_is_no_new_folder(source: Path, tmp_path: Path, dangling: bool) -> None:
    target = tmp_path / "disk"
    if not dangling:
        target.mkdir()
    (tmp_path / "q").symlink_to(target)
    with pytest.raises(InputError, match="is a link or the root of a disk"):
        quantise_checkpoint(source, tmp_path / "q")
    assert not aside_of(tmp_path / "q").exists()
