"""Descriptions of NVFP4 checkpoints: both dialects read, everything else refused by name."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from sfumato.config.parse import load_config, parse_config
from sfumato.config.quantisation import (
    INT8_GROUP,
    INT8_LAYERS,
    Quantisation,
    load_quantisation,
    parse_quantisation,
)
from sfumato.errors import ConfigError
from tests.unit.checkpoint_files import config_fields
from tests.unit.nvfp4_checkpoints import (
    CACHE,
    COMPRESSED_FIELD,
    KEPT,
    MODELOPT_FIELD,
    MODELOPT_FILE,
    WEIGHTS,
)


def changed(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with the value at a dotted path replaced."""
    whole = copy.deepcopy(data)
    inner = whole
    *parents, last = path.split(".")
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return whole


def write(folder: Path, field: Any = None, file: Any = None) -> Path:
    fields = config_fields() if field is None else config_fields(quantization_config=field)
    (folder / "config.json").write_text(json.dumps(fields))
    if file is not None:
        (folder / "hf_quant_config.json").write_text(json.dumps(file))
    return folder


def test_a_plain_checkpoint(tmp_path: Path) -> None:
    assert load_quantisation(write(tmp_path)) is None


@pytest.mark.parametrize(
    ("field", "file"),
    [(MODELOPT_FIELD, None), (None, MODELOPT_FILE), (MODELOPT_FIELD, MODELOPT_FILE)],
)
def test_modelopt_in_either_place_or_both(tmp_path: Path, field: Any, file: Any) -> None:
    folder = write(tmp_path, field, file)
    assert load_quantisation(folder) == Quantisation("modelopt", tuple(KEPT))
    assert load_config(folder) == parse_config(config_fields())


def test_compressed_tensors(tmp_path: Path) -> None:
    found = load_quantisation(write(tmp_path, COMPRESSED_FIELD))
    assert found == Quantisation("compressed-tensors", tuple(COMPRESSED_FIELD["ignore"]))


def test_the_weight_only_algorithm_and_a_quantised_cache() -> None:
    field = MODELOPT_FIELD | {"quant_algo": "W4A16_NVFP4", "kv_cache_scheme": CACHE}
    assert parse_quantisation(field, "x").kv_cache
    assert parse_quantisation(COMPRESSED_FIELD | {"kv_cache_scheme": CACHE}, "x").kv_cache


def in_8_bits() -> tuple[dict[str, Any], dict[str, Any]]:
    groups = MODELOPT_FIELD["config_groups"] | {"group_1": dict(INT8_GROUP)}
    file = copy.deepcopy(MODELOPT_FILE)
    file["quantization"]["quantized_layers"] = dict(INT8_LAYERS)
    return MODELOPT_FIELD | {"config_groups": groups}, file


def test_an_embedding_in_8_bits(tmp_path: Path) -> None:
    field, file = in_8_bits()
    expected = Quantisation("modelopt", tuple(KEPT), int8_embedding=True)
    assert load_quantisation(write(tmp_path, field, file)) == expected
    for pair in ((field, MODELOPT_FILE), (MODELOPT_FIELD, file)):
        with pytest.raises(ConfigError, match="embedding is in 8 bits"):
            load_quantisation(write(tmp_path, *pair))
    at = "config_groups.group_1.weights"
    for path, value in ((f"{at}.num_bits", 4), (f"{at}.more", 1), (at, None)):
        with pytest.raises(ConfigError, match="weights"):
            load_quantisation(write(tmp_path, changed(field, path, value), file))
    wrong = changed(file, "quantization.quantized_layers", {"lm_head": {"quant_algo": "W8A16"}})
    with pytest.raises(ConfigError, match="quantized_layers is unsupported"):
        load_quantisation(write(tmp_path, field, wrong))


WEIGHTS_AT = "config_groups.group_0.weights"


