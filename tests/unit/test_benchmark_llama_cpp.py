"""The comparison with llama.cpp: what is written, asked and told, without llama.cpp itself."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks import against_llama_cpp as against
from benchmarks import random_gguf

from sfumato.errors import InputError
from sfumato.model.diffusion_gemma import DiffusionGemma
from tests.helpers import Shape, randomise, tiny_config

SHAPE = Shape(vocab=300)


class Server:
    """llama.cpp's server as the package has it: a millisecond for each token."""

    def __init__(self, params: Any) -> None:
        self.params = params
        self.requests: list[dict[str, Any]] = []

    def handle_completions(self, request: dict[str, Any]) -> dict[str, Any]:
        self.requests.append(request)
        read, written = len(request["prompt"]), request["max_tokens"]
        return {
            "timings": {
                "prompt_n": read, "prompt_ms": float(read),
                "predicted_n": written, "predicted_ms": written - 1.0,
            }
        }  # fmt: skip


@pytest.fixture
def llama(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> against.LlamaCpp:
    def params() -> SimpleNamespace:
        spaces = ("model", "cpuparams", "cpuparams_batch")
        return SimpleNamespace(**{name: SimpleNamespace() for name in spaces})

    package = SimpleNamespace(CommonParams=params, Server=Server, __version__="9")
    monkeypatch.setitem(sys.modules, "xllamacpp", package)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    return against.LlamaCpp(tmp_path / "model.gguf", 2, 64)


def test_a_token_is_what_follows_the_first(llama: against.LlamaCpp) -> None:
    assert llama.prompt([5] * 40) == 0.040
    assert llama.token([5] * 8, 16) == 0.001
    request = llama._server.requests[-1]
    assert (request["max_tokens"], request["cache_prompt"]) == (17, False)
    assert llama._server.params.cpuparams_batch.n_threads == 2


def test_other_work_than_was_asked_for_is_no_figure(
    llama: against.LlamaCpp, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer: dict[str, Any] = {"timings": {"prompt_n": 3, "predicted_n": 1, "prompt_ms": 1.0}}
    monkeypatch.setattr(llama._server, "handle_completions", lambda _request: answer)
    with pytest.raises(InputError, match="other work"):
        llama.prompt([5] * 4)
    answer.pop("timings")
    with pytest.raises(InputError, match="answered"):
        llama.prompt([5] * 4)


def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(InputError, match="pip install xllamacpp"):
        against.LlamaCpp(tmp_path / "none.gguf", 2, 64)
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert random_gguf.main([str(tmp_path / "out.gguf")]) == 1
    assert "pip install gguf xllamacpp" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "xllamacpp", SimpleNamespace())
    with pytest.raises(InputError, match="random_gguf"):
        against.LlamaCpp(tmp_path / "none.gguf", 2, 64)
    assert against.main([str(tmp_path), str(tmp_path / "none.gguf")]) == 1


@torch.inference_mode()
def test_both_read_the_same_prompts_and_the_table_tells_it(llama: against.LlamaCpp) -> None:
    network = DiffusionGemma(tiny_config(SHAPE)).eval()
    randomise(network, 1)
    found = against.pairs(network, llama, [4, 9], 3)
    assert list(found) == ["read 4 tokens", "read 9 tokens", "a token, 3 after 4"]
    assert all(own() > 0 for own, _ in found.values())
    assert [theirs() for _, theirs in found.values()] == [0.004, 0.009, 0.001]
    prompts = [request["prompt"] for request in llama._server.requests]
    assert prompts[0] == prompts[2]
    assert min(min(prompt) for prompt in prompts) >= against.SPECIAL
    seconds = {"median": 0.002}
    row = {
        "part": "read 4 tokens", "sfumato_seconds": seconds, "llama_cpp_seconds": {"median": 0.004},
        "ratio": {"value": 2.0, "low": 1.5, "high": 2.5}, "others_cores": 0.5,
    }  # fmt: skip
    names = "model dtype kernels activations gguf llama_cpp processor threads cores sfumato commit"
    facts = dict.fromkeys(f"{names} torch date".split(), "x")
    told = against.tell({**facts, "gguf_bytes": 10**9, "results": [row]})
    assert told.splitlines()[-1].split()[3:7] == ["2.00", "4.00", "2.00", "1.50-2.50"]
    assert "others took 0.5 cores" in told


def test_a_layer_has_the_matrices_of_the_network() -> None:
    config = tiny_config(SHAPE)
    with torch.device("meta"):
        network = DiffusionGemma(config)
    for index, layer in enumerate(config.text.layers):
        written = random_gguf.layer_matrices(config.text, layer, "Q4_K", "Q6_K")
        count = sum(math.prod(shape) for _, _, shape in written)
        count += config.text.num_experts * config.text.hidden_size  # the router
        own = [
            weight
            for name, weight in network.named_parameters()
            if f"layers.{index}." in name and weight.ndim >= 2
        ]
        assert count == sum(weight.numel() for weight in own)


def test_a_shape_of_one_kind_of_layers_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert random_gguf.main([str(tmp_path / "out.gguf"), "released:1"]) == 1
    assert "one kind of layers" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_more_bits_go_where_llama_cpp_spends_them() -> None:
    assert [random_gguf.more_bits(layer, 4) for layer in range(4)] == [False, False, True, True]
    better = [layer for layer in range(30) if random_gguf.more_bits(layer, 30)]
    assert better == [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29]
    assert random_gguf.kinds("q4_k_m", 0, 4) == ("Q4_K", "Q4_K")
    assert random_gguf.kinds("nvfp4", 2, 4) == ("NVFP4", "NVFP4")


@pytest.mark.parametrize("arguments", [[], ["a"], ["a", "b", "--rounds", "0"], ["a", "b", "--x"]])
def test_options_that_cannot_be_meant_end_with_two(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        against.parse(arguments)
    assert left.value.code == 2


@pytest.mark.parametrize("weights", random_gguf.WEIGHTS)
def test_llama_cpp_itself_reads_what_is_written(tmp_path: Path, weights: str) -> None:
    """Where the packages are: `pip install gguf xllamacpp`."""
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    shape = Shape(
        pattern="SF", hidden=256, head_dim=64, global_head_dim=128, expert_width=64, vocab=600
    )
    text = replace(tiny_config(shape).text, intermediate_size=128)
    random_gguf.write(tmp_path / "model.gguf", text, weights)
    against.check_same(text, tmp_path / "model.gguf")
    with pytest.raises(InputError, match="another expert_count: 4, and the checkpoint 8"):
        against.check_same(replace(text, num_experts=8), tmp_path / "model.gguf")
    with pytest.raises(InputError, match="another vocabulary: 600, and the checkpoint 700"):
        against.check_same(replace(text, vocab_size=700), tmp_path / "model.gguf")
    (tmp_path / "other.gguf").write_bytes(b"no model at all, but some bytes")
    with pytest.raises(InputError, match="is no GGUF file"):
        against.check_same(text, tmp_path / "other.gguf")
    with pytest.raises(InputError, match="choose other --weights"):
        random_gguf.Packer().matrix("NVFP4", 4, 96)
    theirs = against.LlamaCpp(tmp_path / "model.gguf", 2, 64)
    assert theirs.prompt(list(range(300, 340))) > 0
    assert theirs.token(list(range(300, 310)), 4) > 0
