"""On CUDA: the reference's logits and tokens, experts in one product, what is quantised."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.api import SMALL_FOLDER, Model, load
from sfumato.model.diffusion_gemma import with_experts
from sfumato.model.experts import ExpertsMode
from sfumato.ops.grouped import _in_one_product, grouped_linear
from sfumato.weights.quantise import quantise_checkpoint
from tests.helpers import pair
from tests.parity.test_model import (
    SETTINGS,
    SHAPES,
    beliefs,
    check_rows,
    close,
    ids,
    reference_settings,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
SOLUTION = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"


@cache
def models(
    name: str, dtype: torch.dtype = torch.float32, mode: ExpertsMode = "grouped"
) -> tuple[Model, Any]:
    """Our model, with the experts that `load` gives it or others, and the reference, on CUDA."""
    ours, reference = pair(SHAPES[name], seed=len(name), dtype=dtype)
    return Model(with_experts(ours, mode).cuda(), SETTINGS), reference.cuda()


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_encode_and_denoise_equal_the_reference(name: str) -> None:
    model, reference = models(name)
    length = SHAPES[name].canvas
    prompt, canvas, signal = ids(2, 20).cuda(), ids(2, length, 1).cuda(), beliefs(2, length).cuda()
    theirs = reference(input_ids=prompt, decoder_input_ids=canvas, self_conditioning_logits=signal)
    hidden, held = model.encode_hidden(prompt)
    close(hidden, theirs.encoder_last_hidden_state, 1e-4)
    close(model.denoise(canvas, held, signal), theirs.logits, 1e-4)


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_bfloat16_stays_near_the_reference(name: str) -> None:
    model, reference = models(name, torch.bfloat16)
    prompt, canvas = ids(1, 20).cuda(), ids(1, SHAPES[name].canvas, 1).cuda()
    theirs = reference(input_ids=prompt, decoder_input_ids=canvas).logits
    ours = model.denoise(canvas, model.encode(prompt))
    assert float((ours - theirs).norm() / theirs.norm()) < 0.03


@pytest.mark.parametrize("seed", range(3))
def test_generate_equals_the_reference_token_for_token(seed: int) -> None:
    model, reference = models("three-full", mode="loop")
    prompt = ids(3, 11, seed).cuda()
    # Few steps: by eight, two programs' rounding has grown into another token.
    settings = dataclasses.replace(SETTINGS, max_denoising_steps=3, max_new_tokens=12)
    out = model.generate(prompt, seed=seed, generation=settings)
    torch.manual_seed(seed)
    expected = reference.generate(prompt, **reference_settings(settings))
    check_rows(out.tokens, expected.sequences[:, 11:].cpu())


@pytest.mark.parametrize("loop", ["plain", "fast"])
def test_rows_with_seeds_of_their_own_get_what_they_get_alone(loop: Any) -> None:
    model, _ = models("long-window")
    alone = Model(model.network, SETTINGS, loop=loop)
    prompt = ids(4, 9).cuda()
    together = alone.generate(prompt, seed=[3, 1, 4, 1])
    for row, seed in enumerate((3, 1, 4, 1)):
        assert together.tokens[row] == alone.generate(prompt[row, None], seed=[seed]).tokens[0]


def test_the_small_model_solves() -> None:
    model = load(device="cuda")
    assert model.answer(PUZZLE) == SOLUTION
    assert model.answer([PUZZLE, "Write 42 in words."]) == [SOLUTION, "forty-two"]


def test_left_to_right_writes_what_the_processor_writes() -> None:
    models = (load(device="cuda"), load(kernels="reference"))
    prompt = ids(1, 12)
    first, second = (
        one.generate(prompt, max_new_tokens=40, mode="autoregressive") for one in models
    )
    assert first.tokens == second.tokens


@pytest.mark.parametrize("int8", [False, True])
def test_what_is_quantised_is_decoded(tmp_path: Path, int8: bool) -> None:
    quantise_checkpoint(SMALL_FOLDER, tmp_path / "q", int8_embedding=int8)
    prompt = ids(1, 20)
    found: list[Tensor] = []
    for device in ("cpu", "cuda"):
        model = load(tmp_path / "q", dtype="float32", device=device)
        canvas = ids(1, model.config.canvas_length, 1)
        found.append(model.denoise(canvas, model.encode(prompt)).cpu())
    close(found[1], found[0], 1e-4)


@pytest.mark.parametrize("counts", [[5, 0, 3, 8], [0, 0, 1, 0], [300, 0, 1, 17]])
def test_one_product_equals_one_a_group(counts: list[int]) -> None:
    generator = torch.Generator("cuda").manual_seed(sum(counts))
    ends = torch.tensor(counts, device="cuda").cumsum(0)
    rows = torch.randn(sum(counts), 64, generator=generator, device="cuda").bfloat16()
    weight = torch.randn(4, 48, 64, generator=generator, device="cuda").bfloat16()
    assert _in_one_product(rows, weight)
    found = grouped_linear(rows, weight, ends)
    start = 0
    for group, end in enumerate(ends.tolist()):
        expected = rows[start:end].double() @ weight[group].double().t()
        torch.testing.assert_close(found[start:end].double(), expected, rtol=2**-8, atol=1e-2)
        start = end
    assert not _in_one_product(rows.float(), weight.float())
    assert not _in_one_product(rows[:, 1:], weight[:, :, 1:])


def test_bench_times_it() -> None:
    plan = ["--context", "32", "--repeats", "2", "--seconds", "0", "--prompt", "32"]
    command = [sys.executable, "-m", "sfumato.cli", "bench", "--shape", "small", "--device", "cuda"]
    done = subprocess.run([*command, "--json", *plan], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert torch.cuda.get_device_name() in report["machine"]["device"]
    assert all(result["peak_bytes"] > 0 for result in report["results"])