@pytest.mark.parametrize(
    ("base", "path", "value", "words"),
    [
        (MODELOPT_FIELD, "quant_algo", "FP8", "not supported yet (format 'FP8')"),
        (MODELOPT_FIELD, "quant_algo", None, "not supported yet (format None)"),
        (MODELOPT_FIELD, "quant_method", "awq", "not supported yet (format 'awq')"),
        (MODELOPT_FIELD, "quant_method", None, "not supported yet (format 'NVFP4')"),
        (MODELOPT_FIELD, "group_size", 32, "group_size is unsupported"),
        (MODELOPT_FIELD, "surprise", 1, "unknown field quantization_config.surprise"),
        (MODELOPT_FIELD, "ignore", "lm_head", "ignore must be a list"),
        (MODELOPT_FIELD, "ignore", [3], "ignore must be a list"),
        (MODELOPT_FIELD, "ignore", [""], "none of them empty"),
        (MODELOPT_FIELD, "config_groups", [], "config_groups must be an object"),
        (MODELOPT_FIELD, WEIGHTS_AT + ".num_bits", 8, "num_bits is unsupported"),
        (MODELOPT_FIELD, WEIGHTS_AT + ".type", "int", "type is unsupported"),
        (MODELOPT_FIELD, WEIGHTS_AT + ".group_size", 128, "group_size is unsupported"),
        (MODELOPT_FIELD, WEIGHTS_AT + ".dynamic", True, "dynamic is unsupported"),
        (MODELOPT_FIELD, "kv_cache_scheme", {"num_bits": 4}, "num_bits is unsupported"),
        (MODELOPT_FIELD, "auto_map", {}, "asks for Python code"),
        (COMPRESSED_FIELD, "format", "pack-quantized", "(format 'pack-quantized')"),
        (COMPRESSED_FIELD, "quantization_status", "frozen", "quantization_status is unsupported"),
        (COMPRESSED_FIELD, "transform_config", {"a": 1}, "transform_config is unsupported"),
        (COMPRESSED_FIELD, "sparsity_config", {"a": 1}, "sparsity_config is unsupported"),
        (COMPRESSED_FIELD, "config_groups", {}, "config_groups names no tensors"),
        (COMPRESSED_FIELD, WEIGHTS_AT + ".symmetric", False, "symmetric is unsupported"),
        (COMPRESSED_FIELD, WEIGHTS_AT + ".strategy", "group", "strategy is unsupported"),
        (COMPRESSED_FIELD, WEIGHTS_AT + ".actorder", "group", "actorder is unsupported"),
        (COMPRESSED_FIELD, WEIGHTS_AT + ".scale_dtype", "torch.float16", "scale_dtype is uns"),
        (COMPRESSED_FIELD, WEIGHTS_AT + ".twist", 1, "unknown field"),
        (COMPRESSED_FIELD, WEIGHTS_AT, None, "weights is missing"),
        (
            COMPRESSED_FIELD,
            "config_groups.group_0.output_activations",
            WEIGHTS,
            "output_activations is unsupported",
        ),
        (COMPRESSED_FIELD, "config_groups.group_0.format", "dense", "format is unsupported"),
    ],
)
def test_what_is_refused(base: dict[str, Any], path: str, value: Any, words: str) -> None:
    field = changed(base, path, value)
    with pytest.raises(ConfigError) as caught:
        parse_quantisation(field, "config.json")
    assert words in str(caught.value)
    with pytest.raises(ConfigError):
        parse_config(config_fields(quantization_config=field))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("quantization", None, "quantization is missing"),
        ("surprise", 1, "unknown field surprise"),
        ("quantization.surprise", 1, "unknown field quantization.surprise"),
        ("quantization.quant_algo", "INT4", "(format 'INT4')"),
        ("quantization.group_size", 32, "group_size is unsupported"),
        ("quantization.kv_cache_quant_algo", "NVFP4", "kv_cache_quant_algo is unsupported"),
        ("quantization.exclude_modules", {}, "exclude_modules must be a list"),
    ],
)
def test_modelopts_own_file(tmp_path: Path, path: str, value: Any, words: str) -> None:
    folder = write(tmp_path, None, changed(MODELOPT_FILE, path, value))
    with pytest.raises(ConfigError) as caught:
        load_config(folder)
    assert words in str(caught.value)
    assert "hf_quant_config.json" in str(caught.value)


def test_contradictions(tmp_path: Path) -> None:
    write(tmp_path, COMPRESSED_FIELD, MODELOPT_FILE)
    with pytest.raises(ConfigError, match="is compressed-tensors's, and hf_quant_config"):
        load_config(tmp_path)
    write(tmp_path, MODELOPT_FIELD | {"ignore": [*KEPT, "extra"]}, MODELOPT_FILE)
    with pytest.raises(ConfigError, match="disagree whether 'extra' is quantised"):
        load_config(tmp_path)


def test_which_modules_are_kept() -> None:
    kept = Quantisation("modelopt", ("lm_head", "a.b*", "x.?.y", "re:.*", "[", "q[12]")).keeps()
    assert all(kept(name) for name in ("lm_head", "a.b", "a.bc.d", "x.3.y", "q2"))
    assert not any(kept(name) for name in ("lm_head.x", "a.c", "x.33.y", "q3", "anything"))
