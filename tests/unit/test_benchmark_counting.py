"""What the passes cost on paper: the released shape's table, laws of the counts, a loop's count."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.benchmark import counting
from sfumato.benchmark.counting import Work, denoise_work, encode_work, experts_hit, total
from sfumato.benchmark.shapes import default_dtype, named_shape
from sfumato.config.model import LayerConfig, ModelConfig
from sfumato.config.parse import parse_config
from sfumato.errors import UsageError
from sfumato.weights.inventory import take_inventory
from tests.helpers import Shape, tiny_config
from tests.unit.source_tree import ROOT

RELEASED = named_shape("released")
TINY = tiny_config(Shape(pattern="SSF", window=8, canvas=12))
GIGA = 1e9


def test_the_released_shape_is_the_released_checkpoint_s() -> None:
    path = ROOT / "tests" / "data" / "released_config.json"
    config = parse_config(json.loads(path.read_text(encoding="utf-8")))
    assert RELEASED.text == config.text
    assert RELEASED.canvas_length == config.canvas_length


@pytest.mark.parametrize(
    ("part", "gflop"),
    [
        (counting.EXPERTS, 731),
        (counting.PROJECTIONS, 568),
        (counting.DENSE_MLP, 274),
        (counting.HEAD, 378),
        (counting.SOFT_EMBEDDINGS, 378),
        (counting.SELF_CONDITIONING, 9),
    ],
)
def test_a_step_of_the_released_shape(part: str, gflop: int) -> None:
    work = denoise_work(RELEASED, 1, 32, dense_soft_embeddings=True)
    assert round(work[part].operations / GIGA) == gflop


def test_four_layers_of_it() -> None:
    config = named_shape("released:4")
    assert "".join("S" if layer.is_sliding else "F" for layer in config.text.layers) == "SSSF"
    work = denoise_work(config, 1, 32, self_conditioning=False)
    head = work.pop(counting.HEAD)
    assert round(total(work).operations / GIGA) == 219
    assert round(head.operations / GIGA) == 378


@pytest.mark.parametrize("config", [RELEASED, TINY], ids=["released", "tiny"])
def test_weights_are_the_inventory_s(config: ModelConfig) -> None:
    inventory = take_inventory(config)
    work = denoise_work(config, 4096, 0)
    counted = {name: round(one.weights) for name, one in work.items() if one.weights}
    assert counted == {
        counting.PROJECTIONS: inventory.attention,
        counting.DENSE_MLP: inventory.dense_mlp,
        counting.EXPERTS: inventory.experts,  # so many rows hit every one
        counting.HEAD: inventory.embedding,
        counting.ROUTER: _router_matrices(config),
        counting.SELF_CONDITIONING: _self_conditioning_matrices(config),
    }


def _router_matrices(config: ModelConfig) -> int:
    return len(config.text.layers) * config.text.hidden_size * config.text.num_experts


def _self_conditioning_matrices(config: ModelConfig) -> int:
    return 3 * config.text.hidden_size * config.text.intermediate_size


def seen_by_encode(layer: LayerConfig, position: int) -> int:
    """Positions that one at `position` looks at, itself included, as the model's masks have it."""
    first = max(0, position - TINY.text.sliding_window + 1) if layer.is_sliding else 0
    return position - first + 1


@given(tokens=st.integers(1, 40), context=st.integers(0, 40), rows=st.integers(1, 3))
def test_attention_of_encode_is_what_the_masks_let_through(
    tokens: int, context: int, rows: int
) -> None:
    expected = 0
    for layer in TINY.text.layers:
        keys = sum(seen_by_encode(layer, context + place) for place in range(tokens))
        expected += rows * 4 * TINY.text.num_attention_heads * layer.head_dim * keys
    found = encode_work(TINY, rows, tokens, context)[counting.ATTENTION]
    assert found.operations == expected
    assert found.weights == 0


@given(context=st.integers(0, 100))
def test_every_position_of_a_canvas_sees_the_canvas_and_the_cache(context: int) -> None:
    expected = 0
    for layer in TINY.text.layers:
        cached = min(context, TINY.text.sliding_window - 1) if layer.is_sliding else context
        keys = 12 * (12 + cached)
        expected += 4 * TINY.text.num_attention_heads * layer.head_dim * keys
    assert denoise_work(TINY, 1, context)[counting.ATTENTION].operations == expected


@given(rows=st.integers(1, 50))
def test_operations_grow_with_the_rows_and_weights_do_not(rows: int) -> None:
    one, many = encode_work(TINY, 1, 7, 3), encode_work(TINY, rows, 7, 3)
    for name in one:
        assert many[name].operations == pytest.approx(rows * one[name].operations)
        assert many[name].cached == rows * one[name].cached
        if name != counting.EXPERTS:
            assert many[name].weights == one[name].weights


@given(rows=st.integers(1, 500), top_k=st.integers(1, 8), more=st.integers(0, 120))
def test_experts_hit_lie_between_those_of_a_row_and_all(rows: int, top_k: int, more: int) -> None:
    experts = top_k + more
    assert top_k * (1 - 1e-9) <= experts_hit(experts, top_k, rows) <= experts
    assert experts_hit(experts, top_k, 1) == pytest.approx(top_k)


def test_a_token_left_to_right_has_the_head_once() -> None:
    work = counting.autoregressive_work(RELEASED, 2, 100)
    assert work[counting.HEAD] == counting.head_work(RELEASED, 2)
    assert counting.HEAD not in encode_work(RELEASED, 2, 1, 100)


def test_the_cache_of_the_released_shape_at_256k() -> None:
    """2.7 GB in the full layers, in bf16, and the windows of the others."""
    config = RELEASED
    full = sum(not layer.is_sliding for layer in config.text.layers) * 2 * 512 * 262_144
    window = sum(layer.is_sliding for layer in config.text.layers) * 2 * 8 * 256 * 1023
    assert counting.cache_values(config, 262_144) == full + window
    assert round(2 * full / GIGA, 1) == 2.7


def test_work_adds_up() -> None:
    assert total({"a": Work(1, 2, 3), "b": Work(10, 20, 30)}) == Work(11, 22, 33)
    assert total({}) == Work()


UNKNOWN = ("", "Small", "released:0", "released:31", "released:-1", "released:4.5", "released:٣")


@pytest.mark.parametrize("name", [*UNKNOWN, "x" * 500, "released:99999999999"])
def test_unknown_shapes_are_refused(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        named_shape(name)
    assert "released:N" in caught.value.hint
    assert len(caught.value.message) < 100


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 29])
def test_cut_shapes_end_in_a_full_layer(count: int) -> None:
    layers = named_shape(f"released:{count}").text.layers
    assert len(layers) == count
    assert not layers[-1].is_sliding


def test_shapes_have_the_dtypes_of_what_they_stand_for() -> None:
    assert default_dtype("small") == "float32"
    assert default_dtype("released:4") == "bfloat16"
    assert named_shape("small").text.vocab_size == 2048
