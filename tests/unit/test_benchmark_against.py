"""The comparison with transformers: turns, options and the table, without timing anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmarks import against_transformers as against
from benchmarks import random_checkpoint

from sfumato.benchmark import peers
from sfumato.benchmark.shapes import RandomWeights
from sfumato.config.parse import load_config
from sfumato.config.quantisation import load_quantisation
from sfumato.errors import InputError
from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.weights.export import export_tensors
from sfumato.weights.files import WeightFiles
from sfumato.weights.loader import load_network
from sfumato.weights.quantise import quantise_checkpoint
from tests.helpers import Shape, tiny_config
from tests.unit.nvfp4_checkpoints import quantisable_config
from tests.unit.source_tree import ROOT


def test_both_take_turns_at_being_first() -> None:
    order: list[str] = []

    def one(name: str) -> float:
        order.append(name)
        return float(len(order))

    ours, theirs = peers.alternate((lambda: one("a"), lambda: one("b")), 3)
    assert "".join(order) == "ba" + "ab" + "ba" + "ab"
    assert ours == [3.0, 6.0, 7.0]
    assert theirs == [4.0, 5.0, 8.0]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rounds", "0"], ["--threads", "-1"], ["--context", "9" * 30], ["--rounds", "²"],
        ["--dtype", "int3"], ["--speed"], ["--llama-cpp", "a"], ["--gguf", "b"],
        ["model", "--", "-n", "3"],
    ],
)  # fmt: skip
def test_options_that_cannot_be_meant_end_with_two(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        against.parse(arguments)
    assert left.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_a_llama_cpp_is_timed_whole() -> None:
    script = ["--llama-cpp", sys.executable, "--gguf", "file", "--rounds", "2", "model", "--", "x"]
    options = against.parse(script)
    assert options.arguments == ["x"]
    with pytest.raises(subprocess.CalledProcessError):  # Python has no module of that name
        against.llama(options)
    assert against.llama(against.parse([])) is None


def test_a_place_that_cannot_be_written_is_told_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert against.main(["--output", "/none/at/all"]) == 1
    assert "no folder" in capsys.readouterr().err


def test_the_table() -> None:
    summary = {"median": 0.01}
    row = {
        "part": "denoise", "sfumato_seconds": summary, "transformers_seconds": {"median": 0.03},
        "ratio": {"value": 3.0, "low": 2.5, "high": 3.25}, "others_cores": 0.5,
    }  # fmt: skip
    names = ("model", "dtype", "context", "processor", "threads", "cores", "device", "sfumato",
             "commit", "transformers", "torch", "date", "reference")  # fmt: skip
    report = {name: f"<{name}>" for name in names}
    told = against.tell({**report, "kernels": None, "results": [row], "llama_cpp": None})
    assert told.splitlines()[-1].split()[:5] == ["denoise", "10.00", "30.00", "3.00", "2.50-3.25"]
    assert "others took 0.5 cores" in told
    assert all(f"<{name}>" in told for name in names)


def test_a_reference_of_another_shape_is_refused() -> None:
    network = DiffusionGemma(tiny_config(Shape("SF")))
    text = network.config.text
    names = ("hidden_size", "vocab_size", "num_experts", "moe_intermediate_size")
    same = {name: getattr(text, name) for name in names}
    same["num_hidden_layers"] = len(text.layers)

    def reference(**changes: int) -> SimpleNamespace:
        own = SimpleNamespace(**{**same, **changes})
        return SimpleNamespace(config=SimpleNamespace(text_config=own))

    against._check_same(network, reference())
    for name in same:
        with pytest.raises(InputError, match="the reference has another"):
            against._check_same(network, reference(**{name: 7}))


def test_the_commit_is_named() -> None:
    if (ROOT / ".git").exists():
        assert len(peers.commit(against.__file__)) >= 7


def test_random_checkpoints_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "small"
    assert random_checkpoint.main([str(folder), "small"]) == 0
    assert load_config(folder).text.vocab_size == 2048
    assert random_checkpoint.main([str(folder), "small"]) == 1
    assert random_checkpoint.main([str(folder), "vast"]) == 1
    assert "there is no shape" in capsys.readouterr().err
    assert random_checkpoint.main([str(folder), "small", "--nvfp5"]) == 2
    assert random_checkpoint.main([]) == 2


def test_random_nvfp4_is_what_quantising_would_write(tmp_path: Path) -> None:
    plain, ours, theirs = tmp_path / "plain", tmp_path / "ours", tmp_path / "theirs"
    config = quantisable_config()
    weights = RandomWeights(config, "bfloat16")
    export_tensors(weights.shapes, weights.tensor, config, plain, dtype=weights.dtype)
    quantise_checkpoint(plain, theirs)
    random_checkpoint.write_nvfp4(config, weights, ours)
    with pytest.raises(InputError, match="exists already"):
        random_checkpoint.write_nvfp4(config, weights, ours)
    kinds = [
        {name: (one.dtype, one.shape) for name, one in WeightFiles(folder).entries.items()}
        for folder in (ours, theirs)
    ]
    assert kinds[0] == kinds[1]
    assert load_quantisation(ours) == load_quantisation(theirs)
    tensors = [load_network(folder)[0].state_dict() for folder in (ours, theirs)]
    for name, tensor in tensors[1].items():
        if tensor.numel() > 4_000:
            assert float(tensors[0][name].std() / tensor.std()) == pytest.approx(1, abs=0.1)
