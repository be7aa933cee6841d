"""The fused step against the plain one, and against itself without kernels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sfumato.api import load
from sfumato.config.generation import GenerationConfig
from sfumato.diffusion.events import Generation
from sfumato.diffusion.loop import generate
from sfumato.diffusion.samplers import draws_for
from sfumato.diffusion.steps import PLAIN, FusedSteps, Steps
from sfumato.errors import CheckpointError, InputError
from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.model.kernels import use_kernels
from sfumato.ops.kernels import Kernels, choose, instruction_sets
from sfumato.text.chat import Message
from tests.helpers import Shape, randomise, tiny_config

USABLE = [Kernels(name) for name, usable in instruction_sets() if usable]
SETTINGS = GenerationConfig(
    max_new_tokens=40, max_denoising_steps=12, entropy_bound=8.0, eos_token_id=(1,)
)


def _network(seed: int) -> DiffusionGemma:
    net = DiffusionGemma(tiny_config(Shape(expert_width=32))).eval()
    randomise(net, seed)
    return net


def _ids(net: DiffusionGemma, rows: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows + length)
    return torch.randint(5, net.config.text.vocab_size - 5, (rows, length), generator=generator)


@pytest.mark.parametrize("kernels", [None, *USABLE], ids=str)
def test_a_fused_step_finds_what_a_plain_one_finds(kernels: Kernels | None) -> None:
    net = _network(1)
    ids, temperature = _ids(net, 2, 9), torch.tensor(0.7)
    with torch.inference_mode():
        canvas = _ids(net, 2, net.config.canvas_length)
        draws = draws_for(0, net.device)
        plain = PLAIN.take(net, canvas, net.encode(ids), temperature, None, draws)
        soft = net.soft_embeddings(plain.believed(None))
        use_kernels(net, kernels)
        fused = FusedSteps().take(net, canvas, net.encode(ids), temperature, None, draws)
        assert torch.equal(plain.argmax, fused.argmax)
        asked = torch.stack([plain.argmax, canvas], dim=-1)
        found, expected = fused.log_probabilities(asked), plain.log_probabilities(asked)
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-4)
        assert bool((expected[..., 0] >= expected[..., 1]).all())
        for step in (plain, fused):
            with pytest.raises(InputError, match="vocabulary"):
                step.log_probabilities(asked - 1000)
        torch.testing.assert_close(plain.entropies, fused.entropies, rtol=1e-4, atol=1e-4)
        # Terms below e^-10 of the largest are left out: of 97 ids at most 0.4 % of the whole.
        believed = fused.believed(None)
        torch.testing.assert_close(believed, soft, rtol=5e-3, atol=5e-3 * float(soft.abs().max()))
        rows = torch.tensor([False, True])
        assert torch.equal(fused.believed(rows), believed[1:]) or kernels is None
        torch.testing.assert_close(fused.believed(rows), believed[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_are_of_the_very_distribution(dtype: torch.dtype) -> None:
    """What is told to the next step is rounded to the network's dtype; this is not."""
    net = _network(3).to(dtype)
    temperature = torch.tensor(0.7)
    with torch.inference_mode():
        canvas, cache = _ids(net, 2, net.config.canvas_length), net.encode(_ids(net, 2, 9))
        step = PLAIN.take(net, canvas, cache, temperature, None, draws_for(0, net.device))
        exact = torch.log_softmax(net.denoise(canvas, cache) / temperature, dim=-1)
        asked = exact.argsort(dim=-1)[..., ::9]
        assert torch.equal(step.log_probabilities(asked), exact.gather(-1, asked))
        assert step.believed(None).dtype == dtype


def _generated(net: DiffusionGemma, ids: Tensor, seed: int | list[int], steps: Steps) -> Generation:
    with torch.inference_mode():
        return generate(net, net.encode(ids), SETTINGS, draws_for(seed, net.device), steps=steps)


