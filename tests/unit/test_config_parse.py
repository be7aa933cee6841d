"""config.json: both spellings, and every way a file can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.config.model import LayerConfig, ModelConfig, RopeConfig, TextConfig, VisionConfig
from sfumato.config.parse import load_config, parse_config
from sfumato.config.write import to_json
from sfumato.errors import ConfigError, SfumatoError
from tests.unit.checkpoint_files import config_fields, text_fields, vision_fields

RELEASED = Path(__file__).parents[1] / "data" / "released_config.json"


def parsed(**text: Any) -> ModelConfig:
    return parse_config(config_fields(text_config=text_fields(**text)))


def refusal(data: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def text_refusal(**text: Any) -> str:
    return refusal(config_fields(text_config=text_fields(**text)))


def test_the_released_configuration() -> None:
    config = parse_config(json.loads(RELEASED.read_text()))
    text = config.text
    full = [index for index, layer in enumerate(text.layers) if not layer.is_sliding]
    assert full == [5, 11, 17, 23, 29]
    assert text.layers[0] == LayerConfig("sliding_attention", 256, 8)
    assert text.layers[5] == LayerConfig("full_attention", 512, 2)
    assert (text.num_experts, text.top_k_experts, text.sliding_window) == (128, 8, 1024)
    assert text.rope_full == RopeConfig(1e6, 0.25, "proportional")
    assert text.bidirectional_images
    assert config.vision is not None
    assert config.vision.standardize
    assert (config.canvas_length, config.dtype) == (256, "bfloat16")


def test_both_spellings_of_the_full_layers_mean_the_same() -> None:
    old = parsed(global_head_dim=16, num_global_key_value_heads=1)
    new = parsed(per_layer_config={"2": {"head_dim": 16, "num_key_value_heads": 1}})
    padded = parsed(per_layer_config={"02": {"head_dim": 16, "num_key_value_heads": 1}})
    both = parsed(
        global_head_dim=16,
        num_global_key_value_heads=1,
        per_layer_config={"2": {"head_dim": 16, "num_key_value_heads": 1}},
    )
    assert old == new == padded == both
    assert old.text.layers[2] == LayerConfig("full_attention", 16, 1)


def test_what_the_reference_assumes_when_a_file_leaves_it_out() -> None:
    config = parsed()
    assert config.text.layers[2] == LayerConfig("full_attention", 512, 2)
    assert config.text.max_position_embeddings == 131_072
    assert config.text.final_logit_softcapping == 30.0
    assert not config.text.bidirectional_images
    assert (config.canvas_length, config.image_token_id) == (256, 258_880)
    assert config.vision is None
    assert parsed(per_layer_config={}).text.layers[2].head_dim == 8


def test_layers_without_layer_types_are_five_sliding_and_a_full_one() -> None:
    fields = text_fields(num_hidden_layers=14)
    del fields["layer_types"]
    layers = parse_config(config_fields(text_config=fields)).text.layers
    assert [i for i, layer in enumerate(layers) if not layer.is_sliding] == [5, 11, 13]


def test_implied_switches_may_be_spelled_out() -> None:
    assert parsed(attention_k_eq_v=True, enable_moe_block=True, num_kv_shared_layers=0) == parsed()


def test_null_is_absent_and_ids_may_be_none() -> None:
    config = parse_config(
        config_fields(vision_config=None, quantization_config=None, image_token_id=None, dtype=None)
    )
    assert config.vision is None
    assert config.image_token_id is None
    assert parsed(bos_token_id=None, eos_token_id=None).text.eos_token_id == ()
    assert parsed(eos_token_id=[1, 63]).text.eos_token_id == (1, 63)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attention_k_eq_v": False}, "attention_k_eq_v is unsupported"),
        ({"enable_moe_block": False}, "enable_moe_block is unsupported"),
        ({"attention_bias": True}, "attention_bias is unsupported"),
        ({"num_kv_shared_layers": 2}, "num_kv_shared_layers is unsupported"),
        ({"hidden_size_per_layer_input": 256}, "hidden_size_per_layer_input is unsupported"),
        ({"attention_dropout": 0.1}, "attention_dropout is unsupported"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention is unsupported"),
        ({"hidden_activation": "silu"}, "hidden_activation is unsupported"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is unsupported"),
        ({"use_double_wide_mlp": True}, "use_double_wide_mlp is unsupported"),
        ({"final_logit_softcapping": None}, "final_logit_softcapping is unsupported"),
        ({"model_type": "gemma4_text"}, "text_config.model_type is unsupported"),
        ({"auto_map": {"AutoModel": "x.M"}}, "text_config.auto_map asks for Python code"),
        ({"quantization_config": {"format": "nvfp4-pack-quantized"}}, "nvfp4-pack-quantized"),
        ({"per_layer_config": {"2": {"skip": ["mlp"]}}}, "per_layer_config.2.skip is unsupported"),
    ],
)
def test_variants_of_gemma_that_are_not_built(change: dict[str, Any], words: str) -> None:
    assert words in text_refusal(**change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer_types": ["full_attention"]}, "has 1 entries for 3 layers"),
        ({"layer_types": ["full_attention"] * 2 + ["mamba"]}, "layer_types[2] is 'mamba'"),
        ({"layer_types": ["full_attention"] * 2 + ["sliding_attention"]}, "must end with"),
        ({"layer_types": "full_attention"}, "must be a list"),
        ({"layer_types": [[], {}, "full_attention"]}, "layer_types[0]"),
        ({"num_attention_heads": 3}, "not a multiple of the 2 key-value heads of layer 0"),
        ({"top_k_experts": 5}, "more than the 4 experts"),
        ({"head_dim": 7}, "layer 0 is odd"),
        ({"global_head_dim": 9}, "layer 2 is odd"),
        ({"sliding_window": 0}, "sliding_window must be between 1"),
        ({"vocab_size": 2**40}, "vocab_size must be between 1"),
        ({"hidden_size": 10**400}, "an integer of more than 20 digits"),
        ({"hidden_size": True}, "must be an integer, not true"),
        ({"hidden_size": 32.0}, "must be an integer, not a number"),
        ({"hidden_size": "32"}, "must be an integer, not a string"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be above 0"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps must be above 0"),
        ({"final_logit_softcapping": float("inf")}, "final_logit_softcapping must be above 0"),
        ({"pad_token_id": 64}, "outside the vocabulary of 64"),
        ({"pad_token_id": -1}, "pad_token_id must be between 0"),
        ({"eos_token_id": [1, 64]}, "eos_token_id holds 64, outside the vocabulary of 64"),
        ({"eos_token_id": [1, "2"]}, "eos_token_id must hold integers"),
        ({"per_layer_config": {"3": {"head_dim": 8}}}, "3 is no layer: there are 0 to 2"),
        ({"per_layer_config": {"-1": {"head_dim": 8}}}, "-1 is no layer"),
        ({"per_layer_config": {"\u0662": {"head_dim": 8}}}, "is no layer"),
        ({"per_layer_config": {"02": {}, "2": {}}}, "per_layer_config.2 is the same layer as 02"),
        ({"per_layer_config": {"2": None}}, "per_layer_config.2 is missing"),
        ({"per_layer_config": {"2": {"sliding_window": 8}}}, "per_layer_config.2.sliding_window"),
        ({"per_layer_config": {"2": 8}}, "must be an object, not an integer"),
        ({"per_layer_config": {"0": {"head_dim": 16}}}, "makes layers 0 and 1 differ"),
        ({"per_layer_config": {"2": {"head_dim": 16}}, "global_head_dim": 32}, "is 32, but"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "sliding_attention is miss"),
        ({"rope_theta": 1e4}, "unknown field text_config.rope_theta"),
        ({"sliding_windw": 1}, "did you mean text_config.sliding_window?"),
    ],
)
def test_contradictions_and_wrong_types(change: dict[str, Any], words: str) -> None:
    message = text_refusal(**change)
    assert words in message
    assert message.startswith("config.json: ")


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        ({"rope_theta": -1.0}, "rope_theta must be above 0"),
        ({}, "rope_theta is missing"),
        ({"rope_theta": 1e4, "rope_type": "yarn"}, "rope_type is unsupported"),
        ({"rope_theta": 1e4, "factor": 8.0}, "factor is unsupported"),
        ({"rope_theta": 1e4, "partial_rotary_factor": 0.5}, "partial_rotary_factor is unsupported"),
        ({"rope_theta": 1e4, "beta_fast": 1}, "unknown field"),
    ],
)
def test_rotary_parameters(rope: dict[str, Any], words: str) -> None:
    other = {"rope_theta": 1e6, "rope_type": "proportional", "partial_rotary_factor": 0.25}
    both = {"sliding_attention": rope, "full_attention": other}
    assert words in text_refusal(rope_parameters=both)


@pytest.mark.parametrize(
    "name", [name for name in text_fields() if name not in ("model_type", "layer_types")]
)
def test_a_missing_size_is_named(name: str) -> None:
    fields = text_fields()
    del fields[name]
    assert f"text_config.{name} is missing" in refusal(config_fields(text_config=fields))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gemma4"}, "not 'diffusion_gemma'"),
        ({"model_type": None}, "model_type is missing"),
        ({"text_config": None}, "text_config is missing"),
        ({"text_config": []}, "text_config must be an object, not a list"),
        ({"auto_map": {}}, "auto_map asks for Python code"),
        ({"custom_pipelines": {"x": {}}}, "custom_pipelines asks for Python code"),
        ({"architectures": ["Evil"]}, "architectures is unsupported"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is unsupported"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is unsupported"),
        ({"audio_config": {}}, "audio_config is unsupported"),
        ({"quantization_config": {"quant_method": "fp8"}}, "not supported yet (format 'fp8')"),
        ({"canvas_length": 0}, "canvas_length must be between 1"),
        ({"canvas_length": 200_000}, "longer than the context"),
        ({"self_conditioning_size": 7}, "self_conditioning_size is unsupported"),
        ({"dtype": "int8"}, "dtype is unsupported"),
        ({"dtype": "float32", "torch_dtype": "bfloat16"}, "dtype is 'float32' and torch_dtype"),
        ({"surprise": 1, "another": 2}, "unknown fields another, surprise"),
    ],
)
def test_the_top_of_the_file(change: dict[str, Any], words: str) -> None:
    assert words in refusal(config_fields(**change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "siglip"}, "vision_config.model_type is unsupported"),
        ({"num_key_value_heads": 3}, "does not divide 4"),
        ({"head_dim": 6}, "multiple of 4"),
        ({"standardize": "yes"}, "standardize must be true or false"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is unsupported"),
        ({"image_size": 224}, "unknown field vision_config.image_size"),
        ({"hidden_size": None}, "vision_config.hidden_size is missing"),
    ],
)
def test_the_vision_tower(change: dict[str, Any], words: str) -> None:
    assert words in refusal(config_fields(vision_config=vision_fields(**change)))


def test_older_vision_files_call_the_axial_rotation_default() -> None:
    old = vision_fields(
        rope_parameters={"rope_type": "default", "rope_theta": 50.0},
        default_output_length=280,
        global_head_dim=8,
    )
    vision = parse_config(config_fields(vision_config=old)).vision
    assert vision is not None
    assert (vision.rope_theta, vision.patch_size, vision.standardize) == (50.0, 16, False)


def test_fields_that_change_nothing_are_accepted() -> None:
    harmless = {"transformers_version": "5.8.0", "initializer_range": 0.02, "use_cache": True}
    noisy = config_fields(
        **harmless, torch_dtype="bfloat16", _name_or_path="x", video_token_id=258_884
    )
    noisy["text_config"] = text_fields(**harmless, dtype="bfloat16")
    assert parse_config(noisy) == parse_config(config_fields())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "not valid JSON"),
        (b"[1]", "a JSON object was expected, not a list"),
        (b'{"model_type": "a", "model_type": "b"}', "the key 'model_type' is there twice"),
        (b'{"text_config": {"rms_norm_eps": NaN}}', "NaN is not a JSON number"),
        (b'{"x": ' + b"[" * 200_000, "nested too deeply"),
        (b'{"x": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b" " * (16 * 1024 * 1024 + 1), "longer than 16,777,216 bytes"),
    ],
)
def test_damaged_files(tmp_path: Path, text: bytes, words: str) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ConfigError, match=r"config\.json") as caught:
        load_config(tmp_path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there_or_not_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ConfigError, match="not a regular file"):
        load_config(tmp_path)


def test_checkpoints_quantised_otherwise_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_fields()))
    (tmp_path / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    with pytest.raises(ConfigError, match=r"not supported yet \(format 'FP8'\)"):
        load_config(tmp_path)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True)
    | st.text(max_size=5)
    | st.sampled_from(["vision", "full_attention", 2**31, 10**400, -1]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.sampled_from(sorted(text_fields())), JSON_VALUES)
def test_no_value_of_any_field_escapes_as_another_error(name: str, value: Any) -> None:
    try:
        parse_config(config_fields(text_config=text_fields(**{name: value})))
    except SfumatoError as problem:
        assert str(problem).isprintable()  # noqa: PT017 - either outcome is right


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """Any configuration the released family's files can say."""
    sizes = st.integers(1, 1 << 16)
    groups, heads = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    sliding = LayerConfig("sliding_attention", 2 * draw(st.integers(1, 64)), heads)
    full = LayerConfig("full_attention", 2 * draw(st.integers(1, 64)), heads * groups)
    kinds = draw(st.lists(st.sampled_from([sliding, full]), max_size=6))
    experts = draw(sizes)
    vocabulary = draw(st.integers(1, 1 << 24))
    thetas = st.floats(1.0, 1e9)
    partial = draw(st.floats(0.01, 1.0))
    text = TextConfig(
        vocab_size=vocabulary,
        hidden_size=draw(sizes),
        intermediate_size=draw(sizes),
        num_attention_heads=heads * groups,
        layers=(*kinds, full),
        sliding_window=draw(sizes),
        num_experts=experts,
        top_k_experts=draw(st.integers(1, experts)),
        moe_intermediate_size=draw(sizes),
        rope_sliding=RopeConfig(draw(thetas)),
        rope_full=RopeConfig(draw(thetas), partial, "proportional"),
        max_position_embeddings=draw(st.integers(256, 1 << 20)),
        rms_norm_eps=draw(st.floats(1e-12, 1e-2)),
        final_logit_softcapping=draw(st.floats(0.5, 1e3)),
        bidirectional_images=draw(st.booleans()),
        pad_token_id=draw(st.sampled_from([None, 0])),
        bos_token_id=draw(st.none() | st.integers(0, 300_000)),
        eos_token_id=tuple(draw(st.lists(st.integers(0, vocabulary - 1), max_size=3))),
    )
    vision = draw(
        st.none()
        | st.builds(
            VisionConfig,
            hidden_size=sizes,
            intermediate_size=sizes,
            num_hidden_layers=st.integers(1, 40),
            num_attention_heads=st.just(4),
            num_key_value_heads=st.sampled_from([1, 2, 4]),
            head_dim=st.sampled_from([4, 8, 72]),
            patch_size=st.integers(1, 32),
            standardize=st.booleans(),
            use_clipped_linears=st.booleans(),
            rope_theta=thetas,
        )
    )
    return ModelConfig(
        text=text,
        vision=vision,
        canvas_length=draw(st.integers(1, 256)),
        image_token_id=draw(st.none() | st.integers(0, 300_000)),
        dtype=draw(st.sampled_from(["bfloat16", "float32", "float16"])),
    )


@given(configs())
def test_writing_and_reading_gives_the_configuration_again(config: ModelConfig) -> None:
    assert parse_config(json.loads(json.dumps(to_json(config)))) == config
