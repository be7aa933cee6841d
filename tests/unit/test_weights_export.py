"""Export: what is written, and what is left behind when it cannot be."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from sfumato.benchmark.shapes import RandomWeights
from sfumato.config.generation import GenerationConfig, load_generation_config
from sfumato.config.model import ModelConfig
from sfumato.config.parse import load_config
from sfumato.errors import CheckpointError, InputError
from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.weights import export as export_module
from sfumato.weights import safetensors_writer as writer_module
from sfumato.weights.export import export, export_tensors, plan_shards
from sfumato.weights.files import INDEX, SINGLE
from sfumato.weights.loader import load_network
from tests.helpers import Shape, randomise, tiny_config
from tests.unit.checkpoint_files import TINY, write_checkpoint


def nothing_left(parent: Path) -> bool:
    return not any(parent.iterdir())


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    network, _ = write_checkpoint(tmp_path / "m", dtype="bfloat16")
    with safe_open(tmp_path / "m" / SINGLE, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(network.state_dict())
        for name, tensor in network.state_dict().items():
            assert torch.equal(file.get_tensor(name), tensor.to(torch.bfloat16))
    assert load_config(tmp_path / "m").dtype == "bfloat16"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_settings_and_extra_files_come_along(tmp_path: Path) -> None:
    source = tmp_path / "t.json"
    source.write_text("{}")
    settings = GenerationConfig(max_denoising_steps=5, eos_token_id=(1, 31))
    _, config = write_checkpoint(
        tmp_path / "m", generation=settings, extra_files={"tokenizer.json": source}
    )
    assert load_generation_config(tmp_path / "m", config.text) == settings
    assert (tmp_path / "m" / "tokenizer.json").read_text() == "{}"


def test_an_index_counts_the_bytes(tmp_path: Path) -> None:
    network, _ = write_checkpoint(tmp_path / "m", max_shard_bytes=8000)
    index = json.loads((tmp_path / "m" / INDEX).read_text())
    count = sum(tensor.numel() for tensor in network.state_dict().values())
    assert index["metadata"] == {"total_parameters": count, "total_size": 4 * count}
    assert set(index["weight_map"]) == set(network.state_dict())


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.integers(1, 200))
def test_shards_hold_every_tensor_once_within_the_limit(sizes: list[int], limit: int) -> None:
    tensors = {f"t{index:02}": torch.empty(size) for index, size in enumerate(sizes)}
    shards = plan_shards(tensors, torch.float32, limit)
    assert [name for shard in shards for name in shard] == sorted(tensors)
    for shard in shards:
        held = sum(4 * tensors[name].numel() for name in shard)
        assert held <= limit or len([n for n in shard if tensors[n].numel()]) == 1


def test_a_taken_folder_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    write_checkpoint(folder)  # an empty folder may be filled
    before = (folder / SINGLE).read_bytes()
    with pytest.raises(InputError, match="exists already"):
        write_checkpoint(folder, seed=1)
    assert (folder / SINGLE).read_bytes() == before
    (folder / "stale.txt").write_text("x")
    write_checkpoint(folder, seed=1, overwrite=True)
    assert (folder / SINGLE).read_bytes() != before
    assert not (folder / "stale.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_overwriting_replaces_checkpoints_only(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="is no checkpoint"):
        write_checkpoint(home, overwrite=True)
    assert (home / "thesis.tex").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        write_checkpoint(tmp_path / "file", overwrite=True)
    with pytest.raises(InputError, match="exists already"):
        write_checkpoint(Path("/"))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"dtype": torch.int8}, "dtype must be one of"),
        ({"max_shard_bytes": 0}, "max_shard_bytes must be at least 1"),
        ({"extra_files": {"../x": Path(__file__)}}, "cannot be the name of an extra file"),
        ({"extra_files": {"config.json": Path(__file__)}}, "cannot be the name of an extra file"),
        ({"extra_files": {".x": Path(__file__)}}, "cannot be the name of an extra file"),
        ({"extra_files": {"x": Path("/absent")}}, "no such file"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, how: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        write_checkpoint(tmp_path / "m", **how)
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("failing", [1, 2, 3, 4, 5, 6, 7])
def test_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    calls = 0
    real = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(CheckpointError, match="not written: No space left on device"):
        write_checkpoint(tmp_path / "m", max_shard_bytes=20_000, generation=GenerationConfig())
    assert calls == failing
    assert nothing_left(tmp_path)


def test_a_disk_too_small_is_noticed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=r"the disk has 0\.0 MB left"):
        write_checkpoint(tmp_path / "m")
    assert nothing_left(tmp_path)


def test_a_failed_overwrite_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "m"
    write_checkpoint(folder)
    before = (folder / SINGLE).read_bytes()
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.endswith(".part"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(CheckpointError, match="Input/output error"):
        write_checkpoint(folder, seed=1, overwrite=True)
    assert (folder / SINGLE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_an_interrupted_export_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export_module, "write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "m")
    assert nothing_left(tmp_path)


def test_a_real_limit_on_file_sizes(tmp_path: Path) -> None:
    """The kernel refuses the write itself: RLIMIT_FSIZE stands in for a full disk."""
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from sfumato.errors import CheckpointError\n"
        "from tests.unit.checkpoint_files import write_checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    write_checkpoint(Path(sys.argv[1]))\n"
        "except CheckpointError as problem:\n"
        "    print(problem)\n"
    )
    assert resource.RLIM_INFINITY
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "m")],
        cwd=root,
        env=os.environ | {"PYTHONPATH": f"{root}:{root / 'src'}"},
        capture_output=True,
        text=True,
    )
    assert "not written: File too large" in done.stdout, done.stderr
    assert nothing_left(tmp_path)


def test_exporting_a_mapped_checkpoint_over_itself(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m")
    network, config = load_network(tmp_path / "m")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    export(network, config, tmp_path / "m", overwrite=True)
    again, _ = load_network(tmp_path / "m")
    assert all(torch.equal(before[name], tensor) for name, tensor in again.state_dict().items())


def test_one_tensor_at_a_time_is_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real = writer_module._bytes_of

    def watched(tensor: torch.Tensor) -> Any:
        order.append("start")
        yield from real(tensor)
        order.append("stop")

    monkeypatch.setattr(writer_module, "_bytes_of", watched)
    network = DiffusionGemma(tiny_config(TINY))
    randomise(network, 0)
    export(network, network.config, tmp_path / "m", dtype="bfloat16")
    assert order == ["start", "stop"] * (len(order) // 2)


def test_tensors_are_asked_for_one_at_a_time(tmp_path: Path) -> None:
    """When one is made, the one before it is no longer in memory."""
    config = tiny_config(TINY)
    weights = RandomWeights(config, "bfloat16")
    made: list[weakref.ref[torch.Tensor]] = []

    def read(name: str) -> torch.Tensor:
        assert all(one() is None for one in made)
        tensor = weights.tensor(name)
        made.append(weakref.ref(tensor))
        return tensor

    export_tensors(
        weights.shapes, read, config, tmp_path / "m", dtype=torch.bfloat16, max_shard_bytes=40_000
    )
    assert len(made) == len(weights.shapes)
    assert (tmp_path / "m" / INDEX).exists()
    network, _ = load_network(tmp_path / "m")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, weights.tensor(name))


NORM = "model.decoder.norm.weight"


def network_with(
    value: float, name: str = NORM, config: ModelConfig | None = None
) -> DiffusionGemma:
    network = DiffusionGemma(config or tiny_config(TINY))
    randomise(network, 0)
    with torch.no_grad():
        network.state_dict()[name].view(-1)[-1] = value
    return network


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_that_are_no_numbers(tmp_path: Path, value: float, dtype: str) -> None:
    network = network_with(value)
    with pytest.raises(CheckpointError, match=f"{NORM} holds an infinity or a NaN"):
        export(network, network.config, tmp_path / "m", dtype=dtype)
    assert nothing_left(tmp_path)


def test_weights_that_float16_cannot_hold(tmp_path: Path) -> None:
    network = network_with(70_000.0)
    with pytest.raises(CheckpointError, match=r"weight holds 70000.*float16.*--dtype bfloat16"):
        export(network, network.config, tmp_path / "m", dtype="float16")
    assert nothing_left(tmp_path)
    export(network, network.config, tmp_path / "m", dtype="bfloat16")


def test_a_bound_may_be_infinite_but_no_nan(tmp_path: Path) -> None:
    """Clipped projections save their bounds, and one that clips nothing has infinite ones."""
    config = tiny_config(Shape(pattern="SF", hidden=32, vision=True))
    assert config.vision is not None
    clipped = dataclasses.replace(config.vision, use_clipped_linears=True)
    config = dataclasses.replace(config, vision=clipped)
    names = DiffusionGemma(config).state_dict()
    name = next(one for one in names if one.endswith("input_max"))
    network = network_with(math.inf, name, config)
    export(network, network.config, tmp_path / "m")
    network = network_with(math.nan, name, config)
    with pytest.raises(CheckpointError, match="input_max holds an infinity or a NaN"):
        export(network, network.config, tmp_path / "n")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