@pytest.mark.parametrize("kernels", USABLE, ids=str)
def test_with_kernels_and_without_the_same_tokens_come(kernels: Kernels) -> None:
    """With the model that ships: a random network multiplies each rounding at every step."""
    model = load()
    net = model.network
    prompts = ("Date: 5 May 1999", "In digits: forty-two", "What's 3 kg in grams?")
    rows = [model.chat.render([Message("user", prompt)]) for prompt in prompts]
    for seed, row in enumerate(rows):
        found = []
        for own in (None, kernels):
            use_kernels(net, own)
            found.append(_generated(net, torch.tensor([row]), seed, FusedSteps()))
        assert found[0].tokens == found[1].tokens
        assert found[0].stats.steps == found[1].stats.steps


@pytest.mark.parametrize("steps", [PLAIN, FusedSteps()], ids=["plain", "fused"])
@pytest.mark.parametrize("kernels", USABLE, ids=str)
def test_a_row_gets_with_kernels_what_it_gets_alone(kernels: Kernels, steps: Steps) -> None:
    net = _network(4)
    use_kernels(net, kernels)
    ids = _ids(net, 3, 15)
    together = _generated(net, ids, [7, 8, 9], steps)
    for row in range(3):
        alone = _generated(net, ids[row : row + 1], [7 + row], steps)
        assert together.tokens[row] == alone.tokens[0]
        assert together.stats.steps[row] == alone.stats.steps[0]


def test_kernels_can_be_given_back() -> None:
    net = _network(5)
    ids = _ids(net, 1, 8)
    with torch.inference_mode():
        canvas = _ids(net, 1, net.config.canvas_length)
        before = net.denoise(canvas, net.encode(ids))
        assert use_kernels(net, choose()) == {}
        use_kernels(net, None)
        assert torch.equal(net.denoise(canvas, net.encode(ids)), before)


def test_what_no_kernel_serves_is_named() -> None:
    if not USABLE:
        pytest.skip("no kernels")
    net = DiffusionGemma(tiny_config(Shape(expert_width=24))).eval()
    refused = use_kernels(net, USABLE[0])
    assert set(refused) == {f"layers.{index}.experts" for index in range(3)}
    assert "16s" in refused["layers.0.experts"]


@pytest.mark.parametrize("kernels", [None, *USABLE], ids=str)
def test_weights_that_are_no_numbers_are_told(kernels: Kernels | None) -> None:
    net = _network(6)
    with torch.no_grad():
        net.model.decoder.norm.weight[0] = float("nan")
    use_kernels(net, kernels)
    for steps in (PLAIN, FusedSteps()):
        with pytest.raises(CheckpointError, match="NaN or infinity"):
            _generated(net, _ids(net, 1, 8), 0, steps)


@pytest.mark.parametrize("kernels", USABLE, ids=str)
def test_new_weights_reach_the_kernels(kernels: Kernels) -> None:
    net, other = _network(7).bfloat16(), _network(8).bfloat16()
    use_kernels(net, kernels)
    use_kernels(other, kernels)
    ids = _ids(net, 1, 8)
    with torch.inference_mode():
        canvas = _ids(net, 1, net.config.canvas_length)
        expected = other.denoise(canvas, other.encode(ids))
        for assign in (False, True):
            fresh = _network(9).bfloat16()
            use_kernels(fresh, kernels)
            fresh.load_state_dict(other.state_dict(), assign=assign)
            assert torch.equal(fresh.denoise(canvas, fresh.encode(ids)), expected)


@pytest.mark.parametrize("kernels", USABLE, ids=str)
def test_gradients_are_refused_not_cut(kernels: Kernels) -> None:
    net = _network(10)
    use_kernels(net, kernels)
    with pytest.raises(InputError, match="no gradients"):
        net.encode_hidden(_ids(net, 1, 8))


@pytest.mark.parametrize("kernels", USABLE, ids=str)
def test_derived_keys_have_the_bits_of_kept_ones(kernels: Kernels) -> None:
    net = _network(11)
    use_kernels(net, kernels)
    ids, found = _ids(net, 2, 40), []
    with torch.inference_mode():
        canvas = _ids(net, 2, net.config.canvas_length)
        for most in (1 << 28, 0):
            net.derived_bytes = most
            cache = net.encode(ids[:, 30:], net.encode(ids[:, :30]))
            found.append(net.denoise(canvas, cache))
    assert torch.equal(*found)


def test_an_unknown_loop_is_refused() -> None:
    model = load()
    with pytest.raises(InputError, match="'quick'"):
        replace(model, loop="quick")  # type: ignore[arg-type]
