"""Counting parameters: the released figures, and agreement with a network that exists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sfumato.config.parse import parse_config
from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.weights.inventory import Inventory, take_inventory
from tests.helpers import Shape, tiny_config

RELEASED = Path(__file__).parents[1] / "data" / "released_config.json"


@pytest.fixture(scope="module")
def released() -> Inventory:
    return take_inventory(parse_config(json.loads(RELEASED.read_text())))


def test_the_released_model_is_25_2_b_of_which_3_8_b_are_active(released: Inventory) -> None:
    assert f"{released.total / 1e9:.1f} B" == "25.2 B"
    assert f"{released.active / 1e9:.1f} B" == "3.8 B"


def test_the_released_files_agree_to_the_byte(released: Inventory) -> None:
    assert released.tensors == 1047
    headers = 51_647_701_024 - released.bytes_bfloat16
    assert 100 < headers / released.tensors < 200  # what is left is the header's text
    assert released.bytes_float32 == 2 * released.bytes_bfloat16
    assert 15e9 < released.bytes_nvfp4 < 17e9


@pytest.mark.parametrize("vision", [False, True])
def test_the_parts_sum_to_what_a_network_holds(vision: bool) -> None:
    config = tiny_config(Shape(vision=vision, experts=8, top_k=2))
    network = DiffusionGemma(config)
    found = take_inventory(config)
    state = network.state_dict()
    assert found.tensors == len(state)
    assert found.all == sum(tensor.numel() for tensor in state.values())
    parts = (
        found.embedding
        + found.attention
        + found.dense_mlp
        + found.experts
        + found.router
        + found.norms_and_scalars
    )
    assert parts == found.total
    assert found.total - found.active == found.experts * 6 // 8
    assert bool(found.vision) == vision
