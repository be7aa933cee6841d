"""What matrices are multiplied with, told while a network computes as always."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from torch import Tensor, nn

from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.model.kernels import use_kernels
from sfumato.model.watch import watching
from sfumato.ops.kernels import choose
from tests.helpers import Shape, randomise, tiny_config

SHAPE = Shape(pattern="SFS", expert_width=32)
BACKENDS = ("reference", "auto")


class Sums:
    """Moments of what is told, and the numbers of rows."""

    def __init__(self) -> None:
        self.moments: dict[tuple[str, int], Tensor] = {}
        self.rows: dict[tuple[str, int], int] = defaultdict(int)

    def note(self, name: str, index: int, rows: Tensor) -> None:
        key, wide = (name, index), rows.double()
        self.moments[key] = self.moments.get(key, 0) + wide.t() @ wide
        self.rows[key] += len(rows)


def network_of(backend: str, seed: int = 0) -> DiffusionGemma:
    network = DiffusionGemma(tiny_config(SHAPE)).eval()
    randomise(network, seed)
    use_kernels(network, choose(backend))
    return network


def ids_of(rows: int, length: int) -> Tensor:
    return torch.randint(0, 90, (rows, length), generator=torch.Generator().manual_seed(length))


@torch.inference_mode()
def a_run(network: DiffusionGemma) -> Tensor:
    cache = network.encode(ids_of(1, 20))
    logits = network.denoise(ids_of(1, 12), cache)
    return network.denoise(ids_of(1, 12), cache, logits)


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_stay_the_same(backend: str) -> None:
    network, sums = network_of(backend), Sums()
    before = a_run(network)
    with watching(network, sums.note):
        assert torch.equal(a_run(network), before)
    told = dict(sums.rows)
    assert torch.equal(a_run(network), before)
    assert sums.rows == told, "nobody looks on any more"


def test_inputs_are_those_of_the_plain_modules() -> None:
    """Kernels beside torch, whose linear maps are watched here by themselves."""
    network, own, sums = network_of("reference"), Sums(), Sums()

    def tell(name: str) -> None:
        module = network.get_submodule(name)
        module.register_forward_pre_hook(lambda _, x: own.note(name, 0, x[0].flatten(0, -2)))

    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and "router" not in name:
            tell(name)
    a_run(network)
    fast = network_of("auto")
    with watching(fast, sums.note):
        a_run(fast)
    for key, wanted in own.moments.items():
        name = key[0].replace("k_proj", "q_proj").replace("v_proj", "q_proj")
        found = (name.replace("up_proj", "gate_proj"), 0)
        assert sums.rows[found] == own.rows[key]
        close(sums.moments[found], wanted)


def close(one: Tensor, other: Tensor) -> None:
    assert float((one - other).abs().max()) <= 1e-4 * float(other.abs().max())


@pytest.mark.parametrize("backend", BACKENDS)
def test_experts_see_the_rows_that_chose_them(backend: str) -> None:
    network, sums = network_of(backend), Sums()
    chosen: list[Tensor] = []
    layer = network.layers[1]
    layer.experts.register_forward_pre_hook(lambda _, x: chosen.append(x[2]))
    with watching(network, sums.note):
        a_run(network)
    stem = "model.decoder.layers.1.experts"
    for expert in range(SHAPE.experts):
        count = sum(int((one == expert).sum()) for one in chosen)
        assert sums.rows[f"{stem}.gate_up_proj", expert] == count
        assert sums.rows[f"{stem}.down_proj", expert] == count
        if count:
            assert sums.moments[f"{stem}.down_proj", expert].shape == (SHAPE.expert_width,) * 2


@torch.inference_mode()
def test_an_experts_way_down_meets_the_gated_values() -> None:
    network, sums = network_of("auto"), Sums()
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    experts = network.layers[0].experts
    experts.register_forward_pre_hook(lambda _, x: rows.append(x))
    with watching(network, sums.note):
        a_run(network)
    for expert in range(SHAPE.experts):
        own = [x[(chosen == expert).any(1)] for x, _, chosen in rows]
        gate, up = (torch.cat(own) @ experts.gate_up_proj[expert].t()).chunk(2, dim=-1)
        active = (nn.functional.gelu(gate, approximate="tanh") * up).double()
        key = ("model.decoder.layers.0.experts.down_proj", expert)
        close(sums.moments[key], active.t() @ active)


@torch.inference_mode()
@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_is_left_out(backend: str) -> None:
    network = network_of(backend)
    together, alone = Sums(), Sums()
    long, short = ids_of(1, 20)[0], ids_of(1, 13)[0]
    ids = torch.stack([long, torch.cat([torch.zeros(7, dtype=torch.long), short])])
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, :7] = False
    with watching(network, together.note):
        network.denoise(ids_of(2, 12), network.encode(ids, attention_mask=mask))
    with watching(network, alone.note):
        for prompt, canvas in zip((long, short), ids_of(2, 12), strict=True):
            network.denoise(canvas[None], network.encode(prompt[None]))
    assert together.rows == alone.rows
    for key, wanted in alone.moments.items():
        close(together.moments[key], wanted)
